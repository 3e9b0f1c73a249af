// SPDX-License-Identifier: BSD-2-Clause
#include "transfer.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <stdbool.h>
#include <string.h>

#include "remedy.h"

#define BATCH 4096 /* entries a call; the kernel wants room for its fullest bucket at least */
#define TRIES 5

static void snapshot_free(struct snapshot *s)
{
	free(s->entries);
	*s = (struct snapshot){0};
}

#define _cleanup_snapshot_ _cleanup_(snapshot_free)

static size_t entry_size(const struct transfer *t)
{
	return t->key_size + t->value_size + t->from_key_size + 1;
}

static unsigned char *entry_pending(const struct transfer *t, unsigned char *entry)
{
	return entry + entry_size(t) - 1;
}

static int snapshot_grow(struct snapshot *s, const struct transfer *t, size_t count)
{
	size_t size = 2 * s->size + count;
	unsigned char *entries;

	if (s->count + count <= s->size)
		return 0;
	entries = reallocarray(s->entries, size, entry_size(t));
	if (!entries)
		return -ENOMEM;
	s->entries = entries;
	s->size = size;
	return 0;
}

static int snapshot_add(struct snapshot *s, const struct transfer *t, const unsigned char *keys,
			const unsigned char *values, __u32 count)
{
	size_t entry = entry_size(t);

	if (snapshot_grow(s, t, count))
		return -ENOMEM;
	for (__u32 i = 0; i < count; i++) {
		const unsigned char *value = values + (size_t)i * t->from_value_size;
		unsigned char *to = s->entries + s->count * entry;

		if (t->stays && t->stays(value))
			continue;
		s->count++;
		convert(&t->key, keys + (size_t)i * t->from_key_size, to);
		convert(&t->value, value, to + t->key_size);
		to[t->key_size + t->flag_at] |= t->flag;
		memcpy(to + t->key_size + t->value_size, keys + (size_t)i * t->from_key_size,
		       t->from_key_size);
		*entry_pending(t, to) = 0;
	}
	return 0;
}

static int key_compare(const void *a, const void *b, void *key_size)
{
	return memcmp(a, b, *(__u32 *)key_size);
}

static void snapshot_sort(struct snapshot *s, const struct transfer *t)
{
	__u32 key_size = t->key_size;

	if (s->count)
		qsort_r(s->entries, s->count, entry_size(t), key_compare, &key_size);
}

/*
 * In batches: bucket by bucket, so that an entry removed meanwhile does not throw the walk back to
 * the beginning, as it does with "the key after this one".
 */
static int snapshot_take(const struct transfer *t, struct snapshot *ret)
{
	unsigned char *keys _cleanup_free_ = calloc(BATCH, t->from_key_size);
	unsigned char *values _cleanup_free_ = calloc(BATCH, t->from_value_size);
	struct snapshot s _cleanup_snapshot_ = {0};
	__u32 token = 0;
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
	snapshot_sort(&s, t);
	*ret = s;
	s = (struct snapshot){0};
	return 0;
}

int entry_read(int map, const void *key, void *ret)
{
	for (int try = 0; bpf_map_lookup_elem(map, key, ret); try++)
		if (errno == ENOENT || try == TRIES)
			return -errno;
	return 0;
}

int entry_delete(int map, const void *key)
{
	for (int try = 0; bpf_map_delete_elem(map, key); try++)
		if (errno == ENOENT || try == TRIES)
			return errno == ENOENT ? 0 : -errno;
	return 0;
}

/* Whether the new map still holds for a key what we put there: if not, a program did since. */
static bool untouched(const struct transfer *t, const unsigned char *entry, unsigned char *buf)
{
	return !entry_read(t->to, entry, buf) && !memcmp(buf, entry + t->key_size, t->value_size);
}

static int follow(struct transfer *t, const unsigned char *entry)
{
	return t->follow ? t->follow(t, entry, entry + t->key_size) : 0;
}

/*
 * Programs of both sides see the end of an entry that both have; but those of the new one did not
 * see what came before it was copied, and may wait for that for ever.
 */
