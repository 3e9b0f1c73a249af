// SPDX-License-Identifier: BSD-2-Clause
/*
 * stress PORT [SETTING=NUMBER]... ADDRESS...
 *
 * Talks to a stress_server in many ways at once until SIGTERM, then brings every session to its end
 * and compares what the server counted. Ends with status 1, and a word on why, at the first
 * request that fails, byte that is wrong, or session that breaks. Prints a line of JSON every
 * REPORT_MS, and at the end. For each setting see the table; all are 0 unless said.
 *
 * One thread, edge-triggered epoll. A slot is one session at a time, of the role that it has for
 * good: when a session ends the slot is put on the stack of idle ones, and begins the next after
 * the batch of events.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "stress.h"
#include "stress_choice.h"
#include "util.h"

#define SLOTS_MAX     20000
#define BATCH	      256
#define STEPS	      8
#define TICK_MS	      10
#define REPORT_MS     100
#define PATIENCE_MS   40000
#define LATE_MS	      130000 /* as long as the kernel sends SYNs */
#define LATE_PAUSE_MS 500    /* or there would be nothing but these while the queue is empty */
#define SLOW_MS	      900    /* a SYN that had to be sent again */
#define FINISH_MS     50     /* between two that ask for the count */

static int epoll;
static struct slot slots[SLOTS_MAX];
static int idle[SLOTS_MAX], idle_count, slot_count;
static volatile sig_atomic_t told_to_end;
static uint64_t now_ms, start_ms, shorts_begun;
static int finishing, finish_sent;
static struct {
	uint64_t ended[KIND_COUNT], connections, resets, late, bytes, slow, longest_ms, counted;
	uint64_t count_wanted, open_there;
} did;

__attribute__((format(printf, 2, 3), noreturn)) static void fail(const struct slot *s,
								 const char *fmt, ...)
{
	char to[INET6_ADDRSTRLEN] = "";
	struct sockaddr_storage own = {0};
	socklen_t len = sizeof(own);
	struct in6_addr address;
	uint16_t to_port = stress_address(&s->to, &address);
	va_list args;

	inet_ntop(AF_INET6, &address, to, sizeof(to));
	getsockname(s->fd, (struct sockaddr *)&own, &len);
	fprintf(stderr,
		"stress: FAILED after %llu ms: to %s port %u (family %d) from port %u, kind %s, "
		"ending %u, id %llx, up %llu, down %llu, connected %d, sent %llu, received %llu, "
		"begun %llu ms ago: ",
		(unsigned long long)(now_ms - start_ms), to, to_port, s->to.ss_family,
		stress_address(&own, &address), kind_names[s->request.kind], s->request.ending,
		(unsigned long long)s->request.id, (unsigned long long)s->request.up,
		(unsigned long long)s->request.down, s->connected, (unsigned long long)s->sent,
		(unsigned long long)s->received, (unsigned long long)(now_ms - s->began_ms));
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* --- one session ----------------------------------------------------------------------------- */

static void end(struct slot *s)
{
	uint64_t took = now_ms - s->began_ms;

	close(s->fd);
	s->fd = -1;
	did.ended[s->request.kind]++;
	did.resets += s->request.ending == ENDING_RESET;
	did.late += s->role == ROLE_LATE;
	did.count_wanted += s->request.kind == KIND_TELL || s->request.kind == KIND_LISTEN;
	if (s->role == ROLE_SHORT) {
		did.slow += took >= SLOW_MS;
		if (took > did.longest_ms)
			did.longest_ms = took;
	}
	idle[idle_count++] = s - slots;
}

static void begin(struct slot *s)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = s};
	int one = 1;

	s->connected = s->shut = s->closing = 0;
	s->sent = s->received = s->next_ms = 0;
	s->began_ms = s->progress_ms = now_ms;
	choose(s);
	s->fd = socket(s->to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		fail(s, "socket: %m");
	setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(s->fd, (struct sockaddr *)&s->to, s->to_len) && errno != EINPROGRESS) {
		if (s->request.kind != KIND_REFUSED || errno != ECONNREFUSED)
			fail(s, "connect: %m");
		end(s);
		return;
	}
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, s->fd, &event))
		fail(s, "epoll_ctl: %m");
}

static uint64_t expected(const struct slot *s)
{
	if (s->request.kind == KIND_TELL)
		return 0;
	if (s->request.kind == KIND_ECHO)
		return sizeof(s->reply) + s->may_send - sizeof(s->request);
	return sizeof(s->reply) + s->request.down;
}

