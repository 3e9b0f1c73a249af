// SPDX-License-Identifier: BSD-2-Clause
/*
 * load connect ADDRESS PORT COUNT PARALLEL WINDOW
 *	COUNT times: connect, one request, its response, close; PARALLEL at a time. With 1 it is
 *	a plain blocking client, else an event-driven one. Rates are also given for each WINDOW.
 * load keepalive ADDRESS PORT CONNECTIONS MILLISECONDS
 *	requests on open connections, on each the next as soon as the response is there
 * load writes ADDRESS PORT MILLISECONDS
 *	writes of CHUNK_LEN bytes to a sink, as fast as it takes them, each sent by itself, in
 *	whole batches; the clock stops when the sink has the last
 * load sessions ADDRESS PORT
 *	reads commands and answers each with a line: "open N" (until N sessions are open, each
 *	after one exchange, or no more than N), "probe N" (requests on sessions picked at random)
 *
 * Results are one line of JSON; latencies are in microseconds. It ends with status 1 where the
 * path fails too often or stands still.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exchange.h"
#include "samples.h"
#include "util.h"

#define PARALLEL_MAX 1024
#define SESSIONS_MAX 60000
#define FAILURES_MAX 100
#define PATIENCE_MS  10000 /* without any progress */

/* One connection of an event-driven run. */
struct peer {
	int fd;
	size_t received;
	uint64_t started_ns, sent_ns;
	enum { PEER_CONNECTING, PEER_WAITING } state;
};

static struct sockaddr_in target;
static const char request[REQUEST_LEN];
static char scratch[RESPONSE_LEN];
static struct samples total, connects;
static unsigned long failures;
static struct peer peers[PARALLEL_MAX];
static int epoll;

static void give_up(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void failed(const char *what)
{
	if (++failures > FAILURES_MAX)
		give_up(what);
}

/* A connected blocking socket, or -1. */
static int dial(void)
{
	struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int saved;

	if (fd < 0)
		give_up("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (!connect(fd, (struct sockaddr *)&target, sizeof(target)))
		return fd;
	saved = errno;
	close(fd);
	errno = saved;
	return -1;
}

/* One request and its response on a blocking socket. 0 or -1. */
static int exchange(int fd)
{
	size_t received = 0;

	if (send(fd, request, sizeof(request), MSG_NOSIGNAL) != sizeof(request))
		return -1;
	while (received < RESPONSE_LEN) {
		ssize_t n = recv(fd, scratch, sizeof(scratch), 0);

		if (n <= 0)
			return -1;
		received += n;
	}
	return 0;
}

/* --- connect --------------------------------------------------------------------------------- */

static unsigned long wanted, begun, ended;

static void connect_in_turn(void)
{
	while (ended < wanted) {
		uint64_t start = now_ns(), connected;
		int fd = dial();

		if (fd < 0) {
			failed("connect");
			ended++;
			continue;
		}
		connected = now_ns();
		if (exchange(fd))
			failed("request");
		close(fd);
		samples_add(&connects, connected - start);
		samples_add(&total, now_ns() - start);
		ended++;
	}
}

static void peer_begin(struct peer *peer)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = peer};

	if (begun >= wanted)
		return;
	begun++;
	*peer = (struct peer){.started_ns = now_ns()};
	peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (peer->fd < 0)
		give_up("socket");
	if (connect(peer->fd, (struct sockaddr *)&target, sizeof(target)) && errno != EINPROGRESS)
		give_up("connect");
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, peer->fd, &event))
		give_up("epoll_ctl");
}

static void peer_end(struct peer *peer, const char *problem)
{
	close(peer->fd);
	if (problem)
		failed(problem);
	else
		samples_add(&total, now_ns() - peer->started_ns);
	ended++;
	peer_begin(peer);
}

