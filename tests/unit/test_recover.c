// SPDX-License-Identifier: BSD-2-Clause
/* What a successor makes of the memory and the descriptors that a process left at any instruction.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "unit.h"

#include "../../proxy/limits.h"
#include "../../proxy/recover.h"
#include "../../proxy/relay.h"
#include "../../proxy/shared.h"

#define FD_LIMIT 256

struct world {
	struct proxy p;
	struct recovery r;
};

/* As a worker begins: the memory is as it was left, all else is fresh. */
static void succeed(struct world *w)
{
	struct failure f;

	recover_free(&w->r);
	table_free(&w->p.table);
	limits_free(&w->p);
	pipes_init(&w->p.pipes, shared_pipes(w->p.shared), w->p.shared->pipes,
		   &w->p.shared->pipes_used, PIPES_WIDE);
	assert_int_equal(table_init(&w->p.table, shared_sessions(w->p.shared), w->p.shared->slots,
				    &w->p.shared->slots_used, &f),
			 0);
	assert_int_equal(recover_descriptors(&w->p, &w->r, &f), 0);
	assert_int_equal(recover_lists(&w->p, &w->r, &f), 0);
}

static int setup(void **state)
{
	static struct world w;
	struct failure f;

	w = (struct world){.p = {.instance = INSTANCE_INIT, .fd_limit = FD_LIMIT}};
	*state = &w;
	if (shared_create(FD_LIMIT, &w.p.shared, &f))
		return -1;
	succeed(&w);
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	pipes_free(&w->p.pipes);
	table_free(&w->p.table);
	limits_free(&w->p);
	recover_free(&w->r);
	fd_close(w->p.shared->memfd);
	return 0;
}

static struct session *begun(struct world *w, enum session_list list, uint64_t deadline_ms)
{
	struct session *s = table_take(&w->p.table, list);

	assert_non_null(s);
	s->deadline_ms = deadline_ms;
	s->client.cookie = 1000 + table_slot(&w->p.table, s);
	table_begin(s, 1);
	return s;
}

static int is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static void test_lists_follow_from_the_slots(void **state)
{
	struct world *w = *state;
	struct table *t = &w->p.table;
	struct session *late = begun(w, LIST_HELD, 300), *early = begun(w, LIST_HELD, 100);
	struct session *relay = begun(w, LIST_RELAY, 0), *gone = begun(w, LIST_RELAY, 0);
	struct session *refused = begun(w, LIST_REFUSED, 200);

	table_move(t, gone, LIST_FREE);
	succeed(w);
	assert_int_equal(t->lists[LIST_HELD].count, 2);
	assert_ptr_equal(table_first(t, LIST_HELD), early);
	assert_int_equal(early->next, table_slot(t, late));
	assert_ptr_equal(table_first(t, LIST_RELAY), relay);
	assert_int_equal(t->lists[LIST_FREE].count, 1);
	assert_int_equal(table_used(t), 4);
	assert_ptr_equal(table_by_cookie(t, late->client.cookie), late);
	assert_ptr_equal(table_by_cookie(t, refused->client.cookie), refused);
	assert_ptr_equal(table_by_cookie(t, relay->client.cookie), relay);
}

/* A socket may connect anew while the session of its first connection lasts. */
static void test_of_two_sessions_of_a_socket_the_waiting_one_is_found(void **state)
{
	struct world *w = *state;
	struct session *waiting = begun(w, LIST_GRANTED, 100), *old = begun(w, LIST_RELAY, 0);

	old->client.cookie = waiting->client.cookie;
	succeed(w);
	assert_ptr_equal(table_by_cookie(&w->p.table, old->client.cookie), waiting);
	table_hash_remove(&w->p.table, waiting);
	assert_ptr_equal(table_by_cookie(&w->p.table, old->client.cookie), old);
}

