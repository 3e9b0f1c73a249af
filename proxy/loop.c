// SPDX-License-Identifier: BSD-2-Clause
#include "loop.h"

#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

#include "event.h"
#include "hold.h"
#include "idle.h"
#include "limits.h"
#include "listener.h"
#include "log.h"
#include "routes.h"
#include "session.h"

#define BATCH	     256
#define ACCEPT_BATCH 64
#define BUSY	     4	 /* events in one turn */
#define RESUME_MS    100 /* how long accepting pauses when descriptors or slots ran out */
#define LINGER_MS                                                                      \
	100 /* clients that were redirected just before the mark went are still served \
	     */

static int watch_listeners(struct proxy *p)
{
	for (int i = 0; i < LISTENER_COUNT; i++) {
		int err = p->shared->listener[i] < 0
				  ? 0
				  : event_add(p->shared->epoll, p->shared->listener[i], EPOLLIN,
					      event_pack(EVENT_LISTENER, i, 0));

		if (err)
			return err;
	}
	p->resume_ms = 0;
	return 0;
}

/* The kernel's backlog is the buffer while we cannot take more. */
static void pause_accepting(struct proxy *p)
{
	for (int i = 0; i < LISTENER_COUNT; i++)
		if (p->shared->listener[i] >= 0)
			epoll_ctl(p->shared->epoll, EPOLL_CTL_DEL, p->shared->listener[i], NULL);
	p->resume_ms = p->now_ms + RESUME_MS;
}

int loop_init(struct proxy *p, struct failure *f)
{
	struct shared *sh = p->shared;
	sigset_t set;
	int err;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGNAL_ORPHANED);
	sigprocmask(SIG_BLOCK, &set, NULL);
	prctl(PR_SET_PDEATHSIG, p->no_heir ? SIGKILL : SIGNAL_ORPHANED);
	if (getppid() != p->master) /* it died before we could ask to be told */
		kill(getpid(), p->no_heir ? SIGKILL : SIGNAL_ORPHANED);
	if (sh->epoll < 0)
		sh->epoll = epoll_create1(EPOLL_CLOEXEC);
	p->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (sh->epoll < 0 || p->signals < 0)
		return fail(f, -errno, "cannot make the event loop: %m");
	err = event_add(sh->epoll, p->signals, EPOLLIN, event_pack(EVENT_SIGNAL, 0, 0));
	if (!err)
		err = watch_listeners(p);
	return err ? fail(f, err, "cannot watch the listeners: %s", strerror(-err)) : 0;
}

void loop_free(struct proxy *p)
{
	if (p->shared)
		p->shared->epoll = fd_close(p->shared->epoll);
	p->signals = fd_close(p->signals);
}

static void out_of(struct proxy *p, const char *what)
{
	static struct log_limit limit = {.burst = 1, .interval_ms = 10000};
	unsigned int missed;

	pause_accepting(p);
	if (log_allowed(&limit, &missed))
		log_warning("not accepting for now: %s; %u sessions are open, new ones wait in the "
			    "backlog",
			    what, table_used(&p->table));
}

static void accept_up_to(struct proxy *p, unsigned int count, int listener)
{
	while (count--) {
		__u64 tag;
		int fd;

		/* Whom we let in has a place already. */
		if (!p->table.lists[LIST_GRANTED].count && !limits_room(p)) {
			out_of(p,
			       "max-sessions, or the limit on descriptors or memory, is reached");
			return;
		}
		fd = listener_accept(listener, &tag);
		if (fd >= 0) {
			session_accepted(p, fd, tag);
			/* Without more of those there is nobody to ask for. */
			if (p->ring && !p->table.lists[LIST_GRANTED].count)
				return;
			continue;
		}
		switch (-fd) {
		case EAGAIN:
			return;
		case EMFILE:
		case ENFILE:
		case ENOBUFS:
		case ENOMEM:
			limits_count_errno(p, -fd);
			pipes_trim(&p->pipes);
			out_of(p, strerror(-fd));
			return;
		default: /* the connection has already failed (accept(2)): on to the next */
			break;
		}
	}
}

/* Whom we let in is there already: the last packet of the handshake was processed by the call that
 * sent the first one. */
static void accept_granted(struct proxy *p)
{
	for (int i = 0; p->granted; i++) {
		p->granted -= p->grants[i];
		if (!p->resume_ms)
			accept_up_to(p, p->grants[i], p->shared->listener[i]);
		p->grants[i] = 0;
	}
}

