// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 * An accepted connection has its record before accept() returns it. Its upstream is connected at
 * once, without blocking, and both sockets are then watched edge-triggered with everything armed,
 * once and for all. A session is on the list that says what it waits for (table.h). Handlers only
 * put it on LIST_CLOSING; session_reap() closes it after the batch, so a descriptor number is never
 * reused while events for its former owner are still in hand.
 */
#include "session.h"

#include <bpf/bpf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "endpoint.h"
#include "event.h"
#include "hold.h"
#include "idle.h"
#include "limits.h"
#include "listener.h"
#include "log.h"
#include "relay.h"
#include "sessionlog.h"
#include "stats.h"
#include "upstream.h"

#define UNHELD_CONNECT_MS 5000
#define HELD_MS		  600000 /* a held client whose giving up went unnoticed */
#define UNSURE_TURNS	  4	 /* of the loop, at most, until what was not asked is */
#define NO_PORT_MS	  1000	 /* before it is tried whether there are local ports again */
#define RETRY_MS	  100 /* when nothing else will say that descriptors are to be had again */

void session_finish(struct proxy *p, struct session *s, enum session_end end, int reset)
{
	hold_forget(p, s);
	s->end = end;
	s->reset = reset;
	table_move(&p->table, s, LIST_CLOSING);
}

/* What the next clients of that destination are to meet: `error`, or 0 for the native one. */
static void note_failed(const struct proxy *p, const struct tp_record *client, uint64_t ms,
			int error)
{
	struct tp_port_key key = {.netns = p->netns, .port = client->dst.port};
	struct tp_failed failed = {.error = error};
	struct timespec now;

	memcpy(key.ip, client->dst.ip, sizeof(key.ip));
	clock_gettime(CLOCK_BOOTTIME, &now);
	failed.until = now.tv_sec * 1000000000ULL + now.tv_nsec + ms * 1000000;
	bpf_map_update_elem(p->instance.map[PIN_MAP_failed], &key, &failed, BPF_ANY);
	instance_changed(&p->instance);
}

/* The client of a failed upstream met a reset; if it tries again it meets the native error. */
static void leave_alone(const struct proxy *p, const struct tp_record *client)
{
	if (p->settings.native_retry)
		note_failed(p, client, p->settings.native_retry, 0);
}

/* No packet can tell a client that there is no local port; connect() itself can tell the next. */
static void no_local_port(const struct proxy *p, const struct tp_record *client)
{
	if (client->mark || client->flags & (TP_RECORD_BOUND_ADDR | TP_RECORD_BOUND_PORT))
		return; /* it is what the client chose that is not to be had */
	stats_count(p, no_local_port);
	note_failed(p, client, NO_PORT_MS, EADDRNOTAVAIL);
}

static void begin_and_watch(struct proxy *p, struct session *s);

/* For another try: that one has a socket of its own. */
static void upstream_drop(struct session *s)
{
	s->fd[UPSTREAM] = fd_close(s->fd[UPSTREAM]);
	s->watched &= ~(1 << UPSTREAM);
	s->ended &= ~(1 << UPSTREAM);
}

static void connect_failed(struct proxy *p, struct session *s, int err)
{
	/* A server that stays silent is asked for as long as the client wants to know. */
	if (s->list == LIST_HELD && err == ETIMEDOUT) {
		upstream_drop(s);
		begin_and_watch(p, s);
		return;
	}
	if (err == EADDRNOTAVAIL)
		no_local_port(p, &s->client);
	if (s->list == LIST_HELD) {
		hold_refuse(p, s, err);
		return;
	}
	s->error = err;
	if (err != EADDRNOTAVAIL)
		leave_alone(p, &s->client);
	session_finish(p, s, END_CONNECT_FAILED, 1);
}

static void no_resources(struct proxy *p, struct session *s, int err)
{
	limits_count_errno(p, err);
	s->error = err;
	session_finish(p, s, END_NO_RESOURCES, 1);
}

/* Both ends learn of it by a reset: nothing tells them that what they have is all. */
void session_timed_out(struct proxy *p, struct session *s, enum session_end end)
{
	if (end == END_HALF_CLOSED)
		stats_count(p, half_closed_timeout);
	else
		stats_count(p, idle_timeout);
	session_finish(p, s, end, 1);
}

