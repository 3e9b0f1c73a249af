/* SPDX-License-Identifier: BSD-2-Clause */
/* What has to be done to turn what is pinned into what is wanted. Changes nothing. */
#ifndef TPROXY_LOADER_PLAN_H
#define TPROXY_LOADER_PLAN_H

#include "cgroups.h"
#include "object.h"
#include "set.h"

struct plan {
	bool fresh;		/* nothing there: a first load */
	const char *generation; /* why a new set is to take the place of the old, or NULL */
	bool keep_maps;		/* the new set gets all maps but those of another size */
	const char *reload;	/* why the programs are to be replaced, or NULL */
	bool settings;		/* stores to map_config */
	bool access;		/* modes and group of what is pinned */
	size_t attach;		/* links to add */
	size_t detach;		/* links to remove: dead, or of cgroups no longer wanted */
};

/* `obj` is opened, not loaded. Where there is a generation to be made, what comes after it is for
 * another plan. */
int plan_make(const struct settings *settings, const struct cgroups *cgs, const struct set *set,
	      const struct object *obj, struct plan *ret, struct failure *f);

bool plan_empty(const struct plan *plan);

/* Whether a link stays: alive, under its own name, and of a cgroup that is wanted. */
bool plan_keeps(const struct cgroups *cgs, const struct pin *pin);

/* "programs replaced (another build), 7 links added". Returns buf. */
const char *plan_describe(const struct plan *plan, const struct settings *settings, char buf[256]);

#endif
