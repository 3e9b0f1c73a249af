// SPDX-License-Identifier: BSD-2-Clause
/*
 * flood serve ADDRESS PORT		echoes a byte a connection until killed; says "ready"
 * flood MODE ADDRESS PORT COUNT	makes that many connections; says how many failed
 *
 * MODE: echo	 connect, one byte there and back, close
 *	 reset	 connect, one byte there and back, close with a reset
 *	 drop	 connect, close at once
 *	 abandon connect without waiting for it, close at once
 *	 mix	 the first three in turn
 *	 refused connect, which has to fail with ECONNREFUSED or be met by a reset
 *	 garbage connect, write what nobody understands; the same
 *	 keep	 connect without waiting for it, all at once; says "ready" and keeps them until
 *killed
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SERVE_THREADS  32
#define CLIENT_THREADS 6

enum mode {
	MODE_ECHO,
	MODE_RESET,
	MODE_DROP,
	MODE_ABANDON,
	MODE_MIX,
	MODE_REFUSED,
	MODE_GARBAGE,
	MODE_KEEP,
	MODE_COUNT
};

static const char *const modes[MODE_COUNT] = {"echo", "reset",	 "drop",    "abandon",
					      "mix",  "refused", "garbage", "keep"};

static struct sockaddr_storage target;
static socklen_t target_len;
static enum mode mode;
static atomic_long left, failures;
static int listener;

static int parse_target(const char *ip, const char *port)
{
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&target;
	struct sockaddr_in *in = (struct sockaddr_in *)&target;

	if (inet_pton(AF_INET, ip, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		in->sin_port = htons(atoi(port));
		target_len = sizeof(*in);
		return 0;
	}
	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(atoi(port));
	target_len = sizeof(*in6);
	return inet_pton(AF_INET6, ip, &in6->sin6_addr) == 1 ? 0 : -EINVAL;
}

static void close_with_reset(int fd)
{
	struct linger now = {.l_onoff = 1};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
}

static int exchange(int fd)
{
	char byte = 'x';

	return send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1 || byte != 'x';
}

/* Whether anything but a reset was the answer. */
static int welcome(int fd, enum mode how)
{
	char bytes[64];

	memset(bytes, 0xa5, sizeof(bytes));
	if (how == MODE_GARBAGE && send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) < 0)
		return errno != ECONNRESET && errno != EPIPE;
	return recv(fd, bytes, sizeof(bytes), 0) >= 0 || errno != ECONNRESET;
}

/* Returns 0, or 1 where it went wrong. */
static int one_connection(enum mode how)
{
	int waits = how != MODE_ABANDON && how != MODE_KEEP;
	int type = SOCK_STREAM | (waits ? 0 : SOCK_NONBLOCK), wrong = 0;
	int fd = socket(target.ss_family, type, 0);

	if (fd < 0)
		return 1;
	if (connect(fd, (struct sockaddr *)&target, target_len) && errno != EINPROGRESS)
		wrong = (how != MODE_REFUSED && how != MODE_GARBAGE) ||
			(errno != ECONNREFUSED && errno != ECONNRESET);
	else if (how == MODE_REFUSED || how == MODE_GARBAGE)
		wrong = welcome(fd, how);
	else if (how == MODE_ECHO || how == MODE_RESET)
		wrong = exchange(fd);
	if (how == MODE_KEEP)
		return wrong;
	if (how == MODE_RESET)
		close_with_reset(fd);
	else
		close(fd);
	return wrong;
}

static void *client_thread(void *unused)
{
	long number;

	while ((number = atomic_fetch_sub(&left, 1)) > 0)
		failures += one_connection(mode == MODE_MIX ? number % 3 : mode);
	return unused;
}

static void *serve_thread(void *unused)
{
	char byte;

	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			continue;
		while (recv(fd, &byte, 1, 0) == 1 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1)
			;
		close(fd);
	}
	return unused;
}

static int threads(void *(*body)(void *), int count)
{
	pthread_t id[SERVE_THREADS];

	for (int i = 0; i < count; i++)
		if (pthread_create(&id[i], NULL, body, NULL))
			return 1;
	for (int i = 0; i < count; i++)
		pthread_join(id[i], NULL);
	return 0;
}

static int serve(void)
{
	int on = 1;

	listener = socket(target.ss_family, SOCK_STREAM, 0);
	if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(listener, (struct sockaddr *)&target, target_len) || listen(listener, 4096)) {
		perror("flood: listen");
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	return threads(serve_thread, SERVE_THREADS);
}

int main(int argc, char **argv)
{
	if (argc < 4 || parse_target(argv[2], argv[3]))
		return 2;
	if (!strcmp(argv[1], "serve"))
		return serve();
	while (mode < MODE_COUNT && strcmp(argv[1], modes[mode]))
		mode++;
	if (mode == MODE_COUNT || argc != 5)
		return 2;
	left = atol(argv[4]);
	threads(client_thread, CLIENT_THREADS);
	if (mode == MODE_KEEP && !failures) {
		puts("ready");
		fflush(stdout);
		pause();
	}
	printf("%ld failed\n", (long)failures);
	return 0;
}
