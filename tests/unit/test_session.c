// SPDX-License-Identifier: BSD-2-Clause
/* The session table, the event datum, the pool of pipes and the session's line. */
#include <netinet/in.h>
#include <string.h>

#include "unit.h"

#include "../../proxy/event.h"
#include "../../proxy/pipes.h"
#include "../../proxy/sessionlog.h"
#include "../../proxy/table.h"
#include "escape.h"

#define SLOTS 4

static int table_setup(void **state)
{
	static struct session sessions[SLOTS];
	static struct table t;
	static uint32_t used;
	struct failure f;

	memset(sessions, 0, sizeof(sessions));
	used = 0;
	*state = &t;
	return table_init(&t, sessions, SLOTS, &used, &f);
}

static int table_teardown(void **state)
{
	table_free(*state);
	return 0;
}

static void test_table_gives_each_slot_once(void **state)
{
	struct table *t = *state;
	struct session *taken[SLOTS];

	for (int i = 0; i < SLOTS; i++) {
		taken[i] = table_take(t, LIST_CONNECTING);
		assert_non_null(taken[i]);
		for (int other = 0; other < i; other++)
			assert_ptr_not_equal(taken[i], taken[other]);
	}
	assert_null(table_take(t, LIST_CONNECTING));
	assert_int_equal(table_used(t), SLOTS);
	table_move(t, taken[2], LIST_FREE);
	assert_int_equal(table_used(t), SLOTS - 1);
	assert_ptr_equal(table_take(t, LIST_RELAY), taken[2]);
}

static void test_table_clears_what_a_slot_held(void **state)
{
	struct table *t = *state;
	struct session *s = table_take(t, LIST_RELAY);

	s->fd[CLIENT] = 77;
	s->dir[CLIENT] = (struct direction){.bytes = 5, .pipe = 3, .taken = 14, .shut = 1};
	s->client.pid = 4711;
	table_move(t, s, LIST_FREE);
	s = table_take(t, LIST_RELAY);
	assert_int_equal(s->fd[CLIENT], -1);
	assert_int_equal(s->fd[UPSTREAM], -1);
	assert_int_equal(s->dir[CLIENT].bytes, 0);
	assert_int_equal(s->dir[CLIENT].pipe, NO_PIPE);
	assert_int_equal(s->dir[UPSTREAM].pipe, NO_PIPE);
	assert_int_equal(s->client.pid, 0);
}

static void test_table_recognises_what_has_gone(void **state)
{
	struct table *t = *state;
	struct session *s = table_take(t, LIST_RELAY);
	uint32_t slot = table_slot(t, s), generation = s->generation;

	assert_ptr_equal(table_find(t, slot, generation), s);
	table_move(t, s, LIST_CLOSING);
	assert_ptr_equal(table_find(t, slot, generation), s);
	table_move(t, s, LIST_FREE);
	assert_null(table_find(t, slot, generation));
	s = table_take(t, LIST_RELAY);
	assert_int_equal(table_slot(t, s), slot);
	assert_null(table_find(t, slot, generation)); /* the same slot, another session */
	assert_non_null(table_find(t, slot, s->generation));
	assert_null(table_find(t, SLOTS, 0));
	assert_null(table_find(t, 0xffffff, 0));
}

static void assert_order(struct table *t, enum session_list list, struct session *const *want)
{
	for (; *want; want++) {
		assert_ptr_equal(table_first(t, list), *want);
		table_move(t, *want, LIST_CLOSING);
	}
	assert_null(table_first(t, list));
}

static void test_table_knows_the_granted_by_their_tags(void **state)
{
	static const __u64 beyond = 1ULL << TP_TAG_COOKIE_BITS;
	struct table *t = *state;
	struct session *first = table_take(t, LIST_HELD), *other = table_take(t, LIST_GRANTED);
	struct tp_record client = {.cookie = 7, .seq = 0xab001234};

	first->client.cookie = other->client.cookie = beyond + 7;
	first->client.seq = 0xcd001234;
	other->client.seq = 0xcd001235; /* another attempt of that socket */
	table_hash_add(t, first);
	table_hash_add(t, other);
	assert_null(table_granted(t, tp_tag(&client))); /* held still */
	table_move(t, first, LIST_GRANTED);
	assert_ptr_equal(table_granted(t, tp_tag(&client)), first);
	first->again = 1;
	assert_null(table_granted(t, tp_tag(&client)));
	client.seq++;
	assert_ptr_equal(table_granted(t, tp_tag(&client)), other);
	other->client.seq += 1 << TP_TAG_SEQ_BITS;
	first->client.seq = client.seq; /* two have it */
	first->again = 0;
	assert_null(table_granted(t, tp_tag(&client)));
	client.seq++;
	assert_null(table_granted(t, tp_tag(&client)));
	client = (struct tp_record){.cookie = 8, .seq = 0xab001235};
	assert_null(table_granted(t, tp_tag(&client)));
	assert_null(table_granted(t, TP_NO_TAG));
	table_hash_remove(t, first);
	table_hash_remove(t, other);
	client.cookie = 7;
	assert_null(table_granted(t, tp_tag(&client)));
}

