// SPDX-License-Identifier: BSD-2-Clause
/* Which destinations are this host. */
#include <sys/socket.h>

#include "unit.h"

#include "../../proxy/local.h"

static struct tp_endpoint v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d)
{
	return (struct tp_endpoint){{[10] = 0xff, 0xff, a, b, c, d}, 80, AF_INET};
}

static void test_a_connection_tells_of_the_next(void **state)
{
	struct tp_endpoint here = v4(10, 77, 0, 1), there = v4(192, 0, 2, 1);
	struct tp_endpoint six = {{0xfd, 0x77, [15] = 1}, 80, AF_INET6};
	struct local l = {0};

	(void)state;
	assert_false(local_expected(&l, &here));
	assert_true(local_learn(&l, &here, &here));
	assert_true(local_expected(&l, &here));
	assert_false(local_learn(&l, &there, &here));
	assert_false(local_expected(&l, &there));
	assert_true(local_learn(&l, &six, &six));
	assert_true(local_expected(&l, &six));
	assert_true(local_expected(&l, &here));
	assert_false(local_learn(&l, &here, &there)); /* the address has moved away */
	assert_false(local_expected(&l, &here));
	assert_true(local_expected(&l, &six));
}

/* Whichever octet it is that they differ in. */
static void test_like_addresses_have_places_of_their_own(void **state)
{
	(void)state;
	for (int octet = 0; octet < 4; octet++) {
		struct tp_endpoint a = v4(10, 17, 5, 1), b = a;
		struct local l = {0};
		int together = 0;

		for (int other = 128; other < 160; other++) {
			b.ip[12 + octet] = other;
			local_learn(&l, &a, &a);
			local_learn(&l, &b, &b);
			together += local_expected(&l, &a);
		}
		assert_in_range(together, 28, 32);
	}
}

static void test_loopback_is_local(void **state)
{
	struct tp_endpoint any = v4(127, 1, 2, 3), source = v4(127, 0, 0, 1);
	struct tp_endpoint six = {{[12] = 127, [15] = 1}, 80, AF_INET6}; /* is none */
	struct local l = {0};

	(void)state;
	assert_true(local_expected(&l, &any));
	assert_true(local_learn(&l, &any, &source));
	assert_false(local_expected(&l, &six));
}

/* More than there are places: what is expected is never wrong, only not known. */
static void test_many_addresses(void **state)
{
	static struct local l;
	int known = 0;

	(void)state;
	for (int i = 0; i < 4 * LOCAL_PLACES; i++) {
		struct tp_endpoint at = v4(10, 0, i >> 8, i), other = v4(10, 1, i >> 8, i);

		assert_true(local_learn(&l, &at, &at));
		assert_true(local_expected(&l, &at));
		assert_false(local_expected(&l, &other));
	}
	for (int i = 0; i < 4 * LOCAL_PLACES; i++) {
		struct tp_endpoint at = v4(10, 0, i >> 8, i);

		known += local_expected(&l, &at);
	}
	assert_in_range(known, LOCAL_PLACES / 2, LOCAL_PLACES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_connection_tells_of_the_next),
		cmocka_unit_test(test_like_addresses_have_places_of_their_own),
		cmocka_unit_test(test_loopback_is_local),
		cmocka_unit_test(test_many_addresses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
