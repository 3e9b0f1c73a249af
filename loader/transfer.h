/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Carries the entries of a live hash map over to a new one of another size or layout. While
 * programs still use the old map the new one follows it, each time it is applied; once they use the
 * new one a last time brings what changed in between, without undoing what they did since.
 */
#ifndef TPROXY_LOADER_TRANSFER_H
#define TPROXY_LOADER_TRANSFER_H

#include <linux/types.h>
#include <stdbool.h>

#include "convert.h"
#include "failure.h"

struct snapshot {
	unsigned char *entries; /* key and value as the new map has them, the old key; sorted */
	size_t count;
	size_t size;
};

struct transfer {
	int from; /* fds, borrowed */
	int to;
	__u32 from_key_size;
	__u32 from_value_size;
	__u32 key_size;
	__u32 value_size;
	struct converter key;
	struct converter value;
	size_t id_at, id_size; /* what of a value tells an entry from a later one of its key;
				  no size: it is not known */
	size_t flag_at;	       /* byte of a value in which each copy gets: */
	unsigned char flag;    /* 0: nothing */
	/* Whether a value that `to` had already lacks something, which it then has; NULL: none
	 * does. */
	bool (*refresh)(void *there, const void *now);
	/* Whether an entry of `from` stays where it is; NULL: none does. */
	bool (*stays)(const void *value, const void *context);
	const void *stays_context;
	struct snapshot last; /* what `from` held when it was last applied */
	struct snapshot now;
};

int transfer_open(int from, int to, struct transfer *ret, struct failure *f);

/* Reads what `from` holds; makes `to` hold it. 0 or -errno; -E2BIG: more entries than it takes. */
int transfer_look(struct transfer *t, struct failure *f);
int transfer_apply(struct transfer *t, struct failure *f);
void transfer_free(struct transfer *t);

/*
 * Removes entries that `to` has and `from` has not, or has another of, if `stale` says so of their
 * values: copies that an earlier run made and did not live to remove. Before the first apply.
 */
int transfer_sweep(struct transfer *t, bool (*stale)(const void *value, const void *context),
		   const void *context, struct failure *f);

/* The value of an entry of what was applied last. */
const void *transfer_value(const struct transfer *t, size_t i);

/*
 * The value of an entry: 0, -ENOENT or another -errno; removes an entry that may have gone: 0 or
 * -errno. Both try again, for what an entry is not asked a second time about.
 */
int entry_read(int map, const void *key, void *ret);
int entry_delete(int map, const void *key);

/* Once, the only element of an array, per CPU or not. */
int transfer_array(int from, int to, struct failure *f);

#endif
