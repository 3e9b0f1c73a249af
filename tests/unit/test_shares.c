// SPDX-License-Identifier: BSD-2-Clause
/* Counts by user and cgroup. */
#include <stdlib.h>

#include "unit.h"

#include "../../proxy/shares.h"

static void test_counts_up_and_down(void **state)
{
	struct shares s = {0};

	(void)state;
	assert_int_equal(shares_count(&s, 7), 0);
	shares_remove(&s, 7); /* of nothing */
	assert_int_equal(shares_add(&s, 7), 0);
	assert_int_equal(shares_add(&s, 7), 0);
	assert_int_equal(shares_add(&s, 0), 0);
	assert_int_equal(shares_count(&s, 7), 2);
	assert_int_equal(shares_count(&s, 0), 1);
	shares_remove(&s, 7);
	assert_int_equal(shares_count(&s, 7), 1);
	shares_remove(&s, 7);
	shares_remove(&s, 7);
	assert_int_equal(shares_count(&s, 7), 0);
	assert_int_equal(shares_count(&s, 0), 1);
	shares_free(&s);
}

/* Against plain arrays: keys that crowd, come and go in any order, at any size. */
static void test_agrees_with_plain_counts(void **state)
{
	enum { KEYS = 200, STEPS = 200000 };
	static uint32_t expected[KEYS];
	struct shares s = {0};
	uint32_t distinct = 0;

	(void)state;
	srandom(4711);
	for (int step = 0; step < STEPS; step++) {
		/* The number in use swells and shrinks. */
		uint32_t i = random() % (step / 1000 % 2 ? KEYS : 10);
		uint64_t key = i % 3 ? i : (uint64_t)i << 40;

		if (expected[i] && random() % 2) {
			shares_remove(&s, key);
			distinct -= !--expected[i];
		} else if (random() % 2) {
			assert_int_equal(shares_add(&s, key), 0);
			distinct += !expected[i]++;
		}
		assert_int_equal(shares_count(&s, key), expected[i]);
		assert_int_equal(s.used, distinct);
		if (step % 1000)
			continue;
		for (uint32_t j = 0; j < KEYS; j++)
			assert_int_equal(shares_count(&s, j % 3 ? j : (uint64_t)j << 40),
					 expected[j]);
	}
	shares_free(&s);
}

/* The memory follows what is connected at once, not what ever was. */
static void test_does_not_grow_with_the_past(void **state)
{
	struct shares s = {0};

	(void)state;
	for (uint64_t key = 0; key < 100000; key++) {
		assert_int_equal(shares_add(&s, key), 0);
		shares_remove(&s, key);
	}
	assert_in_range(s.size, 1, 16);
	shares_free(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_counts_up_and_down),
		cmocka_unit_test(test_agrees_with_plain_counts),
		cmocka_unit_test(test_does_not_grow_with_the_past),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