static int entry_gone(struct transfer *t, const unsigned char *then, unsigned char *buf)
{
	const unsigned char *value = then + t->key_size;
	size_t at = t->id_size ? t->id_at : 0, size = t->id_size ?: t->value_size;
	int err = entry_read(t->to, then, buf);

	if (!err && !memcmp(buf + at, value + at, size)) {
		err = entry_delete(t->to, then);
		t->written += !err;
	}
	return err && err != -ENOENT ? err : follow(t, then);
}

/*
 * Gives the new map what the old one has of an entry by now, rather than what it had when it was
 * read; in `now`, too. The new map is read first: what its programs have seen by then those of the
 * old one saw before.
 */
static int entry_put(struct transfer *t, unsigned char *now, unsigned char *buf)
{
	unsigned char *value = now + t->key_size, *there = buf, *raw = buf + t->value_size;
	int to = entry_read(t->to, now, there);
	int from = entry_read(t->from, value + t->value_size, raw);

	if (from == -ENOENT)
		return entry_gone(t, now, buf);
	if (from || (to && to != -ENOENT))
		return from ?: to;
	convert(&t->value, raw, value);
	value[t->flag_at] |= t->flag;
	if (to) /* unless a program has one of its own there by now */
		to = bpf_map_update_elem(t->to, now, value, BPF_NOEXIST);
	else if (t->merge && t->copied(there) && t->merge(there, value))
		to = bpf_map_update_elem(t->to, now, there, BPF_EXIST);
	else
		return follow(t, now);
	if (to && errno != EEXIST && errno != ENOENT)
		return -errno;
	t->written += !to;
	*entry_pending(t, now) = to != 0;
	return follow(t, now);
}

/* Two entries of one key. */
static bool is_same(const struct transfer *t, const unsigned char *a, const unsigned char *b)
{
	size_t id = t->key_size + t->id_at;

	return !memcmp(a + id, b + id, t->id_size);
}

/* Without merge: one that has changed. */
static int entry_renew(struct transfer *t, const unsigned char *then, const unsigned char *now,
		       unsigned char *buf)
{
	if (!untouched(t, then, buf))
		return 0;
	if (bpf_map_update_elem(t->to, now, now + t->key_size, BPF_EXIST))
		return errno == ENOENT ? 0 : -errno;
	t->written++;
	return 0;
}

/* One that the last look found, too: it may have changed, or become another's. If it cannot be seen
 * to, it stays in `now` what it was. */
static int entry_kept(struct transfer *t, unsigned char *then, unsigned char *now,
		      unsigned char *buf)
{
	bool same = is_same(t, then, now);
	bool changed = memcmp(then + t->key_size, now + t->key_size, t->value_size);
	int err = same ? 0 : entry_gone(t, then, buf);

	if (!err && (!same || *entry_pending(t, then) || (changed && t->merge)))
		err = entry_put(t, now, buf);
	if (!err && same && changed && !t->merge)
		err = entry_renew(t, then, now, buf);
	if (err)
		memcpy(now + t->key_size, then + t->key_size, t->value_size);
	return err;
}

int worse(int a, int b)
{
	return a && (a != -E2BIG || !b) ? a : b;
}

/*
 * Merges two sorted snapshots; what differs is done to the new map. An error is no reason to leave
 * out the rest; `now` says what is still to be done.
 */
static int differences_apply(struct transfer *t, unsigned char *buf)
{
	size_t entry = entry_size(t), i = 0, j = 0, failed = 0;
	struct snapshot *last = &t->last, *now = &t->now;
	int ret = 0;

	while (i < last->count || j < now->count) {
		unsigned char *a = last->entries + i * entry, *b = now->entries + j * entry;
		int cmp = i == last->count ? 1 : j == now->count ? -1 : memcmp(a, b, t->key_size);
		int err = cmp > 0   ? entry_put(t, b, buf)
			  : cmp < 0 ? entry_gone(t, a, buf)
				    : entry_kept(t, a, b, buf);

		if (err && cmp >= 0)
			*entry_pending(t, b) = 1;
		else if (err)
			memmove(last->entries + failed++ * entry, a, entry);
		i += cmp <= 0;
		j += cmp >= 0;
		ret = worse(ret, err);
	}
	/* What could not be removed is removed another time. */
	if (failed && !snapshot_grow(now, t, failed)) {
		memcpy(now->entries + now->count * entry, last->entries, failed * entry);
		now->count += failed;
		snapshot_sort(now, t);
	}
	return ret;
}

