// SPDX-License-Identifier: BSD-2-Clause
#include "packet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#define TTL 64

static uint32_t sum_add(uint32_t sum, const void *data, size_t len)
{
	const uint8_t *p = data;

	for (; len > 1; len -= 2, p += 2)
		sum += p[0] << 8 | p[1];
	if (len)
		sum += p[0] << 8;
	return sum;
}

static uint16_t sum_finish(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum & 0xffff);
}

/* Over the pseudo header of RFC 9293 or RFC 8200 and the payload. The v4-mapped prefix of an IPv4
 * address adds 0xffff, which is zero in one's complement, twice: one formula serves both. */
static uint16_t transport_sum(const struct tp_endpoint *from, const struct tp_endpoint *to,
			      uint8_t protocol, const void *payload, size_t len)
{
	uint32_t sum = protocol + len;

	sum = sum_add(sum, from->ip, sizeof(from->ip));
	sum = sum_add(sum, to->ip, sizeof(to->ip));
	return sum_finish(sum_add(sum, payload, len));
}

/* Writes the IP header. Returns its length. */
static size_t put_ip(const struct tp_endpoint *from, const struct tp_endpoint *to, uint8_t protocol,
		     size_t payload_len, uint8_t *out)
{
	if (from->family == AF_INET) {
		struct iphdr ip = {
			.version = 4,
			.ihl = 5,
			.tot_len = htons(sizeof(ip) + payload_len),
			.frag_off = htons(IP_DF),
			.ttl = TTL,
			.protocol = protocol,
		};

		memcpy(&ip.saddr, from->ip + 12, 4);
		memcpy(&ip.daddr, to->ip + 12, 4);
		ip.check = sum_finish(sum_add(0, &ip, sizeof(ip)));
		memcpy(out, &ip, sizeof(ip));
		return sizeof(ip);
	}
	struct ip6_hdr ip6 = {
		.ip6_flow = htonl(6U << 28),
		.ip6_plen = htons(payload_len),
		.ip6_nxt = protocol,
		.ip6_hlim = TTL,
	};

	memcpy(&ip6.ip6_src, from->ip, 16);
	memcpy(&ip6.ip6_dst, to->ip, 16);
	memcpy(out, &ip6, sizeof(ip6));
	return sizeof(ip6);
}

/* Writes IP and TCP header, options and payload included, and the checksum. */
static size_t put_tcp(const struct tp_endpoint *from, const struct tp_endpoint *to,
		      struct tcphdr *tcp, const void *options, size_t options_len,
		      const void *payload, size_t payload_len, uint8_t *out)
{
	size_t len = sizeof(*tcp) + options_len + payload_len;
	size_t ip = put_ip(from, to, IPPROTO_TCP, len, out);
	uint8_t *p = out + ip;
	uint16_t sum;

	tcp->source = htons(from->port);
	tcp->dest = htons(to->port);
	tcp->doff = (sizeof(*tcp) + options_len) / 4;
	tcp->check = 0;
	memcpy(p, tcp, sizeof(*tcp));
	memcpy(p + sizeof(*tcp), options, options_len);
	memcpy(p + sizeof(*tcp) + options_len, payload, payload_len);
	sum = transport_sum(from, to, IPPROTO_TCP, p, len);
	memcpy(p + offsetof(struct tcphdr, check), &sum, sizeof(sum));
	return ip + len;
}

size_t packet_syn(const struct packet_flow *flow, const struct tp_syn *syn,
		  const struct tp_grant *grant, uint8_t out[PACKET_MAX])
{
	struct tcphdr tcp = {.seq = htonl(syn->seq), .window = htons(syn->window)};
	size_t options_len = syn->options_len & ~3U;

	if (options_len > sizeof(syn->options))
		options_len = sizeof(syn->options);
	((uint8_t *)&tcp)[13] = syn->flags;
	return put_tcp(&flow->client, &flow->listener, &tcp, syn->options, options_len, grant,
		       sizeof(*grant), out);
}

/* What a closed port answers to the SYN: the client's connect() fails with ECONNREFUSED. */
static size_t reset(const struct packet_flow *flow, uint32_t syn_seq, uint8_t out[PACKET_MAX])
{
	struct tcphdr tcp = {.ack_seq = htonl(syn_seq + 1), .rst = 1, .ack = 1};

	return put_tcp(&flow->listener, &flow->client, &tcp, "", 0, "", 0, out);
}

