// SPDX-License-Identifier: BSD-2-Clause
#include "transfer.h"

#include <bpf/bpf.h>
#include <stdbool.h>
#include <string.h>

#include "remedy.h"

#define BATCH 4096 /* entries a call; the kernel wants room for its fullest bucket at least */

static void snapshot_free(struct snapshot *s)
{
	free(s->entries);
	*s = (struct snapshot){0};
}

#define _cleanup_snapshot_ _cleanup_(snapshot_free)

static int snapshot_add(struct snapshot *s, const struct transfer *t, const unsigned char *keys,
			const unsigned char *values, __u32 count)
{
	size_t entry = t->key_size + t->value_size;

	if (s->count + count > s->size) {
		size_t size = 2 * s->size + count;
		unsigned char *entries = reallocarray(s->entries, size, entry);

		if (!entries)
			return -ENOMEM;
		s->entries = entries;
		s->size = size;
	}
	for (__u32 i = 0; i < count; i++) {
		unsigned char *to = s->entries + s->count++ * entry;

		memcpy(to, keys + (size_t)i * t->key_size, t->key_size);
		memcpy(to + t->key_size, values + (size_t)i * t->value_size, t->value_size);
	}
	return 0;
}

static int key_compare(const void *a, const void *b, void *key_size)
{
	return memcmp(a, b, *(__u32 *)key_size);
}

/*
 * In batches: bucket by bucket, so that an entry removed meanwhile does not throw the walk back to
 * the beginning, as it does with "the key after this one".
 */
static int snapshot_take(const struct transfer *t, struct snapshot *ret)
{
	unsigned char *keys _cleanup_free_ = calloc(BATCH, t->key_size);
	unsigned char *values _cleanup_free_ = calloc(BATCH, t->value_size);
	struct snapshot s _cleanup_snapshot_ = {0};
	__u32 key_size = t->key_size, token = 0;
	bool first = true, more = true;

	if (!keys || !values)
		return -ENOMEM;
	while (more) {
		__u32 count = BATCH;

		if (bpf_map_lookup_batch(t->from, first ? NULL : &token, &token, keys, values,
					 &count, NULL)) {
			if (errno != ENOENT)
				return -errno;
			more = false; /* the last ones were read */
		}
		first = false;
		if (snapshot_add(&s, t, keys, values, count))
			return -ENOMEM;
	}
	if (s.count)
		qsort_r(s.entries, s.count, t->key_size + t->value_size, key_compare, &key_size);
	*ret = s;
	s = (struct snapshot){0};
	return 0;
}

/* Whether the new map still holds for a key what we put there: if not, a program did since. */
static bool untouched(const struct transfer *t, const unsigned char *entry, unsigned char *buf)
{
	return !bpf_map_lookup_elem(t->to, entry, buf) &&
	       !memcmp(buf, entry + t->key_size, t->value_size);
}

static int entry_new(const struct transfer *t, const unsigned char *now)
{
	if (bpf_map_update_elem(t->to, now, now + t->key_size, BPF_NOEXIST) && errno != EEXIST)
		return -errno;
	return 0;
}

static int entry_kept(const struct transfer *t, const unsigned char *then, const unsigned char *now,
		      unsigned char *buf)
{
	if (!memcmp(then + t->key_size, now + t->key_size, t->value_size) ||
	    !untouched(t, then, buf))
		return 0;
	if (bpf_map_update_elem(t->to, now, now + t->key_size, BPF_EXIST) && errno != ENOENT)
		return -errno;
	return 0;
}

static int entry_gone(const struct transfer *t, const unsigned char *then, unsigned char *buf)
{
	if (untouched(t, then, buf) && bpf_map_delete_elem(t->to, then) && errno != ENOENT)
		return -errno;
	return 0;
}

/* Merges two sorted snapshots; what differs is done to the new map. */
static int differences_apply(const struct transfer *t, const struct snapshot *now,
			     unsigned char *buf)
{
	size_t entry = t->key_size + t->value_size, i = 0, j = 0;
	int err = 0;

	while (!err && (i < t->last.count || j < now->count)) {
		const unsigned char *a = t->last.entries + i * entry, *b = now->entries + j * entry;
		int cmp = i == t->last.count ? 1 : j == now->count ? -1 : memcmp(a, b, t->key_size);

		if (cmp > 0)
			err = entry_new(t, b);
		else if (cmp < 0)
			err = entry_gone(t, a, buf);
		else
			err = entry_kept(t, a, b, buf);
		i += cmp <= 0;
		j += cmp >= 0;
	}
	return err;
}

int transfer_sync(struct transfer *t, struct failure *f)
{
	unsigned char *buf _cleanup_free_ = malloc(t->value_size);
	struct snapshot now _cleanup_snapshot_ = {0};
	int err;

	if (!buf)
		return fail(f, -ENOMEM, "out of memory");
	err = snapshot_take(t, &now);
	if (err)
		return fail(f, err, "cannot read the entries to carry over: %s%s", strerror(-err),
			    remedy(err));
	err = differences_apply(t, &now, buf);
	if (err)
		return fail(f, err, "cannot carry %zu entries over: %s%s", now.count,
			    strerror(-err), remedy(err));
	snapshot_free(&t->last);
	t->last = now;
	now = (struct snapshot){0};
	return 0;
}

void transfer_free(struct transfer *t)
{
	snapshot_free(&t->last);
}
