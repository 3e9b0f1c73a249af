/* SPDX-License-Identifier: BSD-2-Clause */
/* Records of connections whose ends nobody hears of any more, as their cgroup was left out. */
#ifndef TPROXY_LOADER_FORGET_H
#define TPROXY_LOADER_FORGET_H

#include "cgroups.h"
#include "set.h"

/* The cgroups to which a set is attached, and which are not among `wanted`; without descriptors. */
int forget_find(const struct set *set, const struct cgroups *wanted, struct cgroups *ret,
		struct failure *f);

/*
 * Once they have no programs any more: removes what was kept of the connections made there, which
 * go on. What cannot be removed costs its place in the maps and is warned of: it is no failure. Not
 * removed are handshakes that are held, as tproxyd has still to look them up, and connections whose
 * own cgroup has gone, since it might be that of others.
 */
void forget_connections(const struct set *set, const struct cgroups *left_out,
			const struct cgroups *wanted);

#endif
