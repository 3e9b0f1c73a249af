// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 * Bytes go source socket -> pipe -> destination socket and never enter user space. A direction
 * takes bytes from its source only while its pipe is empty, so that EAGAIN from the source has one
 * meaning (nothing there) and back-pressure is immediate: a destination that does not take bytes
 * stops us from reading, the source's window closes, its sender blocks.
 *
 * The sockets are watched edge-triggered. A pump therefore runs until EAGAIN on one side, or until
 * its budget is used up and the session is put on the ready list. That a small exchange has left
 * nothing behind is asked only when there is nothing better to do: mostly the next edge of the same
 * socket comes first, and a third of the calls is saved.
 *
 * The order of ends is that of a direct connection: FIN after the last byte, a reset after the last
 * byte that came before it.
 */
#include "relay.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "upstream.h"

#define CHUNK	   PIPE_WIDE  /* asked for in one splice; what a pipe holds bounds what comes */
#define PUMP_STEPS 16	      /* splices into the pipe before others get a turn, */
#define PUMP_BYTES PIPE_WIDE  /* or bytes */
#define SMALL	   (1U << 14) /* more than that is part of a stream, and more is on its way */

static void give_back(struct direction *d, struct pipes *pipes)
{
	if (d->pipe == NO_PIPE)
		return;
	if (direction_queued(d))
		pipes_discard(pipes, d->pipe);
	else
		pipes_put(pipes, d->pipe);
	d->pipe = NO_PIPE;
}

void relay_release(struct session *s, struct pipes *pipes)
{
	give_back(&s->dir[CLIENT], pipes);
	give_back(&s->dir[UPSTREAM], pipes);
}

/* Pipe to destination. 0, -EAGAIN, or the destination's error. */
static int drain(struct session *s, enum side from, struct pipes *pipes)
{
	struct direction *d = &s->dir[from];

	while (direction_queued(d)) {
		ssize_t n;

		if (s->untuned && from == CLIENT && d->bytes)
			upstream_tune(s);
		n = splice(pipes->all[d->pipe].fd[0], NULL, s->fd[!from], NULL, direction_queued(d),
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

		if (n <= 0)
			return n ? -errno : -EPIPE;
		d->bytes += n;
	}
	return 0;
}

void relay_urgent(struct session *s, enum side side)
{
	int one = 1;

	/* In line, the urgent byte is read at its place in the stream. */
	if (!(s->urgent & 1 << side))
		setsockopt(s->fd[side], SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one));
	s->urgent |= 1 << side;
}

/* Takes the urgent byte, which was sent, from its source. */
static int take_urgent(struct session *s, enum side from)
{
	struct direction *d = &s->dir[from];
	char byte;

	__atomic_store_n(&d->urgent, URGENT_SENT, __ATOMIC_RELEASE);
	if (recv(s->fd[from], &byte, 1, MSG_DONTWAIT) == 1) {
		d->taken++;
		d->bytes++;
	}
	__atomic_store_n(&d->urgent, URGENT_NONE, __ATOMIC_RELEASE);
	return 0;
}

static int at_urgent_mark(int fd)
{
	int at_mark = 0;

	return !ioctl(fd, SIOCATMARK, &at_mark) && at_mark;
}

/*
 * splice() stops short of an urgent byte as if nothing were there, or as if it were the end. With
 * all before it delivered, it is passed on as what it is: looked at, sent, and only then taken, so
 * that it is never in user space alone. 0; -EAGAIN: not there yet, or the destination is full; or
 * the destination's error.
 */
static int pass_urgent(struct session *s, enum side from)
{
	struct direction *d = &s->dir[from];
	char byte;
	int err;

	if (!at_urgent_mark(s->fd[from]))
		return -EAGAIN;
	relay_urgent(s, from);
	if (recv(s->fd[from], &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 1)
		return -EAGAIN;
	__atomic_store_n(&d->urgent, URGENT_SENDING, __ATOMIC_RELEASE);
	if (send(s->fd[!from], &byte, 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL) != 1) {
		err = -errno;
		d->urgent = URGENT_NONE;
		return err;
	}
	return take_urgent(s, from);
}

/* Payload bytes that were ever written to a socket. */
static uint64_t bytes_written(int fd)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);

	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len);
	return info.tcpi_bytes_sent - info.tcpi_bytes_retrans + info.tcpi_notsent_bytes;
}

