/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The packets that answer a held client: its own SYN again, a reset, an ICMP error. Bytes out, no
 * sockets. All are whole IP packets with checksums, for a raw socket with IP_HDRINCL.
 */
#ifndef TPROXY_PACKET_H
#define TPROXY_PACKET_H

#include <stddef.h>
#include <stdint.h>

#include "../bpf/abi.h"

#define PACKET_MAX 160

/* The connection as the client sees it on the wire: its own address and the proxy's listener. */
struct packet_flow {
	struct tp_endpoint client;
	struct tp_endpoint listener;
};

/* Each returns the length written to `out`. */

/* The client's SYN, with `grant` as payload (see struct tp_grant). */
size_t packet_syn(const struct packet_flow *flow, const struct tp_syn *syn,
		  const struct tp_grant *grant, uint8_t out[PACKET_MAX]);

/* A segment of the client's, TCP header and data, of at least 20 and at most TP_STRAY_MAX bytes. */
size_t packet_segment(const struct packet_flow *flow, const uint8_t *segment, size_t len,
		      uint8_t out[PACKET_MAX + TP_STRAY_MAX]);

/*
 * The packet that makes a client's connect() fail with `error`, or with EHOSTUNREACH where no
 * packet can carry that. `by_icmp`: a refusal that came as an ICMP error goes on as one.
 */
size_t packet_error(const struct packet_flow *flow, uint32_t syn_seq, int error, int by_icmp,
		    uint8_t out[PACKET_MAX]);

#endif
