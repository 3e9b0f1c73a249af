/* SPDX-License-Identifier: BSD-2-Clause */
/* What has to be done to turn what is pinned into what is wanted. Changes nothing. */
#ifndef TPROXY_LOADER_PLAN_H
#define TPROXY_LOADER_PLAN_H

#include "cgroups.h"
#include "object.h"
#include "set.h"

struct plan {
	bool fresh;		    /* nothing there: a first load */
	const char *reload;	    /* why the programs are to be replaced, or NULL */
	bool resize[PIN_MAP_COUNT]; /* maps to be replaced by ones of another size; implies reload
				     */
	bool hold;     /* redirect nothing meanwhile: states in between would misdirect */
	bool settings; /* stores to map_config */
	bool access;   /* modes and group of what is pinned */
	size_t attach; /* links to add */
	size_t detach; /* links to remove: dead, or of cgroups no longer wanted */
};

/*
 * `obj` is opened, not loaded. Fails where what is pinned cannot be turned into what is wanted
 * while it is in use.
 */
int plan_make(const struct settings *settings, const struct cgroups *cgs, const struct set *set,
	      const struct object *obj, struct plan *ret, struct failure *f);

bool plan_empty(const struct plan *plan);
bool plan_resizes(const struct plan *plan);

/* Whether a link stays: alive, under its own name, and of a cgroup that is wanted. */
bool plan_keeps(const struct cgroups *cgs, const struct pin *pin);

/* "programs replaced (another build), 7 links added". Returns buf. */
const char *plan_describe(const struct plan *plan, const struct settings *settings, char buf[256]);

#endif
