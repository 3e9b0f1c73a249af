// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 *	doorman: SYN  -> LIST_HELD, upstream connecting
 *	upstream connected  -> the SYN is sent again with the grant: LIST_GRANTED
 *	accept()	    -> session_accepted() pairs it by its tag, or its record: relay
 *	upstream failed	    -> reset or ICMP error to the client: LIST_REFUSED
 *	doorman: STRAY	    -> sent again, see there
 *	doorman: GONE	    -> the client's socket left SYN_SENT for CLOSE: it gave up, or met the
 *error
 *
 * Nothing here is the only copy of anything: a lost event or packet is replaced when the client's
 *own timer sends its SYN again. An ICMP error that arrives while the client is still inside
 *connect(), with the socket locked, is only noted by the kernel: it is sent again until the client
 *has gone.
 */
#include "hold.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "event.h"
#include "listener.h"
#include "packet.h"
#include "session.h"
#include "upstream.h"

#define RESEND_MS	2     /* between two tries to deliver an error */
#define RESEND_MAX	10    /* tries; the client's next SYN brings more */
#define SELFTEST_GRANTS 8     /* one a family, and some for lost ones */
#define EVENT_BATCH	512   /* before others get a turn */
#define PRESS_MS	20    /* a granted client that is not there by then met a full backlog */
#define PRESS_BATCH	64    /* that many are let in again at a time */
#define GRANTED_MS	10000 /* a granted client that is not accepted by then has gone unnoticed */

static struct packet_flow flow_of(const struct tp_endpoint *client, uint16_t proxy_port)
{
	return (struct packet_flow){.client = *client,
				    .listener = listener_address(client->family, proxy_port)};
}

/* Raw sockets send to where the packet's own header says; the address only selects the route. A
 * packet that does not get out is made up for by the client's next SYN. */
static void send_packet(const struct proxy *p, const struct tp_endpoint *to, const uint8_t *packet,
			size_t len)
{
	int v4 = to->family == AF_INET;
	struct tp_endpoint host = *to;
	struct sockaddr_storage addr;
	socklen_t addr_len;

	host.port = 0;
	endpoint_to_sockaddr(&host, &addr, &addr_len);
	(void)!sendto(p->shared->raw[v4 ? LISTENER_V4 : LISTENER_V6], packet, len, MSG_DONTWAIT,
		      (struct sockaddr *)&addr, addr_len);
}

static void send_syn(struct proxy *p, const struct tp_record *client, const struct tp_syn *syn)
{
	struct packet_flow flow = flow_of(&client->src, client->proxy_port);
	struct tp_grant grant = {.cookie = client->cookie, .local = client->local};
	uint8_t packet[PACKET_MAX];
	size_t len = packet_syn(&flow, syn, &grant, packet);

	send_packet(p, &flow.listener, packet, len);
}

static void send_grant(struct proxy *p, const struct session *s)
{
	send_syn(p, &s->client, &s->syn);
}

/* Only tells the doorman the source that the server sees. */
static void send_source(struct proxy *p, const struct session *s)
{
	struct tp_syn note = {.seq = s->syn.seq, .flags = TH_SYN | TH_RST};

	send_syn(p, &s->client, &note);
}

static void send_error(struct proxy *p, const struct session *s)
{
	struct packet_flow flow = flow_of(&s->client.src, s->client.proxy_port);
	uint8_t packet[PACKET_MAX];
	size_t len = packet_error(&flow, s->syn.seq, s->error, s->by_icmp, packet);

	send_packet(p, &flow.client, packet, len);
}

void hold_accepted(int fd)
{
	int unused = 0;

	setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof(unused));
}

void hold_forget(struct proxy *p, struct session *s)
{
	table_hash_remove(&p->table, s);
}

void hold_waiting(struct proxy *p, struct session *s)
{
	send_source(p, s);
}

/* It is to be accepted in this turn. */
static void let_in(struct proxy *p, const struct session *s)
{
	int listener = listener_index(p, s->client.src.family, s->client.proxy_port);

	send_grant(p, s);
	if (listener >= 0) {
		p->grants[listener]++;
		p->granted++;
	}
}

void hold_grant(struct proxy *p, struct session *s)
{
	if (!s->client.local.family)
		upstream_learn_source(s);
	s->deadline_ms = p->now_ms + GRANTED_MS;
	table_move(&p->table, s, LIST_GRANTED);
	let_in(p, s);
	upstream_ack(s, 1); /* the client has connected: sending was what completed its handshake */
}

