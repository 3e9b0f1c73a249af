/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The one place that changes the system while hooks are loaded: each function makes a change and
 * remembers how to take it back. A stack that goes out of scope uncommitted is rolled back, last
 * change first. Room for the memory of a change is made before the change, so none can be
 * forgotten.
 */
#ifndef TPROXY_LOADER_UNDO_H
#define TPROXY_LOADER_UNDO_H

#include <linux/bpf.h>
#include <linux/types.h>

#include "failure.h"

struct undo_step;

struct undo {
	struct undo_step *steps;
	size_t count;
	size_t size;
};

/* mkdir, mode 0700. */
int undo_mkdir(struct undo *u, const char *path, struct failure *f);

/* Pins an object; `fd` is borrowed for the call. */
int undo_pin(struct undo *u, int fd, const char *path, struct failure *f);

/* Attaches a program to a cgroup by a new link and pins that. */
int undo_attach(struct undo *u, int prog_fd, int cgroup_fd, enum bpf_attach_type type,
		const char *path, struct failure *f);

/*
 * Compare-and-swap of a link's program. The descriptors are borrowed until commit or rollback.
 * -ENOLINK: the cgroup has gone meanwhile. -EPERM: old_prog_fd was not what the link held.
 */
int undo_swap(struct undo *u, int link_fd, int new_prog_fd, int old_prog_fd, const char *path,
	      struct failure *f);

/* Renames a directory; refuses to replace one. */
int undo_rename(struct undo *u, const char *from, const char *to, struct failure *f);

/*
 * Renames a pin over another one. old_fd, borrowed until commit or rollback, is the object that is
 * pinned there now, to be pinned again on rollback; -1: there is none.
 */
int undo_replace(struct undo *u, const char *from, const char *to, int old_fd, struct failure *f);

/* From here on nothing is taken back. */
void undo_commit(struct undo *u);

/* Takes back all, last first; what cannot be taken back is left to the next run. */
void undo_rollback(struct undo *u);

#define _cleanup_undo_ _cleanup_(undo_rollback)

#endif
