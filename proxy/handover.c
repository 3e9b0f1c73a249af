// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 *	idle		somebody connects: root or our own user, or he is sent away
 *	greeting	his HELLO is compared with what we are; where all is equal the
 *			master stops its worker, and nobody works
 *	sending		every descriptor, with its number
 *	waiting		until he says that he has taken it
 *
 * Who serves is decided by one word of the shared memory alone (shared.h), never by a message or by
 * a message that does not come: at the deadline, or when the connection breaks, we try to take the
 * offer back, and that fails where the other one was quicker.
 */
#include "handover.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "control.h"
#include "log.h"
#include "recover.h"

#define BACKLOG	    64
#define GREETING_MS 1000
#define OFFER_MS    5000
#define RETRY_MS    2
#define PAUSE_MS    20 /* where nobody could be accepted */

int control_path(const struct proxy *p, char ret_path[CONTROL_PATH_LEN], uint64_t *ret_netns,
		 struct failure *f)
{
	char part[16] = "";
	struct stat st;

	if (stat("/proc/self/ns/net", &st))
		return fail(f, -errno, "cannot tell the network namespace: /proc/self/ns/net: %m");
	if (p->settings.parts > 1)
		snprintf(part, sizeof(part), ".%u-%u", p->settings.part_index + 1U,
			 p->settings.parts);
	snprintf(ret_path, CONTROL_PATH_LEN, RUN_DIR "/%s@%llu%s.sock", p->settings.common.name,
		 (unsigned long long)st.st_ino, part);
	if (ret_netns)
		*ret_netns = st.st_ino;
	return 0;
}

static int make_directory(struct failure *f)
{
	struct stat st;

	if (mkdir(RUN_DIR, 0750) && errno != EEXIST)
		return fail(f, -errno, "cannot make %s: %m", RUN_DIR);
	if (lstat(RUN_DIR, &st))
		return fail(f, -errno, "cannot look at %s: %m", RUN_DIR);
	if (!S_ISDIR(st.st_mode) || (st.st_uid && st.st_uid != geteuid()) || st.st_mode & 022)
		return fail(f, -EPERM,
			    "%s belongs to user %d (mode %o): only root and the user that tproxyd "
			    "runs as may write there",
			    RUN_DIR, (int)st.st_uid, st.st_mode & 07777);
	return 0;
}

/* Under another name first: what others find by the name listens already. */
static int bind_control(const char *path, struct failure *f)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd _cleanup_fd_ = -1;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.*s~", CONTROL_PATH_LEN, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail(f, -errno, "cannot open a socket: %m");
	unlink(addr.sun_path);
	if (fchmod(fd, 0600) || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(fd, BACKLOG) || rename(addr.sun_path, path))
		return fail(f, -errno, "cannot listen on %s: %m", path);
	return TAKE_FD(fd);
}

int handover_listen(struct proxy *p, struct failure *f)
{
	char path[CONTROL_PATH_LEN];
	int err, fd;

	/* Whoever connects is told whose socket it is: from here on it is ours. */
	if (p->shared->control >= 0)
		return listen(p->shared->control, BACKLOG)
			       ? fail(f, -errno, "cannot listen on the control socket: %m")
			       : 0;
	err = make_directory(f);
	if (!err)
		err = control_path(p, path, NULL, f);
	if (err)
		return err;
	fd = bind_control(path, f);
	if (fd < 0)
		return fd;
	p->shared->control = fd;
	return 0;
}

/* Descriptors of the master's are taken out of the books first and closed then: a worker may get
 * the number at once. */
void handover_unlisten(struct proxy *p)
{
	char path[CONTROL_PATH_LEN];
	struct failure f;

	if (p->shared->control < 0)
		return;
	/* One that was a worker may not (filter.c): connections are refused all the same, and the
	 * next to come puts its own in the place. */
	if (!p->heir && !control_path(p, path, NULL, &f))
		unlink(path);
	fd_close(TAKE_FD(p->shared->control));
}

void handover_forget(struct proxy *p, struct handover *h)
{
	p->shared->peer = -1;
	fd_close(h->peer);
	free(h->fds);
	*h = (struct handover){0};
}

int handover_stands(const struct handover *h)
{
	return h->state == HANDOVER_SENDING || h->state == HANDOVER_WAITING;
}

int handover_fd(const struct proxy *p, const struct handover *h, short *ret_events)
{
	*ret_events = h->state == HANDOVER_SENDING && !h->retry_ms ? POLLIN | POLLOUT : POLLIN;
	return h->state == HANDOVER_IDLE ? p->shared->control : h->peer;
}

uint64_t handover_deadline(const struct handover *h)
{
	return h->retry_ms ?: h->deadline_ms;
}

