/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Held handshakes: a client's connect() returns when its upstream has answered, and returns what
 * that answered. The doorman (bpf/doorman.bpf.h) delivers the SYNs.
 */
#ifndef TPROXY_HOLD_H
#define TPROXY_HOLD_H

#include "proxy.h"

/* Opens the raw sockets and the ring, which takes privileges that workers do not have, where they
 * are -1: a predecessor may have; for the master. */
int hold_prepare(const struct proxy *p, int32_t raw[FAMILY_COUNT], int32_t *ring,
		 struct failure *f);

/* Whether hold_prepare() could do that: opens all, and closes it. */
int hold_try(struct proxy *p, struct failure *f);

/* Puts the doorman on the listeners, and reads the ring. */
int hold_open(struct proxy *p, struct failure *f);

/* Takes the ring out of map_rings, where it is entered by slot. */
void hold_withdraw(struct proxy *p);

/* Stops reading the ring, which stays. */
void hold_pause(struct proxy *p);

/* Closes what both have opened. */
void hold_close(struct proxy *p);

/* Reads what the doorman has delivered. */
void hold_events(struct proxy *p);

/* The upstream of a held session is under way: the client's getsockname() can answer already. */
void hold_waiting(struct proxy *p, struct session *s);

/* The upstream of a held session has connected: lets the client in. */
void hold_grant(struct proxy *p, struct session *s);

/* Lets in once more those whose first grant met a full backlog, and says when it is to be called
 * next: in milliseconds of CLOCK_MONOTONIC, 0: never. */
void hold_press(struct proxy *p);
uint64_t hold_deadline(const struct proxy *p);

/* No client is held any more; those that are go on. */
void hold_off(struct proxy *p);

/* The upstream failed with `error`: makes the client's connect() fail with it. */
void hold_refuse(struct proxy *p, struct session *s, int error);

/*
 * Refuses a client that is still held, if this one is: what it would otherwise send its next SYN to
 * is whoever has the port by then.
 */
void hold_dismiss(struct proxy *p, struct session *s);

/* A held session's deadline has passed. */
void hold_expired(struct proxy *p, struct session *s);

/* Takes the doorman, which it inherited, off an accepted socket. */
void hold_accepted(int fd);

/* Forgets what belongs to the hold; the session is accepted, or over. */
void hold_forget(struct proxy *p, struct session *s);

#endif