static uint64_t granted_ms(const struct session *s)
{
	return s->deadline_ms - GRANTED_MS;
}

uint64_t hold_deadline(const struct proxy *p)
{
	uint32_t slot = p->table.lists[LIST_GRANTED].first;
	uint64_t due;

	if (slot == NO_SLOT || p->resume_ms) /* while nobody is accepted the backlog stays full */
		return 0;
	due = granted_ms(&p->table.sessions[slot]) + PRESS_MS;
	return due > p->press_ms ? due : p->press_ms;
}

/* The backlog may be shorter than the number of clients that are let in at once; by their own
 * timers they would come again after seconds. */
void hold_press(struct proxy *p)
{
	uint64_t due = hold_deadline(p);
	uint32_t slot;

	if (!due || due > p->now_ms)
		return;
	p->press_ms = p->now_ms + PRESS_MS;
	slot = p->press_from;
	if (slot == NO_SLOT || table_at(&p->table, slot)->list != LIST_GRANTED)
		slot = p->table.lists[LIST_GRANTED].first;
	for (int i = 0; i < PRESS_BATCH && slot != NO_SLOT; i++) {
		const struct session *s = table_at(&p->table, slot);

		if (granted_ms(s) + PRESS_MS > p->now_ms) {
			slot = NO_SLOT;
			break;
		}
		slot = s->next;
		let_in(p, s);
	}
	p->press_from = slot; /* the oldest may never come, and must not be all that is tried */
}

void hold_refuse(struct proxy *p, struct session *s, int error)
{
	struct pollfd upstream = {.fd = s->fd[UPSTREAM]};

	/* After an ICMP error, unlike after a reset, a socket goes on to report one. */
	s->by_icmp = error == ECONNREFUSED && poll(&upstream, 1, 0) == 1 &&
		     upstream.revents & POLLERR;
	s->fd[UPSTREAM] = fd_close(s->fd[UPSTREAM]);
	s->error = error;
	s->tries = 1;
	s->deadline_ms = p->now_ms + RESEND_MS;
	table_move(&p->table, s, LIST_REFUSED);
	send_source(p, s);
	send_error(p, s);
}

void hold_dismiss(struct proxy *p, struct session *s)
{
	if (s->list != LIST_HELD && s->list != LIST_GRANTED)
		return;
	s->error = ECONNREFUSED;
	send_error(p, s);
}

void hold_expired(struct proxy *p, struct session *s)
{
	switch (s->list) {
	case LIST_REFUSED:
		if (s->tries++ < RESEND_MAX) {
			s->deadline_ms = p->now_ms + RESEND_MS;
			table_move(&p->table, s, LIST_REFUSED);
			send_error(p, s);
		} else {
			session_finish(p, s, END_CONNECT_FAILED, 1);
		}
		break;
	default:
		session_finish(p, s, END_CLIENT_GAVE_UP, 1);
	}
}

static void on_gone(struct proxy *p, struct session *s)
{
	uint64_t limit = p->settings.connect_timeout;
	enum session_end end = END_CLIENT_GAVE_UP;

	if (s->list == LIST_REFUSED)
		end = END_CONNECT_FAILED;
	else if (limit && p->now_ms - s->start_ms >= limit)
		end = END_CONNECT_TIMEOUT;
	session_finish(p, s, end, 1);
}

/* A session is found by its cookie to its end, since the event of a SYN may come after the client
 * was let in: one sent again just then, or one that a worker had in hand when it died. */
static void on_syn(struct proxy *p, const struct tp_event_syn *event)
{
	struct session *s = table_by_cookie(&p->table, event->client.cookie);
	int again = 0;

	/* The self-test: nothing else of ours is redirected, but later on our pid may be that of a
	 * client who has gone. */
	if (event->client.pid == p->tgid && !p->shared->serving) {
		if (p->selftest_grants++ < SELFTEST_GRANTS)
			send_syn(p, &event->client, &event->syn);
		return;
	}
	/* The same socket at another attempt: the event of its giving up was lost, or its session
	 * has outlived it. */
	if (s && s->client.seq != event->syn.seq) {
		/* Forgotten where there is no room for it at once: then a tag's 24 bits of the
		 * sequence number have to do. */
		again = s->list == LIST_GRANTED || s->again;
		if (list_is_hold(s->list))
			on_gone(p, s);
		s = NULL;
	}
	if (!s) {
		session_held(p, &event->client, &event->syn, again);
		return;
	}
	/* One that was let in is told again by hold_press(): this may be what that has sent, on a
	 * host where something takes marks off, and answering it would go on for ever. */
	if (s->list == LIST_REFUSED)
		send_error(p, s);
}

