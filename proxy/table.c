// SPDX-License-Identifier: BSD-2-Clause
#include "table.h"

#include <string.h>

int table_init(struct table *t, struct session *sessions, uint32_t slots, uint32_t *used,
	       struct failure *f)
{
	uint32_t buckets = 1;

	while (buckets < slots)
		buckets *= 2;
	*t = (struct table){.slots = slots, .used = used, .sessions = sessions};
	/* Calloced, so untouched buckets cost nothing: entries are slot + 1. */
	t->buckets = calloc(buckets, sizeof(*t->buckets));
	t->bucket_mask = buckets - 1;
	if (!t->buckets)
		return fail(f, -ENOMEM, "out of memory");
	for (int l = 0; l < LIST_COUNT; l++)
		t->lists[l] = (struct list_head){NO_SLOT, NO_SLOT, 0};
	return 0;
}

void table_free(struct table *t)
{
	free(t->buckets);
	t->buckets = NULL;
	t->sessions = NULL;
}

static void empty_directions(struct session *s)
{
	s->dir[CLIENT] = s->dir[UPSTREAM] = (struct direction){.pipe = NO_PIPE};
}

static void append(struct table *t, struct session *s, enum session_list list)
{
	struct list_head *head = &t->lists[list];
	uint32_t slot = table_slot(t, s);

	/* After all that was written to the slot before: this is what a successor goes by. */
	__atomic_store_n(&s->list, list, __ATOMIC_RELEASE);
	s->prev = head->last;
	s->next = NO_SLOT;
	if (head->last != NO_SLOT)
		table_at(t, head->last)->next = slot;
	else
		head->first = slot;
	head->last = slot;
	head->count++;
}

static void detach(struct table *t, struct session *s)
{
	struct list_head *head = &t->lists[s->list];

	if (s->prev != NO_SLOT)
		table_at(t, s->prev)->next = s->next;
	else
		head->first = s->next;
	if (s->next != NO_SLOT)
		table_at(t, s->next)->prev = s->prev;
	else
		head->last = s->prev;
	head->count--;
}

struct session *table_take(struct table *t, enum session_list list)
{
	struct session *s = table_first(t, LIST_FREE);
	uint32_t generation;

	if (s)
		detach(t, s);
	else if (*t->used < t->slots)
		s = table_at(t, (*t->used)++);
	else
		return NULL;
	generation = s->generation;
	*s = (struct session){
		.generation = generation,
		.fd = {-1, -1},
	};
	empty_directions(s);
	append(t, s, list);
	return s;
}

void table_move(struct table *t, struct session *s, enum session_list list)
{
	detach(t, s);
	/* Should we die in between, a SYN that is none any more does no harm: its sequence number
	 * is not that of the client's record, and the doorman drops it. */
	if (list_is_hold(s->list) && !list_is_hold(list))
		empty_directions(s);
	if (list == LIST_FREE)
		s->generation++;
	append(t, s, list);
}

struct session *table_first(struct table *t, enum session_list list)
{
	uint32_t slot = t->lists[list].first;

	return slot == NO_SLOT ? NULL : table_at(t, slot);
}

struct session *table_find(struct table *t, uint32_t slot, uint32_t generation)
{
	struct session *s;

	if (slot >= *t->used)
		return NULL;
	s = table_at(t, slot);
	return s->generation == generation && s->list != LIST_FREE ? s : NULL;
}

uint32_t table_used(const struct table *t)
{
	return *t->used - t->lists[LIST_FREE].count;
}

/* Socket cookies count up: a multiplication spreads them. A tag has only their lower bits. */
static uint32_t *bucket_of(struct table *t, __u64 cookie)
{
	cookie &= (1 << TP_TAG_COOKIE_BITS) - 1;
	return &t->buckets[(cookie * 0x9e3779b97f4a7c15ULL >> 32) & t->bucket_mask];
}

void table_hash_add(struct table *t, struct session *s)
{
	uint32_t *bucket = bucket_of(t, s->client.cookie);

	s->hash_next = *bucket;
	s->hashed = 1;
	*bucket = table_slot(t, s) + 1;
}

void table_hash_remove(struct table *t, struct session *s)
{
	uint32_t *link;

	if (!s->hashed)
		return;
	for (link = bucket_of(t, s->client.cookie); *link;
	     link = &table_at(t, *link - 1)->hash_next)
		if (*link - 1 == table_slot(t, s)) {
			*link = s->hash_next;
			break;
		}
	s->hashed = 0;
}

struct session *table_by_cookie(struct table *t, __u64 cookie)
{
	for (uint32_t i = *bucket_of(t, cookie); i; i = table_at(t, i - 1)->hash_next)
		if (table_at(t, i - 1)->client.cookie == cookie)
			return table_at(t, i - 1);
	return NULL;
}

struct session *table_granted(struct table *t, __u64 tag)
{
	struct session *found = NULL;

	for (uint32_t i = *bucket_of(t, tag >> TP_TAG_SEQ_BITS); i;
	     i = table_at(t, i - 1)->hash_next) {
		struct session *s = table_at(t, i - 1);

		if (s->list != LIST_GRANTED || tp_tag(&s->client) != tag)
			continue;
		if (s->again || found)
			return NULL;
		found = s;
	}
	return found;
}

static int by_deadline(const void *a, const void *b, void *table)
{
	uint64_t x = table_at(table, *(const uint32_t *)a)->deadline_ms;
	uint64_t y = table_at(table, *(const uint32_t *)b)->deadline_ms;

	return (x > y) - (x < y);
}

static int is_timed(enum session_list list)
{
	return list >= LIST_HELD && list <= LIST_CONNECTING;
}

static void rebuild_hash(struct table *t, struct session *s, int waiting)
{
	if (waiting != list_is_hold(s->list))
		return;
	s->hashed = 0;
	if (s->list != LIST_FREE && s->list != LIST_CLOSING && s->list != LIST_CONNECTING)
		table_hash_add(t, s);
}

int table_rebuild(struct table *t)
{
	uint32_t *timed _cleanup_free_ = NULL, count = 0;

	for (uint32_t i = 0; i < *t->used; i++)
		count += is_timed(table_at(t, i)->list);
	timed = calloc(count + 1, sizeof(*timed));
	if (!timed)
		return -ENOMEM;
	count = 0;
	for (uint32_t i = 0; i < *t->used; i++) {
		struct session *s = table_at(t, i);

		if (s->list != LIST_FREE && (!s->start_ms || s->list >= LIST_COUNT)) {
			s->generation++;
			append(t, s, LIST_FREE);
		} else if (is_timed(s->list)) {
			timed[count++] = i;
		} else {
			append(t, s, s->list);
		}
	}
	qsort_r(timed, count, sizeof(*timed), by_deadline, t);
	for (uint32_t i = 0; i < count; i++)
		append(t, table_at(t, timed[i]), table_at(t, timed[i])->list);
	/* Of two sessions of one socket, the one that waits for it is to be found first. */
	for (int waiting = 0; waiting <= 1; waiting++)
		for (uint32_t i = 0; i < *t->used; i++)
			rebuild_hash(t, table_at(t, i), waiting);
	return 0;
}