static void enter(struct handover *h, enum handover_state state, uint64_t ms)
{
	h->state = state;
	h->deadline_ms = monotonic_ms() + ms;
}

static enum handover_step meet(struct proxy *p, struct handover *h)
{
	static struct log_limit limit = {.burst = 5, .interval_ms = 10000};
	struct ucred who = {0};
	socklen_t len = sizeof(who);
	unsigned int missed;
	int fd = accept4(p->shared->control, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0) { /* out of descriptors, or gone again: in either case there is no hurry */
		poll(NULL, 0, PAUSE_MS);
		return HANDOVER_NOTHING;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) ||
	    (who.uid && who.uid != getauxval(AT_EUID))) {
		if (log_allowed(&limit, &missed))
			log_warning("control socket: pid %d of user %d was sent away (%u similar "
				    "ones before it not logged)",
				    who.pid, (int)who.uid, missed);
		fd_close(fd);
		return HANDOVER_NOTHING;
	}
	h->peer = p->shared->peer = fd;
	h->pid = who.pid;
	enter(h, HANDOVER_GREETING, GREETING_MS);
	return HANDOVER_NOTHING;
}

/* 1: a message; 0: none yet; -errno: the connection has ended, or is of no use. */
static int receive(int fd, struct control_message *ret)
{
	uint8_t buf[CONTROL_MAX + 1];
	ssize_t len = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);

	/* It has gone without having read everything. What it said before is still there. */
	if (len < 0 && errno == ECONNRESET)
		len = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
	if (len < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	return len ? control_parse(buf, len, ret) ?: 1 : -ECONNRESET;
}

static void refuse(struct proxy *p, struct handover *h, const struct failure *why)
{
	struct control_message m = {.type = CONTROL_REFUSE};
	uint8_t buf[CONTROL_MAX];

	snprintf(m.text, sizeof(m.text), "%s", why->text);
	(void)!send(h->peer, buf, control_format(&m, buf), MSG_DONTWAIT | MSG_NOSIGNAL);
	log_warning("not handed over to pid %d: %s", h->pid, why->text);
	handover_forget(p, h);
}

/* Whether who says so can go on from what we have. */
static int compare(const struct proxy *p, const struct control_hello *hello, struct failure *f)
{
	char path[CONTROL_PATH_LEN], layout[SHARED_LAYOUT_LEN];
	uint64_t netns = 0;
	int err = control_path(p, path, &netns, f);

	if (err)
		return err;
	if (strcmp(hello->name, p->settings.common.name))
		return fail(f, -EINVAL, "this tproxyd serves instance %s, not %s",
			    p->settings.common.name, hello->name);
	if (hello->netns != netns)
		return fail(f, -EINVAL, "this tproxyd serves another network namespace");
	if (hello->abi != ABI_VERSION)
		return fail(f, -EPROTO,
			    "it speaks version %u with the hooks, the tproxyd that runs %u: "
			    "restart that instead",
			    hello->abi, ABI_VERSION);
	if (strcmp(hello->layout, shared_layout(layout)))
		return fail(f, -EPROTO,
			    "it keeps its sessions in another way than the tproxyd that runs "
			    "(%s, not %s): restart that instead",
			    hello->layout, layout);
	if (hello->port != p->shared->port || hello->ports != p->shared->ports)
		return fail(f, -EPROTO,
			    "instance %s has moved to port %u (%u), the tproxyd that runs listens "
			    "on port %u (%u): restart that instead",
			    hello->name, hello->port, hello->ports, p->shared->port,
			    p->shared->ports);
	return 0;
}

static enum handover_step greet(struct proxy *p, struct handover *h, const char *busy)
{
	struct control_message m;
	struct failure f;
	int r = receive(h->peer, &m);

	if (!r && monotonic_ms() < h->deadline_ms)
		return HANDOVER_NOTHING;
	if (r == -ECONNRESET) {
		handover_forget(p, h);
		return HANDOVER_NOTHING;
	}
	if (!r)
		r = fail(&f, -ETIMEDOUT, "it has not said what it is");
	else if (r == -EPROTONOSUPPORT)
		fail(&f, r, "it speaks another version of the control protocol (not %u)",
		     CONTROL_VERSION);
	else if (r < 0 || m.type != CONTROL_HELLO)
		r = fail(&f, -EPROTO, "it does not speak the control protocol");
	else if (busy)
		r = fail(&f, -EBUSY, "the tproxyd that runs %s", busy);
	else
		r = compare(p, &m.hello, &f);
	if (r >= 0)
		return HANDOVER_BEGIN;
	refuse(p, h, &f);
	return HANDOVER_NOTHING;
}

static uint32_t count_sessions(const struct proxy *p)
{
	const struct session *sessions = shared_sessions(p->shared);
	uint32_t count = 0;

	for (uint32_t i = 0; i < p->shared->slots_used; i++)
		count += sessions[i].list != LIST_FREE && sessions[i].start_ms;
	return count;
}

