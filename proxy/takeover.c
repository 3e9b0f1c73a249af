// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 * The books name descriptors by their numbers, and so does the epoll set, so each must come to be
 * open under the number that it has over there. They come in ascending order, and the kernel gives
 * each the lowest number that is free here: one that is not used over there, or one that is still
 * to be filled; never one above its own. So moving those of a batch from the last to the first
 * never meets a number that is taken, and no number above the highest is needed.
 *
 * The memory is the other one's until it is claimed: nothing is written to it but that. We may be
 * stopped at any instant for as long as it takes, and the other one may serve on meanwhile.
 */
#include "takeover.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "control.h"
#include "handover.h"
#include "log.h"

#define ANSWER_S 5
#define LEAVE_MS 2000

static int say(int fd, const struct control_message *m)
{
	uint8_t buf[CONTROL_MAX];

	return send(fd, buf, control_format(m, buf), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int connect_control(const char *path, struct failure *f)
{
	struct timeval limit = {.tv_sec = ANSWER_S};
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct ucred who = {0};
	socklen_t len = sizeof(who);
	int fd _cleanup_fd_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.*s", CONTROL_PATH_LEN, path);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)))
		return fail(f, -errno, "cannot open a socket: %m");
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fail(f, -errno, "cannot connect to %s: %m", path);
	/* What comes is memory and descriptors, which whoever made them can still change. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) ||
	    (who.uid && who.uid != geteuid()))
		return fail(f, -EPERM,
			    "the tproxyd that runs is user %d's, whom this one, of user %d, does "
			    "not trust: start it as that user",
			    (int)who.uid, (int)geteuid());
	return TAKE_FD(fd);
}

/* The next message, with up to `max` descriptors, or -errno. */
static int hear(int fd, struct control_message *ret, int *ret_fds, uint32_t *ret_count,
		struct failure *f)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(CONTROL_FDS * sizeof(int))];
	} control;
	uint8_t buf[CONTROL_MAX + 1];
	struct iovec iov = {.iov_base = buf, .iov_len = sizeof(buf)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	ssize_t len = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c;
	int err;

	if (len <= 0)
		return fail(f, len ? -errno : -ECONNRESET, "the tproxyd that runs %s; it serves on",
			    len ? "does not answer" : "has broken off");
	*ret_count = 0;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		*ret_count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(ret_fds, CMSG_DATA(c), *ret_count * sizeof(int));
	}
	err = control_parse(buf, len, ret);
	if (err)
		return fail(f, err,
			    "the tproxyd that runs speaks another version of the control protocol: "
			    "restart that instead");
	if (ret->type == CONTROL_REFUSE)
		return fail(f, -ECONNREFUSED, "the tproxyd that runs refuses: %s", ret->text);
	if (msg.msg_flags & MSG_CTRUNC)
		return fail(f, -EMFILE,
			    "not all descriptors could be taken: raise the limit on open files "
			    "(ulimit -n, LimitNOFILE)");
	return 0;
}

/* Nothing but the standard descriptors and the connection, under the number it is to have. */
static int make_room(int *conn, int number)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return -EBADF;
	if (*conn != number) {
		if (dup3(*conn, number, O_CLOEXEC) < 0)
			return -errno;
		*conn = number;
	}
	if (number > STDERR_FILENO + 1 && close_range(STDERR_FILENO + 1, number - 1, 0))
		return -errno;
	return close_range(number + 1, ~0U, 0) ? -errno : 0;
}

static int place(const struct control_batch *batch, const int *fds)
{
	for (uint32_t i = batch->count; i--;) {
		if (fds[i] == batch->fd[i])
			continue;
		if (fds[i] > batch->fd[i] || fcntl(batch->fd[i], F_GETFD) >= 0)
			return -EBADF;
		if (dup3(fds[i], batch->fd[i], O_CLOEXEC) < 0)
			return -errno;
		close(fds[i]);
	}
	return 0;
}

static int receive_all(const struct control_offer *offer, struct failure *f)
{
	struct control_message m;
	int fds[CONTROL_FDS], err, last = STDERR_FILENO;
	uint32_t count;

	for (uint32_t left = offer->count; left; left -= count) {
		err = hear(offer->connection, &m, fds, &count, f);
		if (err)
			return err;
		err = -EPROTO;
		if (m.type == CONTROL_FDS_BATCH && count == m.batch.count && count <= left &&
		    m.batch.fd[0] > last && m.batch.fd[count - 1] <= offer->top)
			err = place(&m.batch, fds);
		if (err)
			return fail(f, err, "the descriptors that came cannot be put in place: %s",
				    strerror(-err));
		last = m.batch.fd[count - 1];
	}
	return 0;
}