int session_close_resets(int fd, int on)
{
	struct linger now = {.l_onoff = on, .l_linger = 0};

	return setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)) ? -errno : 0;
}

/* Once and for all; the epoll set outlives us. */
static int watch(struct proxy *p, struct session *s, enum side side)
{
	int err = 0;

	if (!(s->watched & 1 << side))
		err = event_add(p->shared->epoll, s->fd[side],
				EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET,
				event_pack(side == CLIENT ? EVENT_CLIENT : EVENT_UPSTREAM,
					   table_slot(&p->table, s), s->generation));
	if (!err)
		s->watched |= 1 << side;
	return err;
}

static void reset_unknown(int fd, const char *why)
{
	static struct log_limit limit = {.burst = 5, .interval_ms = 10000};
	unsigned int missed;

	if (log_allowed(&limit, &missed))
		log_warning("connection reset: %s (%u similar ones before it not logged)", why,
			    missed);
	fd_close(fd);
}

static int socket_error(int fd)
{
	socklen_t len = sizeof(int);
	int err = 0;

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len);
	return err;
}

/* Pumps the directions in `sides` (bits 1 << enum side) and decides what the session waits for. */
static void relay(struct proxy *p, struct session *s, unsigned int sides, int thorough)
{
	enum session_list list = LIST_RELAY;

	idle_touch(p, s);
	if (s->list == LIST_READY || s->list == LIST_STARVED) /* which direction was is not kept */
		sides = 1 << CLIENT | 1 << UPSTREAM;
	s->unsure &= ~sides;
	for (enum side from = CLIENT; from <= UPSTREAM; from++) {
		if (!(sides & 1 << from))
			continue;
		switch (relay_pump(s, from, &p->pipes, thorough)) {
		case RELAY_WAIT:
		case RELAY_SHUT:
			break;
		case RELAY_UNSURE:
			s->unsure |= 1 << from;
			break;
		case RELAY_MORE:
			list = LIST_READY;
			break;
		case RELAY_STARVED:
			if (list == LIST_RELAY)
				list = LIST_STARVED;
			if (s->list != LIST_STARVED)
				stats_count(p, no_pipe);
			break;
		case RELAY_RESET:
			/* What the broken end sent before it broke still goes to the other one. */
			while (s->broken & 1 << !from &&
			       relay_pump(s, !from, &p->pipes, 1) == RELAY_MORE)
				;
			session_finish(p, s,
				       (s->broken & 1 << CLIENT) ||
						       s->dir[CLIENT].source == SOURCE_RESET
					       ? END_RESET_CLIENT
					       : END_RESET_UPSTREAM,
				       1);
			return;
		}
	}
	if (s->put_off && s->dir[UPSTREAM].taken)
		upstream_spoke(s);
	if (s->dir[CLIENT].shut && s->dir[UPSTREAM].shut)
		session_finish(p, s, END_CLOSED, 0);
	else if (list == LIST_RELAY && s->unsure)
		list = LIST_UNSURE;
	if (s->list != LIST_CLOSING && list != s->list)
		table_move(&p->table, s, list);
}

static void begin_relay(struct proxy *p, struct session *s)
{
	idle_touch(p, s);
	table_move(&p->table, s, LIST_RELAY);
}

/* Connects the upstream of a new session. 1: connected; 0: under way; -1: the session is over. */
static int begin(struct proxy *p, struct session *s)
{
	int r;

	/* The hooks let no such client come so far; should one, it must not come round again. */
	r = listener_is(p, &s->client.dst) ? -ECONNREFUSED : upstream_connect(p, s);
	if (r == -EMFILE || r == -ENFILE || r == -ENOBUFS || r == -ENOMEM)
		no_resources(p, s, -r);
	else if (r < 0)
		connect_failed(p, s, -r);
	return r < 0 ? -1 : r;
}