static void on_stray(struct proxy *p, const struct tp_event_stray *event, size_t size)
{
	struct packet_flow flow = flow_of(&event->client, event->proxy_port);
	uint8_t packet[PACKET_MAX + TP_STRAY_MAX];
	size_t head = offsetof(struct tp_event_stray, segment);

	if (size >= head && event->len >= sizeof(struct tcphdr) && event->len <= size - head)
		send_packet(p, &flow.listener, packet,
			    packet_segment(&flow, event->segment, event->len, packet));
}

/* Ring memory is shared with the kernel and read-only: the event is copied out first. */
static int on_event(void *ctx, void *data, size_t size)
{
	union {
		uint32_t type;
		struct tp_event_syn syn;
		struct tp_event_gone gone;
		struct tp_event_stray stray;
	} event;
	struct proxy *p = ctx;
	struct session *s;

	if (size < sizeof(struct tp_event_gone) || size > sizeof(event))
		return 0;
	memcpy(&event, data, size);
	switch (event.type) {
	case TP_EVENT_SYN:
		if (size >= sizeof(event.syn))
			on_syn(p, &event.syn);
		break;
	case TP_EVENT_GONE:
		s = table_by_cookie(&p->table, event.gone.cookie);
		if (s && list_is_hold(s->list))
			on_gone(p, s);
		break;
	case TP_EVENT_STRAY:
		on_stray(p, &event.stray, size);
		break;
	}
	return ++p->ring_events < EVENT_BATCH ? 0 : -EAGAIN; /* negative: consumes no further */
}

void hold_events(struct proxy *p)
{
	p->ring_events = 0;
	if (p->ring)
		ring_buffer__consume(p->ring);
}

static int raw_mark(const struct proxy *p, int fd)
{
	__u32 grant = p->instance.config->grant;

	return setsockopt(fd, SOL_SOCKET, SO_MARK, &grant, sizeof(grant));
}

static int raw_open(const struct proxy *p, int family, struct failure *f)
{
	int fd _cleanup_fd_ = socket(family, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_RAW);

	if (fd < 0 || raw_mark(p, fd))
		return fail(f, -errno,
			    "cannot open a raw socket for held handshakes: %m; it takes "
			    "CAP_NET_RAW and CAP_NET_ADMIN, or hold = off");
	return TAKE_FD(fd);
}

/*
 * A socket may have no room for two filters beside each other: net.core.optmem_max is 20 kB on
 * older kernels. Then there is none for a moment, in which clients come in without being held.
 */
static int attach(int listener, int prog)
{
	int unused = 0;

	if (!setsockopt(listener, SOL_SOCKET, SO_ATTACH_BPF, &prog, sizeof(prog)))
		return 0;
	if (errno != ENOMEM)
		return -errno;
	setsockopt(listener, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof(unused));
	return setsockopt(listener, SOL_SOCKET, SO_ATTACH_BPF, &prog, sizeof(prog)) ? -errno : 0;
}

static int attach_doorman(struct proxy *p, struct failure *f)
{
	int prog _cleanup_fd_ = instance_open_doorman(p->instance.name, f);
	struct bpf_prog_info info = {};
	__u32 info_len = sizeof(info);

	if (prog < 0)
		return prog;
	if (bpf_obj_get_info_by_fd(prog, &info, &info_len))
		return fail(f, -errno, "cannot inspect the doorman: %m");
	for (int i = 0; i < LISTENER_COUNT; i++) {
		struct tp_door door = {.netns = p->netns,
				       .proxy_port = p->shared->port + i / FAMILY_COUNT,
				       .slot = p->shared->slot};
		socklen_t len = sizeof(__u64);
		__u64 cookie;
		int err;

		if (p->shared->listener[i] < 0)
			continue;
		if (getsockopt(p->shared->listener[i], SOL_SOCKET, SO_COOKIE, &cookie, &len) ||
		    bpf_map_update_elem(p->instance.map[PIN_MAP_doors], &cookie, &door, BPF_ANY))
			return fail(f, -errno, "cannot enter the listener in map_doors: %m");
		if (p->shared->doorman == info.id)
			continue;
		err = attach(p->shared->listener[i], prog);
		if (err)
			return fail(f, err, "cannot put the doorman on the listener: %s%s",
				    strerror(-err),
				    err == -ENOMEM ? "; raise net.core.optmem_max" : "");
	}
	p->shared->doorman = info.id;
	return 0;
}

