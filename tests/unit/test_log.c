// SPDX-License-Identifier: BSD-2-Clause
/* The limiter for what a peer can trigger, level names, and the form of a line. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "unit.h"

#include "log.h"

static void test_burst_then_silence(void **state)
{
	struct log_limit limit = {.burst = 3, .interval_ms = 3600 * 1000};
	unsigned int missed = 99;

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_true(log_allowed(&limit, &missed));
		assert_int_equal(missed, 0);
	}
	for (int i = 0; i < 5; i++)
		assert_false(log_allowed(&limit, &missed));
}

static void test_next_interval_tells_what_was_missed(void **state)
{
	struct log_limit limit = {.burst = 1, .interval_ms = 3600 * 1000};
	unsigned int missed = 99;

	(void)state;
	assert_true(log_allowed(&limit, &missed));
	assert_false(log_allowed(&limit, &missed));
	assert_false(log_allowed(&limit, &missed));
	limit.begin_ms -= limit.interval_ms; /* an hour passes */
	assert_true(log_allowed(&limit, &missed));
	assert_int_equal(missed, 2);
	limit.begin_ms -= limit.interval_ms;
	assert_true(log_allowed(&limit, &missed));
	assert_int_equal(missed, 0);
}

/* What log_write() puts on stderr; returned in buf. */
static const char *written(int priority, const char *text, char *buf, size_t size)
{
	int pipe_fds[2], saved = dup(STDERR_FILENO);
	ssize_t n;

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK), 0);
	dup2(pipe_fds[1], STDERR_FILENO);
	log_write(priority, "%s", text);
	dup2(saved, STDERR_FILENO);
	n = read(pipe_fds[0], buf, size - 1);
	buf[n > 0 ? n : 0] = 0;
	close(saved);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	return buf;
}

static void test_lines(void **state)
{
	char buf[8192], longer[4096];

	(void)state;
	log_init("prog");
	assert_string_equal(written(LOG_INFO, "hello", buf, sizeof(buf)), "prog: hello\n");
	assert_string_equal(written(LOG_DEBUG, "hello", buf, sizeof(buf)), "");
	log_set_level(LOG_DEBUG);
	assert_string_equal(written(LOG_DEBUG, "hello", buf, sizeof(buf)), "prog: hello\n");
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = 0;
	written(LOG_INFO, longer, buf, sizeof(buf)); /* cut, still one line */
	assert_int_equal(buf[strlen(buf) - 1], '\n');
	assert_true(strlen(buf) < sizeof(longer));
}

/* With a pipe that nobody reads, made by somebody else or not, as stderr. */
static void lose_lines(int nonblocking)
{
	int pipe_fds[2], saved = dup(STDERR_FILENO), room;
	static char lines[3 * 40];
	char buf[8192];

	memset(lines, 'x', sizeof(lines));
	lines[39] = lines[79] = lines[119] = '\n';
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	room = fcntl(pipe_fds[1], F_SETPIPE_SZ, 4096);
	dup2(pipe_fds[1], STDERR_FILENO);
	if (nonblocking)
		log_nonblocking();
	log_take_lost();
	for (int i = 0; i < 2 * room / (int)sizeof(lines); i++)
		log_raw(lines, sizeof(lines));
	assert_in_range(log_take_lost(), room / 40 - 10, 2 * room / 40);
	assert_int_equal(log_take_lost(), 0);
	assert_true(read(pipe_fds[0], buf, sizeof(buf)) > 0);
	log_raw(lines, sizeof(lines));
	assert_int_equal(log_take_lost(), 0);
	/* Whoever else has the pipe is not concerned. */
	assert_false(fcntl(pipe_fds[1], F_GETFL) & O_NONBLOCK);
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

static void test_a_full_pipe_costs_lines_and_no_time(void **state)
{
	(void)state;
	alarm(20);
	lose_lines(0);
	lose_lines(1);
	alarm(0);
}

static void test_a_full_device_costs_lines(void **state)
{
	int saved = dup(STDERR_FILENO), full = open("/dev/full", O_WRONLY | O_CLOEXEC);

	(void)state;
	dup2(full, STDERR_FILENO);
	log_take_lost();
	log_raw("one\ntwo\n", 8);
	dup2(saved, STDERR_FILENO);
	assert_int_equal(log_take_lost(), 2);
	close(full);
	close(saved);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_full_pipe_costs_lines_and_no_time),
		cmocka_unit_test(test_a_full_device_costs_lines),
		cmocka_unit_test(test_burst_then_silence),
		cmocka_unit_test(test_next_interval_tells_what_was_missed),
		cmocka_unit_test(test_lines),
	};

	return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