int transfer_look(struct transfer *t, struct failure *f)
{
	int err;

	snapshot_free(&t->now);
	err = snapshot_take(t, &t->now);
	return err ? fail(f, err, "cannot read the entries to carry over: %s%s", strerror(-err),
			  remedy(err))
		   : 0;
}

int transfer_apply(struct transfer *t, struct failure *f)
{
	unsigned char *buf _cleanup_free_ = malloc(t->value_size + t->from_value_size);
	size_t count = t->now.count;
	int err = buf ? differences_apply(t, buf) : -ENOMEM;

	if (buf) {
		snapshot_free(&t->last);
		t->last = t->now;
		t->now = (struct snapshot){0};
	}
	return err ? fail(f, err, "cannot carry %zu entries over: %s%s", count, strerror(-err),
			  remedy(err))
		   : 0;
}

int transfer_resume(struct transfer *t, struct failure *f)
{
	struct transfer own _cleanup_(transfer_free) = {0};
	size_t kept = t->key_size + t->value_size;
	int err = transfer_open(t->to, t->to, &own, f) ?: transfer_look(&own, f);

	if (err)
		return err;
	t->last.entries = calloc(own.now.count, entry_size(t));
	if (!t->last.entries && own.now.count)
		return fail(f, -ENOMEM, "cannot carry entries over: %s%s", strerror(ENOMEM),
			    remedy(ENOMEM));
	for (size_t i = 0; i < own.now.count; i++) {
		const unsigned char *entry = own.now.entries + i * entry_size(&own);
		unsigned char *last = t->last.entries + t->last.count * entry_size(t);

		if (!t->copied(entry + t->key_size))
			continue;
		memcpy(last, entry, kept);
		*entry_pending(t, last) = 1;
		t->last.count++;
	}
	return 0;
}

int transfer_sweep(int map, bool (*stale)(const void *key, const void *value, void *context),
		   void *context, struct failure *f)
{
	struct transfer own _cleanup_(transfer_free) = {0};
	unsigned char *value _cleanup_free_ = NULL;
	int err = transfer_open(map, map, &own, f) ?: transfer_look(&own, f);

	if (err)
		return err;
	value = malloc(own.value_size);
	err = value ? 0 : -ENOMEM;
	for (size_t i = 0; value && i < own.now.count; i++) {
		const unsigned char *entry = own.now.entries + i * entry_size(&own);
		int one = entry_read(map, entry, value);

		if (!one && stale(entry, value, context))
			one = entry_delete(map, entry);
		err = one && one != -ENOENT ? one : err;
	}
	return err ? fail(f, err, "cannot remove a stale entry: %s%s", strerror(-err), remedy(err))
		   : 0;
}

/* An update of an array of maps, any one, waits for it. */
int programs_wait(struct failure *f)
{
	int inner _cleanup_fd_ = bpf_map_create(BPF_MAP_TYPE_ARRAY, NULL, sizeof(__u32),
						sizeof(__u32), 1, NULL);
	LIBBPF_OPTS(bpf_map_create_opts, opts, .inner_map_fd = inner);
	int outer _cleanup_fd_ = -1;
	__u32 zero = 0;

	if (inner >= 0)
		outer = bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, NULL, sizeof(__u32),
				       sizeof(__u32), 1, &opts);
	if (outer < 0 || bpf_map_update_elem(outer, &zero, &inner, BPF_ANY))
		return fail(f, -errno, "cannot wait for the hooks that run: %m%s", remedy(errno));
	return 0;
}

void transfer_free(struct transfer *t)
{
	converter_free(&t->key);
	converter_free(&t->value);
	snapshot_free(&t->last);
	snapshot_free(&t->now);
}

const void *transfer_value(const struct transfer *t, size_t i)
{
	return t->last.entries + i * entry_size(t) + t->key_size;
}

