/* SPDX-License-Identifier: BSD-2-Clause */
/* Child processes: started inside a cgroup, watched through a pidfd, gone when we are. */
#ifndef TPROXY_SPAWN_H
#define TPROXY_SPAWN_H

#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

#include "lib/failure.h"

struct child {
	pid_t pid;
	int pidfd; /* readable once it has ended */
};

#define CHILD_INIT          \
	{                   \
		.pidfd = -1 \
	}

struct spawn {
	char *const *argv;
	const char *cgroup;   /* absolute path; NULL: ours */
	const char *notify;   /* value of NOTIFY_SOCKET; NULL: as it is */
	const sigset_t *mask; /* signals to have blocked; NULL: as it is */
	int stderr_fd;	      /* -1: ours */
	int detached;	      /* a session of its own: nothing typed at the terminal reaches it */
	int dies_with_us;     /* killed when the calling thread ends, however it ends */
};

/* What exec failing means to a shell (and to env(1)); the message is on the child's stderr. */
enum { EXIT_CANNOT_EXECUTE = 126, EXIT_NOT_FOUND = 127 };

int child_start(const struct spawn *how, struct child *ret, struct failure *f);

/* Waits and forgets. Returns the exit code, 128 + N where signal N ended it. */
int child_wait(struct child *child);

/*
 * A program of ours: beside our own executable, else the plain name, for PATH. In that order a
 * build directory is complete in itself.
 */
char *program_find(const char *name, char buf[PATH_MAX]);

/* For whom a command is run. */
struct caller {
	const sigset_t *mask; /* signals to have blocked */
	int signals;	      /* readable when it shall be stopped; -1: never */
	bool quiet;	      /* a command that takes long is no news */
};

/*
 * Runs a command to its end, out of the terminal's reach, and gives the last line that it wrote to
 * stderr back in `output` (of the beginning, as much as fits). One that takes long is reported,
 * with what it has said (unless quiet), and from then on stopped once caller->signals is readable:
 * -EINTR. Returns its exit code, or -errno.
 */
int command_run(char *const *argv, const struct caller *caller, char *output, size_t size,
		struct failure *f);

#endif