void relay_recover(struct session *s, enum side from, struct pipes *pipes)
{
	struct direction *d = &s->dir[from];
	int n = 0;

	if (d->pipe != NO_PIPE && ioctl(pipes->all[d->pipe].fd[0], FIONREAD, &n))
		n = 0;
	if (direction_queued(d) > (uint64_t)n)
		d->bytes = d->taken - n;
	else
		d->taken = d->bytes + n;
	if (d->urgent == URGENT_SENDING ? bytes_written(s->fd[!from]) > d->bytes
					: d->urgent == URGENT_SENT && at_urgent_mark(s->fd[from]))
		take_urgent(s, from);
	d->urgent = URGENT_NONE;
}

/* Source to pipe, which is empty. 0, -EAGAIN, or why no pipe could be had. */
static int fill(struct session *s, enum side from, struct pipes *pipes)
{
	struct direction *d = &s->dir[from];
	ssize_t n;
	int err;

	if (d->pipe == NO_PIPE) {
		err = pipes_take(pipes, &d->pipe);
		if (err)
			return err;
	}
	n = splice(s->fd[from], NULL, pipes->all[d->pipe].fd[1], NULL, CHUNK,
		   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	if (n > 0) {
		d->taken += n;
		return 0;
	}
	if (n < 0 && errno == EAGAIN)
		return s->urgent & 1 << from ? pass_urgent(s, from) : -EAGAIN;
	/* The FIN that epoll has announced, without any urgent data, is one. */
	if (n == 0 && (s->urgent & 1 << from || !(s->ended & 1 << from)) &&
	    at_urgent_mark(s->fd[from]))
		return pass_urgent(s, from);
	if (n < 0)
		s->error = errno;
	/* A socket reports its error once and plain EOF from then on: hence `broken`. */
	d->source = n < 0 || s->broken & 1 << from ? SOURCE_RESET : SOURCE_FIN;
	return 0;
}

enum relay_result relay_pump(struct session *s, enum side from, struct pipes *pipes, int thorough)
{
	struct direction *d = &s->dir[from];
	uint64_t begin = d->taken, before = begin;
	int err;

	if (d->shut)
		return RELAY_SHUT;
	thorough |= s->urgent & 1 << from;
	for (int step = 0; step < PUMP_STEPS; step++) {
		err = drain(s, from, pipes);
		if (err == -EAGAIN)
			return RELAY_WAIT;
		if (err) { /* the destination was reset: its last bytes come by the other direction
			    */
			s->broken |= 1 << !from;
			return RELAY_RESET;
		}
		if (d->source == SOURCE_RESET)
			return RELAY_RESET;
		if (d->source == SOURCE_FIN) {
			give_back(d, pipes);
			if (!s->dir[!from].shut) /* else the close() that follows sends it */
				shutdown(s->fd[!from], SHUT_WR);
			d->shut = 1;
			return RELAY_SHUT;
		}
		if (!thorough && d->taken != before && d->taken - before < SMALL) {
			give_back(d, pipes);
			return RELAY_UNSURE;
		}
		if (d->taken - begin >= PUMP_BYTES)
			return RELAY_MORE;
		if (d->taken - before >= SMALL)
			pipes_widen(pipes, &d->pipe);
		before = d->taken;
		err = fill(s, from, pipes);
		if (err == -EAGAIN) {
			give_back(d, pipes);
			return RELAY_WAIT;
		}
		if (err == -EPIPE || err == -ECONNRESET) { /* the destination, of an urgent byte */
			s->broken |= 1 << !from;
			return RELAY_RESET;
		}
		if (err)
			return RELAY_STARVED;
	}
	return RELAY_MORE;
}
