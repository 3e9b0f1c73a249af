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
 * go on. Not of those that tproxyd has still to look up; the next call for that cgroup does.
 */
int forget_connections(const struct set *set, const struct cgroups *left_out,
		       const struct cgroups *wanted, struct failure *f);

#endif