static void peer_event(struct peer *peer, uint32_t events)
{
	socklen_t len = sizeof(int);
	int err = 0;

	if (peer->state == PEER_CONNECTING) {
		getsockopt(peer->fd, SOL_SOCKET, SO_ERROR, &err, &len);
		if (err) {
			errno = err;
			peer_end(peer, "connect");
			return;
		}
		if (!(events & EPOLLOUT))
			return;
		peer->state = PEER_WAITING;
		if (send(peer->fd, request, sizeof(request), MSG_NOSIGNAL) != sizeof(request)) {
			peer_end(peer, "send");
			return;
		}
	}
	for (;;) {
		ssize_t n = recv(peer->fd, scratch, sizeof(scratch), 0);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			peer_end(peer, "receive");
			return;
		}
		peer->received += n;
		if (peer->received >= RESPONSE_LEN) {
			peer_end(peer, NULL);
			return;
		}
	}
}

static void connect_in_parallel(unsigned long parallel)
{
	struct epoll_event events[PARALLEL_MAX];

	for (unsigned long i = 0; i < parallel; i++)
		peer_begin(&peers[i]);
	while (ended < wanted) {
		int n = epoll_wait(epoll, events, ARRAY_SIZE(events), PATIENCE_MS);

		if (n <= 0)
			give_up("nothing happens");
		for (int i = 0; i < n; i++)
			peer_event(events[i].data.ptr, events[i].events);
	}
}

static int run_connect(unsigned long count, unsigned long parallel)
{
	uint64_t start;

	if (!parallel || parallel > PARALLEL_MAX)
		return 2;
	wanted = count;
	start = now_ns();
	if (parallel == 1)
		connect_in_turn();
	else
		connect_in_parallel(parallel);
	printf("{\"seconds\": %.6f, \"count\": %lu, \"failures\": %lu, \"rate\": %.1f, ",
	       (now_ns() - start) / 1e9, ended, failures, ended * 1e9 / (now_ns() - start));
	samples_print(&connects, "connect");
	printf(", ");
	samples_print(&total, "total");
	printf("}\n");
	return 0;
}

/* --- keepalive ------------------------------------------------------------------------------- */

static void keep_one(uint64_t end)
{
	int fd = dial();
	uint64_t start;

	if (fd < 0)
		give_up("connect");
	while ((start = now_ns()) < end) {
		if (exchange(fd))
			give_up("request");
		samples_add(&total, now_ns() - start);
	}
	close(fd);
}

static void peer_send(struct peer *peer)
{
	peer->received = 0;
	peer->sent_ns = now_ns();
	if (send(peer->fd, request, sizeof(request), MSG_NOSIGNAL) != sizeof(request))
		give_up("send");
}

static void peers_dial(unsigned long count)
{
	for (unsigned long i = 0; i < count; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = &peers[i]};

		peers[i].fd = dial();
		if (peers[i].fd < 0)
			give_up("connect");
		if (exchange(peers[i].fd)) /* the whole path is there before the clock starts */
			give_up("first request");
		fcntl(peers[i].fd, F_SETFL, O_NONBLOCK);
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, peers[i].fd, &event))
			give_up("epoll_ctl");
	}
}

static void keep_many(unsigned long count, uint64_t end)
{
	struct epoll_event events[PARALLEL_MAX];

	for (unsigned long i = 0; i < count; i++)
		peer_send(&peers[i]);
	while (now_ns() < end) {
		int n = epoll_wait(epoll, events, ARRAY_SIZE(events), PATIENCE_MS);

		if (n <= 0)
			give_up("nothing happens");
		for (int i = 0; i < n; i++) {
			struct peer *peer = events[i].data.ptr;
			ssize_t got = recv(peer->fd, scratch, sizeof(scratch), 0);

			if (got <= 0)
				give_up("receive");
			peer->received += got;
			if (peer->received < RESPONSE_LEN)
				continue;
			samples_add(&total, now_ns() - peer->sent_ns);
			peer_send(peer);
		}
	}
}

