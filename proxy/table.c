// SPDX-License-Identifier: BSD-2-Clause
#include "table.h"

#include <string.h>
#include <sys/mman.h>

int table_init(struct table *t, uint32_t slots, struct failure *f)
{
	size_t size = (size_t)slots * sizeof(struct session);
	uint32_t buckets = 1;
	int fd _cleanup_fd_ = memfd_create("tproxyd-sessions", MFD_CLOEXEC);
	void *p;

	if (fd < 0 || ftruncate(fd, size))
		return fail(f, -errno, "cannot make a table of %u sessions: %m; lower max-sessions",
			    slots);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return fail(f, -errno, "cannot map a table of %u sessions: %m; lower max-sessions",
			    slots);
	while (buckets < slots)
		buckets *= 2;
	*t = (struct table){.memfd = TAKE_FD(fd), .slots = slots, .sessions = p};
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
	if (t->sessions)
		munmap(t->sessions, (size_t)t->slots * sizeof(struct session));
	t->memfd = fd_close(t->memfd);
	free(t->buckets);
	t->buckets = NULL;
	t->sessions = NULL;
}

static void append(struct table *t, struct session *s, enum session_list list)
{
	struct list_head *head = &t->lists[list];
	uint32_t slot = table_slot(t, s);

	s->list = list;
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
	else if (t->touched < t->slots)
		s = table_at(t, t->touched++);
	else
		return NULL;
	generation = s->generation;
	*s = (struct session){
		.generation = generation,
		.fd = {-1, -1},
	};
	session_init_directions(s);
	append(t, s, list);
	return s;
}

void table_move(struct table *t, struct session *s, enum session_list list)
{
	detach(t, s);
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

	if (slot >= t->touched)
		return NULL;
	s = table_at(t, slot);
	return s->generation == generation && s->list != LIST_FREE ? s : NULL;
}

uint32_t table_used(const struct table *t)
{
	return t->touched - t->lists[LIST_FREE].count;
}

/* Socket cookies count up: a multiplication spreads them. */
static uint32_t *bucket_of(struct table *t, __u64 cookie)
{
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
