// SPDX-License-Identifier: BSD-2-Clause
/* Values of one version's maps as another version has them. */
#include <bpf/btf.h>
#include <string.h>

#include "unit.h"

#include "../../loader/convert.h"

enum { U8 = 1, U16, U32, U64, S8, S16, BYTES8 };

/* The numbers above, in this order, and what test cases add. */
static struct btf *btf_begin(void)
{
	struct btf *btf = btf__new_empty();

	assert_non_null(btf);
	assert_int_equal(btf__add_int(btf, "u8", 1, 0), U8);
	assert_int_equal(btf__add_int(btf, "u16", 2, 0), U16);
	assert_int_equal(btf__add_int(btf, "u32", 4, 0), U32);
	assert_int_equal(btf__add_int(btf, "u64", 8, 0), U64);
	assert_int_equal(btf__add_int(btf, "s8", 1, BTF_INT_SIGNED), S8);
	assert_int_equal(btf__add_int(btf, "s16", 2, BTF_INT_SIGNED), S16);
	assert_int_equal(btf__add_array(btf, U32, U8, 8), BYTES8);
	return btf;
}

static int structure(struct btf *btf, __u32 size)
{
	int id = btf__add_struct(btf, "s", size);

	assert_true(id > 0);
	return id;
}

static void member(struct btf *btf, const char *name, int type, __u32 offset)
{
	assert_int_equal(btf__add_field(btf, name, type, offset * 8, 0), 0);
}

/* Converts between two types of one BTF, which are as large as the buffers. */
static void assert_converts(const struct btf *btf, int from, const void *in, size_t in_size, int to,
			    const void *want, size_t want_size)
{
	struct layout a = {btf, from, in_size}, b = {btf, to, want_size};
	struct converter c _cleanup_(converter_free) = {0};
	unsigned char out[256];

	memset(out, 0xee, sizeof(out));
	assert_int_equal(converter_make(&a, &b, &c), 0);
	convert(&c, in, out);
	assert_memory_equal(out, want, want_size);
	assert_int_equal(out[want_size], 0xee);
}

static void test_the_same(void **state)
{
	struct btf *btf = btf_begin();
	int s = structure(btf, 16);

	(void)state;
	member(btf, "a", U64, 0);
	member(btf, "b", BYTES8, 8);
	assert_converts(btf, s, "0123456789abcdef", 16, s, "0123456789abcdef", 16);
	assert_converts(btf, U64, "01234567", 8, U64, "01234567", 8);
	btf__free(btf);
}

static void test_moved_added_and_gone(void **state)
{
	struct btf *btf = btf_begin();
	int s = structure(btf, 8), t;

	(void)state;
	member(btf, "a", U32, 0);
	member(btf, "gone", U16, 4);
	member(btf, "b", U16, 6);
	t = structure(btf, 16);
	member(btf, "new", U64, 0);
	member(btf, "b", U16, 8);
	member(btf, "a", U32, 12); /* after a gap */
	assert_converts(btf, s, "aaaaggbb", 8, t, "\0\0\0\0\0\0\0\0bb\0\0aaaa", 16);
	btf__free(btf);
}

static void test_inner_ones_and_arrays(void **state)
{
	struct btf *btf = btf_begin();
	int in = structure(btf, 4), in2, s, t, three, two, bytes4;

	(void)state;
	member(btf, "x", U16, 0);
	member(btf, "y", U16, 2);
	in2 = structure(btf, 8);
	member(btf, "y", U16, 0);
	member(btf, "z", U32, 4);
	three = btf__add_array(btf, U32, in, 3);
	two = btf__add_array(btf, U32, in2, 2);
	bytes4 = btf__add_array(btf, U32, U8, 4);
	s = structure(btf, 20);
	member(btf, "list", three, 0);
	member(btf, "bytes", BYTES8, 12);
	t = structure(btf, 20);
	member(btf, "bytes", bytes4, 0);
	member(btf, "list", two, 4);
	assert_converts(btf, s, "xxYYxxZZxx__01234567", 20, t, "0123YY\0\0\0\0\0\0ZZ\0\0\0\0\0\0",
			20);
	btf__free(btf);
}

static void test_other_widths(void **state)
{
	struct btf *btf = btf_begin();
	__u64 wide = 0x1122334455667788, unsigned_wide = 200;
	__u32 narrow = 0x55667788;
	__s16 minus = -3;
	__s8 small = -3;
	__u8 two_hundred = 200;

	(void)state;
	assert_converts(btf, U64, &wide, 8, U32, &narrow, 4);
	assert_converts(btf, U8, &two_hundred, 1, U64, &unsigned_wide, 8);
	assert_converts(btf, S8, &small, 1, S16, &minus, 2);
	btf__free(btf);
}

/* Where there is nothing to take it from, it is zero. */
static void test_what_does_not_match(void **state)
{
	struct btf *btf = btf_begin();
	int s = structure(btf, 16), t;

	(void)state;
	member(btf, "a", U64, 0);
	member(btf, "b", BYTES8, 8);
	t = structure(btf, 16);
	member(btf, "a", BYTES8, 0);
	member(btf, "b", U64, 8);
	assert_converts(btf, s, "0123456789abcdef", 16, t, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
	assert_converts(btf, s, "0123456789abcdef", 16, U16, "\0\0", 2);
	btf__free(btf);
}

static void test_bitfields_are_left_out(void **state)
{
	struct btf *btf = btf_begin();
	int s = structure(btf, 4), t;

	(void)state;
	assert_int_equal(btf__add_field(btf, "a", U32, 0, 3), 0);
	t = structure(btf, 4);
	member(btf, "a", U32, 0);
	assert_converts(btf, s, "0123", 4, t, "\0\0\0\0", 4);
	assert_converts(btf, t, "0123", 4, s, "\0\0\0\0", 4);
	btf__free(btf);
}

/* A map's value may be smaller than its type says, if somebody has lied. */
static void test_never_beyond_the_value(void **state)
{
	struct btf *btf = btf_begin();
	int s = structure(btf, 16);

	(void)state;
	member(btf, "a", U64, 0);
	member(btf, "beyond", U64, 8);
	assert_converts(btf, s, "01234567", 8, s, "\0\0\0\0\0\0\0\0", 8);
	btf__free(btf);
}

static void test_circles_end(void **state)
{
	struct btf *btf = btf_begin();
	int s = structure(btf, 8);
	struct converter c = {0};
	struct layout whole = {btf, s, 8};

	(void)state;
	for (int i = 0; i < 300; i++) {
		char name[8];

		snprintf(name, sizeof(name), "m%d", i);
		member(btf, name, i ? s + 1 : (int)U64, 0);
	}
	assert_int_equal(structure(btf, 8), s + 1);
	for (int i = 0; i < 300; i++) {
		char name[8];

		snprintf(name, sizeof(name), "m%d", i);
		member(btf, name, BYTES8, 0);
	}
	assert_int_equal(converter_make(&whole, &whole, &c), -E2BIG);
	assert_null(c.steps);
	btf__free(btf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_same),
		cmocka_unit_test(test_moved_added_and_gone),
		cmocka_unit_test(test_inner_ones_and_arrays),
		cmocka_unit_test(test_other_widths),
		cmocka_unit_test(test_what_does_not_match),
		cmocka_unit_test(test_bitfields_are_left_out),
		cmocka_unit_test(test_never_beyond_the_value),
		cmocka_unit_test(test_circles_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
