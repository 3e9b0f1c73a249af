// SPDX-License-Identifier: BSD-2-Clause
#include "binary.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <string.h>

#include "log.h"
#include "recover.h"

void binary_cloexec(uint64_t fd_limit, int on)
{
	uint32_t size = recover_fd_table_size(fd_limit);

	for (uint32_t fd = STDERR_FILENO + 1; fd < size; fd++)
		fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0);
}

int binary_path(const char *argv0, char ret_path[PATH_MAX])
{
	char dir[PATH_MAX];
	ssize_t len;

	if (argv0[0] == '/')
		return snprintf(ret_path, PATH_MAX, "%s", argv0) < PATH_MAX ? 0 : -ENAMETOOLONG;
	if (strchr(argv0, '/') && getcwd(dir, sizeof(dir)))
		return snprintf(ret_path, PATH_MAX, "%s/%s", dir, argv0) < PATH_MAX ? 0
										    : -ENAMETOOLONG;
	len = readlink("/proc/self/exe", ret_path, PATH_MAX - 1);
	if (len < 0)
		return -errno;
	ret_path[len] = 0;
	return 0;
}

void binary_become(struct proxy *p, const char *path, char **argv)
{
	char memfd[16];

	snprintf(memfd, sizeof(memfd), "%d", p->shared->memfd);
	setenv(BINARY_ENV_MEMORY, memfd, 1);
	binary_cloexec(p->fd_limit, 0);
	execv(path, argv);
	log_error("cannot become %s: %m; the present binary goes on", path);
	binary_cloexec(p->fd_limit, 1);
	unsetenv(BINARY_ENV_MEMORY);
}

void binary_check(const char *path, char **theirs)
{
	char layout[SHARED_LAYOUT_LEN], **argv;
	sigset_t none;
	size_t argc = 0;

	/* Nothing of ours may be held open by it: a connection would not end while it runs. */
	if (close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_UNSHARE))
		_exit(1);
	while (theirs[argc])
		argc++;
	argv = calloc(argc + 2, sizeof(*argv));
	if (!argv)
		_exit(1);
	argv[0] = theirs[0];
	argv[1] = "--check";
	memcpy(argv + 2, theirs + 1, argc * sizeof(*argv));
	setenv(BINARY_ENV_LAYOUT, shared_layout(layout), 1);
	unsetenv("NOTIFY_SOCKET");
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execv(path, argv);
	log_error("cannot run %s: %m", path);
	_exit(1);
}