static void test_a_slot_that_was_being_filled_in_is_freed(void **state)
{
	struct world *w = *state;
	struct session *s = table_take(&w->p.table, LIST_HELD);
	uint32_t generation = s->generation;

	s->client.cookie = 5;
	succeed(w);
	assert_int_equal(s->list, LIST_FREE);
	assert_int_not_equal(s->generation, generation); /* its events mean nobody */
	assert_int_equal(table_used(&w->p.table), 0);
}

static void test_closed_numbers_are_struck_out(void **state)
{
	struct world *w = *state;
	struct session *s = begun(w, LIST_CLOSING, 0);
	int fd[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	memcpy(s->fd, fd, sizeof(fd));
	close(fd[CLIENT]); /* and the predecessor died */
	succeed(w);
	assert_int_equal(s->fd[CLIENT], -1);
	assert_int_equal(s->fd[UPSTREAM], fd[UPSTREAM]);
	assert_true(is_open(fd[UPSTREAM]));
	close(fd[UPSTREAM]);
}

static void test_strangers_are_closed(void **state)
{
	struct world *w = *state;
	int fd[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	succeed(w);
	assert_false(is_open(fd[0]));
	assert_false(is_open(fd[1]));
	assert_true(is_open(STDERR_FILENO));
	assert_true(is_open(w->p.shared->memfd));
	assert_int_equal(w->r.client_count, 0);
}

/* Takes a pipe for a session's direction and writes so many bytes to it. */
static uint32_t fill(struct world *w, struct direction *d, size_t bytes)
{
	static const char zeros[100];

	assert_int_equal(pipes_take(&w->p.pipes, &d->pipe), 0);
	assert_int_equal(write(w->p.pipes.all[d->pipe].fd[1], zeros, bytes), bytes);
	return d->pipe;
}

static void test_pipes_go_where_they_belong(void **state)
{
	struct world *w = *state;
	struct session *s = begun(w, LIST_RELAY, 0);
	struct pipes *pool = &w->p.pipes;
	struct direction nobody;
	uint32_t lent = fill(w, &s->dir[CLIENT], 7), abandoned = fill(w, &nobody, 3);
	uint32_t empty, half_closed, again;

	assert_int_equal(pipes_take(pool, &empty), 0);
	assert_int_equal(pipes_take(pool, &half_closed), 0);
	close(pool->all[half_closed].fd[0]);
	succeed(w);
	assert_int_equal(pool->open, 2);
	assert_int_equal(pool->idle, 1);
	assert_int_equal(s->dir[CLIENT].pipe, lent);
	assert_int_equal(pool->all[abandoned].fd[0], -1);
	assert_int_equal(pool->all[half_closed].fd[1], -1);
	assert_int_equal(pipes_take(pool, &again), 0);
	assert_int_equal(again, empty);
}

static void test_counts_are_put_right(void **state)
{
	struct world *w = *state;
	struct session *s = begun(w, LIST_RELAY, 0);
	struct direction *d = &s->dir[CLIENT];

	fill(w, d, 40);
	d->taken = d->bytes = 500; /* died before it had counted the 40 that it took */
	succeed(w);
	relay_recover(s, CLIENT, &w->p.pipes);
	assert_int_equal(d->taken, 540);
	assert_int_equal(d->bytes, 500);
	d->taken = 600; /* died before it had counted that it delivered 60 of 100 */
	relay_recover(s, CLIENT, &w->p.pipes);
	assert_int_equal(d->taken, 600);
	assert_int_equal(d->bytes, 560);
	relay_recover(s, CLIENT, &w->p.pipes);
	assert_int_equal(direction_queued(d), 40);
}

static void test_a_direction_of_a_session_half_closed_has_no_pipe(void **state)
{
	struct world *w = *state;
	struct session *s = begun(w, LIST_CLOSING, 0);

	pipes_discard(&w->p.pipes, fill(w, &s->dir[CLIENT], 7));
	succeed(w);
	assert_int_equal(s->dir[CLIENT].pipe, NO_PIPE);
	assert_int_equal(w->p.pipes.open, 0);
}

static void test_the_memory_of_another_layout_is_refused(void **state)
{
	struct world *w = *state;
	struct shared *again;
	struct failure f;

	assert_int_equal(shared_attach(w->p.shared->memfd, &again, &f), 0);
	assert_int_equal(again->slots, w->p.shared->slots);
	again->size[1]++;
	assert_int_equal(shared_attach(w->p.shared->memfd, &again, &f), -EPROTO);
	assert_non_null(strstr(f.text, "another version"));
}

/* What follows is the work of a worker that went wrong before it died. */

static void test_a_number_in_the_books_twice_belongs_to_the_first(void **state)
{
	struct world *w = *state;
	struct session *s = begun(w, LIST_CLOSING, 0), *other = begun(w, LIST_CLOSING, 0);
	int fd[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	memcpy(s->fd, fd, sizeof(fd));
	other->fd[CLIENT] = fd[UPSTREAM];
	other->fd[UPSTREAM] = w->p.shared->memfd;
	succeed(w);
	assert_int_equal(s->fd[UPSTREAM], fd[UPSTREAM]);
	assert_int_equal(other->fd[CLIENT], -1);
	assert_int_equal(other->fd[UPSTREAM], -1);
	close(fd[CLIENT]);
	close(fd[UPSTREAM]);
}

static void test_a_pipe_is_lent_to_one_direction(void **state)
{
	struct world *w = *state;
	struct session *s = begun(w, LIST_RELAY, 0);
	uint32_t lent = fill(w, &s->dir[CLIENT], 7);

	s->dir[UPSTREAM].pipe = lent;
	succeed(w);
	assert_int_equal(s->dir[CLIENT].pipe, lent);
	assert_int_equal(s->dir[UPSTREAM].pipe, NO_PIPE);
}

static void test_a_direction_without_a_pipe_holds_nothing(void **state)
{
	struct world *w = *state;
	struct session *s = begun(w, LIST_STARVED, 0);

	s->dir[UPSTREAM].taken = 7;
	succeed(w);
	assert_int_equal(direction_queued(&s->dir[UPSTREAM]), 0);
}

static void test_no_more_is_used_than_there_is(void **state)
{
	struct world *w = *state;
	struct session *s = begun(w, LIST_RELAY, 0);

	w->p.shared->slots_used = w->p.shared->pipes_used = UINT32_MAX;
	succeed(w);
	assert_int_equal(w->p.shared->slots_used, w->p.shared->slots);
	assert_int_equal(w->p.shared->pipes_used, w->p.shared->pipes);
	assert_int_equal(table_used(&w->p.table), 1);
	assert_ptr_equal(table_first(&w->p.table, LIST_RELAY), s);
}

static void test_memory_that_is_not_as_large_as_it_says_is_refused(void **state)
{
	struct world *w = *state;
	struct recovery r;
	struct failure f;

	w->p.shared->slots *= 100;
	assert_int_equal(recover_descriptors(&w->p, &r, &f), -EPROTO);
	assert_non_null(strstr(f.text, "damaged"));
	w->p.shared->slots /= 100;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(test_lists_follow_from_the_slots),
		TEST(test_of_two_sessions_of_a_socket_the_waiting_one_is_found),
		TEST(test_a_slot_that_was_being_filled_in_is_freed),
		TEST(test_closed_numbers_are_struck_out),
		TEST(test_strangers_are_closed),
		TEST(test_pipes_go_where_they_belong),
		TEST(test_counts_are_put_right),
		TEST(test_a_direction_of_a_session_half_closed_has_no_pipe),
		TEST(test_the_memory_of_another_layout_is_refused),
		TEST(test_a_number_in_the_books_twice_belongs_to_the_first),
		TEST(test_a_pipe_is_lent_to_one_direction),
		TEST(test_a_direction_without_a_pipe_holds_nothing),
		TEST(test_no_more_is_used_than_there_is),
		TEST(test_memory_that_is_not_as_large_as_it_says_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