/* Connects the upstream and watches what there is to be watched until it answers. */
static void begin_and_watch(struct proxy *p, struct session *s)
{
	int err = 0, r = begin(p, s);

	if (r < 0)
		return;
	if (r == 1 && s->list == LIST_HELD) {
		hold_grant(p, s);
		return;
	}
	/* Armed after connect(): the first events then tell all that has happened so far. */
	if (s->fd[CLIENT] >= 0)
		err = watch(p, s, CLIENT);
	if (!err)
		err = watch(p, s, UPSTREAM);
	if (err)
		no_resources(p, s, -err);
	else if (r == 1)
		begin_relay(p, s);
	else if (s->list == LIST_HELD)
		hold_waiting(p, s);
}

void session_held(struct proxy *p, const struct tp_record *client, const struct tp_syn *syn,
		  int again)
{
	struct session *s;

	if (limits_enter(p, client))
		return;
	s = table_take(&p->table, LIST_HELD);
	s->client = *client;
	s->syn = *syn;
	s->again = again;
	s->deadline_ms = p->now_ms + HELD_MS;
	table_begin(s, p->now_ms);
	table_hash_add(&p->table, s);
	begin_and_watch(p, s);
}

/* The client of a granted session has been accepted. */
static void pair(struct proxy *p, struct session *s, int fd)
{
	int err;

	hold_accepted(fd);
	s->fd[CLIENT] = fd;
	begin_relay(p, s);
	err = watch(p, s, CLIENT);
	if (!err)
		err = watch(p, s, UPSTREAM);
	if (err)
		no_resources(p, s, -err);
	else if (s->early || s->broken)
		relay(p, s, 1 << UPSTREAM, 1);
}

static void accepted_unheld(struct proxy *p, const struct tp_record *client, int fd)
{
	const char *why_not = limits_enter(p, client);
	struct session *s;

	if (why_not) {
		reset_unknown(fd, why_not);
		return;
	}
	if (p->shared->doorman)
		hold_accepted(fd);
	s = table_take(&p->table, LIST_CONNECTING);
	s->fd[CLIENT] = fd;
	s->client = *client;
	s->deadline_ms = p->now_ms + (p->settings.connect_timeout ?: UNHELD_CONNECT_MS);
	table_begin(s, p->now_ms);
	begin_and_watch(p, s);
}

void session_accepted(struct proxy *p, int fd, __u64 tag)
{
	struct session *s = table_granted(&p->table, tag);
	struct tp_record client;

	if (s) {
		pair(p, s, fd);
		return;
	}
	if (listener_record(p, fd, &client)) {
		reset_unknown(fd,
			      "it was made straight to the proxy's port, or its record has gone");
		return;
	}
	s = table_by_cookie(&p->table, client.cookie);
	if (s && s->list == LIST_GRANTED && s->syn.seq == client.seq)
		pair(p, s, fd);
	else
		accepted_unheld(p, &client, fd);
}

static void connecting_event(struct proxy *p, struct session *s, enum side side, uint32_t events)
{
	int r;

	if (side == CLIENT) {
		/* FIN alone is no reason to give up: connect, write, close is a valid session. */
		if (events & (EPOLLERR | EPOLLHUP))
			session_finish(p, s, END_CLIENT_GAVE_UP, 1);
		return;
	}
	if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
		return;
	r = upstream_result(s);
	if (r < 0)
		connect_failed(p, s, -r);
	if (r <= 0)
		return;
	if (s->list == LIST_HELD) {
		s->early = !!(events & ~EPOLLOUT);
		hold_grant(p, s);
		return;
	}
	begin_relay(p, s);
	relay(p, s, 1 << CLIENT | (events & ~EPOLLOUT ? 1 << UPSTREAM : 0), 1);
}