static int accept_offer(struct proxy *p, int *conn, struct failure *f)
{
	struct control_message m;
	int fds[CONTROL_FDS], err;
	uint32_t count;

	err = hear(*conn, &m, fds, &count, f);
	if (err)
		return err;
	if (m.type != CONTROL_OFFER || count)
		return fail(f, -EPROTO, "the tproxyd that runs makes no offer");
	if ((uint64_t)m.offer.top >= p->fd_limit || (uint64_t)m.offer.connection >= p->fd_limit)
		return fail(f, -EMFILE,
			    "the tproxyd that runs has descriptors up to %d, and %llu is all that "
			    "we may have: raise the limit on open files (ulimit -n, LimitNOFILE)",
			    m.offer.top, (unsigned long long)p->fd_limit);
	err = make_room(conn, m.offer.connection);
	if (err)
		return fail(f, err, "cannot make room for descriptors: %s", strerror(-err));
	err = receive_all(&m.offer, f);
	if (!err)
		err = shared_attach(m.offer.memory, &p->shared, f);
	if (!err && (p->shared->memfd != m.offer.memory || p->shared->peer != *conn))
		err = fail(f, -EPROTO, "what came does not fit together");
	if (!err)
		p->offer = m.offer.number;
	return err;
}

static int greet(const struct proxy *p, int conn, uint64_t netns)
{
	struct control_message m = {.type = CONTROL_HELLO,
				    .hello = {.abi = ABI_VERSION,
					      .port = p->instance.config->port,
					      .ports = p->instance.config->ports,
					      .netns = netns}};

	snprintf(m.hello.name, sizeof(m.hello.name), "%s", p->settings.common.name);
	shared_layout(m.hello.layout);
	return say(conn, &m);
}

static void refuse(int conn, const char *why)
{
	struct control_message m = {.type = CONTROL_REFUSE};

	snprintf(m.text, sizeof(m.text), "%s", why);
	say(conn, &m);
}

int takeover_connect(struct proxy *p, struct failure *f)
{
	char path[CONTROL_PATH_LEN];
	int err = control_path(p, path, NULL, f);

	if (err)
		return err;
	p->conn = connect_control(path, f);
	if (p->conn >= 0)
		return 0;
	err = p->conn;
	p->conn = -1;
	return err == -ENOENT || err == -ECONNREFUSED ? 0 : err;
}

int takeover_receive(struct proxy *p, struct failure *f)
{
	char path[CONTROL_PATH_LEN];
	uint64_t netns;
	int err = control_path(p, path, &netns, f);

	if (err)
		return err;
	/* Where it has gone already, its answer is still there to be read. */
	greet(p, p->conn, netns);
	instance_close(&p->instance);
	err = accept_offer(p, &p->conn, f);
	if (!err) {
		memcpy(p->spare.raw, p->shared->raw, sizeof(p->spare.raw));
		p->spare.ring = p->shared->ring;
		return 0;
	}
	if (err != -ECONNREFUSED && err != -ECONNRESET)
		refuse(p->conn, f->text);
	p->conn = fd_close(p->conn);
	return err;
}

/* Until it has closed its end, which it does last of all. */
static void wait_for_end(int conn)
{
	struct pollfd end = {.fd = conn, .events = POLLIN};
	uint64_t deadline = monotonic_ms() + LEAVE_MS, now;
	char byte;

	while ((now = monotonic_ms()) < deadline && poll(&end, 1, deadline - now) >= 0)
		if (end.revents && !recv(conn, &byte, 1, MSG_DONTWAIT))
			return;
	log_warning("the tproxyd before us still runs: what ends now is closed only when it ends");
}

int takeover_claim(struct proxy *p, struct failure *f)
{
	struct control_message m = {.type = CONTROL_TAKEN, .taken = p->offer};

	if (!shared_claim(p->shared, p->offer))
		return fail(f, -ECANCELED,
			    "it took too long: the tproxyd before us has gone on serving");
	if (p->shared->peer >= 0) {
		say(p->shared->peer, &m);
		wait_for_end(p->shared->peer);
		fd_close(TAKE_FD(p->shared->peer));
	}
	p->shared->heir = 0;
	if (p->settings.hold) {
		memcpy(p->shared->raw, p->spare.raw, sizeof(p->spare.raw));
		p->shared->ring = p->spare.ring;
	}
	p->offer = 0;
	return 0;
}

int takeover_abandon(struct proxy *p, const char *why)
{
	/* Where another offer has been made since, this one was withdrawn. */
	if (!shared_withdraw(p->shared, p->offer) && shared_offers(p->shared) == p->offer)
		return 0;
	refuse(p->conn, why); /* what the memory has is of the other one's next conversation */
	return 1;
}
