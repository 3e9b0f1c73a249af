// SPDX-License-Identifier: BSD-2-Clause
/*
 * What a successor reads: the shared memory of a worker that died, and that may have scribbled over
 * it before. It must neither crash nor loop, nor close a descriptor twice.
 *
 * Input: what poll() says of the descriptors, one byte each; scribbles, each an offset, a length up
 * to 8 and the bytes; then what the sockets answer.
 *
 * The memory that is scribbled on holds sessions in every state, with pipes.
 */
#include "sockets.h"

#include "../../proxy/recover.c"
#include "../../proxy/limits.h"
#include "../../proxy/stats.h"

#include "log.h"

#define SLOTS	      24 /* of which some are never used */
#define PIPES	      16
#define DESCRIPTORS   64
#define MAX_SCRIBBLES 48

static struct tp_config config;
static struct shared *memory;
static struct shared *pristine;
static size_t memory_size;

static void fresh(struct proxy *p, struct shared *sh)
{
	struct failure f;

	*p = (struct proxy){.instance = INSTANCE_INIT,
			    .settings = {.max_sessions = SLOTS, .hold = 1, .log_sessions = 1},
			    .shared = sh,
			    .stats = &stats_nowhere,
			    .now_ms = 100000,
			    .fd_limit = FD_FIRST + FD_COUNT};
	p->instance.config = &config;
	pipes_init(&p->pipes, shared_pipes(sh), PIPES, &sh->pipes_used, PIPES_WIDE);
	insist(!table_init(&p->table, shared_sessions(sh), SLOTS, &sh->slots_used, &f));
}

/* Two sessions on each list, some with pipes. Descriptors are numbered through. */
static void populate(struct proxy *p)
{
	int fd = FD_FIRST;
	int32_t *const single[] = {&p->shared->listener[0], &p->shared->listener[1],
				   &p->shared->raw[0],	    &p->shared->raw[1],
				   &p->shared->epoll,	    &p->shared->ring};

	p->shared->port = 18000;
	p->shared->ports = 4;
	for (size_t i = 0; i < ARRAY_SIZE(single); i++)
		*single[i] = fd++;
	for (int i = 0; i < 2 * (LIST_COUNT - 1); i++) {
		struct session *s = table_take(&p->table, 1 + i / 2);

		insist(s);
		s->client.cookie = i;
		s->client.dst.family = s->client.src.family = i & 1 ? AF_INET6 : AF_INET;
		s->deadline_ms = s->list < LIST_RELAY ? 100000 + 10 * i : 0;
		if (s->list >= LIST_CONNECTING)
			s->fd[CLIENT] = fd++;
		s->fd[UPSTREAM] = fd++;
		if (list_is_hold(s->list))
			s->syn.seq = i;
		if (s->list >= LIST_RELAY) {
			struct pipe *pipe = &p->pipes.all[p->shared->pipes_used];

			s->dir[i & 1].pipe = p->shared->pipes_used++;
			s->dir[i & 1].taken = 100;
			pipe->fd[0] = fd++;
			pipe->fd[1] = fd++;
		}
		table_begin(s, 1 + i);
	}
	insist(fd <= FD_FIRST + DESCRIPTORS);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct failure f;
	struct proxy p;

	(void)argc;
	(void)argv;
	log_init("fuzz");
	addresses_are_whole = 0;
	insist(!shared_create(2 * SLOTS, &memory, &f));
	memory_size = (char *)(shared_pipes(memory) + memory->pipes) - (char *)memory;
	pristine = malloc(memory_size);
	fresh(&p, memory);
	populate(&p);
	table_free(&p.table);
	memcpy(pristine, memory, memory_size);
	return 0;
}

/* Byte `at` of what is used of the memory, without the gaps between its parts. */
static char *scribble_at(size_t at)
{
	size_t sessions = SLOTS * sizeof(struct session), pipes = PIPES * sizeof(struct pipe);

	at %= sizeof(struct shared) + sessions + pipes;
	if (at < sessions)
		return (char *)shared_sessions(memory) + at;
	at -= sessions;
	return at < pipes ? (char *)shared_pipes(pristine) - (char *)pristine + (char *)memory + at
			  : (char *)memory + at - pipes;
}

static void scribble(struct input *in)
{
	for (int i = take_byte(in) % (MAX_SCRIBBLES + 1); i > 0; i--) {
		char *at = scribble_at(take_u16(in));

		take(in, at, 1 + (take_byte(in) & 7));
	}
}

static void look_at_descriptors(struct recovery *r, struct input *in)
{
	r->count = FD_FIRST + DESCRIPTORS;
	r->polls = calloc(r->count, sizeof(*r->polls));
	memset(fd_open, 0, sizeof(fd_open));
	for (uint32_t fd = 0; fd < r->count; fd++) {
		struct pollfd *one = &r->polls[fd];

		*one = (struct pollfd){.fd = fd, .events = POLLIN, .revents = POLLNVAL};
		if (fd < FD_FIRST)
			continue;
		one->revents = take_byte(in);
		fd_open[fd - FD_FIRST] = !(one->revents & POLLNVAL);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct recovery r = {0};
	struct failure f;
	struct proxy p;

	answers = &in;
	memcpy(memory, pristine, memory_size);
	fresh(&p, memory);
	look_at_descriptors(&r, &in);
	scribble(&in);
	if (!shared_check(memory, &f)) {
		check_books(&p, &r);
		insist(!recover_lists(&p, &r, &f));
		recover_sessions(&p, &r);
		for (int turn = 0; turn < 3; turn++) {
			session_run_ready(&p);
			session_expire(&p);
			session_reap(&p);
			p.now_ms += 50;
		}
		session_end_all(&p);
		insist(!table_used(&p.table));
		pipes_free(&p.pipes);
	}
	limits_free(&p);
	table_free(&p.table);
	recover_free(&r);
	return 0;
}
