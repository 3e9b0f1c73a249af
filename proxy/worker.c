// SPDX-License-Identifier: BSD-2-Clause
#include "worker.h"

#include <string.h>

#include "filter.h"
#include "hold.h"
#include "limits.h"
#include "listener.h"
#include "log.h"
#include "loop.h"
#include "privilege.h"
#include "recover.h"
#include "routes.h"
#include "session.h"
#include "stats.h"
#include "takeover.h"

static int open_hold(struct proxy *p, struct failure *f)
{
	int err;

	if (!p->settings.hold) {
		hold_off(p); /* it may have been on under a predecessor */
		if (p->fresh)
			routes_withdraw(p);
		return 0;
	}
	err = hold_open(p, f);
	return err ? err : routes_open(p, f);
}

static int first_start(struct proxy *p, struct failure *f)
{
	int err = listener_trust(p, f);

	if (!err)
		err = listener_selftest(p, f);
	if (!err)
		log_notice("serving instance %s on port %u%s as pid %u", p->instance.name,
			   listener_port(p, listener_first(p)),
			   p->shared->listener[listener_first(p) + LISTENER_V6] < 0
				   ? " (IPv4 only: there is no ::1 here)"
				   : "",
			   p->tgid);
	return err;
}

/* No self-test here: clients would have to wait for it, and sessions are open, so nothing that it
 * found would be a reason to end. */
static int resume(struct proxy *p, const struct recovery *r, uint64_t began_ms)
{
	recover_sessions(p, r);
	log_notice("serving on as pid %u; %u sessions go on (%llu ms)", p->tgid,
		   table_used(&p->table), (unsigned long long)(monotonic_ms() - began_ms));
	return 0;
}

int worker_books(struct proxy *p, struct failure *f)
{
	struct shared *sh = p->shared;

	table_free(&p->table);
	pipes_init(&p->pipes, shared_pipes(sh), sh->pipes, &sh->pipes_used,
		   PIPES_WIDE / p->settings.parts);
	return table_init(&p->table, shared_sessions(sh), sh->slots, &sh->slots_used, f);
}

int worker_retire(struct proxy *p, struct failure *f)
{
	p->signals = fd_close(p->signals);
	routes_close(p);
	hold_pause(p);
	limits_free(p); /* the next one counts anew */
	headroom_close(&p->headroom);
	return worker_books(p, f);
}

int worker_start(struct proxy *p, struct failure *f)
{
	struct recovery r _cleanup_(recover_free) = {0};
	int resumed = p->shared->serving != 0;
	int err = 0;

	p->now_ms = monotonic_ms();
	/* Where another one serves still, what may keep us from it is found before it ends. */
	if (p->offer)
		err = listener_identify(p, f) ?: takeover_claim(p, f);
	if (err)
		return err;
	if (p->shared->workers++) {
		err = recover_descriptors(p, &r, f);
		if (!err)
			err = recover_lists(p, &r, f);
		if (err)
			return err;
	}
	err = p->heir ? 0 : privilege_worker(p->instance.map[PIN_MAP_config], f);
	if (!err)
		err = listener_register(p, f);
	if (!err)
		err = stats_open(p, f);
	if (!err)
		err = loop_init(p, f);
	if (!err)
		headroom_open(&p->headroom);
	if (!err)
		err = open_hold(p, f);
	if (!err && !p->heir)
		err = filter_install(f);
	if (!err)
		err = resumed ? resume(p, &r, p->now_ms) : first_start(p, f);
	if (err)
		return err;
	p->shared->serving = getpid();
	kill(p->master, SIGNAL_SERVING);
	return 0;
}

int worker_serve(struct proxy *p, struct failure *f)
{
	return loop_run(p, f);
}

void worker_clean_up(struct proxy *p)
{
	listener_close(p);
	session_end_all(p);
	routes_close(p);
	hold_close(p);
	pipes_free(&p->pipes);
	loop_free(p);
	limits_free(p);
	headroom_close(&p->headroom);
}
