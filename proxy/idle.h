/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * idle-timeout and half-closed-timeout: ends sessions that relay nothing for so long. Both are off
 * unless set, as nothing would end a direct connection either.
 */
#ifndef TPROXY_IDLE_H
#define TPROXY_IDLE_H

#include "proxy.h"

/* Bytes may be moving. A relaying session is on no list of deadlines: the field tells when. */
static inline void idle_touch(const struct proxy *p, struct session *s)
{
	s->deadline_ms = p->now_ms;
}

/* Ends those that were idle for too long. */
void idle_expire(struct proxy *p);

/* When to look next, in milliseconds of CLOCK_MONOTONIC; 0: never. */
uint64_t idle_deadline(const struct proxy *p);

#endif