/* One side of a transfer. */
struct map_end {
	struct bpf_map_info info;
	struct btf *btf;
};

static void map_end_free(struct map_end *end)
{
	btf__free(end->btf);
}

#define _cleanup_map_end_ _cleanup_(map_end_free)

static int map_end_read(int fd, struct map_end *ret, struct failure *f)
{
	__u32 len = sizeof(ret->info);

	if (bpf_obj_get_info_by_fd(fd, &ret->info, &len))
		return fail(f, -errno, "cannot inspect a map: %m");
	if (!ret->info.btf_id || !ret->info.btf_value_type_id)
		return fail(f, -EPROTO, "%s does not say what is in it, so that it cannot be kept",
			    ret->info.name);
	ret->btf = btf__load_from_kernel_by_id(ret->info.btf_id);
	if (!ret->btf)
		return fail(f, -errno, "cannot read what is in %s: %m%s", ret->info.name,
			    remedy(errno));
	return 0;
}

static int value_converter(const struct map_end *from, const struct map_end *to,
			   struct converter *ret)
{
	struct layout a = {from->btf, from->info.btf_value_type_id, from->info.value_size};
	struct layout b = {to->btf, to->info.btf_value_type_id, to->info.value_size};

	return converter_make(&a, &b, ret);
}

int transfer_open(int from, int to, struct transfer *ret, struct failure *f)
{
	struct map_end a _cleanup_map_end_ = {0}, b _cleanup_map_end_ = {0};
	struct transfer t _cleanup_(transfer_free) = {.from = from, .to = to};
	int err = map_end_read(from, &a, f) ?: map_end_read(to, &b, f);

	if (err)
		return err;
	t.from_key_size = a.info.key_size;
	t.from_value_size = a.info.value_size;
	t.key_size = b.info.key_size;
	t.value_size = t.id_size = b.info.value_size;
	err = converter_make(&(struct layout){a.btf, a.info.btf_key_type_id, a.info.key_size},
			     &(struct layout){b.btf, b.info.btf_key_type_id, b.info.key_size},
			     &t.key)
		      ?: value_converter(&a, &b, &t.value);
	if (err)
		return fail(f, err, "cannot carry %s over: %s%s", a.info.name, strerror(-err),
			    remedy(err));
	*ret = t;
	t = (struct transfer){0};
	return 0;
}

/* Bytes of what a system call has for one key. */
static size_t stride(const struct bpf_map_info *info)
{
	return info->type == BPF_MAP_TYPE_PERCPU_ARRAY ? (info->value_size + 7) & ~7U
						       : info->value_size;
}

int transfer_array(int from, int to, struct failure *f)
{
	struct map_end a _cleanup_map_end_ = {0}, b _cleanup_map_end_ = {0};
	struct converter c _cleanup_(converter_free) = {0};
	char *old _cleanup_free_ = NULL, *new _cleanup_free_ = NULL;
	int err = map_end_read(from, &a, f) ?: map_end_read(to, &b, f);
	int cpus = 1;
	__u32 zero = 0;

	if (err)
		return err;
	if (b.info.type == BPF_MAP_TYPE_PERCPU_ARRAY)
		cpus = libbpf_num_possible_cpus();
	if (cpus < 1 || a.info.type != b.info.type)
		return fail(f, -EPROTO, "cannot carry %s over: it is another kind of map",
			    a.info.name);
	old = calloc(cpus, stride(&a.info));
	new = calloc(cpus, stride(&b.info));
	err = !old || !new ? -ENOMEM : value_converter(&a, &b, &c);
	if (!err && bpf_map_lookup_elem(from, &zero, old))
		err = -errno;
	for (int cpu = 0; !err && cpu < cpus; cpu++)
		convert(&c, old + cpu * stride(&a.info), new + cpu *stride(&b.info));
	if (!err && bpf_map_update_elem(to, &zero, new, BPF_ANY))
		err = -errno;
	return err ? fail(f, err, "cannot carry %s over: %s%s", a.info.name, strerror(-err),
			  remedy(err))
		   : 0;
}
