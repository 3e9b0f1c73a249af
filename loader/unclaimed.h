/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Hooks that are in force without an instance to be seen: pinned in another bpffs, or their pins
 * removed while something holds the links. Pins tell nothing of them, but the kernel does.
 */
#ifndef TPROXY_LOADER_UNCLAIMED_H
#define TPROXY_LOADER_UNCLAIMED_H

#include "cgroups.h"
#include "set.h"

/*
 * Refuses cgroups for which such programs run, be they attached there, above or below: each
 * connection would run both. Those of the sets, which are of one instance, do not count.
 */
int unclaimed_check(const struct cgroups *cgs, const struct set *set, const struct set *side,
		    struct failure *f);

#endif
