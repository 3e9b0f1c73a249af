// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 * Open addressing with linear probing, at most half full. A key goes when its count does: those
 * behind it move up, so that there are no tombstones, and the size follows the number of users and
 * cgroups that are connected at once.
 */
#include "shares.h"

#include <errno.h>
#include <stdlib.h>

#define SIZE_MIN 16

static uint32_t home(const struct shares *s, uint64_t key)
{
	return (key * 0x9e3779b97f4a7c15ULL >> 32) & (s->size - 1);
}

/* Where the key is, or would be. There is a free place always. */
static uint32_t place_of(const struct shares *s, uint64_t key)
{
	uint32_t at = home(s, key);

	while (s->places[at].count && s->places[at].key != key)
		at = (at + 1) & (s->size - 1);
	return at;
}

static int grow(struct shares *s)
{
	struct shares larger = {.size = s->size ? 2 * s->size : SIZE_MIN, .used = s->used};

	larger.places = calloc(larger.size, sizeof(*larger.places));
	if (!larger.places)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->size; i++)
		if (s->places[i].count)
			larger.places[place_of(&larger, s->places[i].key)] = s->places[i];
	free(s->places);
	*s = larger;
	return 0;
}

int shares_add(struct shares *s, uint64_t key)
{
	struct share *share;

	if (2 * (s->used + 1) > s->size && grow(s))
		return -ENOMEM;
	share = &s->places[place_of(s, key)];
	s->used += !share->count;
	share->key = key;
	share->count++;
	return 0;
}

void shares_remove(struct shares *s, uint64_t key)
{
	uint32_t mask = s->size - 1, hole, at;

	if (!shares_count(s, key))
		return;
	hole = place_of(s, key);
	if (--s->places[hole].count)
		return;
	s->used--;
	for (at = (hole + 1) & mask; s->places[at].count; at = (at + 1) & mask) {
		/* One that is found from its home without passing the hole stays. */
		if (((at - home(s, s->places[at].key)) & mask) < ((at - hole) & mask))
			continue;
		s->places[hole] = s->places[at];
		s->places[at].count = 0;
		hole = at;
	}
}

uint32_t shares_count(const struct shares *s, uint64_t key)
{
	return s->size ? s->places[place_of(s, key)].count : 0;
}

void shares_free(struct shares *s)
{
	free(s->places);
	*s = (struct shares){0};
}
