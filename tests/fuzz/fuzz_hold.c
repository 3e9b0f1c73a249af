// SPDX-License-Identifier: BSD-2-Clause
/*
 * What tproxyd reads from the doorman's ring, and what becomes of it: sessions that are held,
 * granted, refused, paired with accepted sockets, relayed and closed.
 *
 * Input: steps, each a byte that says which and its arguments; what the sockets answer (sockets.h)
 * comes between them.
 */
#include "sockets.h"

#include "../../proxy/hold.c"
#include "../../proxy/limits.h"
#include "../../proxy/stats.h"

#include "log.h"

#define SLOTS	  16
#define PIPES	  16
#define MAX_STEPS 64
#define SELF	  77 /* tproxyd's own pid */

static struct tp_config config;
static struct shared shared;
static struct session sessions[SLOTS];
static struct pipe pipes[PIPES];
static uint32_t slots_used, pipes_used;

static void begin(struct proxy *p)
{
	struct failure f;

	memset(sessions, 0, sizeof(sessions));
	memset(fd_open, 0, sizeof(fd_open));
	slots_used = pipes_used = 0;
	shared = (struct shared){
		.raw = {-1, -1}, .ring = -1, .epoll = -1, .port = 18000, .ports = 4};
	for (int i = 0; i < LISTENER_COUNT; i++)
		shared.listener[i] = -1;
	*p = (struct proxy){.instance = INSTANCE_INIT,
			    .shared = &shared,
			    .stats = &stats_nowhere,
			    .tgid = SELF,
			    .now_ms = 1000,
			    .fd_limit = FD_COUNT};
	p->instance.config = &config;
	pipes_init(&p->pipes, pipes, PIPES, &pipes_used, PIPES_WIDE);
	insist(!table_init(&p->table, sessions, SLOTS, &slots_used, &f));
}

/* Cookies, sequence numbers and families that meet each other again. */
static void tame(struct input *in, struct tp_record *client, uint32_t *seq)
{
	uint8_t how = take_byte(in);

	if (how & 1)
		return; /* as wild as it is */
	client->cookie = how >> 1 & 7;
	client->pid = client->pid & 1 ? SELF : 1000;
	*seq = client->seq = how >> 4 & 3;
	client->src.family = client->dst.family = how & 0x40 ? AF_INET6 : AF_INET;
}

/* As abi.h has it: IPv4 is v4-mapped. Checksums rely on that. */
static void map_address(struct tp_endpoint *ep)
{
	static const uint8_t prefix[12] = {[10] = 0xff, 0xff};

	if (ep->family == AF_INET)
		memcpy(ep->ip, prefix, sizeof(prefix));
}

static void map_addresses(void *event, size_t size)
{
	struct tp_event_stray *stray = event;
	struct tp_event_syn *syn = event;

	if (size >= sizeof(*syn) && syn->type == TP_EVENT_SYN)
		map_address(&syn->client.src);
	if (size >= offsetof(struct tp_event_stray, segment) && stray->type == TP_EVENT_STRAY)
		map_address(&stray->client);
}

static void ring_event(struct proxy *p, struct input *in)
{
	uint8_t kind = take_byte(in);
	struct tp_event_syn syn = {.type = TP_EVENT_SYN};
	struct tp_event_gone gone = {.type = TP_EVENT_GONE};
	struct tp_event_stray head = {.type = TP_EVENT_STRAY};
	size_t size;
	void *event;

	switch (kind % 4) {
	case 0:
		take(in, &syn.client, sizeof(syn.client));
		take(in, &syn.syn, sizeof(syn.syn));
		tame(in, &syn.client, &syn.syn.seq);
		size = sizeof(syn);
		event = memcpy(malloc(size), &syn, size);
		break;
	case 1:
		gone.cookie = take_byte(in) & 7;
		size = sizeof(gone);
		event = memcpy(malloc(size), &gone, size);
		break;
	case 2:
		take(in, &head.client, sizeof(head.client));
		head.len = take_u16(in);
		size = offsetof(struct tp_event_stray, segment) + (kind & 4 ? 256 : 4096);
		event = malloc(size);
		memcpy(event, &head, offsetof(struct tp_event_stray, segment));
		take(in, (char *)event + offsetof(struct tp_event_stray, segment),
		     size - offsetof(struct tp_event_stray, segment));
		break;
	default: /* anything, of any size */
		size = take_u16(in);
		event = malloc(size);
		take(in, event, size);
	}
	map_addresses(event, size);
	on_event(p, event, size);
	free(event);
}

static void step(struct proxy *p, struct input *in)
{
	struct session *s;
	uint8_t side, events, whose;
	int fd;

	switch (take_byte(in) % 6) {
	case 0:
	case 1:
		ring_event(p, in);
		break;
	case 2:
		s = &sessions[take_byte(in) % SLOTS];
		side = take_byte(in) & 1;
		events = take_byte(in);
		if (s->list != LIST_FREE && s->watched & 1 << side && s->fd[side] >= 0)
			session_event(p, s, side, events);
		break;
	case 3:
		whose = take_byte(in); /* one of a few clients; or it is not told */
		fd = fd_new();
		if (fd >= 0)
			session_accepted(p, fd,
					 whose & 0x80 ? TP_NO_TAG
						      : (whose & 7) << TP_TAG_SEQ_BITS |
								(whose >> 3 & 3));
		break;
	case 4:
		p->now_ms += take_u16(in);
		session_expire(p);
		break;
	case 5:
		session_run_ready(p);
		break;
	}
	session_reap(p);
}

static void check(struct proxy *p)
{
	uint32_t listed = 0;

	for (int l = 0; l < LIST_COUNT; l++)
		listed += p->table.lists[l].count;
	insist(listed == slots_used);
	for (uint32_t i = 0; i < slots_used; i++) {
		insist(sessions[i].list < LIST_COUNT && sessions[i].list != LIST_CLOSING);
		if (sessions[i].hashed)
			insist(table_by_cookie(&p->table, sessions[i].client.cookie));
	}
	insist(!p->table.lists[LIST_HELD].count || session_next_deadline(p));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_init("fuzz");
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct proxy p;
	uint8_t settings = take_byte(&in);

	answers = &in;
	begin(&p);
	p.settings = (struct settings){.max_sessions = SLOTS,
				       .log_sessions = 1,
				       .native_retry = settings & 1 ? 3000 : 0,
				       .connect_timeout = settings & 2 ? 500 : 0};
	for (int i = 0; i < MAX_STEPS && in.size; i++) {
		step(&p, &in);
		check(&p);
	}
	session_end_all(&p);
	pipes_free(&p.pipes);
	insist(!table_used(&p.table) && !fds_open());
	limits_free(&p);
	table_free(&p.table);
	return 0;
}
