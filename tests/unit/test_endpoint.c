// SPDX-License-Identifier: BSD-2-Clause
/* Addresses to and from text and socket addresses. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "unit.h"

#include "endpoint.h"

static struct tp_endpoint endpoint_of(const char *ip, unsigned int port)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct tp_endpoint ep;

	memset(&ep, 0xaa, sizeof(ep)); /* whatever was there must not show */
	if (inet_pton(AF_INET, ip, &in.sin_addr) == 1) {
		assert_int_equal(endpoint_from_sockaddr((struct sockaddr *)&in, &ep), 0);
	} else {
		assert_int_equal(inet_pton(AF_INET6, ip, &in6.sin6_addr), 1);
		assert_int_equal(endpoint_from_sockaddr((struct sockaddr *)&in6, &ep), 0);
	}
	return ep;
}

static void assert_formats(const char *ip, unsigned int port, const char *want)
{
	struct tp_endpoint ep = endpoint_of(ip, port);
	char buf[ENDPOINT_STRLEN];

	assert_string_equal(endpoint_format(&ep, buf), want);
}

static void test_format(void **state)
{
	(void)state;
	assert_formats("192.0.2.1", 80, "192.0.2.1:80");
	assert_formats("255.255.255.255", 65535, "255.255.255.255:65535");
	assert_formats("2001:db8::1", 443, "[2001:db8::1]:443");
	assert_formats("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535,
		       "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535");
}

static void test_mapped_is_v4(void **state)
{
	(void)state;
	assert_formats("::ffff:192.0.2.7", 8080, "192.0.2.7:8080");
	assert_int_equal(endpoint_of("::ffff:192.0.2.7", 8080).family, AF_INET);
	assert_int_equal(endpoint_of("::fffe:192.0.2.7", 8080).family, AF_INET6);
	assert_int_equal(endpoint_of("::192.0.2.7", 8080).family, AF_INET6);
}

static void test_v4_is_stored_mapped(void **state)
{
	static const __u8 want[16] = {[10] = 0xff, 0xff, 10, 1, 2, 3};
	struct tp_endpoint ep = endpoint_of("10.1.2.3", 258);

	(void)state;
	assert_memory_equal(ep.ip, want, sizeof(want));
	assert_int_equal(ep.port, 258); /* host order */
}

static void test_unknown_is_a_dash(void **state)
{
	struct tp_endpoint ep = {0};
	char buf[ENDPOINT_STRLEN];

	(void)state;
	assert_string_equal(endpoint_format(&ep, buf), "-");
}

static void assert_round_trip(const char *ip, sa_family_t family, socklen_t want_len)
{
	struct tp_endpoint ep = endpoint_of(ip, 4711), back = {0};
	struct sockaddr_storage addr;
	socklen_t len = 0;

	memset(&addr, 0xaa, sizeof(addr));
	assert_int_equal(endpoint_to_sockaddr(&ep, &addr, &len), 0);
	assert_int_equal(addr.ss_family, family);
	assert_int_equal(len, want_len);
	assert_int_equal(endpoint_from_sockaddr((struct sockaddr *)&addr, &back), 0);
	assert_memory_equal(back.ip, ep.ip, sizeof(ep.ip));
	assert_int_equal(back.port, 4711);
	if (family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&addr;

		assert_int_equal(in6->sin6_scope_id, 0);
		assert_int_equal(in6->sin6_flowinfo, 0);
	}
}

static void test_round_trips(void **state)
{
	(void)state;
	assert_round_trip("192.0.2.1", AF_INET, sizeof(struct sockaddr_in));
	assert_round_trip("2001:db8::ff00:42", AF_INET6, sizeof(struct sockaddr_in6));
	assert_round_trip("::ffff:10.0.0.1", AF_INET, sizeof(struct sockaddr_in));
}

static void test_other_families_are_refused(void **state)
{
	struct sockaddr unix_addr = {.sa_family = AF_UNIX};
	struct tp_endpoint ep = {.family = AF_UNIX};
	struct sockaddr_storage addr;
	socklen_t len;

	(void)state;
	assert_int_equal(endpoint_to_sockaddr(&ep, &addr, &len), -EAFNOSUPPORT);
	assert_int_equal(endpoint_from_sockaddr(&unix_addr, &ep), -EAFNOSUPPORT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_format),
		cmocka_unit_test(test_mapped_is_v4),
		cmocka_unit_test(test_v4_is_stored_mapped),
		cmocka_unit_test(test_unknown_is_a_dash),
		cmocka_unit_test(test_round_trips),
		cmocka_unit_test(test_other_families_are_refused),
	};

	return cmocka_run_group_tests_name("endpoint", tests, NULL, NULL);
}
