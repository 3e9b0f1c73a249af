// SPDX-License-Identifier: BSD-2-Clause
/* The pool of pipes. */
#include <fcntl.h>

#include "unit.h"

#include "../../proxy/pipes.h"
#include "../../proxy/table.h"

#define WIDE   16 /* so many at most */
#define NARROW (1 << 16)

static int size_of(const struct pipes *pool, uint32_t index)
{
	return fcntl(pool->all[index].fd[1], F_GETPIPE_SZ);
}

static int count_wide(const struct pipes *pool, const uint32_t *lent, size_t count)
{
	int wide = 0;

	for (size_t i = 0; i < count; i++)
		wide += size_of(pool, lent[i]) == PIPE_WIDE;
	return wide;
}

static void test_used_again(void **state)
{
	uint32_t used = 0, first, second, again;
	struct pipe entries[2];
	struct pipes pool;

	(void)state;
	pipes_init(&pool, entries, ARRAY_SIZE(entries), &used, WIDE);
	assert_int_equal(pipes_take(&pool, &first), 0);
	assert_int_equal(pipes_take(&pool, &second), 0);
	assert_int_not_equal(first, second);
	assert_int_equal(pipes_take(&pool, &again), -ENOMEM); /* there are two entries */
	assert_int_equal(pool.open, 2);
	pipes_put(&pool, first);
	assert_int_equal(pool.idle, 1);
	assert_int_equal(pipes_take(&pool, &again), 0);
	assert_int_equal(again, first);
	pipes_discard(&pool, again);
	pipes_discard(&pool, second);
	assert_int_equal(pool.open, 0);
	pipes_free(&pool);
}

/* All take one, and want a wide one. */
static void take_wide(struct pipes *pool, uint32_t *lent, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(pipes_take(pool, &lent[i]), 0);
		assert_int_equal(size_of(pool, lent[i]), NARROW);
		pipes_widen(pool, &lent[i]);
		pipes_widen(pool, &lent[i]); /* once more is nothing */
	}
}

static void test_some_are_wide(void **state)
{
	uint32_t used = 0, lent[WIDE + 4], one;
	struct pipe entries[2 * ARRAY_SIZE(lent)];
	struct pipes pool;

	(void)state;
	pipes_init(&pool, entries, ARRAY_SIZE(entries), &used, WIDE);
	take_wide(&pool, lent, ARRAY_SIZE(lent));
	assert_int_equal(count_wide(&pool, lent, ARRAY_SIZE(lent)), WIDE);
	pipes_discard(&pool, lent[0]); /* makes room for another */
	assert_int_equal(pipes_take(&pool, &lent[0]), 0);
	pipes_widen(&pool, &lent[0]);
	assert_int_equal(count_wide(&pool, lent, ARRAY_SIZE(lent)), WIDE);
	for (size_t i = 0; i < ARRAY_SIZE(lent); i++)
		pipes_put(&pool, lent[i]);
	assert_int_equal(pool.idle, ARRAY_SIZE(lent));
	take_wide(&pool, lent, ARRAY_SIZE(lent)); /* exchanged */
	assert_int_equal(count_wide(&pool, lent, ARRAY_SIZE(lent)), WIDE);
	for (size_t i = 0; i < ARRAY_SIZE(lent); i++)
		pipes_put(&pool, lent[i]);
	assert_int_equal(pool.open, pool.idle);
	pipes_trim(&pool);
	assert_int_equal(pool.open, 0);
	assert_int_equal(pipes_take(&pool, &one), 0);
	pipes_widen(&pool, &one);
	assert_int_equal(size_of(&pool, one), PIPE_WIDE);
	pipes_free(&pool);
}

/* Better than none. */
static void test_a_wide_one_does_for_any(void **state)
{
	struct pipe entries[2];
	struct pipes pool;
	uint32_t used = 0, first, second;

	(void)state;
	pipes_init(&pool, entries, ARRAY_SIZE(entries), &used, WIDE);
	assert_int_equal(pipes_take(&pool, &first), 0);
	pipes_widen(&pool, &first);
	pipes_put(&pool, first);
	assert_int_equal(pipes_take(&pool, &second), 0);
	assert_int_equal(size_of(&pool, second), NARROW);
	assert_int_equal(pipes_take(&pool, &first), 0); /* there is no third entry */
	assert_int_equal(size_of(&pool, first), PIPE_WIDE);
	assert_int_equal(pipes_take(&pool, &first), -ENOMEM);
	pipes_free(&pool);
}

/* What the pool knew is gone, and what the entries say of others than the lent ones, too. */
static void test_a_successor_finds_them(void **state)
{
	uint32_t used = 0, lent[WIDE + 1], more;
	struct pipe entries[WIDE + 4];
	struct pipes pool;

	(void)state;
	pipes_init(&pool, entries, ARRAY_SIZE(entries), &used, WIDE);
	take_wide(&pool, lent, ARRAY_SIZE(lent));
	pipes_put(&pool, lent[0]);
	pipes_put(&pool, lent[1]);
	pipes_init(&pool, entries, ARRAY_SIZE(entries), &used, WIDE);
	for (uint32_t i = 0; i < used; i++)
		entries[i].next = 7;
	for (uint32_t i = 0; i < used; i++)
		pipes_restore(&pool, i,
			      i == lent[0]   ? PIPE_EMPTY
			      : i == lent[1] ? PIPE_ABANDONED
					     : PIPE_LENT);
	assert_int_equal(pool.idle, 1);
	assert_int_equal(pool.open, WIDE);
	assert_int_equal(pipes_take(&pool, &more), 0);
	pipes_widen(&pool, &more); /* the idle one */
	assert_int_equal(more, lent[0]);
	assert_int_equal(pipes_take(&pool, &more), 0);
	pipes_widen(&pool, &more); /* in the place of the abandoned one */
	assert_int_equal(size_of(&pool, more), PIPE_WIDE);
	assert_int_equal(pipes_take(&pool, &more), 0);
	pipes_widen(&pool, &more);
	assert_int_equal(size_of(&pool, more), NARROW);
	pipes_free(&pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_used_again),
		cmocka_unit_test(test_some_are_wide),
		cmocka_unit_test(test_a_wide_one_does_for_any),
		cmocka_unit_test(test_a_successor_finds_them),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
