/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Destinations that this network namespace has no route to, told to the hooks: connect() to them
 * must fail at once with the errno of the missing route, on which clients that try addresses in
 * turn rely.
 */
#ifndef TPROXY_ROUTES_H
#define TPROXY_ROUTES_H

#include "proxy.h"

/* Subscribes to changes and publishes the present state. */
int routes_open(struct proxy *p, struct failure *f);

/* Something changed: publishes anew, at once or when that is due. */
void routes_event(struct proxy *p);

/* Publishes if it is due; and when it will be (CLOCK_MONOTONIC in ms, 0: nothing is). */
void routes_settle(struct proxy *p);
uint64_t routes_deadline(const struct proxy *p);

/* Withdraws what was published for this namespace, by whomever: each tproxyd publishes the same. */
void routes_withdraw(struct proxy *p);

/* Ends the subscription. */
void routes_close(struct proxy *p);

#endif