/* The server tells where it was reached, and by whom: nobody else may have been. */
static void check_reply(struct slot *s)
{
	struct sockaddr_storage own = {0}, peer = {0};
	socklen_t own_len = sizeof(own), peer_len = sizeof(peer);
	struct in6_addr address, to;
	uint16_t to_port = stress_address(&s->to, &to);

	if (s->reply.magic != STRESS_MAGIC || s->reply.id != s->request.id)
		fail(s, "this is the answer to another request");
	if (memcmp(&s->reply.local, &to, sizeof(to)) || s->reply.local_port != to_port)
		fail(s, "misdirected: the server was reached at port %u", s->reply.local_port);
	if (getpeername(s->fd, (struct sockaddr *)&peer, &peer_len) == 0 &&
	    (stress_address(&peer, &address) != to_port || memcmp(&address, &to, sizeof(to))))
		fail(s, "getpeername() names another port, or address");
	if (getsockname(s->fd, (struct sockaddr *)&own, &own_len) ||
	    stress_address(&own, &address) != s->reply.peer_port ||
	    memcmp(&address, &s->reply.peer, sizeof(address)))
		fail(s, "getsockname() names another port than the server sees, which is %u",
		     s->reply.peer_port);
	did.counted = s->reply.counted;
	did.open_there = s->reply.open;
}

static void take(struct slot *s, const uint8_t *buf, size_t len)
{
	int down = s->request.kind != KIND_ECHO;
	uint64_t at = s->received;
	ssize_t wrong;

	if (at + len > expected(s))
		fail(s, "more bytes than there can be");
	s->received += len;
	if (at < sizeof(s->reply)) {
		size_t n = sizeof(s->reply) - at;

		n = n < len ? n : len;
		memcpy((uint8_t *)&s->reply + at, buf, n);
		if (s->received >= sizeof(s->reply))
			check_reply(s);
		buf += n;
		len -= n;
		at += n;
	}
	if (!len)
		return;
	at -= sizeof(s->reply);
	wrong = stress_wrong(stress_key(s->request.id, down), at, buf, len);
	if (wrong >= 0)
		fail(s, "byte %llu is wrong", (unsigned long long)(at + wrong));
}

static void on_eof(struct slot *s)
{
	switch (s->request.kind) {
	case KIND_EXCHANGE:
		if (s->received == expected(s) && s->request.ending != ENDING_RESET) {
			end(s);
			return;
		}
		break;
	case KIND_ECHO:
		if (s->shut && s->received == expected(s)) {
			end(s);
			return;
		}
		break;
	case KIND_TRICKLE:
		if (finish_sent && s->received >= sizeof(s->reply)) {
			end(s);
			return;
		}
		break;
	case KIND_LISTEN:
		if (s->received == expected(s)) {
			s->closing = 1; /* nothing more is to be read */
			return;
		}
		break;
	}
	fail(s, "FIN, and neither a reset nor the rest");
}

/* 1 while there may be more. */
static int receive(struct slot *s)
{
	static uint8_t buf[STRESS_CHUNK];
	uint64_t left = s->may_receive - s->received;
	ssize_t n;

	if (s->closing || !left || s->request.kind == KIND_TELL)
		return 0;
	n = recv(s->fd, buf, left < sizeof(buf) ? left : sizeof(buf), 0);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0 && errno == ECONNRESET && s->request.ending == ENDING_RESET &&
	    s->received == expected(s)) {
		end(s);
		return 0;
	}
	if (n < 0)
		fail(s, "receiving: %m");
	s->progress_ms = now_ms;
	did.bytes += n;
	if (n == 0)
		on_eof(s);
	else
		take(s, buf, n);
	return n > 0;
}

/* 1 while there may be more. */
static int transmit(struct slot *s)
{
	uint8_t buf[STRESS_CHUNK];
	size_t len;
	ssize_t n;

	if (s->sent == s->may_send)
		return 0;
	len = stress_fill(&s->request, sizeof(s->request), stress_key(s->request.id, 0), s->sent,
			  s->may_send, buf);
	n = send(s->fd, buf, len, MSG_NOSIGNAL);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		fail(s, "sending: %m");
	s->progress_ms = now_ms;
	s->sent += n;
	did.bytes += n;
	return 1;
}

