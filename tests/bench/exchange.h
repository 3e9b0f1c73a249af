/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the load generator and the origin server say to each other. Both messages have a fixed size,
 * so that neither side parses: what is measured is the path between them.
 */
#ifndef TPROXY_BENCH_EXCHANGE_H
#define TPROXY_BENCH_EXCHANGE_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>

#define REQUEST_LEN  80
#define RESPONSE_LEN 240
#define CHUNK_LEN    64			/* of the stream of small writes */
#define BATCH_LEN    (1024 * CHUNK_LEN) /* for each the sink says how many bytes have come so far */

/* 0, or -1 where it is no IPv4 address. */
static inline int address_parse(const char *ip, const char *port, struct sockaddr_in *ret_address)
{
	*ret_address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	return inet_pton(AF_INET, ip, &ret_address->sin_addr) == 1 ? 0 : -1;
}

#endif
