// SPDX-License-Identifier: BSD-2-Clause
#include "port.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

/* Below where Linux takes ephemeral ports from: no connection is given one of these meanwhile. */
#define FIRST_PORT 20000
#define PORTS	   10000

static int can_listen(const struct sockaddr *addr, socklen_t len)
{
	int fd _cleanup_fd_ = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (fd < 0)
		return errno == EAFNOSUPPORT;
	/* As any server does: connections that linger in TIME_WAIT are no obstacle. */
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, addr, len))
		return errno == EADDRNOTAVAIL; /* no ::1 here */
	return !listen(fd, 1);
}

/* On 127.0.0.1, and on ::1 where there is IPv6. */
static int is_free(uint16_t port)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6,
				   .sin6_port = htons(port),
				   .sin6_addr = IN6ADDR_LOOPBACK_INIT};

	return can_listen((struct sockaddr *)&in, sizeof(in)) &&
	       can_listen((struct sockaddr *)&in6, sizeof(in6));
}

int port_pick(uint16_t *ret_port, struct failure *f)
{
	unsigned int start = getpid();

	for (unsigned int i = 0; i < PORTS; i++) {
		uint16_t port = FIRST_PORT + (start + i) % PORTS;

		if (is_free(port)) {
			*ret_port = port;
			return 0;
		}
	}
	return fail(f, -EADDRINUSE,
		    "no port from %d to %d is free on loopback; choose one with --port", FIRST_PORT,
		    FIRST_PORT + PORTS - 1);
}