void session_event(struct proxy *p, struct session *s, enum side side, uint32_t events)
{
	unsigned int sides = 0;

	if (s->list == LIST_CLOSING)
		return;
	if (events & EPOLLPRI)
		relay_urgent(s, side);
	if (events & EPOLLRDHUP)
		s->ended |= 1 << side;
	if (s->list == LIST_CONNECTING || s->list == LIST_HELD) {
		connecting_event(p, s, side, events);
		return;
	}
	if (list_is_hold(s->list)) { /* there are no directions yet */
		s->early |= !!(events & ~EPOLLOUT);
		return;
	}
	/* Noted before anything takes the error from the socket: a successor would not see it any
	 * more. */
	if (events & EPOLLERR)
		s->broken |= 1 << side;
	if (events & (EPOLLERR | EPOLLHUP)) {
		/* After its FIN a socket is not read any more, so ask for the error it may have
		 * met. */
		if (s->dir[side].source != SOURCE_OPEN && socket_error(s->fd[side])) {
			s->broken |= 1 << side;
			session_finish(p, s, side == CLIENT ? END_RESET_CLIENT : END_RESET_UPSTREAM,
				       1);
			return;
		}
		sides = 1 << CLIENT | 1 << UPSTREAM;
	}
	if (events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP))
		sides |= 1 << side;
	if (events & EPOLLOUT && (direction_queued(&s->dir[!side]) || s->urgent & 1 << !side))
		sides |= 1 << !side;
	if (sides)
		relay(p, s, sides, !p->busy || events & ~(EPOLLIN | EPOLLOUT));
}

void session_run_ready(struct proxy *p)
{
	struct session *s;

	for (uint32_t n = p->table.lists[LIST_READY].count; n; n--)
		relay(p, table_first(&p->table, LIST_READY), 0, 1);
	for (uint32_t n = p->table.lists[LIST_STARVED].count; n; n--) {
		s = table_first(&p->table, LIST_STARVED);
		relay(p, s, 0, 1);
		if (s->list == LIST_STARVED)
			break; /* none for this one, none for the others */
	}
	p->busy_turns = p->busy ? p->busy_turns + 1 : 0;
	if (p->busy_turns % UNSURE_TURNS)
		return;
	for (uint32_t n = p->table.lists[LIST_UNSURE].count; n; n--) {
		s = table_first(&p->table, LIST_UNSURE);
		relay(p, s, s->unsure, 1);
	}
}

/* Its upstream's handshake was under way, or had not begun. */
static void recover_connecting(struct proxy *p, struct session *s, const uint32_t ready[2])
{
	int err;

	/* Closed without an error to ask for: connect() was not called yet, or the predecessor has
	 * taken the error. Another try finds out, and begins with a socket of its own. */
	if (ready[UPSTREAM] & EPOLLHUP && !(ready[UPSTREAM] & EPOLLERR)) {
		upstream_drop(s);
		s->client.local = (struct tp_endpoint){0};
	}
	if (s->list == LIST_CONNECTING && s->fd[CLIENT] < 0) {
		session_finish(p, s, END_CLIENT_GAVE_UP, 1);
		return;
	}
	if (s->fd[UPSTREAM] < 0) {
		upstream_drop(s);
		begin_and_watch(p, s);
		return;
	}
	err = watch(p, s, UPSTREAM);
	if (!err && s->fd[CLIENT] >= 0)
		err = watch(p, s, CLIENT);
	if (err) {
		no_resources(p, s, -err);
		return;
	}
	if (s->fd[CLIENT] >= 0)
		session_event(p, s, CLIENT, ready[CLIENT]);
	session_event(p, s, UPSTREAM, ready[UPSTREAM]);
	if (s->list == LIST_HELD)
		hold_waiting(p, s);
}

static void recover_relay(struct proxy *p, struct session *s, const uint32_t ready[2])
{
	int busy = s->list != LIST_RELAY;

	for (enum side side = CLIENT; side <= UPSTREAM; side++) {
		if (s->fd[side] < 0 || watch(p, s, side)) {
			no_resources(p, s, EMFILE);
			return;
		}
		/* An end that is closed though no FIN of ours can have been sent to it, with no
		 * error left to ask for: the predecessor has taken it. */
		if (ready[side] & EPOLLHUP && !(ready[side] & EPOLLERR) &&
		    s->dir[!side].source == SOURCE_OPEN)
			s->broken |= 1 << side;
		if (s->dir[side].pipe != NO_PIPE || s->dir[side].urgent || s->broken)
			busy = 1;
		relay_recover(s, side, &p->pipes);
	}
	if (s->put_off && s->dir[UPSTREAM].taken)
		busy = 1;
	if (s->list != LIST_RELAY)
		table_move(&p->table, s, LIST_RELAY);
	for (enum side side = CLIENT; side <= UPSTREAM; side++)
		if (s->list != LIST_CLOSING)
			session_event(p, s, side, ready[side]);
	if (busy && s->list == LIST_RELAY)
		relay(p, s, 1 << CLIENT | 1 << UPSTREAM, 1);
}

