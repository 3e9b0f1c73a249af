/* SPDX-License-Identifier: BSD-2-Clause */
/* Changing a set while it is in use. The protocol is docs/pins.md. */
#ifndef TPROXY_LOADER_UPGRADE_H
#define TPROXY_LOADER_UPGRADE_H

#include "plan.h"

/*
 * Carries a plan out. `obj` is the opened object the plan was made with; it is loaded here if the
 * plan needs it. On failure the set is as it was, but for links that were dead before.
 */
int upgrade_apply(const struct settings *settings, const struct cgroups *cgs, const struct set *set,
		  struct object *obj, const struct plan *plan, struct failure *f);

#endif
