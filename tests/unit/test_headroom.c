// SPDX-License-Identifier: BSD-2-Clause
/* What of a cgroup's memory the kernel can take back. */
#include "unit.h"

#include "../../proxy/headroom.h"

static void test_reclaimable(void **state)
{
	static const char v2[] = "anon 100\nfile 7000\ninactive_anon 1\nactive_anon 2\n"
				 "inactive_file 1000\nactive_file 200\nunevictable 3\n"
				 "slab_reclaimable 30\nslab_unreclaimable 400\n";
	static const char v1[] = "cache 5\ninactive_file 10\nactive_file 20\n"
				 "total_inactive_file 1000\ntotal_active_file 200\n";

	(void)state;
	assert_int_equal(headroom_reclaimable(v2, 0), 1230);
	assert_int_equal(headroom_reclaimable(v1, 1), 1200);
	assert_int_equal(headroom_reclaimable("", 0), 0);
	assert_int_equal(headroom_reclaimable("active_file", 0), 0);
}

static void test_without_a_cgroup_there_is_room(void **state)
{
	struct headroom h = HEADROOM_INIT;

	(void)state;
	for (uint64_t now = 0; now < 1000; now++)
		assert_true(headroom_left(&h, now));
	headroom_close(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reclaimable),
		cmocka_unit_test(test_without_a_cgroup_there_is_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
