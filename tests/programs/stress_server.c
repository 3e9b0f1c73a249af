// SPDX-License-Identifier: BSD-2-Clause
/*
 * stress_server PORT LATE_MS ADDRESS...
 *
 * The server of the stress client; see stress.h. On PORT + PORT_LATE of the first address, of IPv4,
 * the queue of connections is full and empty in turns of LATE_MS (0: full until KIND_FINISH). Says
 * "ready" once it listens. Ends with status 1, and a word on why, at the first byte that is wrong
 * and at the first session that does not end as it should.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "stress.h"
#include "util.h"

#define FDS_MAX	    (1 << 17)
#define BATCH	    256
#define STEPS	    8 /* chunks before others get a turn */
#define TICK_MS	    50
#define TRICKLE_LEN 300
#define LATE_QUEUE  16

enum role { ROLE_NONE, ROLE_LISTENER, ROLE_LATE, ROLE_TIMER, ROLE_CONNECTION };

struct connection {
	enum role role;
	struct in6_addr local, peer;
	uint16_t local_port, peer_port;
	struct stress_request request;
	struct stress_reply reply;
	uint64_t received, sent, trickle;
	int eof, shut;
};

static struct connection connections[FDS_MAX];
static uint64_t counted;
static uint32_t open_count;
static int epoll, finish, late = -1, is_full, fd_end;
static int fillers[LATE_QUEUE + 1];
static struct sockaddr_storage late_address;
static socklen_t late_len;

__attribute__((format(printf, 2, 3))) static void fail(const struct connection *c, const char *fmt,
						       ...)
{
	char peer[INET6_ADDRSTRLEN] = "", local[INET6_ADDRSTRLEN] = "";
	va_list args;

	inet_ntop(AF_INET6, &c->peer, peer, sizeof(peer));
	inet_ntop(AF_INET6, &c->local, local, sizeof(local));
	fprintf(stderr,
		"stress_server: FAILED: from %s port %u to %s port %u, kind %u, ending %u, id "
		"%llx, "
		"up %llu, down %llu, received %llu, sent %llu: ",
		peer, c->peer_port, local, c->local_port, c->request.kind, c->request.ending,
		(unsigned long long)c->request.id, (unsigned long long)c->request.up,
		(unsigned long long)c->request.down, (unsigned long long)c->received,
		(unsigned long long)c->sent);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static void watch(int fd, uint32_t events, enum role role)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	if (fd < 0 || fd >= FDS_MAX || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) {
		perror("stress_server: cannot take another connection");
		exit(1);
	}
	connections[fd].role = role;
	if (fd >= fd_end)
		fd_end = fd + 1;
}

static void end(int fd, int reset)
{
	struct linger now = {.l_onoff = 1};

	if (reset)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	connections[fd].role = ROLE_NONE;
	open_count--;
	close(fd);
}

static int has_request(const struct connection *c)
{
	return c->received >= sizeof(c->request);
}

static void begin_reply(struct connection *c)
{
	if (c->request.magic != STRESS_MAGIC || c->request.kind >= KIND_REFUSED)
		fail(c, "this is no request");
	c->reply = (struct stress_reply){
		.magic = STRESS_MAGIC,
		.id = c->request.id,
		.local = c->local,
		.local_port = c->local_port,
		.peer = c->peer,
		.peer_port = c->peer_port,
		.counted = counted,
		.open = open_count,
	};
	if (c->request.kind == KIND_FINISH)
		finish = 1;
}

static void take(struct connection *c, const uint8_t *buf, size_t len)
{
	uint64_t at = c->received;
	ssize_t wrong;

	if (at < sizeof(c->request)) {
		size_t n = sizeof(c->request) - at;

		n = n < len ? n : len;
		memcpy((uint8_t *)&c->request + at, buf, n);
		c->received += n;
		if (has_request(c))
			begin_reply(c);
		buf += n;
		len -= n;
	}
	if (!len)
		return;
	at = c->received - sizeof(c->request);
	c->received += len;
	if (at + len > c->request.up)
		fail(c, "more bytes than were announced");
	wrong = stress_wrong(stress_key(c->request.id, 0), at, buf, len);
	if (wrong >= 0)
		fail(c, "byte %llu is wrong", (unsigned long long)(at + wrong));
}