/* An ICMP or ICMPv6 error about the SYN. */
static size_t icmp_about(const struct packet_flow *flow, uint32_t syn_seq, uint8_t type,
			 uint8_t code, uint8_t out[PACKET_MAX])
{
	int v4 = flow->client.family == AF_INET;
	size_t embedded_ip = v4 ? sizeof(struct iphdr) : sizeof(struct ip6_hdr);
	size_t len = 8 + embedded_ip + sizeof(struct tcphdr);
	struct tcphdr syn = {
		.source = htons(flow->client.port),
		.dest = htons(flow->listener.port),
		.seq = htonl(syn_seq),
		.doff = sizeof(syn) / 4,
		.syn = 1,
	};
	uint8_t *icmp = out + put_ip(&flow->listener, &flow->client,
				     v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6, len, out);
	uint16_t sum;

	memset(icmp, 0, 8);
	icmp[0] = type;
	icmp[1] = code;
	put_ip(&flow->client, &flow->listener, IPPROTO_TCP, sizeof(syn), icmp + 8);
	memcpy(icmp + 8 + embedded_ip, &syn, sizeof(syn));
	sum = v4 ? sum_finish(sum_add(0, icmp, len))
		 : transport_sum(&flow->listener, &flow->client, IPPROTO_ICMPV6, icmp, len);
	memcpy(icmp + 2, &sum, sizeof(sum));
	return icmp + len - out;
}

struct icmp_error {
	uint8_t type, code; /* type 0: there is none */
};

/* What the kernel turns into which errno for a socket in SYN_SENT (icmp(7), RFC 4443). */
static const struct {
	int error;
	struct icmp_error v4, v6;
} icmp_errors[] = {
	{EHOSTUNREACH,
	 {ICMP_DEST_UNREACH, ICMP_HOST_UNREACH},
	 {ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_ADDR}},
	{ENETUNREACH,
	 {ICMP_DEST_UNREACH, ICMP_NET_UNREACH},
	 {ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_NOROUTE}},
	{ECONNREFUSED,
	 {ICMP_DEST_UNREACH, ICMP_PORT_UNREACH},
	 {ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_NOPORT}},
	{EACCES, {0}, {ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_ADMIN}},
	{EPROTO, {ICMP_PARAMETERPROB, 0}, {ICMP6_PARAM_PROB, 0}},
	{EHOSTDOWN, {ICMP_DEST_UNREACH, ICMP_HOST_UNKNOWN}, {0}},
	{ENONET, {ICMP_DEST_UNREACH, ICMP_HOST_ISOLATED}, {0}},
	{ENOPROTOOPT, {ICMP_DEST_UNREACH, ICMP_PROT_UNREACH}, {0}},
	{EOPNOTSUPP, {ICMP_DEST_UNREACH, ICMP_SR_FAILED}, {0}},
};

size_t packet_error(const struct packet_flow *flow, uint32_t syn_seq, int error, int by_icmp,
		    uint8_t out[PACKET_MAX])
{
	int v4 = flow->client.family == AF_INET;
	struct icmp_error found = v4 ? icmp_errors[0].v4 : icmp_errors[0].v6;

	if (error == ECONNREFUSED && !by_icmp)
		return reset(flow, syn_seq, out);
	for (size_t i = 0; i < sizeof(icmp_errors) / sizeof(*icmp_errors); i++) {
		struct icmp_error e = v4 ? icmp_errors[i].v4 : icmp_errors[i].v6;

		if (icmp_errors[i].error == error && e.type)
			found = e;
	}
	return icmp_about(flow, syn_seq, found.type, found.code, out);
}

size_t packet_segment(const struct packet_flow *flow, const uint8_t *segment, size_t len,
		      uint8_t out[PACKET_MAX + TP_STRAY_MAX])
{
	uint8_t *p = out + put_ip(&flow->client, &flow->listener, IPPROTO_TCP, len, out);
	size_t offset = offsetof(struct tcphdr, check);
	uint16_t sum = 0;

	memcpy(p, segment, len);
	memcpy(p + offset, &sum, sizeof(sum));
	sum = transport_sum(&flow->client, &flow->listener, IPPROTO_TCP, p, len);
	memcpy(p + offset, &sum, sizeof(sum));
	return p + len - out;
}