static int run_keepalive(unsigned long count, unsigned long milliseconds)
{
	uint64_t start;

	if (!count || count > PARALLEL_MAX)
		return 2;
	if (count > 1)
		peers_dial(count);
	start = now_ns();
	if (count > 1)
		keep_many(count, start + milliseconds * 1000000);
	else
		keep_one(start + milliseconds * 1000000);
	printf("{\"seconds\": %.6f, \"count\": %llu, \"rate\": %.1f, ", (now_ns() - start) / 1e9,
	       (unsigned long long)total.count, total.count * 1e9 / (now_ns() - start));
	samples_print(&total, "total");
	printf("}\n");
	return 0;
}

/* --- writes ---------------------------------------------------------------------------------- */

static int run_writes(unsigned long milliseconds)
{
	static const char chunk[CHUNK_LEN];
	uint64_t start, sent = 0, taken = 0, elapsed;
	int fd = dial(), one = 1;

	if (fd < 0)
		give_up("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	start = now_ns();
	while (sent * CHUNK_LEN % BATCH_LEN || now_ns() - start < milliseconds * 1000000) {
		if (send(fd, chunk, sizeof(chunk), MSG_NOSIGNAL) != sizeof(chunk))
			give_up("send");
		sent++;
	}
	while (taken < sent * CHUNK_LEN)
		if (recv(fd, &taken, sizeof(taken), MSG_WAITALL) != sizeof(taken))
			give_up("the sink's count");
	elapsed = now_ns() - start;
	close(fd);
	printf("{\"seconds\": %.6f, \"count\": %llu, \"rate\": %.1f}\n", elapsed / 1e9,
	       (unsigned long long)sent, sent * 1e9 / elapsed);
	return 0;
}

/* --- sessions -------------------------------------------------------------------------------- */

static int sessions[SESSIONS_MAX];
static unsigned long open_sessions;

static void sessions_open(unsigned long count)
{
	while (open_sessions < count && open_sessions < SESSIONS_MAX) {
		int fd = dial();

		if (fd < 0)
			give_up("connect");
		if (exchange(fd))
			give_up("first request");
		sessions[open_sessions++] = fd;
	}
	while (open_sessions > count)
		close(sessions[--open_sessions]);
	printf("{\"open\": %lu}\n", open_sessions);
}

static void sessions_probe(unsigned long count)
{
	uint64_t state = 1; /* the same picks in every run */

	total = (struct samples){0};
	for (unsigned long i = 0; i < count && open_sessions; i++) {
		uint64_t start;

		state = state * 6364136223846793005ULL + 1442695040888963407ULL;
		start = now_ns();
		if (exchange(sessions[(state >> 33) % open_sessions]))
			give_up("request");
		samples_add(&total, now_ns() - start);
	}
	printf("{\"open\": %lu, ", open_sessions);
	samples_print(&total, "total");
	printf("}\n");
}

static int run_sessions(void)
{
	char command[16];
	unsigned long n;

	while (scanf("%15s %lu", command, &n) == 2) {
		if (!strcmp(command, "open"))
			sessions_open(n);
		else if (!strcmp(command, "probe"))
			sessions_probe(n);
		else
			return 2;
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	unsigned long n[2] = {0};
	int r = 2;

	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (argc >= 4 && !address_parse(argv[2], argv[3], &target)) {
		for (int i = 4; i < argc && i < 6; i++)
			n[i - 4] = strtoul(argv[i], NULL, 10);
		if (!strcmp(argv[1], "connect") && argc == 6)
			r = run_connect(n[0], n[1]);
		else if (!strcmp(argv[1], "keepalive") && argc == 6)
			r = run_keepalive(n[0], n[1]);
		else if (!strcmp(argv[1], "writes") && argc == 5)
			r = run_writes(n[0]);
		else if (!strcmp(argv[1], "sessions") && argc == 4)
			r = run_sessions();
	}
	if (r == 2)
		fprintf(stderr, "load: wrong usage; see the comment in load.c\n");
	return r;
}