/* 1 while there may be more. */
static int receive(int fd, struct connection *c)
{
	static uint8_t buf[STRESS_CHUNK];
	ssize_t n;

	if (c->eof)
		return 0;
	n = recv(fd, buf, sizeof(buf), 0);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		fail(c, "receiving: %s", strerror(errno));
	if (n == 0)
		c->eof = 1;
	else
		take(c, buf, n);
	return n > 0;
}

/* How many bytes may go to the client by now, those of the reply itself included. */
static uint64_t sendable(const struct connection *c)
{
	uint64_t head = sizeof(c->reply);

	switch (c->request.kind) {
	case KIND_EXCHANGE:
	case KIND_FINISH:
		return head + c->request.down;
	case KIND_ECHO:
		return head + c->received - sizeof(c->request);
	case KIND_TRICKLE:
		return head + c->trickle;
	case KIND_LISTEN:
		return head;
	}
	return 0;
}

/* 1 while there may be more. */
static int transmit(int fd, struct connection *c)
{
	uint64_t key = stress_key(c->request.id, c->request.kind != KIND_ECHO);
	uint8_t buf[STRESS_CHUNK];
	size_t len;
	ssize_t n;

	if (c->sent == sendable(c))
		return 0;
	len = stress_fill(&c->reply, sizeof(c->reply), key, c->sent, sendable(c), buf);
	n = send(fd, buf, len, MSG_NOSIGNAL);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		fail(c, "sending: %s", strerror(errno));
	c->sent += n;
	return 1;
}

/* Both have everything. The client's FIN has its own rules. */
static void complete(int fd, struct connection *c)
{
	if (c->request.ending == ENDING_RESET)
		end(fd, 1);
	else if (c->request.ending == ENDING_SERVER || c->eof)
		end(fd, 0);
}

static void settle(int fd, struct connection *c)
{
	uint64_t received = c->received - sizeof(c->request);
	int all_sent = c->sent == sendable(c), all_received = received == c->request.up;

	if (!has_request(c)) {
		if (c->eof)
			fail(c, "FIN before the whole request");
		return;
	}
	switch (c->request.kind) {
	case KIND_EXCHANGE:
	case KIND_FINISH:
		if (c->eof && (!all_received || (!all_sent && c->request.ending != ENDING_HALF)))
			fail(c, "FIN too early");
		if (all_sent && all_received)
			complete(fd, c);
		break;
	case KIND_TELL:
	case KIND_LISTEN:
		if (c->eof && c->request.kind == KIND_TELL && !all_received)
			fail(c, "FIN too early");
		if (c->request.kind == KIND_LISTEN && all_sent && !c->shut) {
			shutdown(fd, SHUT_WR);
			c->shut = 1;
		}
		if (c->eof && all_sent) {
			counted++;
			end(fd, 0);
		}
		break;
	case KIND_ECHO:
		if (c->eof && all_sent)
			end(fd, 0);
		break;
	case KIND_TRICKLE:
		if (c->eof && !all_received)
			fail(c, "FIN too early");
		if (c->eof && all_sent && finish)
			end(fd, 0);
		break;
	}
}

static void step(int fd)
{
	struct connection *c = &connections[fd];
	struct epoll_event again = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = fd};
	int more = 1;

	for (int i = 0; more && i < STEPS; i++) {
		more = receive(fd, c);
		if (has_request(c))
			more |= transmit(fd, c);
	}
	settle(fd, c);
	if (more && c->role == ROLE_CONNECTION)
		epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &again); /* makes its event come again */
}

static int is_filler(const struct in6_addr *peer)
{
	return IN6_IS_ADDR_V4MAPPED(peer) && peer->s6_addr[12] == 127;
}

static void accept_all(int listener)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof(peer);
	int fd;

	while ((fd = accept4(listener, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK)) >= 0) {
		struct connection c = {.local = connections[listener].local,
				       .local_port = connections[listener].local_port};

		c.peer_port = stress_address(&peer, &c.peer);
		len = sizeof(peer);
		if (is_filler(&c.peer)) {
			close(fd);
			continue;
		}
		connections[fd < FDS_MAX ? fd : 0] = c;
		open_count++;
		watch(fd, EPOLLIN | EPOLLOUT | EPOLLET, ROLE_CONNECTION);
	}
}

