/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the stress client and its server say to each other, and the bytes that both can make up for
 * themselves: every byte of a stream follows from the request's id, its direction and its place, so
 * one that is lost, doubled, moved, or of another session is seen by whoever receives it.
 */
#ifndef TPROXY_TESTS_STRESS_H
#define TPROXY_TESTS_STRESS_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define STRESS_MAGIC   0x57726573u
#define STRESS_CHUNK   65536
#define STRESS_ENDLESS (1ULL << 62) /* as a number of bytes: until somebody ends it */

/* Ports, counted from the first one: on those up to PORT_LATE the server answers. */
enum { PORT_LATE = 4, PORT_NOBODY = 5 };

enum stress_kind {
	KIND_EXCHANGE, /* `up` bytes there, `down` bytes back, at the same time */
	KIND_TELL,     /* `up` bytes there, and closed: the server only counts it */
	KIND_ECHO,     /* what comes goes back, until the client's FIN */
	KIND_TRICKLE,  /* the client sends FIN at once; the server sends on until KIND_FINISH */
	KIND_LISTEN,   /* the server sends FIN at once; the client sends on; counted at its end */
	KIND_FINISH,   /* an exchange that ends all of KIND_TRICKLE, and opens PORT_LATE for good */
	KIND_REFUSED,  /* to PORT_NOBODY */
	KIND_COUNT,
};

enum stress_ending {
	ENDING_SERVER, /* the server closes as soon as both have everything */
	ENDING_CLIENT, /* the client does */
	ENDING_HALF,   /* the client sends FIN after its bytes, the server after its own */
	ENDING_RESET,  /* the server resets the connection when both have everything */
	ENDING_COUNT,
};

struct stress_request {
	uint32_t magic;
	uint16_t kind, ending;
	uint64_t id, up, down;
};

struct stress_reply {
	uint32_t magic, open; /* how many connections the server has, this one included */
	uint64_t id;
	struct in6_addr local, peer; /* where the server was reached, and by whom */
	uint16_t local_port, peer_port;
	uint32_t unused2;
	uint64_t counted; /* KIND_TELL and KIND_LISTEN so far */
};

static inline uint64_t stress_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

/* splitmix64 */
static inline uint64_t stress_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static inline uint64_t stress_key(uint64_t id, int down)
{
	return stress_mix(id * 2 + down);
}

/* The bytes of the stream `key` from `at` on. */
static inline void stress_bytes(uint64_t key, uint64_t at, uint8_t *buf, size_t len)
{
	while (len) {
		uint64_t word = stress_mix(key + at / 8);
		size_t skip = at % 8, n = 8 - skip < len ? 8 - skip : len;

		memcpy(buf, (uint8_t *)&word + skip, n);
		buf += n;
		at += n;
		len -= n;
	}
}

/* What comes next of a head and the stream after it, from `sent` to `limit`, which count the head.
 * Returns how much that is. */
static inline size_t stress_fill(const void *head, size_t head_len, uint64_t key, uint64_t sent,
				 uint64_t limit, uint8_t buf[STRESS_CHUNK])
{
	size_t len = limit - sent < STRESS_CHUNK ? limit - sent : STRESS_CHUNK, n = 0;

	if (sent < head_len) {
		n = head_len - sent < len ? head_len - sent : len;
		memcpy(buf, (const uint8_t *)head + sent, n);
	}
	if (n < len)
		stress_bytes(key, sent + n - head_len, buf + n, len - n);
	return len;
}

/* The place of the first byte in buf that is not the stream's, or -1. */
static inline ssize_t stress_wrong(uint64_t key, uint64_t at, const uint8_t *buf, size_t len)
{
	uint8_t want[4096];

	for (size_t done = 0; done < len;) {
		size_t n = len - done < sizeof(want) ? len - done : sizeof(want);

		stress_bytes(key, at + done, want, n);
		if (memcmp(want, buf + done, n))
			for (size_t i = 0; i < n; i++)
				if (want[i] != buf[done + i])
					return done + i;
		done += n;
	}
	return -1;
}

/* As getsockname() and getpeername() give it: a v4 address becomes a v4-mapped one. */
static inline uint16_t stress_address(const struct sockaddr_storage *from, struct in6_addr *ret)
{
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)from;
	const struct sockaddr_in *in = (const struct sockaddr_in *)from;

	if (from->ss_family == AF_INET6) {
		*ret = in6->sin6_addr;
		return ntohs(in6->sin6_port);
	}
	*ret = (struct in6_addr){.s6_addr = {[10] = 0xff, 0xff}};
	memcpy(&ret->s6_addr[12], &in->sin_addr, 4);
	return ntohs(in->sin_port);
}

/* 0, or -1 where it is no address. */
static inline int stress_parse(const char *ip, uint16_t port, struct sockaddr_storage *ret,
			       socklen_t *ret_len)
{
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret;
	struct sockaddr_in *in = (struct sockaddr_in *)ret;

	memset(ret, 0, sizeof(*ret));
	if (inet_pton(AF_INET, ip, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		in->sin_port = htons(port);
		*ret_len = sizeof(*in);
		return 0;
	}
	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(port);
	*ret_len = sizeof(*in6);
	return inet_pton(AF_INET6, ip, &in6->sin6_addr) == 1 ? 0 : -1;
}

#endif