static void begin_drain(struct proxy *p)
{
	struct shared *sh = p->shared;

	listener_distrust(p);
	sh->drain_until = p->now_ms + p->settings.drain_timeout;
	if (sh->drain_until < p->now_ms + LINGER_MS)
		sh->drain_until = p->now_ms + LINGER_MS;
	log_notice("%s: no new connections; %u sessions may end within %llu s",
		   strsignal(sh->stop_signal), table_used(&p->table),
		   (unsigned long long)p->settings.drain_timeout / 1000);
}

/* What we were told by now, or a predecessor was. */
static void obey(struct proxy *p)
{
	struct shared *sh = p->shared;

	if (sh->stops && !sh->drain_until)
		begin_drain(p);
	if (sh->stops > 1 && sh->drain_until > p->now_ms) {
		log_notice("%s again: ending %u sessions now", strsignal(sh->stop_signal),
			   table_used(&p->table));
		sh->drain_until = p->now_ms;
	}
}

static void read_signals(struct proxy *p)
{
	struct signalfd_siginfo info;

	while (read(p->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGNAL_ORPHANED) {
			p->orphaned = 1;
		} else if (getppid() != p->master) { /* else the master counts them */
			p->shared->stop_signal = info.ssi_signo;
			p->shared->stops++;
		}
	}
}

static void dispatch(struct proxy *p, const struct epoll_event *ev)
{
	uint64_t datum = ev->data.u64;
	struct session *s;

	switch (event_type(datum)) {
	case EVENT_SIGNAL:
		read_signals(p);
		break;
	case EVENT_LISTENER:
		if (!p->resume_ms && p->shared->listener[event_slot(datum)] >= 0)
			accept_up_to(p, ACCEPT_BATCH, p->shared->listener[event_slot(datum)]);
		break;
	case EVENT_HOLD:
		hold_events(p);
		break;
	case EVENT_ROUTES:
		routes_event(p);
		break;
	case EVENT_CLIENT:
	case EVENT_UPSTREAM:
		s = table_find(&p->table, event_slot(datum), event_generation(datum));
		if (s)
			session_event(p, s, event_type(datum) == EVENT_CLIENT ? CLIENT : UPSTREAM,
				      ev->events);
		break;
	}
}

/* Milliseconds epoll may sleep; -1: until an event. */
static int sleep_ms(const struct proxy *p)
{
	uint64_t next = session_next_deadline(p), routes = routes_deadline(p);
	uint64_t idle = idle_deadline(p), press = hold_deadline(p);

	if (routes && (!next || routes < next))
		next = routes;
	if (press && (!next || press < next))
		next = press;
	if (idle && (!next || idle < next))
		next = idle;
	if (p->resume_ms && (!next || p->resume_ms < next))
		next = p->resume_ms;
	if (p->shared->drain_until && (!next || next > p->now_ms + LINGER_MS))
		next = p->now_ms + LINGER_MS;
	if (!next)
		return -1;
	return next <= p->now_ms ? 0 : (int)(next - p->now_ms);
}

/* 1 once everything is over. */
static int drained(struct proxy *p)
{
	if (!p->shared->drain_until)
		return 0;
	/* Those who were on their way in when the mark went still come in. */
	if (listener_is_open(p) &&
	    p->shared->drain_until - p->settings.drain_timeout + LINGER_MS <= p->now_ms &&
	    !p->table.lists[LIST_HELD].count && !p->table.lists[LIST_GRANTED].count)
		listener_close(p);
	if (p->shared->drain_until <= p->now_ms) {
		listener_close(p);
		session_end_all(p);
		return 1;
	}
	return !listener_is_open(p) && !table_used(&p->table);
}

int loop_run(struct proxy *p, struct failure *f)
{
	struct epoll_event events[BATCH];

	for (;;) {
		int n;

		p->now_ms = monotonic_ms();
		if (p->resume_ms && p->resume_ms <= p->now_ms && watch_listeners(p))
			p->resume_ms = p->now_ms + RESUME_MS;
		obey(p);
		if (p->orphaned)
			return LOOP_ORPHANED;
		if (drained(p))
			return 0;
		n = epoll_wait(p->shared->epoll, events, BATCH, sleep_ms(p));
		if (n < 0 && errno != EINTR)
			return fail(f, -errno, "cannot wait for events: %m");
		p->now_ms = monotonic_ms();
		p->busy = n >= BUSY;
		for (int i = 0; i < n; i++)
			dispatch(p, &events[i]);
		hold_press(p);
		accept_granted(p);
		routes_settle(p);
		session_run_ready(p);
		session_expire(p);
		idle_expire(p);
		session_reap(p);
	}
}
