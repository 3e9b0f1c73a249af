/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Carries the entries of a live hash map over to a new one of another size. While programs still
 * use the old map the new one follows it, one transfer_sync() at a time; once they use the new one
 * a last transfer_sync() brings what changed in between, without undoing what they did since.
 */
#ifndef TPROXY_LOADER_TRANSFER_H
#define TPROXY_LOADER_TRANSFER_H

#include <linux/types.h>

#include "failure.h"

struct snapshot {
	unsigned char *entries; /* key, value; sorted by key */
	size_t count;
	size_t size;
};

struct transfer {
	int from;
	int to;
	__u32 key_size;
	__u32 value_size;
	struct snapshot last; /* what `from` held at the last sync */
};

/* 0 or -errno; -E2BIG: more entries than the new map takes. */
int transfer_sync(struct transfer *t, struct failure *f);
void transfer_free(struct transfer *t);

#endif
