// SPDX-License-Identifier: BSD-2-Clause
#include "spawn.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "cgroup.h"
#include "lib/log.h"

#define COMMAND_PATIENCE_MS 1500 /* more than tproxy-load's before it says what it waits for */

/* No terminal, no input, no output but stderr, and none of the descriptors the user gave the
 * command. */
static void detach(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	setsid();
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC); /* Linux 5.11; best effort */
}

/* Only what cannot be done from outside; the image is replaced at its end. */
static void __attribute__((noreturn)) in_child(const struct spawn *how, pid_t parent)
{
	int err;

	if (how->dies_with_us) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent) /* ended before it was set */
			_exit(EXIT_CANNOT_EXECUTE);
	}
	err = how->cgroup ? cgroup_enter(how->cgroup) : 0;
	if (err) {
		log_error("cannot enter the cgroup %s: %s", how->cgroup, strerror(-err));
		_exit(EXIT_CANNOT_EXECUTE);
	}
	if (how->detached)
		detach();
	if (how->stderr_fd >= 0)
		dup2(how->stderr_fd, STDERR_FILENO);
	if (how->notify)
		setenv("NOTIFY_SOCKET", how->notify, 1);
	if (how->mask)
		sigprocmask(SIG_SETMASK, how->mask, NULL);
	execvp(how->argv[0], how->argv);
	err = errno;
	log_error("cannot execute %s: %s", how->argv[0], strerror(err));
	_exit(err == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE);
}

int child_start(const struct spawn *how, struct child *ret, struct failure *f)
{
	pid_t self = getpid(), pid = fork();

	if (!pid)
		in_child(how, self);
	if (pid < 0)
		return fail(f, -errno, "cannot start %s: %m", how->argv[0]);
	ret->pid = pid;
	ret->pidfd = pidfd_open(pid, 0); /* CLOEXEC always */
	if (ret->pidfd < 0) {
		int err = -errno;

		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return fail(f, err, "cannot watch %s: %s", how->argv[0], strerror(-err));
	}
	return 0;
}

int child_wait(struct child *child)
{
	int status;

	while (waitpid(child->pid, &status, 0) < 0)
		if (errno != EINTR)
			return EXIT_CANNOT_EXECUTE;
	child->pid = 0;
	child->pidfd = fd_close(child->pidfd);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

char *program_find(const char *name, char buf[PATH_MAX])
{
	ssize_t n = readlink("/proc/self/exe", buf, PATH_MAX - 1);
	char *slash;

	buf[n < 0 ? 0 : n] = 0;
	slash = strrchr(buf, '/');
	if (slash && (size_t)(slash - buf) + strlen(name) + 2 <= PATH_MAX) {
		strcpy(slash + 1, name);
		if (!access(buf, X_OK))
			return buf;
	}
	snprintf(buf, PATH_MAX, "%s", name);
	return buf;
}

/* Reads until the end, of which output keeps the beginning; or until deadline and signals. */
static int output_read(int reader, const struct caller *caller, char *output, size_t size)
{
	struct pollfd fds[] = {{.fd = reader, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
	int patience = COMMAND_PATIENCE_MS;
	size_t used = 0;
	char rest[512];

	for (;;) {
		bool full = used >= size - 1;
		ssize_t n = poll(fds, ARRAY_SIZE(fds), patience);

		output[used] = 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (!n) { /* from now on it may be stopped, and it has said what it waits for */
			patience = -1;
			fds[1].fd = caller->signals;
			if (!caller->quiet)
				log_notice("waiting for tproxy-load to end%s%.*s", used ? ": " : "",
					   (int)strcspn(output, "\n"), output);
		}
		if (n > 0 && fds[1].revents)
			return -EINTR;
		if (n <= 0 || !fds[0].revents)
			continue;
		n = read(reader, full ? rest : output + used,
			 full ? sizeof(rest) : size - 1 - used);
		if (n <= 0)
			return 0;
		used += full ? 0 : n;
	}
}

int command_run(char *const *argv, const struct caller *caller, char *output, size_t size,
		struct failure *f)
{
	struct spawn how = {.argv = argv, .mask = caller->mask, .detached = 1, .dies_with_us = 1};
	int reader _cleanup_fd_ = -1, writer _cleanup_fd_ = -1, pipefd[2], err;
	struct child child = CHILD_INIT;
	char *last;

	if (pipe2(pipefd, O_CLOEXEC))
		return fail(f, -errno, "cannot make a pipe: %m");
	reader = pipefd[0];
	writer = pipefd[1];
	how.stderr_fd = writer;
	err = child_start(&how, &child, f);
	if (err)
		return err;
	writer = fd_close(writer);
	err = output_read(reader, caller, output, size);
	if (err) {
		kill(child.pid, SIGTERM);
		child_wait(&child);
		return fail(f, err, "stopped while %s was running", argv[0]);
	}
	/* What it said while it waited comes before what it ended with. */
	if (*output && output[strlen(output) - 1] == '\n')
		output[strlen(output) - 1] = 0;
	last = strrchr(output, '\n');
	if (last)
		memmove(output, last + 1, strlen(last));
	return child_wait(&child);
}
