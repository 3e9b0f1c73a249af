// SPDX-License-Identifier: BSD-2-Clause
/* The messages of the control socket as bytes, and the word that decides whom a handover leaves all
 * to. */
#include <string.h>

#include "unit.h"

#include "../../proxy/control.h"

#define BODY 8 /* after the header */

static const struct control_message messages[] = {
	{.type = CONTROL_HELLO,
	 .hello = {.abi = 2,
		   .port = 18000,
		   .ports = 4,
		   .netns = 4711,
		   .name = "web",
		   .layout = "2.1.2.3"}},
	{.type = CONTROL_REFUSE, .text = "no: there is one already"},
	{.type = CONTROL_OFFER,
	 .offer = {.number = 1, .count = 3, .top = 9, .memory = 3, .connection = 7}},
	{.type = CONTROL_FDS_BATCH, .batch = {.count = 3, .fd = {3, 8, 9}}},
	{.type = CONTROL_TAKEN, .taken = 1},
};

static void test_there_and_back(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(messages); i++) {
		uint8_t buf[CONTROL_MAX], again[CONTROL_MAX];
		struct control_message m;
		size_t len = control_format(&messages[i], buf);

		assert_int_equal(control_parse(buf, len, &m), 0);
		assert_memory_equal(&m, &messages[i], sizeof(m));
		assert_int_equal(control_format(&m, again), len);
		assert_memory_equal(buf, again, len);
	}
}

/* No message is the beginning of another, nor has anything behind it. */
static void test_other_lengths(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(messages); i++) {
		uint8_t buf[CONTROL_MAX + 1] = {0};
		struct control_message m;
		size_t len = control_format(&messages[i], buf);

		buf[len] = 0;
		assert_int_equal(control_parse(buf, len + 1, &m), -EPROTO);
		for (size_t shorter = 0; shorter < len; shorter++)
			if (control_parse(buf, shorter, &m) != -EPROTO &&
			    messages[i].type != CONTROL_REFUSE &&
			    messages[i].type != CONTROL_FDS_BATCH)
				fail_msg("message %zu is understood with %zu bytes", i, shorter);
	}
}

static void assert_wrong(size_t message, size_t at, const void *bytes, size_t len, int want)
{
	uint8_t buf[CONTROL_MAX];
	struct control_message m;
	size_t total = control_format(&messages[message], buf);

	memcpy(buf + at, bytes, len);
	if (control_parse(buf, total, &m) != want)
		fail_msg("message %zu with other bytes at %zu is not %d", message, at, want);
}

static void test_wrong_values(void **state)
{
	static const int32_t zero = 0, one = 1, big = 1000, negative = -1, seven = 7;
	static const uint16_t version = 9, type = 77;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(messages); i++) {
		assert_wrong(i, 0, "X", 1, -EPROTO);
		assert_wrong(i, 6, &type, sizeof(type), -EPROTO);
		assert_wrong(i, 4, &version, sizeof(version),
			     messages[i].type == CONTROL_REFUSE ? 0 : -EPROTONOSUPPORT);
	}
	assert_wrong(0, BODY + 16, "a\n", 2, -EPROTO);				     /* name */
	assert_wrong(0, BODY + 16, "", 1, -EPROTO);				     /* none */
	assert_wrong(0, BODY + 16 + 5, "x", 1, -EPROTO);			     /* behind */
	assert_wrong(0, BODY + 16, "abcdefghijklmnopqrstuvwxyz012345", 32, -EPROTO); /* no end */
	assert_wrong(1, BODY, "\x1b", 1, -EPROTO);				     /* text */
	assert_wrong(2, BODY, &zero, 4, -EPROTO);				     /* number */
	assert_wrong(2, BODY + 4, &zero, 4, -EPROTO);				     /* count */
	assert_wrong(2, BODY + 4, &big, 4, -EPROTO);				     /* above top */
	assert_wrong(2, BODY + 8, &one, 4, -EPROTO);				     /* top */
	assert_wrong(2, BODY + 12, &big, 4, -EPROTO);				     /* memory */
	assert_wrong(2, BODY + 12, &seven, 4, -EPROTO); /* the connection's */
	assert_wrong(2, BODY + 16, &negative, 4, -EPROTO);
	assert_wrong(3, BODY, &one, 4, -EPROTO);	   /* a standard descriptor */
	assert_wrong(3, BODY, &big, 4, -EPROTO);	   /* not ascending */
	assert_wrong(3, BODY + 4, "\3\0\0\0", 4, -EPROTO); /* twice the same */
	assert_wrong(3, BODY + 4, &negative, 4, -EPROTO);
	assert_wrong(4, BODY, &zero, 4, -EPROTO);
}

static void test_texts_that_cannot_be_told(void **state)
{
	struct control_message m = {.type = CONTROL_REFUSE}, got;
	uint8_t buf[CONTROL_MAX];

	(void)state;
	assert_int_equal(control_parse(buf, control_format(&m, buf), &got), 0);
	assert_string_equal(got.text, "?");
	strcpy(m.text, "a\nb\x1b[31m\xc3\xbc");
	assert_int_equal(control_parse(buf, control_format(&m, buf), &got), 0);
	assert_string_equal(got.text, "ab[31m");
	memset(m.text, 'x', sizeof(m.text) - 1);
	assert_int_equal(control_parse(buf, control_format(&m, buf), &got), 0);
	assert_string_equal(got.text, m.text);
}

/* Whoever is first decides, for both and for good; another offer is another matter. */
static void test_one_word_decides(void **state)
{
	struct shared sh = {0};
	uint32_t first = shared_offer(&sh), second;

	(void)state;
	assert_int_equal(shared_offers(&sh), first);
	assert_true(shared_claim(&sh, first));
	assert_true(shared_claim(&sh, first)); /* a second worker of the same newcomer */
	assert_false(shared_withdraw(&sh, first));
	second = shared_offer(&sh);
	assert_int_not_equal(first, second);
	assert_false(shared_claim(&sh, first));
	assert_false(shared_withdraw(&sh, first));
	assert_true(shared_withdraw(&sh, second));
	assert_true(shared_withdraw(&sh, second));
	assert_false(shared_claim(&sh, second));
}

static void test_one_inherits(void **state)
{
	struct shared sh = {.heir = getpid() + 1};

	(void)state;
	assert_false(shared_inherit(&sh));
	sh.heir = 0;
	assert_true(shared_inherit(&sh));
	assert_true(shared_inherit(&sh));
	assert_int_equal(sh.heir, getpid());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_other_lengths),
		cmocka_unit_test(test_wrong_values),
		cmocka_unit_test(test_texts_that_cannot_be_told),
		cmocka_unit_test(test_one_word_decides),
		cmocka_unit_test(test_one_inherits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
