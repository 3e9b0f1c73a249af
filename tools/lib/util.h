/* SPDX-License-Identifier: BSD-2-Clause */
/* Small things every module uses: scoped cleanup, descriptor ownership, array size. */
#ifndef TPROXY_UTIL_H
#define TPROXY_UTIL_H

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ARRAY_SIZE(a)	   (sizeof(a) / sizeof((a)[0]))
#define _cleanup_(f)	   __attribute__((cleanup(f)))
#define _printf_(fmt, arg) __attribute__((format(printf, fmt, arg)))

/* Closes and forgets; keeps errno. Returns -1, to be assigned to the variable that held the fd. */
static inline int fd_close(int fd)
{
	int saved = errno;

	if (fd >= 0)
		close(fd);
	errno = saved;
	return -1;
}

static inline void cleanup_fd(int *fd)
{
	*fd = fd_close(*fd);
}

static inline void cleanup_mem(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void cleanup_dir(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define _cleanup_fd_   _cleanup_(cleanup_fd)
#define _cleanup_free_ _cleanup_(cleanup_mem)
#define _cleanup_file_ _cleanup_(cleanup_file)
#define _cleanup_dir_  _cleanup_(cleanup_dir)

/* Hands a descriptor over: the variable no longer closes it. */
#define TAKE_FD(fd)                \
	({                         \
		int *fd_ = &(fd);  \
		int taken_ = *fd_; \
		*fd_ = -1;         \
		taken_;            \
	})

#define TAKE_PTR(p)                         \
	({                                  \
		__typeof__(p) *p_ = &(p);   \
		__typeof__(p) taken_ = *p_; \
		*p_ = NULL;                 \
		taken_;                     \
	})

#endif
