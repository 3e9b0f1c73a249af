/* SPDX-License-Identifier: BSD-2-Clause */
/* Where cgroup2 and bpffs are, and cgroups by path and by id. */
#ifndef TPROXY_MOUNTS_H
#define TPROXY_MOUNTS_H

#include <limits.h>
#include <stdint.h>

#include "failure.h"

/* The root of the cgroup2 hierarchy, wherever it is mounted (from mountinfo). */
int cgroup2_root(char ret_path[PATH_MAX], struct failure *f);

/*
 * Opens a cgroup for attaching. `path` is absolute, or relative to the cgroup2 root. Returns an fd
 * and the cgroup's id, or -errno: no such directory, or not of cgroup2.
 */
int cgroup_open(const char *path, uint64_t *ret_id, struct failure *f);

/* The path of an open cgroup, without the mount point ("/" is the root). 0 or -errno. */
int cgroup_path_of(int fd, char ret_path[PATH_MAX]);

/* The same by id; takes CAP_DAC_READ_SEARCH. -ENOENT once it is gone. */
int cgroup_path(uint64_t id, char ret_path[PATH_MAX]);

/* Whether bpffs is what one sees at /sys/fs/bpf: 1 or 0. */
int bpffs_mounted(void);

/* Mounts it there where it is missing; *ret_mounted says whether that was needed. */
int bpffs_ensure(int *ret_mounted, struct failure *f);

/* Whether process 1 does not see that one, so that it goes with a mount namespace: 1, or 0, also
 * where that cannot be known. */
int bpffs_private(void);

#endif
