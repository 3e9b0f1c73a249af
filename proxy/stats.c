// SPDX-License-Identifier: BSD-2-Clause
#include "stats.h"

#include <string.h>
#include <sys/mman.h>

#include "log.h"

struct tp_proxy_stats stats_nowhere;

int stats_open(struct proxy *p, struct failure *f)
{
	struct tp_proxy_stats *all = mmap(NULL, TP_MAX_PROXIES * sizeof(*all),
					  PROT_READ | PROT_WRITE, MAP_SHARED,
					  p->instance.map[PIN_MAP_proxies], 0);

	if (all == MAP_FAILED)
		return fail(f, -errno, "cannot map the pinned map_proxies of instance %s: %m",
			    p->instance.name);
	p->stats = &all[p->shared->slot];
	if (!p->shared->serving)
		memset(p->stats, 0, sizeof(*p->stats));
	return 0;
}

void stats_update(struct proxy *p)
{
	struct tp_proxy_stats *st = p->stats;

	__atomic_store_n(&st->sessions, table_used(&p->table), __ATOMIC_RELAXED);
	__atomic_store_n(&st->log_lines_lost, st->log_lines_lost + log_take_lost(),
			 __ATOMIC_RELAXED);
}