/* What follows from having sent, or received, everything. */
static void settle(struct slot *s)
{
	uint64_t up = s->request.up;
	int all_sent = up == STRESS_ENDLESS ? finishing && s->sent == s->may_send
					    : s->sent == sizeof(s->request) + up;
	int all_received = s->received == expected(s);

	if (s->fd < 0 || !all_sent)
		return;
	if (s->request.kind == KIND_TELL || (s->request.kind == KIND_LISTEN && s->closing) ||
	    (s->request.ending == ENDING_CLIENT && all_received)) {
		end(s);
	} else if (s->request.ending == ENDING_HALF && !s->shut && s->request.kind != KIND_LISTEN &&
		   (s->request.kind != KIND_ECHO || all_received)) {
		shutdown(s->fd, SHUT_WR);
		s->shut = 1;
	}
}

static int connected(struct slot *s, uint32_t events)
{
	socklen_t len = sizeof(int);
	int err = 0;

	if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
		return 0;
	getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len);
	if (s->request.kind == KIND_REFUSED) {
		if (err != ECONNREFUSED)
			fail(s, "connected to a port where nobody listens, or: %s", strerror(err));
		end(s);
		return 0;
	}
	if (err)
		fail(s, "connecting: %s", strerror(err));
	s->connected = 1;
	s->progress_ms = now_ms;
	did.connections++;
	return 1;
}

static void step(struct slot *s, uint32_t events)
{
	struct epoll_event again = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = s};
	int more = 1;

	if (s->fd < 0 || (!s->connected && !connected(s, events)))
		return;
	for (int i = 0; more && i < STEPS && s->fd >= 0; i++) {
		more = transmit(s);
		settle(s);
		if (s->fd >= 0)
			more |= receive(s);
	}
	settle(s);
	if (more && s->fd >= 0)
		epoll_ctl(epoll, EPOLL_CTL_MOD, s->fd, &again); /* makes its event come again */
}

/* --- the clock ------------------------------------------------------------------------------- */

static void allow_more(struct slot *s)
{
	uint64_t pace = settings[SET_PACE] * 1024;

	if (s->role == ROLE_ECHO || s->request.kind == KIND_LISTEN) {
		int answered = s->request.kind == KIND_LISTEN || s->received == expected(s);

		if (finishing || s->sent != s->may_send || !answered || now_ms < s->next_ms)
			return;
		s->next_ms = now_ms + any(1000);
		s->may_send += 1 + any(any(20) ? 100 : 20000);
	} else if (s->role == ROLE_BULK && pace) {
		uint64_t allowed = pace * (now_ms - s->began_ms) / 1000;

		if (finishing || allowed > s->request.up)
			allowed = s->request.up;
		s->may_send = sizeof(s->request) + allowed;
		s->may_receive = finishing || allowed == s->request.up ? UINT64_MAX
								       : sizeof(s->reply) + allowed;
	}
}

static void tick(void)
{
	for (int i = 0; i < slot_count; i++) {
		struct slot *s = &slots[i];
		uint64_t patience = s->role == ROLE_LATE ? LATE_MS : PATIENCE_MS;

		if (s->fd < 0)
			continue;
		if (now_ms - s->progress_ms > patience)
			fail(s, "stuck for %llu ms", (unsigned long long)(now_ms - s->progress_ms));
		if (s->connected && s->role != ROLE_SHORT) {
			allow_more(s);
			step(s, 0);
		}
	}
}

static void report(int last)
{
	static uint64_t last_ms;
	const char *comma = "";

	if (now_ms - last_ms < REPORT_MS && !last)
		return;
	last_ms = now_ms;
	printf("{");
	for (int kind = 0; kind < KIND_COUNT; kind++, comma = ", ")
		printf("%s\"%s\": %llu", comma, kind_names[kind],
		       (unsigned long long)did.ended[kind]);
	printf(", \"connections\": %llu, \"resets\": %llu, \"late\": %llu, \"bytes\": %llu, "
	       "\"slow\": %llu, \"longest_ms\": %llu, \"open\": %d, \"ms\": %llu}\n",
	       (unsigned long long)did.connections, (unsigned long long)did.resets,
	       (unsigned long long)did.late, (unsigned long long)did.bytes,
	       (unsigned long long)did.slow, (unsigned long long)did.longest_ms,
	       slot_count - idle_count, (unsigned long long)(now_ms - start_ms));
	fflush(stdout);
}

