// SPDX-License-Identifier: BSD-2-Clause
/* Instance names, paths of pins, and the tables that come from bpf/pins.h and bpf/abi.h. */
#include <string.h>

#include "unit.h"

#include "instance.h"

static void assert_name(const char *name, int want)
{
	struct failure f = {{0}};

	if (instance_name_check(name, &f) != want)
		fail_msg("instance_name_check(\"%s\") is not %d", name, want);
	if (want)
		assert_non_null(strstr(f.text, name));
	else
		assert_string_equal(f.text, "");
}

static void test_good_names(void **state)
{
	(void)state;
	assert_name("tproxy", 0);
	assert_name("a", 0);
	assert_name("7", 0);
	assert_name("web-1_b", 0);
	assert_name("abcdefghijklmnopqrstuvwxyz01234", 0); /* 31 */
}

static void test_bad_names(void **state)
{
	(void)state;
	assert_name("", -EINVAL);
	assert_name("abcdefghijklmnopqrstuvwxyz012345", -EINVAL); /* 32 */
	assert_name("-a", -EINVAL);
	assert_name("_a", -EINVAL);
	assert_name("Tproxy", -EINVAL);
	assert_name("a.b", -EINVAL);
	assert_name("a/b", -EINVAL);
	assert_name("..", -EINVAL);
	assert_name("a b", -EINVAL);
	assert_name("a~new", -EINVAL); /* how the loader's side names are told apart */
	assert_name("a\xc3\xbc", -EINVAL);
}

static void test_paths(void **state)
{
	char buf[PATH_MAX];

	(void)state;
	assert_string_equal(instance_dir("web", "", buf), "/sys/fs/bpf/web");
	assert_string_equal(instance_dir("web", PIN_NEW_SUFFIX, buf), "/sys/fs/bpf/web~new");
	assert_string_equal(instance_pin("web", "map_socks", buf), "/sys/fs/bpf/web/map_socks");
}

/* bpffs refuses '.', and a pin's name must fit the kernel's limit for object names. */
static void assert_pin_name(const char *name, const char *prefix)
{
	assert_memory_equal(name, prefix, strlen(prefix));
	assert_null(strchr(name, '.'));
	assert_null(strchr(name, '~'));
	assert_true(strlen(name) < 16 || !strcmp(prefix, PIN_PROG_PREFIX));
}

static void test_tables(void **state)
{
	(void)state;
	for (int m = 0; m < PIN_MAP_COUNT; m++)
		assert_pin_name(pin_maps[m].name, PIN_MAP_PREFIX);
	for (int p = 0; p < PIN_PROG_COUNT; p++) {
		assert_pin_name(pin_progs[p].pin, PIN_PROG_PREFIX);
		assert_string_equal(pin_progs[p].pin + strlen(PIN_PROG_PREFIX), pin_progs[p].name);
		for (int other = 0; other < p; other++)
			assert_int_not_equal(pin_progs[p].attach_type,
					     pin_progs[other].attach_type);
	}
}

static void test_counters_follow_the_struct(void **state)
{
	(void)state;
	assert_string_equal(counters[offsetof(struct tp_stats, redirected) / 8].name, "redirected");
	assert_string_equal(counters[offsetof(struct tp_stats, to_proxy) / 8].name, "to_proxy");
	assert_string_equal(counters[offsetof(struct tp_stats, record_freed) / 8].name,
			    "record_freed");
	for (size_t i = 0; i < COUNTER_COUNT; i++) {
		assert_true(strlen(counters[i].text) > 8);
		for (size_t other = 0; other < i; other++)
			assert_string_not_equal(counters[i].name, counters[other].name);
	}
}

/* What is not pinned down by sizes alone: where a reader in another language finds each field. */
static void test_abi_offsets(void **state)
{
	(void)state;
	assert_int_equal(offsetof(struct tp_endpoint, port), 16);
	assert_int_equal(offsetof(struct tp_endpoint, family), 18);
	assert_int_equal(offsetof(struct tp_record, dst), 32);
	assert_int_equal(offsetof(struct tp_record, src), 52);
	assert_int_equal(offsetof(struct tp_record, pid), 72);
	assert_int_equal(offsetof(struct tp_record, local), 84);
	assert_int_equal(offsetof(struct tp_record, comm), 104);
	assert_int_equal(offsetof(struct tp_mark, client), 24);
	assert_int_equal(offsetof(struct tp_config, magic), 0);
	assert_int_equal(offsetof(struct tp_config, abi), 4);
	assert_int_equal(offsetof(struct tp_config, port), 16);
	assert_int_equal(offsetof(struct tp_config, proxies), 80);
}

/* A hash key is compared byte by byte: padding the compiler adds would be compared as well. */
static void test_keys_have_no_padding(void **state)
{
	struct tp_port_key k;

	(void)state;
	assert_int_equal(sizeof(k), sizeof(k.netns) + sizeof(k.ip) + sizeof(k.port) +
					    sizeof(k.proxy_port) + sizeof(k.reserved));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good_names),
		cmocka_unit_test(test_bad_names),
		cmocka_unit_test(test_paths),
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_counters_follow_the_struct),
		cmocka_unit_test(test_abi_offsets),
		cmocka_unit_test(test_keys_have_no_padding),
	};

	return cmocka_run_group_tests_name("instance", tests, NULL, NULL);
}
