/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses: one 16-byte form for IPv4, v4-mapped and IPv6. Words are in network byte order. */
#ifndef TPROXY_ADDR_BPF_H
#define TPROXY_ADDR_BPF_H

/* Whether a congestion control has a name of three letters, or one that begins with it. */
static __always_inline int cc_is(const char *name, const char *three)
{
	return name[0] == three[0] && name[1] == three[1] && name[2] == three[2];
}

#define AF_INET	       2
#define AF_INET6       10
#define V4_MAPPED_WORD bpf_htonl(0xffff)
#define LOOPBACK_V4    bpf_htonl(0x7f000001)

static __always_inline void ip_set_v4(__u8 ip[16], __be32 v4)
{
	__be32 *w = (__be32 *)ip;

	w[0] = 0;
	w[1] = 0;
	w[2] = V4_MAPPED_WORD;
	w[3] = v4;
}

static __always_inline void ip_set_v6(__u8 ip[16], __be32 w0, __be32 w1, __be32 w2, __be32 w3)
{
	__be32 *w = (__be32 *)ip;

	w[0] = w0;
	w[1] = w1;
	w[2] = w2;
	w[3] = w3;
}

static __always_inline __be32 ip_v4(const __u8 ip[16])
{
	return ((const __be32 *)ip)[3];
}

static __always_inline int ip_equal(const __u8 a[16], const __u8 b[16])
{
	const __be32 *x = (const __be32 *)a, *y = (const __be32 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline int ip_is_v4(const __u8 ip[16])
{
	const __be32 *w = (const __be32 *)ip;

	return w[0] == 0 && w[1] == 0 && w[2] == V4_MAPPED_WORD;
}

/* Where redirected connections go: 127.0.0.1, v4-mapped or not, or ::1. */
static __always_inline int ip_is_proxy_address(const __be32 w[4])
{
	if (w[0] || w[1])
		return 0;
	return w[2] ? w[2] == V4_MAPPED_WORD && w[3] == LOOPBACK_V4 : w[3] == bpf_htonl(1);
}

static __always_inline int ip_is_zero(const __u8 ip[16])
{
	const __be32 *w = (const __be32 *)ip;

	return (w[0] | w[1] | w[2] | w[3]) == 0;
}

/*
 * Destinations that connect() does not treat as a plain unicast peer: they meet the kernel's own
 * answer. 0.0.0.0 and :: mean this host and depend on the socket's source, so they pass as well.
 */
static __always_inline int ip_is_unicast(const __u8 ip[16])
{
	const __be32 *w = (const __be32 *)ip;

	if (ip_is_v4(ip)) {
		__u32 v4 = bpf_ntohl(w[3]);

		return v4 >> 24 != 0 && v4 >> 28 != 0xe && v4 != 0xffffffff;
	}
	return ip[0] != 0xff && !ip_is_zero(ip);
}

static __always_inline int ip_is_link_local_v6(const __u8 ip[16])
{
	return ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80;
}

#endif
