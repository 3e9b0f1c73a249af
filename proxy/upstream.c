// SPDX-License-Identifier: BSD-2-Clause
#include "upstream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "congestion.h"
#include "endpoint.h"
#include "session.h"

/*
 * The source that the client chose with bind() is the one the server sees. The port can be had a
 * second time where both sockets have SO_REUSEADDR; the hook gives it to the client's, from
 * Linux 6.1 on. Where it is not to be had the server sees another port.
 */
static int bind_as_client(int fd, const struct tp_record *client)
{
	struct tp_endpoint source = client->src;
	struct sockaddr_storage addr;
	socklen_t len;
	int one = 1;

	if (!(client->flags & (TP_RECORD_BOUND_ADDR | TP_RECORD_BOUND_PORT)))
		return 0;
	/* It may have been free to choose an address that no interface has. */
	if (client->flags & TP_RECORD_BOUND_ADDR)
		setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &one, sizeof(one));
	else
		memset(source.ip + (source.family == AF_INET ? 12 : 0), 0,
		       source.family == AF_INET ? 4 : 16);
	if (client->flags & TP_RECORD_BOUND_PORT) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		endpoint_to_sockaddr(&source, &addr, &len);
		if (!bind(fd, (struct sockaddr *)&addr, len))
			return 0;
		if (errno != EADDRINUSE && errno != EACCES)
			return -errno;
	}
	if (!(client->flags & TP_RECORD_BOUND_ADDR))
		return 0;
	source.port = 0;
	endpoint_to_sockaddr(&source, &addr, &len);
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
	return bind(fd, (struct sockaddr *)&addr, len) ? -errno : 0;
}

void upstream_learn_source(struct session *s)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);

	if (!getsockname(s->fd[UPSTREAM], (struct sockaddr *)&addr, &len))
		endpoint_from_sockaddr((struct sockaddr *)&addr, &s->client.local);
}

int upstream_result(struct session *s)
{
	struct pollfd upstream = {.fd = s->fd[UPSTREAM], .events = POLLOUT};
	socklen_t len = sizeof(int);
	int err = 0;

	if (poll(&upstream, 1, 0) <= 0)
		return 0;
	if (!(upstream.revents & (POLLERR | POLLHUP)))
		return 1;
	getsockopt(s->fd[UPSTREAM], SOL_SOCKET, SO_ERROR, &err, &len);
	if (err != ECONNRESET && err != EPIPE)
		return -err;
	s->broken |= 1 << UPSTREAM;
	return 1;
}

/*
 * The kernel puts off the last packet of a handshake for a socket without quick acknowledgements
 * (by up to 200 ms, and no longer than until there is data), and sends it at once when they are
 * switched on.
 */
void upstream_ack(struct session *s, int now)
{
	setsockopt(s->fd[UPSTREAM], IPPROTO_TCP, TCP_QUICKACK, &now, sizeof(now));
	s->put_off |= !now;
}

void upstream_spoke(struct session *s)
{
	upstream_ack(s, 1);
	s->put_off = 0;
}

/* How the listener does it for the client's leg, with a time of the operator's choice. */
static void keep_alive(const struct proxy *p, int fd)
{
	int on = 1, idle = (p->settings.keepalive + 999) / 1000, interval = (idle + 5) / 6;

	if (!idle)
		return;
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
}

int upstream_connect(struct proxy *p, struct session *s)
{
	const char *theirs = s->client.congestion, *usual = p->shared->congestion;
	struct sockaddr_storage addr;
	int own_choice = *theirs && strncmp(theirs, usual, TP_CC_LEN);
	int paces = !own_choice && congestion_paces(usual);
	int local = local_expected(&p->local, &s->client.dst), expected = local;
	socklen_t len;
	int err, fd;

	err = endpoint_to_sockaddr(&s->client.dst, &addr, &len);
	if (err)
		return err;
	fd = socket(addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	if (fd < 0)
		return -errno;
	s->fd[UPSTREAM] = fd;
	s->untuned = 1;
	session_close_resets(fd, 1);
	keep_alive(p, fd);
	if (own_choice)
		congestion_set(fd, theirs);
	else if (paces && local) /* not later: what has begun to pace goes on to */
		congestion_set(fd, TP_CC_LOCAL);
	/* Without it the connection might take another way than the client's. */
	if (s->client.mark &&
	    setsockopt(fd, SOL_SOCKET, SO_MARK, &s->client.mark, sizeof(s->client.mark)))
		return -errno;
	err = bind_as_client(fd, &s->client);
	if (err)
		return err;
	if (s->list == LIST_HELD)
		upstream_ack(s, 0);
	err = connect(fd, (struct sockaddr *)&addr, len) ? errno : 0;
	if (err && err != EINPROGRESS)
		return -err;
	upstream_learn_source(s);
	if (!(s->client.flags & TP_RECORD_BOUND_ADDR))
		local = local_learn(&p->local, &s->client.dst, &s->client.local);
	else if (!memcmp(s->client.dst.ip, s->client.local.ip, sizeof(s->client.dst.ip)))
		local = 1;
	if (paces && local != expected)
		congestion_set(fd, local ? TP_CC_LOCAL : usual);
	/* A handshake with this host is over by now, though the call returned before it was: asking
	 * saves a turn of the event loop, which is most of what it takes. */
	return err && local ? upstream_result(s) : !err;
}

void upstream_tune(struct session *s)
{
	int one = 1;

	setsockopt(s->fd[UPSTREAM], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	s->untuned = 0;
}
