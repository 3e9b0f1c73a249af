// SPDX-License-Identifier: BSD-2-Clause
/*
 * relay FROM TO PORT...
 * relay --hold PINS FROM TO PORT...
 *
 * The floor of the bench: what any proxy costs that has a TCP connection on either side. Listens on
 * FROM at each PORT, connects to the same port of TO, and splices both ways. It keeps no records,
 * logs nothing, survives nothing, and knows only servers of this host, which have answered by the
 * time connect() returns. Says "ready" once it listens. One thread, edge-triggered epoll; a pipe is
 * borrowed while bytes are in flight, as tproxyd does it.
 *
 * With --hold no client is let in before its server has answered. PINS has the programs and
 * maps of least.bpf.c; the way is tproxyd's, without all that is there for when something goes
 * wrong.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../proxy/packet.h"
#include "exchange.h"
#include "least.h"
#include "util.h"

#define FDS_MAX (1 << 18)
#define CHUNK	(1 << 20)
#define BATCH	256

/* One end of a session, by descriptor: what it has sent goes through the pipe to the other end. */
struct end {
	int other;
	int pipe[2]; /* 0: none */
	size_t queued;
	char listens, eof, shut, rings;
};

static struct end ends[FDS_MAX];
static int pool[FDS_MAX][2], pooled;
static struct sockaddr_in upstream;
static int epoll, doorman = -1, marks, doors, raw, listeners[1 << 16], waiting[1 << 16];
static struct ring_buffer *ring;

static int watch(int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

/* The same options as tproxyd sets; a listener's are inherited. */
static int open_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
	return fd;
}

static int put_doorman(int fd, uint16_t port)
{
	struct tp_mark mark = {.role = TP_ROLE_LISTENER};
	socklen_t len = sizeof(__u64);
	struct tp_door door = {0};
	__u64 cookie;

	listeners[port] = fd;
	if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) ||
	    getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &mark.netns, &len))
		return -1;
	door.netns = mark.netns;
	return bpf_map_update_elem(marks, &fd, &mark, BPF_ANY) ||
			       bpf_map_update_elem(doors, &cookie, &door, BPF_ANY) ||
			       setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &doorman, sizeof(doorman))
		       ? -1
		       : 0;
}

static int open_listener(const char *ip, const char *port)
{
	struct sockaddr_in address;
	int fd = open_socket();

	if (fd < 0 || address_parse(ip, port, &address) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 4096))
		return -1;
	if (doorman >= 0 && put_doorman(fd, ntohs(address.sin_port)))
		return -1;
	ends[fd].listens = 1;
	return watch(fd, EPOLLIN);
}

static void pipe_borrow(struct end *end)
{
	if (end->pipe[1])
		return;
	if (pooled)
		memcpy(end->pipe, pool[--pooled], sizeof(end->pipe));
	else if (pipe2(end->pipe, O_NONBLOCK | O_CLOEXEC))
		_exit(1);
}

static void pipe_return(struct end *end)
{
	if (!end->pipe[1])
		return;
	memcpy(pool[pooled++], end->pipe, sizeof(end->pipe));
	end->pipe[0] = end->pipe[1] = 0;
}

/* 0: there is nothing more to do now; -1: the session is over. */
static int pump(int from)
{
	struct end *end = &ends[from];
	ssize_t n;

	while (!end->shut) {
		while (end->queued) {
			n = splice(end->pipe[0], NULL, end->other, NULL, end->queued,
				   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
			if (n <= 0)
				return n < 0 && errno == EAGAIN ? 0 : -1;
			end->queued -= n;
		}
		if (end->eof) {
			pipe_return(end);
			shutdown(end->other, SHUT_WR);
			end->shut = 1;
			break;
		}
		pipe_borrow(end);
		n = splice(from, NULL, end->pipe[1], NULL, CHUNK,
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		if (n < 0) {
			pipe_return(end);
			return errno == EAGAIN ? 0 : -1;
		}
		end->queued = n;
		end->eof = !n;
	}
	return ends[end->other].shut ? -1 : 0;
}

/* A pipe may hold bytes that nobody wants any more: it is not used again. */
static void finish(int fd)
{
	int pair[] = {fd, ends[fd].other};

	for (int i = 0; i < 2; i++) {
		struct end *end = &ends[pair[i]];

		if (!end->queued)
			pipe_return(end);
		if (end->pipe[1]) {
			close(end->pipe[0]);
			close(end->pipe[1]);
		}
		*end = (struct end){.other = -1};
		close(pair[i]);
	}
}

/* To the server behind a port, in network byte order. */
static int dial(uint16_t port, int held)
{
	int server = open_socket(), off = 0;

	if (held) /* the server hears of us last */
		setsockopt(server, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off));
	upstream.sin_port = port;
	if (server < 0 || server >= FDS_MAX ||
	    (connect(server, (struct sockaddr *)&upstream, sizeof(upstream)) &&
	     errno != EINPROGRESS))
		_exit(1);
	return server;
}

static void pair(int client, int server)
{
	uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;

	if (client >= FDS_MAX)
		_exit(1);
	ends[client] = (struct end){.other = server};
	ends[server] = (struct end){.other = client};
	watch(client, events);
	watch(server, events);
}

/* Pairs a client that was let in with the server that is there for it already. */
static void pair_held(int client, uint16_t port)
{
	int server = waiting[port], on = 1;

	waiting[port] = 0;
	setsockopt(server, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on));
	setsockopt(client, SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof(on));
	pair(client, server);
}