/* Everything but the standard descriptors and the connection, entered somewhere or not: what is in
 * nobody's books may be a client that was just accepted, and keeps its number from being used. */
static int list_descriptors(const struct proxy *p, struct handover *h)
{
	int32_t size = recover_fd_table_size(p->fd_limit);

	h->fds = calloc(size, sizeof(*h->fds));
	if (!h->fds)
		return -ENOMEM;
	for (int32_t fd = STDERR_FILENO + 1; fd < size; fd++)
		if (fd != h->peer && fcntl(fd, F_GETFD) >= 0)
			h->fds[h->count++] = fd;
	return 0;
}

int handover_offer(struct proxy *p, struct handover *h, struct failure *f)
{
	struct control_message m = {.type = CONTROL_OFFER};
	uint8_t buf[CONTROL_MAX];
	int err = list_descriptors(p, h);

	if (err) {
		handover_forget(p, h);
		return fail(f, err, "out of memory");
	}
	h->number = shared_offer(p->shared);
	h->sessions = count_sessions(p);
	m.offer = (struct control_offer){.number = h->number,
					 .count = h->count,
					 .top = h->fds[h->count - 1],
					 .memory = p->shared->memfd,
					 .connection = h->peer};
	enter(h, HANDOVER_SENDING, OFFER_MS);
	/* The connection is empty: there is room. Where it has broken that is noticed in a moment.
	 */
	(void)!send(h->peer, buf, control_format(&m, buf), MSG_DONTWAIT | MSG_NOSIGNAL);
	return 0;
}

static int send_batch(int fd, const int32_t *fds, uint32_t count)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(CONTROL_FDS * sizeof(int))];
	} control = {0};
	struct control_message m = {.type = CONTROL_FDS_BATCH, .batch = {.count = count}};
	uint8_t buf[CONTROL_MAX];
	struct iovec iov = {.iov_base = buf};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = CMSG_SPACE(count * sizeof(int))};

	memcpy(m.batch.fd, fds, count * sizeof(*fds));
	iov.iov_len = control_format(&m, buf);
	control.align = (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)),
					 .cmsg_level = SOL_SOCKET,
					 .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.align), fds, count * sizeof(int));
	return sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* 0: as much as there is room for, or -errno. */
static int send_batches(struct handover *h)
{
	h->retry_ms = 0;
	while (h->sent < h->count) {
		uint32_t n = h->count - h->sent;
		int err;

		if (n > CONTROL_FDS)
			n = CONTROL_FDS;
		err = send_batch(h->peer, h->fds + h->sent, n);
		/* As many are under way as the limit on open files allows, where it is low. */
		if (err == -ETOOMANYREFS)
			h->retry_ms = monotonic_ms() + RETRY_MS;
		if (err)
			return err == -ETOOMANYREFS || err == -EAGAIN ? 0 : err;
		h->sent += n;
	}
	h->state = HANDOVER_WAITING;
	return 0;
}

enum handover_step handover_cancel(struct proxy *p, struct handover *h)
{
	if (handover_stands(h)) {
		if (!shared_withdraw(p->shared, h->number))
			return HANDOVER_TAKEN;
		handover_forget(p, h);
		return HANDOVER_BACK;
	}
	if (h->state == HANDOVER_GREETING)
		handover_forget(p, h);
	return HANDOVER_NOTHING;
}

/* Descriptors are sent, and what is said meanwhile is heard. */
static enum handover_step deliver(struct proxy *p, struct handover *h)
{
	struct control_message m;
	const char *why = NULL;
	pid_t pid = h->pid;
	int r = receive(h->peer, &m);
	enum handover_step step;

	if (!r && h->state == HANDOVER_SENDING)
		r = send_batches(h);
	if (r < 0 && receive(h->peer, &m) > 0) /* it said why before it went */
		r = 1;
	if (!r && monotonic_ms() < h->deadline_ms)
		return HANDOVER_NOTHING;
	if (!r)
		why = "it took too long";
	else if (r > 0 && m.type == CONTROL_REFUSE)
		why = m.text;
	else
		why = "it has broken off";
	step = handover_cancel(p, h);
	if (step == HANDOVER_BACK)
		log_error("not handed over to pid %d: %s", pid, why);
	return step;
}

enum handover_step handover_step(struct proxy *p, struct handover *h, const char *busy)
{
	switch (h->state) {
	case HANDOVER_IDLE:
		return meet(p, h);
	case HANDOVER_GREETING:
		return greet(p, h, busy);
	default:
		return deliver(p, h);
	}
}

void handover_leave(const struct handover *h)
{
	for (uint32_t i = 0; i < h->count; i++)
		close(h->fds[i]);
	close(h->peer);
}