static int open_raw_sockets(const struct proxy *p, int32_t raw[FAMILY_COUNT], struct failure *f)
{
	static const int families[FAMILY_COUNT] = {AF_INET, AF_INET6};

	for (int i = 0; i < FAMILY_COUNT; i++) {
		int fd;

		if (p->shared->listener[listener_first(p) + i] < 0)
			continue;
		/* The hooks may have been unloaded and loaded since, and have another mark now. */
		if (raw[i] >= 0 && !raw_mark(p, raw[i]))
			continue;
		raw[i] = fd_close(raw[i]);
		fd = raw_open(p, families[i], f);
		if (fd < 0)
			return fd;
		raw[i] = fd;
	}
	return 0;
}

static int ring_make(struct failure *f)
{
	int fd = bpf_map_create(BPF_MAP_TYPE_RINGBUF, "tproxyd_ring", 0, 0, TP_RING_SIZE, NULL);

	return fd < 0 ? fail(f, -errno, "cannot make a ring buffer: %m; it takes CAP_BPF") : fd;
}

int hold_prepare(const struct proxy *p, int32_t raw[FAMILY_COUNT], int32_t *ring, struct failure *f)
{
	int err = p->settings.hold ? open_raw_sockets(p, raw, f) : 0;

	if (err || !p->settings.hold || *ring >= 0)
		return err;
	*ring = ring_make(f);
	return *ring < 0 ? *ring : 0;
}

int hold_try(struct proxy *p, struct failure *f)
{
	int raw _cleanup_fd_ = raw_open(p, AF_INET, f), ring _cleanup_fd_ = -1;

	if (raw < 0)
		return raw;
	ring = ring_make(f);
	return ring < 0 ? ring : 0;
}

int hold_open(struct proxy *p, struct failure *f)
{
	struct shared *sh = p->shared;
	int err;

	/* How far it was read is written in the ring: an event that was in hand comes again. */
	p->ring = ring_buffer__new(sh->ring, on_event, p, NULL);
	if (!p->ring)
		return fail(f, -errno, "cannot read the ring buffer: %m");
	err = event_add(sh->epoll, sh->ring, EPOLLIN, event_pack(EVENT_HOLD, 0, 0));
	if (err)
		return fail(f, err, "cannot watch the ring buffer: %s", strerror(-err));
	if (!p->fresh) { /* all is in place, and to put it there again would take 10 ms of RCU */
		p->press_ms = p->now_ms + PRESS_MS; /* first come those who are there */
		return 0;
	}
	if (bpf_map_update_elem(p->instance.map[PIN_MAP_rings], &sh->slot, &sh->ring, BPF_ANY))
		return fail(f, -errno,
			    "cannot enter the ring buffer in map_rings of instance %s: %m",
			    p->instance.name);
	return attach_doorman(p, f);
}

void hold_off(struct proxy *p)
{
	if (p->shared->ring < 0)
		return;
	bpf_map_delete_elem(p->instance.map[PIN_MAP_rings], &p->shared->slot);
	p->shared->ring = fd_close(p->shared->ring);
}

void hold_withdraw(struct proxy *p)
{
	if (p->shared->ring >= 0)
		bpf_map_delete_elem(p->instance.map[PIN_MAP_rings], &p->shared->slot);
}

void hold_pause(struct proxy *p)
{
	if (p->ring)
		ring_buffer__free(p->ring);
	p->ring = NULL;
}

void hold_close(struct proxy *p)
{
	hold_pause(p);
	p->shared->ring = fd_close(p->shared->ring);
	for (int i = 0; i < FAMILY_COUNT; i++)
		p->shared->raw[i] = fd_close(p->shared->raw[i]);
}
