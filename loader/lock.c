// SPDX-License-Identifier: BSD-2-Clause
#include "lock.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "instance.h"
#include "log.h"

#define LOCK_FILE LOCK_DIR "/load.lock"

/* Ordinary loads take less: only longer waits are worth a word. */
#define PATIENCE_MS 1000
#define LOOK_MS	    20

/* The process that has the lock, from proc_locks(5); 0: not to be seen. */
static int lock_holder(int fd)
{
	FILE *file _cleanup_file_ = fopen("/proc/locks", "re");
	char *line _cleanup_free_ = NULL;
	size_t size = 0;
	struct stat st;

	if (!file || fstat(fd, &st))
		return 0;
	while (getline(&line, &size, file) > 0) {
		uint64_t inode;
		int pid;

		if (sscanf(line, "%*d: FLOCK %*s %*s %d %*x:%*x:%" SCNu64, &pid, &inode) == 2 &&
		    inode == st.st_ino && pid > 0)
			return pid;
	}
	return 0;
}

/* 0: got it, -EAGAIN: not in that time, or another error. */
static int lock_poll(int fd, int timeout_ms)
{
	struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};

	for (int waited = 0; flock(fd, LOCK_EX | LOCK_NB); waited += LOOK_MS) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (waited >= timeout_ms)
			return -EAGAIN;
		nanosleep(&pause, NULL);
	}
	return 0;
}

int lock_take(struct failure *f)
{
	int fd _cleanup_fd_ = -1, err;

	if (mkdir(LOCK_DIR, 0700) && errno != EEXIST)
		return fail(f, -errno, "cannot make %s: %m", LOCK_DIR);
	fd = open(LOCK_FILE, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail(f, -errno, "cannot open the lock file %s: %m", LOCK_FILE);
	err = lock_poll(fd, PATIENCE_MS);
	if (err == -EAGAIN) {
		log_warning("waiting for another tproxy-load (pid %d), which holds %s",
			    lock_holder(fd), LOCK_FILE);
		while ((err = flock(fd, LOCK_EX) ? -errno : 0) == -EINTR)
			;
	}
	return err ? fail(f, err, "cannot lock %s: %s", LOCK_FILE, strerror(-err)) : TAKE_FD(fd);
}
