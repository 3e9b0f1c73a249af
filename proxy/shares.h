/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How many sessions each user, or each cgroup, has: counts by a number, in a small hash of this
 * process. A successor counts anew from the session table. No sockets, no clock.
 */
#ifndef TPROXY_SHARES_H
#define TPROXY_SHARES_H

#include <stdint.h>

struct share {
	uint64_t key;
	uint32_t count; /* 0: the place is free */
	uint32_t reserved;
};

struct shares {
	struct share *places;
	uint32_t size; /* a power of two, or 0 */
	uint32_t used;
};

/* One more for `key`. 0, or -ENOMEM: then nothing was counted. */
int shares_add(struct shares *s, uint64_t key);

/* One less. */
void shares_remove(struct shares *s, uint64_t key);

uint32_t shares_count(const struct shares *s, uint64_t key);

void shares_free(struct shares *s);

#endif
