// SPDX-License-Identifier: BSD-2-Clause
#include "lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "log.h"

#define LOCK_DIR  "/run/tproxy"
#define LOCK_FILE LOCK_DIR "/load.lock"

int lock_take(struct failure *f)
{
	int fd _cleanup_fd_ = -1;

	if (mkdir(LOCK_DIR, 0755) && errno != EEXIST)
		return fail(f, -errno, "cannot make %s: %m", LOCK_DIR);
	fd = open(LOCK_FILE, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail(f, -errno, "cannot open the lock file %s: %m", LOCK_FILE);
	if (!flock(fd, LOCK_EX | LOCK_NB))
		return TAKE_FD(fd);
	log_notice("waiting for another tproxy-load, which holds %s", LOCK_FILE);
	while (flock(fd, LOCK_EX))
		if (errno != EINTR)
			return fail(f, -errno, "cannot lock %s: %m", LOCK_FILE);
	return TAKE_FD(fd);
}
