/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which destinations are addresses of this host. A connection shows it, by its source, but only
 * once it is made, and something has to be decided before: so the last one tells of the next. No
 * sockets, no clock.
 */
#ifndef TPROXY_LOCAL_H
#define TPROXY_LOCAL_H

#include <stdint.h>

#include "endpoint.h"

#define LOCAL_PLACES 256 /* an address that has lost its place to another is learnt again */

struct local {
	uint8_t ip[LOCAL_PLACES][16]; /* as in tp_endpoint; zero: none */
};

/* Whether a connection to that address is expected to stay on this host. */
int local_expected(const struct local *l, const struct tp_endpoint *address);

/* Whether one does that has this source, which it did not choose. */
int local_learn(struct local *l, const struct tp_endpoint *address,
		const struct tp_endpoint *source);

#endif