static void test_table_lists_keep_their_order(void **state)
{
	struct table *t = *state;
	struct session *a = table_take(t, LIST_RELAY), *b = table_take(t, LIST_RELAY);
	struct session *c = table_take(t, LIST_RELAY), *d = table_take(t, LIST_RELAY);

	table_move(t, b, LIST_STARVED); /* from the middle */
	table_move(t, a, LIST_RELAY);	/* from the front to the end */
	table_move(t, d, LIST_STARVED);
	assert_int_equal(t->lists[LIST_RELAY].count, 2);
	assert_order(t, LIST_RELAY, (struct session *[]){c, a, NULL});
	assert_order(t, LIST_STARVED, (struct session *[]){b, d, NULL});
	assert_int_equal(t->lists[LIST_CLOSING].count, SLOTS);
}

static void test_event_datum(void **state)
{
	static const uint32_t numbers[] = {0, 1, 0xabcdef, 0xffffff};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		uint64_t datum = event_pack(EVENT_UPSTREAM, numbers[i], ~numbers[i]);

		assert_int_equal(event_type(datum), EVENT_UPSTREAM);
		assert_int_equal(event_slot(datum), numbers[i]);
		assert_int_equal(event_generation(datum), ~numbers[i]);
	}
}

static struct session sample(void)
{
	struct session s = {
		.start_ms = 1000,
		.end = END_CLOSED,
		.dir = {{.bytes = 123}, {.bytes = 45678901234}},
		.client = {.pid = 42, .uid = 1000, .comm = "curl"},
	};

	s.client.dst = (struct tp_endpoint){{[10] = 0xff, 0xff, 192, 0, 2, 1}, 443, AF_INET};
	s.client.src = (struct tp_endpoint){{0x20, 0x01, 0x0d, 0xb8, [15] = 1}, 50000, AF_INET6};
	return s;
}

static void test_line(void **state)
{
	struct session s = sample();
	char buf[512];
	size_t len;

	(void)state;
	len = sessionlog_format(&s, 3500, buf, sizeof(buf));
	assert_int_equal(len, strlen(buf));
	assert_string_equal(buf,
			    "session dst=192.0.2.1:443 src=[2001:db8::1]:50000 pid=42 "
			    "comm=\"curl\" uid=1000 up=123 down=45678901234 ms=2500 end=closed");
	s.end = END_CONNECT_FAILED;
	s.error = ECONNREFUSED;
	sessionlog_format(&s, 3500, buf, sizeof(buf));
	assert_non_null(strstr(buf, "end=connect-failed error=\"Connection refused\""));
	s.end = UINT8_MAX; /* a worker that went wrong wrote it */
	sessionlog_format(&s, 3500, buf, sizeof(buf));
	assert_non_null(strstr(buf, "end=unknown"));
}

static void test_line_is_cut_not_overrun(void **state)
{
	struct session s = sample();
	char buf[64], guard[sizeof(buf)];

	(void)state;
	memset(buf, '#', sizeof(buf));
	memset(guard, '#', sizeof(guard));
	assert_int_equal(sessionlog_format(&s, 3500, buf, 32), 31);
	assert_int_equal(strlen(buf), 31);
	assert_memory_equal(buf + 32, guard, sizeof(buf) - 32);
}

static void assert_escaped(const char *text, size_t len, const char *want)
{
	char out[4 * 32 + 1];

	assert_string_equal(escape(text, len, "\"\\", out), want);
}

static void test_escape(void **state)
{
	(void)state;
	assert_escaped("curl", 16, "curl");
	assert_escaped("a b", 16, "a b");
	assert_escaped("x\" y", 16, "x\\x22 y");
	assert_escaped("\\", 16, "\\x5c");
	assert_escaped("\n\r\t\x1b", 16, "\\x0a\\x0d\\x09\\x1b");
	assert_escaped("\xc3\xbc\x7f", 16, "\\xc3\\xbc\\x7f");
	assert_escaped("0123456789abcdef-", 16, "0123456789abcdef"); /* comm without a NUL */
	assert_escaped("", 16, "");
	assert_string_equal(escape("a\\\"\n", 16, "", (char[17]){0}), "a\\\"\\x0a");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_table_gives_each_slot_once, table_setup,
						table_teardown),
		cmocka_unit_test_setup_teardown(test_table_clears_what_a_slot_held, table_setup,
						table_teardown),
		cmocka_unit_test_setup_teardown(test_table_recognises_what_has_gone, table_setup,
						table_teardown),
		cmocka_unit_test_setup_teardown(test_table_knows_the_granted_by_their_tags,
						table_setup, table_teardown),
		cmocka_unit_test_setup_teardown(test_table_lists_keep_their_order, table_setup,
						table_teardown),
		cmocka_unit_test(test_event_datum),
		cmocka_unit_test(test_line),
		cmocka_unit_test(test_line_is_cut_not_overrun),
		cmocka_unit_test(test_escape),
	};

	return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
