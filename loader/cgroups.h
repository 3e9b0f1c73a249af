/* SPDX-License-Identifier: BSD-2-Clause */
/* The cgroups that the hooks shall be attached to. */
#ifndef TPROXY_LOADER_CGROUPS_H
#define TPROXY_LOADER_CGROUPS_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "settings.h"

struct cgroup {
	int fd;
	uint64_t id;
	char path[PATH_MAX]; /* within the hierarchy: "/" is its root */
};

struct cgroups {
	struct cgroup *items;
	size_t count;
};

/*
 * Opens those of the settings, each once. Refuses two of which one is inside the other: programs
 * attached to both would run twice for the inner one.
 */
int cgroups_open(const struct settings *set, struct cgroups *ret, struct failure *f);
void cgroups_close(struct cgroups *cgs);

bool cgroups_contain(const struct cgroups *cgs, uint64_t id);

/* Whether a path is of one of them, or below it. */
bool cgroups_cover(const struct cgroups *cgs, const char *path);

/* The first that is the cgroup of this id, above or below it; NULL if none is, or the id has gone.
 */
const struct cgroup *cgroups_overlapping(const struct cgroups *cgs, uint64_t id);

/* Refuses cgroups on, above or below which another instance has a live link, and names it. */
int cgroups_check_overlap(const struct cgroups *cgs, const char *name, struct failure *f);

#define _cleanup_cgroups_ _cleanup_(cgroups_close)

#endif
