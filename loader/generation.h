/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A change of maps: of their size, or of all of them to those of another version. A whole new set
 * is put beside the one in force, takes its place, and inherits its connections. The protocol is
 * docs/pins.md.
 */
#ifndef TPROXY_LOADER_GENERATION_H
#define TPROXY_LOADER_GENERATION_H

#include "plan.h"

/*
 * Carries out what a plan says of generations; settings stay as they are. `obj` is the opened
 * object the plan was made with. On failure the old set is in force, unless the message says
 * otherwise. `set` is not what is pinned under its name any more.
 */
int generation_change(const struct cgroups *cgs, const struct set *set, struct object *obj,
		      const struct plan *plan, struct failure *f);

/* Takes NAME~new, of which `from` was read, away; `to`, in force as NAME, inherits what it had. */
int generation_retire(const struct set *from, const struct set *to, struct failure *f);

/* Where directories could not be exchanged at once and a run was killed in between. */
int generation_rename_back(const char *name, struct failure *f);

#endif
