// SPDX-License-Identifier: BSD-2-Clause
#include "cgroup.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define KILL_TIMEOUT_MS 5000

static int open_file(const char *cgroup, const char *name, int flags)
{
	char path[PATH_MAX + 32];

	snprintf(path, sizeof(path), "%s/%s", cgroup, name);
	return open(path, flags | O_CLOEXEC);
}

int cgroup_enter(const char *path)
{
	int fd _cleanup_fd_ = open_file(path, "cgroup.procs", O_WRONLY);

	return fd < 0 || write(fd, "0", 1) != 1 ? -errno : 0;
}

/* Calls fn for each cgroup below, then for the cgroup itself. Returns the first non-zero result. */
static int walk(const char *path, int (*fn)(const char *path, void *user), void *user)
{
	DIR *dir _cleanup_dir_ = opendir(path);
	char child[PATH_MAX];
	struct dirent *e;
	int r;

	while (dir && (e = readdir(dir))) {
		if (e->d_type != DT_DIR || !strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (snprintf(child, sizeof(child), "%s/%s", path, e->d_name) >= (int)sizeof(child))
			return -ENAMETOOLONG;
		r = walk(child, fn, user);
		if (r)
			return r;
	}
	return fn(path, user);
}

struct signalling {
	int signal;
	unsigned int count;
};

static int signal_one(const char *path, void *user)
{
	struct signalling *s = user;
	FILE *file _cleanup_file_ = NULL;
	int fd = open_file(path, "cgroup.procs", O_RDONLY), pid;

	file = fd < 0 ? NULL : fdopen(fd, "re");
	if (!file) {
		fd_close(fd);
		return 0;
	}
	while (fscanf(file, "%d", &pid) == 1)
		if (pid > 0 && !kill(pid, s->signal)) /* 0: a process of another pid namespace */
			s->count++;
	return 0;
}

unsigned int cgroup_signal(const char *path, int signal)
{
	struct signalling s = {.signal = signal};

	walk(path, signal_one, &s);
	return s.count;
}

static int populated(int events)
{
	char text[256], *p;
	ssize_t n = pread(events, text, sizeof(text) - 1, 0);

	if (n < 0)
		return 0; /* ENODEV: removed meanwhile */
	text[n] = 0;
	p = strstr(text, "populated ");
	return p && p[strlen("populated ")] == '1';
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int cgroup_wait_empty(const char *path, int timeout_ms)
{
	int events _cleanup_fd_ = open_file(path, "cgroup.events", O_RDONLY);
	struct pollfd pfd = {.fd = events, .events = POLLPRI};
	int64_t deadline = now_ms() + timeout_ms, left;

	if (events < 0)
		return errno == ENOENT ? 0 : -errno;
	while (populated(events)) {
		left = deadline - now_ms();
		if (left <= 0)
			return -ETIMEDOUT;
		if (poll(&pfd, 1, left) < 0 && errno != EINTR)
			return -errno;
	}
	return 0;
}

static int kill_all(const char *path)
{
	int fd _cleanup_fd_ = open_file(path, "cgroup.kill", O_WRONLY);

	/* cgroup.kill (Linux 5.14) misses nobody; without it a process may fork between two looks.
	 */
	if (fd >= 0 && write(fd, "1", 1) == 1)
		return cgroup_wait_empty(path, KILL_TIMEOUT_MS);
	for (int64_t deadline = now_ms() + KILL_TIMEOUT_MS; now_ms() < deadline;) {
		cgroup_signal(path, SIGKILL);
		if (!cgroup_wait_empty(path, 50))
			return 0;
	}
	return -ETIMEDOUT;
}

int cgroup_kill(const char *path, struct failure *f)
{
	int err = access(path, F_OK) ? 0 : kill_all(path);

	return err ? fail(f, err,
			  "cannot kill the processes in the cgroup %s: %s; see who they are: "
			  "cat %s/cgroup.procs",
			  path, strerror(-err), path)
		   : 0;
}

static int remove_one(const char *path, void *user)
{
	(void)user;
	return rmdir(path) && errno != ENOENT ? -errno : 0;
}

int cgroup_remove(const char *path, struct failure *f)
{
	int err = walk(path, remove_one, NULL);

	return err ? fail(f, err,
			  "cannot remove the cgroup %s: %s; see who is in it: cat "
			  "%s/cgroup.procs",
			  path, strerror(-err), path)
		   : 0;
}