/* --- from the first to the last -------------------------------------------------------------- */

static int may_begin(const struct slot *s)
{
	uint64_t rate = settings[SET_RATE];

	if (s->role == ROLE_FINISH)
		return now_ms - s->began_ms >= FINISH_MS;
	if (finishing || (s->role == ROLE_LATE && now_ms - s->began_ms < LATE_PAUSE_MS))
		return 0;
	return s->role != ROLE_SHORT || !rate || shorts_begun < rate * (now_ms - start_ms) / 1000;
}

static void begin_idle(void)
{
	int count = idle_count;

	idle_count = 0;
	for (int i = 0; i < count; i++) {
		struct slot *s = &slots[idle[i]];

		if (!may_begin(s)) {
			idle[idle_count++] = idle[i];
			continue;
		}
		shorts_begun += s->role == ROLE_SHORT;
		begin(s);
	}
}

static void add_slots(enum role role, uint64_t count)
{
	while (count-- && slot_count < SLOTS_MAX) {
		slots[slot_count] = (struct slot){.role = role, .fd = -1};
		idle[idle_count++] = slot_count++;
	}
}

/* Told to end: KIND_FINISH goes out first, then again until what it brings back is right. 1: over.
 */
static int bring_to_end(void)
{
	static uint64_t all_ended_ms;

	if (!finishing) {
		finishing = finish_sent = 1;
		add_slots(ROLE_FINISH, 1);
		return 0;
	}
	if (idle_count != slot_count - !!(slots[slot_count - 1].fd >= 0))
		return 0;
	if (did.counted == did.count_wanted && did.open_there == 1)
		return slots[slot_count - 1].fd < 0;
	if (!all_ended_ms)
		all_ended_ms = now_ms;
	if (now_ms - all_ended_ms > PATIENCE_MS) {
		fprintf(stderr,
			"stress: FAILED: at the end the server has %llu connections, not 1, and "
			"has "
			"counted %llu, not %llu, in which it has the last word\n",
			(unsigned long long)did.open_there, (unsigned long long)did.counted,
			(unsigned long long)did.count_wanted);
		exit(1);
	}
	return 0;
}

static void on_sigterm(int signo)
{
	(void)signo;
	told_to_end = 1;
}

/* 0, or 2 where it is called wrongly. */
static int parse(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	port = atoi(argv[1]);
	for (int i = 2; i < argc; i++) {
		size_t len = strcspn(argv[i], "="), n = 0;

		if (!argv[i][len]) {
			if (address_count == ADDRESSES_MAX)
				return 2;
			addresses[address_count++] = argv[i];
			continue;
		}
		while (n < SET_COUNT &&
		       (strncmp(argv[i], setting_names[n], len) || setting_names[n][len]))
			n++;
		if (n == SET_COUNT)
			return 2;
		settings[n] = strtoull(argv[i] + len + 1, NULL, 10);
	}
	return address_count ? 0 : 2;
}

static void start(void)
{
	struct rlimit limit = {SLOTS_MAX + 100, SLOTS_MAX + 100};

	setrlimit(RLIMIT_NOFILE, &limit);
	signal(SIGTERM, on_sigterm);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	now_ms = start_ms = stress_ms();
	random_state = start_ms;
	add_slots(ROLE_SHORT, settings[SET_SHORT]);
	add_slots(ROLE_ECHO, settings[SET_ECHO]);
	add_slots(ROLE_HALF, settings[SET_HALF]);
	add_slots(ROLE_LATE, settings[SET_LATE]);
	add_slots(ROLE_BULK, settings[SET_BULK]);
}

int main(int argc, char **argv)
{
	struct epoll_event events[BATCH];
	uint64_t ticked_ms = 0;

	if (parse(argc, argv)) {
		fprintf(stderr, "usage: stress PORT [SETTING=NUMBER]... ADDRESS...\n");
		return 2;
	}
	start();
	for (;;) {
		int n = epoll_wait(epoll, events, BATCH, TICK_MS);

		now_ms = stress_ms();
		for (int i = 0; i < n; i++)
			step(events[i].data.ptr, events[i].events);
		if (now_ms - ticked_ms >= TICK_MS) {
			ticked_ms = now_ms;
			tick();
		}
		if (told_to_end && bring_to_end())
			break;
		begin_idle();
		report(0);
	}
	report(1);
	return 0;
}
