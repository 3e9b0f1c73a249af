/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What this tproxyd counts, in its slot of map_proxies: there it outlives a worker, and anybody may
 * read it (bpf/abi.h). One process writes, so a plain store does.
 */
#ifndef TPROXY_STATS_H
#define TPROXY_STATS_H

#include "proxy.h"

/* Counts into nothing, until stats_open(). */
extern struct tp_proxy_stats stats_nowhere;

/* Maps map_proxies, at our slot; a tproxyd that has just begun begins at 0. */
int stats_open(struct proxy *p, struct failure *f);

/* What is looked up rather than counted: once a turn of the loop. */
void stats_update(struct proxy *p);

#define stats_count(p, name) \
	__atomic_store_n(&(p)->stats->name, (p)->stats->name + 1, __ATOMIC_RELAXED)

#endif
