// SPDX-License-Identifier: BSD-2-Clause
/*
 * prober MAP_LISTENERS PORT 4|6|dual
 *
 * A trusted listener that is no tproxyd: marks its listening socket, then obeys lines on stdin and
 * answers each with one line:
 *
 *	accept			the peer's address
 *	get LEVEL OPTION LEN	"OK optlen hex-of-the-buffer" or the errno's name
 */
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../bpf/abi.h"

#define MAX_LEN	  65536
#define UNTOUCHED 0xcc

static int die(const char *what)
{
	fprintf(stderr, "prober: %s: %s\n", what, strerror(errno));
	return 1;
}

static int listen_on(const char *family, unsigned int port)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
	int v4 = !strcmp(family, "4"), on = 1, off = 0, r, fd;

	fd = socket(v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	/* The end of a connection of the prober before may still be waiting for its last packet. */
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		return -1;
	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	in6.sin6_addr = strcmp(family, "dual") ? in6addr_loopback : in6addr_any;
	if (!v4 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)))
		return -1;
	r = v4 ? bind(fd, (struct sockaddr *)&in, sizeof(in))
	       : bind(fd, (struct sockaddr *)&in6, sizeof(in6));
	return r || listen(fd, 16) ? -1 : fd;
}

static int mark_listener(const char *map_path, int fd)
{
	struct tp_mark mark = {.role = TP_ROLE_LISTENER, .slot = TP_NO_SLOT};
	int map = bpf_obj_get(map_path);

	return map < 0 ? map : bpf_map_update_elem(map, &fd, &mark, BPF_ANY);
}

static int do_accept(int listener)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof(peer);
	char text[INET6_ADDRSTRLEN] = "?";
	int fd = accept(listener, (struct sockaddr *)&peer, &len);

	if (peer.ss_family == AF_INET)
		inet_ntop(AF_INET, &((struct sockaddr_in *)&peer)->sin_addr, text, sizeof(text));
	else
		inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&peer)->sin6_addr, text, sizeof(text));
	printf("%s\n", text);
	return fd;
}

static void do_get(int fd, int level, int option, unsigned int want)
{
	static unsigned char buf[MAX_LEN];
	socklen_t len = want < MAX_LEN ? want : MAX_LEN;

	memset(buf, UNTOUCHED, sizeof(buf));
	if (getsockopt(fd, level, option, buf, &len)) {
		printf("%s\n", strerrorname_np(errno));
		return;
	}
	printf("OK %u ", len);
	for (unsigned int i = 0; i < want && i < 128; i++)
		printf("%02x", buf[i]);
	printf("\n");
}

int main(int argc, char **argv)
{
	int listener, fd = -1, level, option;
	unsigned int len;
	char line[128];

	if (argc != 4) {
		fprintf(stderr, "Usage: prober MAP_LISTENERS PORT 4|6|dual\n");
		return 2;
	}
	listener = listen_on(argv[3], atoi(argv[2]));
	if (listener < 0)
		return die("cannot listen");
	if (mark_listener(argv[1], listener))
		return die("cannot mark the listener");
	setlinebuf(stdout);
	printf("ready\n");
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "accept\n")) {
			if (fd >= 0)
				close(fd);
			fd = do_accept(listener);
			if (fd < 0)
				return die("accept");
		} else if (sscanf(line, "get %i %i %u", &level, &option, &len) == 3) {
			do_get(fd, level, option, len);
		} else {
			fprintf(stderr, "prober: what is %s", line);
			return 2;
		}
	}
	return 0;
}