/* --- the late one ---------------------------------------------------------------------------- */

/*
 * The queue is filled with connections of our own, known by their source; from then on handshakes
 * are not answered. It is not shorter because the kernel resorts to SYN cookies when as many
 * handshakes are under way, and resets those whose cookie comes while it is full.
 */
static void late_close(void)
{
	struct sockaddr_in source = {.sin_family = AF_INET};

	source.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	epoll_ctl(epoll, EPOLL_CTL_DEL, late, NULL);
	accept_all(late);
	for (int i = 0; i < LATE_QUEUE + 1; i++) {
		fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		bind(fillers[i], (struct sockaddr *)&source, sizeof(source));
		connect(fillers[i], (struct sockaddr *)&late_address, late_len);
	}
	is_full = 1;
}

static void late_open(void)
{
	accept_all(late);
	for (int i = 0; i < LATE_QUEUE + 1; i++)
		close(fillers[i]);
	is_full = 0;
	watch(late, EPOLLIN, ROLE_LATE);
}

static void late_turn(uint64_t late_ms)
{
	static uint64_t turned_ms;
	int due = late_ms && stress_ms() - turned_ms >= late_ms;

	if (is_full && (finish || due))
		late_open();
	else if (!is_full && due && !finish)
		late_close();
	else
		return;
	turned_ms = stress_ms();
}

static void tick(int timer, uint64_t late_ms)
{
	uint64_t unused;

	(void)!read(timer, &unused, sizeof(unused));
	late_turn(late_ms);
	for (int fd = 0; fd < fd_end; fd++) {
		struct connection *c = &connections[fd];

		if (c->role != ROLE_CONNECTION || c->request.kind != KIND_TRICKLE ||
		    !has_request(c))
			continue;
		if (!finish && c->sent == sendable(c))
			c->trickle += TRICKLE_LEN;
		step(fd);
	}
}

/* --- start ----------------------------------------------------------------------------------- */

static int listen_on(const char *ip, uint16_t port, int backlog, enum role role)
{
	struct sockaddr_storage address;
	int one = 1, fd;
	socklen_t len;

	if (stress_parse(ip, port, &address, &len)) {
		fprintf(stderr, "stress_server: %s is no address\n", ip);
		exit(2);
	}
	fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* inherited */
	if (bind(fd, (struct sockaddr *)&address, len) || listen(fd, backlog)) {
		perror("stress_server: listen");
		exit(1);
	}
	watch(fd, EPOLLIN, role);
	connections[fd].local_port = stress_address(&address, &connections[fd].local);
	if (role == ROLE_LATE) {
		late_address = address;
		late_len = len;
	}
	return fd;
}

static void start(int argc, char **argv)
{
	struct itimerspec ticks = {.it_interval.tv_nsec = TICK_MS * 1000000,
				   .it_value.tv_nsec = TICK_MS * 1000000};
	struct rlimit limit = {FDS_MAX, FDS_MAX};
	int timer = timerfd_create(CLOCK_MONOTONIC, 0);

	setrlimit(RLIMIT_NOFILE, &limit);
	epoll = epoll_create1(0);
	for (int i = 3; i < argc; i++)
		for (int port = 0; port < PORT_LATE; port++)
			listen_on(argv[i], atoi(argv[1]) + port, 4096, ROLE_LISTENER);
	late = listen_on(argv[3], atoi(argv[1]) + PORT_LATE, LATE_QUEUE, ROLE_LATE);
	late_close();
	timerfd_settime(timer, 0, &ticks, NULL);
	watch(timer, EPOLLIN, ROLE_TIMER);
	printf("ready\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct epoll_event events[BATCH];

	if (argc < 4) {
		fprintf(stderr, "usage: stress_server PORT LATE_MS ADDRESS...\n");
		return 2;
	}
	start(argc, argv);
	for (;;) {
		int n = epoll_wait(epoll, events, BATCH, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;

			if (connections[fd].role == ROLE_CONNECTION)
				step(fd);
			else if (connections[fd].role == ROLE_TIMER)
				tick(fd, atoi(argv[2]));
			else if (connections[fd].role != ROLE_NONE)
				accept_all(fd);
		}
	}
}
