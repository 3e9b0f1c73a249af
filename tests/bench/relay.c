// SPDX-License-Identifier: BSD-2-Clause
/*
 * relay FROM TO PORT...
 *
 * The floor of the bench: what any proxy costs that has a TCP connection on either side. Listens on
 * FROM at each PORT, connects to the same port of TO, and splices both ways. It keeps no records,
 * holds and logs nothing, survives nothing, and knows only servers of this host, which have
 * answered by the time connect() returns. Says "ready" once it listens. One thread, edge-triggered
 * epoll; a pipe is borrowed while bytes are in flight, as tproxyd does it.
 */
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exchange.h"
#include "util.h"

#define FDS_MAX (1 << 18)
#define CHUNK	(1 << 20)
#define BATCH	256

/* One end of a session, by descriptor: what it has sent goes through the pipe to the other end. */
struct end {
	int other;
	int pipe[2]; /* 0: none */
	size_t queued;
	char listens, eof, shut;
};

static struct end ends[FDS_MAX];
static int pool[FDS_MAX][2], pooled;
static struct sockaddr_in upstream;
static int epoll;

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

static int open_listener(const char *ip, const char *port)
{
	struct sockaddr_in address;
	int fd = open_socket();

	if (fd < 0 || address_parse(ip, port, &address) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 4096))
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

static void accept_all(int listener)
{
	uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
	struct sockaddr_in address;
	socklen_t len;
	int client;

	while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		int server = open_socket();

		len = sizeof(address);
		getsockname(client, (struct sockaddr *)&address, &len);
		upstream.sin_port = address.sin_port;
		if (server < 0 || client >= FDS_MAX || server >= FDS_MAX ||
		    (connect(server, (struct sockaddr *)&upstream, sizeof(upstream)) &&
		     errno != EINPROGRESS))
			_exit(1);
		ends[client] = (struct end){.other = server};
		ends[server] = (struct end){.other = client};
		watch(client, events);
		watch(server, events);
	}
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
			else if (ends[fd].other >= 0 && (pump(fd) || pump(ends[fd].other)))
				finish(fd);
		}
	}
}

int main(int argc, char **argv)
{
	struct rlimit limit;

	signal(SIGPIPE, SIG_IGN); /* splice() into a socket raises it */
	epoll = epoll_create1(EPOLL_CLOEXEC);
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	if (argc < 4 || address_parse(argv[2], "0", &upstream)) {
		fprintf(stderr, "relay: wrong usage; see the comment in relay.c\n");
		return 2;
	}
	for (int i = 3; i < argc; i++)
		if (open_listener(argv[1], argv[i])) {
			perror("relay: cannot listen");
			return 1;
		}
	puts("ready");
	fflush(stdout);
	serve();
}