void session_recover(struct proxy *p, struct session *s, const uint32_t ready[2])
{
	switch (s->list) {
	case LIST_HELD:
		/* Hold is off now: its client's next SYN gets in, and whether it gave up is not
		 * told any more. */
		if (!p->settings.hold) {
			session_finish(p, s, END_NOT_HELD, 1);
			break;
		}
		/* fall through */
	case LIST_CONNECTING:
		recover_connecting(p, s, ready);
		break;
	case LIST_GRANTED:
		upstream_ack(s, 1); /* the predecessor may not have come to it */
		s->early |= !!(ready[UPSTREAM] & ~EPOLLOUT);
		/* Else it is on its way in, or hold_press() finds that it is not. */
		if (s->fd[CLIENT] >= 0)
			pair(p, s, s->fd[CLIENT]);
		break;
	case LIST_RELAY:
	case LIST_READY:
	case LIST_STARVED:
	case LIST_UNSURE:
		recover_relay(p, s, ready);
		break;
	default: /* refused ones are told again, and closing ones closed, in the course of things */
		break;
	}
}

/* The lists whose sessions have deadlines; each is in the order of its deadlines. */
static const enum session_list timed_lists[] = {LIST_HELD, LIST_GRANTED, LIST_REFUSED,
						LIST_CONNECTING};

void session_expire(struct proxy *p)
{
	struct session *s;

	for (size_t l = 0; l < ARRAY_SIZE(timed_lists); l++)
		while ((s = table_first(&p->table, timed_lists[l])) &&
		       s->deadline_ms <= p->now_ms) {
			if (s->list == LIST_CONNECTING) {
				leave_alone(p, &s->client);
				session_finish(p, s, END_CONNECT_TIMEOUT, 1);
			} else {
				hold_expired(p, s);
			}
		}
}

uint64_t session_next_deadline(const struct proxy *p)
{
	uint64_t next = 0;

	if (p->table.lists[LIST_READY].count || p->table.lists[LIST_UNSURE].count)
		return p->now_ms;
	if (p->table.lists[LIST_STARVED].count)
		next = p->now_ms + RETRY_MS;
	for (size_t l = 0; l < ARRAY_SIZE(timed_lists); l++) {
		uint32_t slot = p->table.lists[timed_lists[l]].first;
		uint64_t t = slot == NO_SLOT ? 0 : p->table.sessions[slot].deadline_ms;

		if (t && (!next || t < next))
			next = t;
	}
	return next;
}

void session_end_all(struct proxy *p)
{
	static const enum session_list open_lists[] = {LIST_HELD,	LIST_GRANTED, LIST_REFUSED,
						       LIST_CONNECTING, LIST_RELAY,   LIST_READY,
						       LIST_STARVED,	LIST_UNSURE};
	struct session *s;

	if (!p->table.sessions)
		return; /* start-up failed before there was a table */
	for (size_t l = 0; l < ARRAY_SIZE(open_lists); l++)
		while ((s = table_first(&p->table, open_lists[l]))) {
			hold_dismiss(p, s);
			session_finish(p, s, END_DRAINED, 1);
		}
	session_reap(p);
}

void session_reap(struct proxy *p)
{
	struct session *s;

	while ((s = table_first(&p->table, LIST_CLOSING))) {
		relay_release(s, &p->pipes);
		for (enum side side = CLIENT; side <= UPSTREAM; side++) {
			if (s->fd[side] < 0)
				continue;
			if (!s->reset)
				session_close_resets(s->fd[side], 0);
			s->fd[side] = fd_close(s->fd[side]);
		}
		if (p->settings.log_sessions)
			sessionlog_add(s, p->now_ms);
		limits_leave(p, s);
		table_move(&p->table, s, LIST_FREE);
	}
	sessionlog_flush();
	stats_update(p);
}