static void accept_all(int listener)
{
	struct sockaddr_in peer, address;
	socklen_t len = sizeof(peer);
	int client;

	while ((client = accept4(listener, (struct sockaddr *)&peer, &len,
				 SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (doorman >= 0) {
			pair_held(client, ntohs(peer.sin_port));
			continue;
		}
		getsockname(client, (struct sockaddr *)&address, &len);
		pair(client, dial(address.sin_port, 0));
	}
}

static void send_again(const struct sockaddr_in *to, const uint8_t *packet, size_t len)
{
	sendto(raw, packet, len, 0, (const struct sockaddr *)to, sizeof(*to));
}

/* A client is let in: its connection is complete when sendto() returns, mostly. */
static void let_in(const struct sockaddr_in *to, const struct packet_flow *flow,
		   const struct tp_event_syn *event)
{
	struct tp_grant grant = {.cookie = event->client.cookie};
	uint8_t packet[PACKET_MAX];

	if (waiting[flow->client.port]) /* the SYN came again */
		close(waiting[flow->client.port]);
	waiting[flow->client.port] = dial(htons(flow->listener.port), 1);
	send_again(to, packet, packet_syn(flow, &event->syn, &grant, packet));
	accept_all(listeners[flow->listener.port]);
}

/* What the doorman has kept. */
static int on_event(void *address, void *data, size_t size)
{
	const struct tp_event_stray *stray = data;
	const struct tp_event_syn *syn = data;
	struct packet_flow flow = {.listener.family = AF_INET};
	const struct sockaddr_in *to = address;
	uint8_t packet[PACKET_MAX + TP_STRAY_MAX];

	(void)size;
	memcpy(flow.listener.ip + 12, &to->sin_addr, 4);
	if (syn->type == TP_EVENT_SYN) {
		flow.client = syn->client.src;
		flow.listener.port = syn->client.proxy_port;
		let_in(to, &flow, syn);
	} else {
		flow.client = stray->client;
		flow.listener.port = stray->proxy_port;
		send_again(to, packet, packet_segment(&flow, stray->segment, stray->len, packet));
	}
	return 0;
}

static int pinned(const char *pins, const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", pins, name);
	return bpf_obj_get(path);
}

/* 0, or -1. */
static int hold(const char *pins, struct sockaddr_in *from)
{
	int fd = pinned(pins, "ring");
	__u32 mark = LEAST_GRANT;

	doorman = pinned(pins, "prog_doorman");
	marks = pinned(pins, "map_listeners");
	doors = pinned(pins, "map_doors");
	raw = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	if (doorman < 0 || marks < 0 || doors < 0 || raw < 0 || fd < 0 || fd >= FDS_MAX ||
	    setsockopt(raw, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		return -1;
	ring = ring_buffer__new(fd, on_event, from, NULL);
	ends[fd].rings = 1;
	return ring ? watch(fd, EPOLLIN) : -1;
}

static void serve(void)
{
	struct epoll_event events[BATCH];

	for (;;) {
		int n = epoll_wait(epoll, events, BATCH, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;

			if (ends[fd].listens)
				accept_all(fd);
			else if (ends[fd].rings)
				ring_buffer__consume(ring);
			else if (ends[fd].other >= 0 && (pump(fd) || pump(ends[fd].other)))
				finish(fd);
		}
	}
}

int main(int argc, char **argv)
{
	int holds = argc > 2 && !strcmp(argv[1], "--hold");
	char **words = argv + (holds ? 3 : 1); /* FROM TO PORT... NULL */
	struct sockaddr_in from;
	struct rlimit limit;

	signal(SIGPIPE, SIG_IGN); /* splice() into a socket raises it */
	epoll = epoll_create1(EPOLL_CLOEXEC);
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	if (words - argv + 3 > argc || address_parse(words[0], "0", &from) ||
	    address_parse(words[1], "0", &upstream)) {
		fprintf(stderr, "relay: wrong usage; see the comment in relay.c\n");
		return 2;
	}
	if (holds && hold(argv[2], &from)) {
		perror("relay: cannot hold");
		return 1;
	}
	for (char **port = words + 2; *port; port++)
		if (open_listener(words[0], *port)) {
			perror("relay: cannot listen");
			return 1;
		}
	puts("ready");
	fflush(stdout);
	serve();
}
