// SPDX-License-Identifier: BSD-2-Clause
/*
 * origin ADDRESS PORT SINK_PORT
 *
 * The server of the bench: answers each request of REQUEST_LEN bytes on PORT; takes bytes on
 * SINK_PORT and says for each BATCH_LEN how many have come so far (8 bytes, host order). It does
 * not wait for the client's FIN, because some proxies close both directions then. Says "ready" once
 * it listens. One thread, level-triggered epoll; what does not fit into a socket at once ends the
 * connection, because a client of the bench waits for each answer.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exchange.h"
#include "util.h"

#define FDS_MAX (1 << 18)
#define BATCH	256

enum kind { KIND_NONE, KIND_ANSWER_LISTENER, KIND_SINK_LISTENER, KIND_ANSWER, KIND_SINK };

static struct {
	enum kind kind;
	uint64_t bytes; /* of an incomplete request, or taken so far */
} connections[FDS_MAX];

static int epoll;

static int watch(int fd, enum kind kind)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

	connections[fd].kind = kind;
	connections[fd].bytes = 0;
	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static int open_listener(const char *ip, const char *port, enum kind kind)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
	struct sockaddr_in address;

	if (fd < 0 || address_parse(ip, port, &address))
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* inherited */
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 4096))
		return -1;
	return watch(fd, kind);
}

static void accept_all(int listener)
{
	enum kind kind = connections[listener].kind == KIND_SINK_LISTENER ? KIND_SINK : KIND_ANSWER;
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		if (fd >= FDS_MAX || watch(fd, kind))
			close(fd);
}

static void answer(int fd)
{
	static const char response[RESPONSE_LEN];
	char buffer[64 * REQUEST_LEN];
	ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		close(fd);
		return;
	}
	connections[fd].bytes += n;
	while (connections[fd].bytes >= REQUEST_LEN) {
		connections[fd].bytes -= REQUEST_LEN;
		if (send(fd, response, sizeof(response), MSG_NOSIGNAL) != sizeof(response)) {
			close(fd);
			return;
		}
	}
}

static void sink(int fd)
{
	static char buffer[1 << 18];
	ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
	uint64_t reported;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		close(fd);
		return;
	}
	reported = connections[fd].bytes / BATCH_LEN;
	connections[fd].bytes += n;
	for (uint64_t b = reported + 1; b <= connections[fd].bytes / BATCH_LEN; b++) {
		uint64_t count = b * BATCH_LEN;

		(void)!send(fd, &count, sizeof(count), MSG_NOSIGNAL);
	}
}

static void dispatch(int fd)
{
	switch (connections[fd].kind) {
	case KIND_ANSWER_LISTENER:
	case KIND_SINK_LISTENER:
		accept_all(fd);
		break;
	case KIND_ANSWER:
		answer(fd);
		break;
	case KIND_SINK:
		sink(fd);
		break;
	case KIND_NONE:
		break;
	}
}

int main(int argc, char **argv)
{
	struct epoll_event events[BATCH];

	if (argc != 4) {
		fprintf(stderr, "usage: origin ADDRESS PORT SINK_PORT\n");
		return 2;
	}
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0 || open_listener(argv[1], argv[2], KIND_ANSWER_LISTENER) ||
	    open_listener(argv[1], argv[3], KIND_SINK_LISTENER)) {
		fprintf(stderr, "origin: cannot listen on %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, events, ARRAY_SIZE(events), -1);

		for (int i = 0; i < n; i++)
			dispatch(events[i].data.fd);
	}
}
