// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 * What happens often is cheap: one store whenever a session relays. What is left, to look at every
 * session in the order of memory, is done now and then: when the first one can be due, but not more
 * often than in an eighth of the shorter timeout. So a session goes on for up to an eighth longer.
 */
#include "idle.h"

#include "session.h"

#define PARTS 8

static uint64_t shorter(const struct proxy *p)
{
	uint64_t idle = p->settings.idle_timeout, half = p->settings.half_closed_timeout;

	return !idle || (half && half < idle) ? half : idle;
}

/* What applies to a session, 0: nothing. */
static uint64_t timeout_of(const struct proxy *p, const struct session *s, enum session_end *ret)
{
	uint64_t idle = p->settings.idle_timeout, half = p->settings.half_closed_timeout;

	*ret = END_IDLE;
	if (half && (!idle || half < idle) && (s->dir[CLIENT].shut || s->dir[UPSTREAM].shut)) {
		*ret = END_HALF_CLOSED;
		return half;
	}
	return idle;
}

void idle_expire(struct proxy *p)
{
	uint64_t soonest;

	if (!shorter(p) || p->idle_look_ms > p->now_ms)
		return;
	soonest = p->now_ms + shorter(p);
	for (uint32_t i = 0; i < p->shared->slots_used; i++) {
		struct session *s = table_at(&p->table, i);
		enum session_end end;
		uint64_t timeout;

		if (s->list < LIST_RELAY || s->list > LIST_UNSURE)
			continue;
		timeout = timeout_of(p, s, &end);
		if (!timeout)
			continue;
		if (s->deadline_ms + timeout <= p->now_ms)
			session_timed_out(p, s, end);
		else if (s->deadline_ms + timeout < soonest)
			soonest = s->deadline_ms + timeout;
	}
	p->idle_look_ms = p->now_ms + shorter(p) / PARTS + 1;
	if (p->idle_look_ms < soonest)
		p->idle_look_ms = soonest;
}

uint64_t idle_deadline(const struct proxy *p)
{
	return shorter(p) && table_used(&p->table) ? p->idle_look_ms : 0;
}
