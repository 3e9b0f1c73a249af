/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Carries the entries of a live hash map over to a new one of another size or layout. While
 * programs still use the old map the new one follows it, each time that it is applied; once they
 * use the new one it is applied until nothing had to be written, without undoing what they did
 * there.
 */
#ifndef TPROXY_LOADER_TRANSFER_H
#define TPROXY_LOADER_TRANSFER_H

#include <linux/types.h>
#include <stdbool.h>

#include "convert.h"
#include "failure.h"

struct snapshot {
	unsigned char *entries; /* key and value as the new map has them, the old key, whether it
				   is still to be done; sorted */
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
	/* Gives a copy that `to` has what it lacks of `now`; whether it lacked something. NULL: one
	 * that has not changed in `to` is written anew. */
	bool (*merge)(void *copy, const void *now);
	/* Whether a value that `to` has is a copy of one that `from` had; with merge. */
	bool (*copied)(const void *value);
	/* Sees to what depends on an entry, of which this is the last that `from` had; 0 or -errno.
	 * NULL: nothing does. */
	int (*follow)(struct transfer *t, const void *key, const void *value);
	const void *context; /* of that */
	/* Whether an entry of `from` stays where it is; NULL: none does. */
	bool (*stays)(const void *value);
	struct snapshot last; /* what `from` held when it was last applied */
	struct snapshot now;
	size_t written; /* times that an entry was written or removed, so far */
};

int transfer_open(int from, int to, struct transfer *ret, struct failure *f);

/* Reads what `from` holds; makes `to` hold it. 0 or -errno; -E2BIG: more entries than it takes. */
int transfer_look(struct transfer *t, struct failure *f);
int transfer_apply(struct transfer *t, struct failure *f);
void transfer_free(struct transfer *t);

/* Takes the copies that `to` has, of an earlier run, for what was applied last, and has yet to be
 * checked. */
int transfer_resume(struct transfer *t, struct failure *f);

/* Removes what a map has and `stale` says so of. */
int transfer_sweep(int map, bool (*stale)(const void *key, const void *value, void *context),
		   void *context, struct failure *f);

/* The value of an entry of what was applied last. */
const void *transfer_value(const struct transfer *t, size_t i);

/*
 * The value of an entry: 0, -ENOENT or another -errno; removes an entry that may have gone: 0 or
 * -errno. Both try again when they fail, as not all that asks is repeated.
 */
int entry_read(int map, const void *key, void *ret);
int entry_delete(int map, const void *key);

/* Of two results, 0 or -errno, an error; of two errors the one that a moment's patience may mend,
 * which -E2BIG is not. */
int worse(int a, int b);

/* Returns when all programs that run now have ended. */
int programs_wait(struct failure *f);

/* Once, the only element of an array, per CPU or not. */
int transfer_array(int from, int to, struct failure *f);

#endif
