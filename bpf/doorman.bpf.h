/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The doorman: a filter on tproxyd's listeners that holds the first packet of a client's handshake
 * (see struct tp_event). Only packets to that listener pass through it.
 */
#ifndef TPROXY_DOORMAN_BPF_H
#define TPROXY_DOORMAN_BPF_H

#define PACKET_PASS ((int)0x7fffffff) /* a filter returns how many bytes to keep */
#define PACKET_DROP 0

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct ipv4_head {
	__u8 ihl : 4, version : 4;
	__u8 tos;
	__be16 len, id, frag;
	__u8 ttl, protocol;
	__sum16 check;
	__be32 saddr, daddr;
};

struct ipv6_head {
	__u8 version_class[4];
	__be16 len;
	__u8 next, hops;
	__be32 saddr[4], daddr[4];
};

struct tcp_head {
	__be16 source, dest;
	__be32 seq, ack;
	__u8 offset; /* upper four bits, in words */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

/* Reads the client's address and the offset of the TCP header from the IP header. 0, or -1: not TCP
 * without extension headers, so not from a TCP socket of this host. */
static __always_inline int packet_client(struct __sk_buff *skb, struct tp_endpoint *client,
					 __u32 *ret_tcp)
{
	struct ipv4_head v4;
	struct ipv6_head v6;

	if (skb->protocol == bpf_htons(0x0800)) {
		if (bpf_skb_load_bytes_relative(skb, 0, &v4, sizeof(v4), BPF_HDR_START_NET) ||
		    v4.protocol != IPPROTO_TCP)
			return -1;
		client->family = AF_INET;
		ip_set_v4(client->ip, v4.saddr);
		*ret_tcp = v4.ihl * 4;
		return 0;
	}
	if (bpf_skb_load_bytes_relative(skb, 0, &v6, sizeof(v6), BPF_HDR_START_NET) ||
	    v6.next != IPPROTO_TCP)
		return -1;
	client->family = AF_INET6;
	ip_set_v6(client->ip, v6.saddr[0], v6.saddr[1], v6.saddr[2], v6.saddr[3]);
	*ret_tcp = sizeof(v6);
	return 0;
}

static __always_inline int syn_copy(struct __sk_buff *skb, __u32 tcp_offset,
				    const struct tcp_head *tcp, struct tp_syn *syn)
{
	__u32 len = (tcp->offset >> 4) * 4 - sizeof(*tcp);

	syn->seq = bpf_ntohl(tcp->seq);
	syn->window = bpf_ntohs(tcp->window);
	syn->flags = tcp->flags;
	syn->options_len = len;
	__builtin_memset(syn->options, 0, sizeof(syn->options));
	if (len == 0)
		return 0;
	if (!len_bound(&len, 1, sizeof(syn->options)))
		return -1;
	return bpf_skb_load_bytes_relative(skb, tcp_offset + sizeof(*tcp), syn->options, len,
					   BPF_HDR_START_NET);
}

/* Whether it is the record of the connection on a port: that may still lead to one of another
 * client, or of an earlier connection, while the loader brings either. */
static __always_inline int is_record_of(const struct tp_record *rec, __u16 port)
{
	return rec && rec->src.port == port && !(rec->reached & TP_REACHED_CLOSED);
}

static __always_inline struct tp_record *live_record(const struct tp_port_key *key, __u32 live)
{
	void *ports = bpf_map_lookup_elem(&map_live_ports, &live);
	__u64 *cookie = ports ? bpf_map_lookup_elem(ports, key) : NULL;
	void *socks = cookie ? bpf_map_lookup_elem(&map_live_socks, &live) : NULL;
	struct tp_record *rec = socks ? bpf_map_lookup_elem(socks, cookie) : NULL;

	return is_record_of(rec, key->port) ? rec : NULL;
}

/* The listener that the packet came to, and under which key its client is known there. */
static __always_inline struct tp_door *
packet_door(struct __sk_buff *skb, const struct tp_endpoint *client, struct tp_port_key *ret_key)
{
	__u64 listener = bpf_get_socket_cookie(skb);
	struct tp_door *door = bpf_map_lookup_elem(&map_doors, &listener);

	if (door)
		tp_port_key_set(ret_key, door->netns, client, door->proxy_port);
	return door;
}

static __always_inline void *proxy_ring(__u32 slot)
{
	return bpf_map_lookup_elem(&map_rings, &slot);
}

/* The record that a grant is for: not that of another client, nor of another attempt, which the
 * socket may have begun. */
static __always_inline struct tp_record *granted_record(const struct tp_grant *grant, __u32 live,
							const struct tp_endpoint *client, __u32 seq)
{
	void *socks = bpf_map_lookup_elem(&map_live_socks, &live);
	struct tp_record *rec = socks ? bpf_map_lookup_elem(socks, &grant->cookie) : NULL;

	return is_record_of(rec, client->port) && ip_equal(rec->src.ip, client->ip) &&
			       rec->seq == seq
		       ? rec
		       : NULL;
}

/*
 * A SYN that tproxyd sent again: takes the server's view of the client off it. With RST, which no
 * handshake has, that is all it is sent for.
 */
static __always_inline int granted(struct __sk_buff *skb, __u32 tcp_offset,
				   const struct tcp_head *tcp, const struct tp_endpoint *client)
{
	__u32 header = (tcp->offset >> 4) * 4;
	struct tp_grant grant;
	int known = 0;

	if (bpf_skb_load_bytes_relative(skb, tcp_offset + header, &grant, sizeof(grant),
					BPF_HDR_START_NET)) {
		COUNT(hold_malformed);
		return PACKET_DROP;
	}
	/* As the others over generations, of which there mostly is one, it stays a loop: less code
	 * to fetch, which is in no near cache. */
#pragma clang loop unroll(disable)
	for (int live = 0; live < TP_LIVE_MAPS; live++) {
		struct tp_record *rec = granted_record(&grant, live, client, bpf_ntohl(tcp->seq));

		if (!rec)
			continue;
		rec->local = grant.local;
		known = 1;
	}
	if (!known) {
		COUNT(hold_malformed);
		return PACKET_DROP;
	}
	return tcp->flags & TCP_RST ? PACKET_DROP : header;
}

/*
 * Whether the user has had his share of the ring, so that there is room in it for others. Windows
 * are written without a lock: a count that two CPUs take for the same is none that matters.
 */
static __always_inline int ring_share_used(void *ring, const struct tp_record *rec)
{
	__u32 index = rec->slot * TP_WINDOWS + (rec->uid * 0x9e3779b1U >> (32 - TP_WINDOW_BITS));
	__u32 slot = rec->slot;
	struct tp_window *window = bpf_map_lookup_elem(&map_windows, &index);
	struct tp_proxy_stats *stats;
	__u64 read, end;

	if (!window)
		return 0;
	read = bpf_ringbuf_query(ring, BPF_RB_CONS_POS);
	end = bpf_ringbuf_query(ring, BPF_RB_PROD_POS) + sizeof(struct tp_event_syn);
	/* One that ends beyond what is written is of an earlier ring. */
	if (read >= window->end || window->end > end) {
		window->end = end;
		window->syns = 0;
	}
	if (window->syns < TP_WINDOW_SYNS) {
		window->syns++;
		return 0;
	}
	stats = bpf_map_lookup_elem(&map_proxies, &slot);
	if (stats)
		__sync_fetch_and_add(&stats->over_ring_share, 1);
	return 1;
}

static __always_inline int hold(struct __sk_buff *skb, __u32 tcp_offset, const struct tcp_head *tcp,
				const struct tp_endpoint *client)
{
	struct tp_record *rec = NULL;
	struct tp_event_syn *event;
	struct tp_port_key key;
	struct tp_door *door;
	void *ring;

	door = packet_door(skb, client, &key);
#pragma clang loop unroll(disable)
	for (int live = 0; door && live < TP_LIVE_MAPS; live++) {
		struct tp_record *copy = live_record(&key, live);

		if (!copy)
			continue;
		/* The client may have been sent to an earlier listener on this port. */
		copy->slot = door->slot;
		copy->seq = bpf_ntohl(tcp->seq);
		rec = rec ?: copy;
	}
	if (!rec) {
		COUNT(hold_unknown);
		/* Only a raw packet has no unicast source; and that could pass for a tag. */
		return ip_is_unicast(client->ip) ? PACKET_PASS : PACKET_DROP;
	}
	ring = proxy_ring(rec->slot);
	if (!ring)
		return PACKET_PASS; /* tproxyd does not want to hold */
	if (ring_share_used(ring, rec))
		return PACKET_DROP;
	event = bpf_ringbuf_reserve(ring, sizeof(*event), 0);
	if (!event) {
		COUNT(hold_no_space);
		return PACKET_DROP;
	}
	event->type = TP_EVENT_SYN;
	event->reserved = 0;
	event->client = *rec;
	if (syn_copy(skb, tcp_offset, tcp, &event->syn)) {
		bpf_ringbuf_discard(event, 0);
		COUNT(hold_malformed);
		return PACKET_DROP;
	}
	bpf_ringbuf_submit(event, 0);
	COUNT(held);
	return PACKET_DROP;
}

/*
 * A connection moves from its request to its own socket in two steps, and a packet that is
 * processed on another CPU just then finds neither, but the listener, which would answer with a
 * reset (before Linux 6.19). Clients that we let in are exposed to it: their handshake is completed
 * on tproxyd's CPU, and they wake up and write on their own. So anything but a handshake that gets
 * as far as the listener is taken and sent again by tproxyd, after the handshake that it is busy
 * with.
 */
static __always_inline int stray_deliver(struct __sk_buff *skb, const struct tp_endpoint *client,
					 __u16 proxy_port, void *ring, __u32 max)
{
	struct tp_event_stray *event;
	__u32 len;

	event = bpf_ringbuf_reserve(ring, offsetof(struct tp_event_stray, segment) + max, 0);
	if (!event) {
		COUNT(hold_no_space);
		return PACKET_DROP;
	}
	len = skb->len; /* only now, see len_bound() */
	if (!len_bound(&len, sizeof(struct tcp_head), max)) {
		bpf_ringbuf_discard(event, 0);
		return PACKET_DROP; /* the client sends it again by itself */
	}
	if (bpf_skb_load_bytes(skb, 0, event->segment, len)) { /* from the TCP header on */
		bpf_ringbuf_discard(event, 0);
		COUNT(hold_malformed);
		return PACKET_DROP;
	}
	event->type = TP_EVENT_STRAY;
	event->len = len;
	event->client = *client;
	event->proxy_port = proxy_port;
	event->reserved = 0;
	bpf_ringbuf_submit(event, 0);
	COUNT(hold_stray);
	return PACKET_DROP;
}

static __always_inline int stray(struct __sk_buff *skb, const struct tp_endpoint *client)
{
	struct tp_record *rec = NULL;
	struct tp_port_key key;
	struct tp_door *door;
	void *ring;
	__u16 port;

	door = packet_door(skb, client, &key);
#pragma clang loop unroll(disable)
	for (int live = 0; door && !rec && live < TP_LIVE_MAPS; live++)
		rec = live_record(&key, live);
	ring = rec ? proxy_ring(door->slot) : NULL;
	if (!ring)
		return PACKET_PASS;
	port = door->proxy_port;
	if (skb->len <= TP_STRAY_SMALL) /* the size of a reservation has to be a constant */
		return stray_deliver(skb, client, port, ring, TP_STRAY_SMALL);
	if (skb->len <= TP_STRAY_MEDIUM)
		return stray_deliver(skb, client, port, ring, TP_STRAY_MEDIUM);
	return stray_deliver(skb, client, port, ring, TP_STRAY_MAX);
}

static __always_inline int doorman(struct __sk_buff *skb)
{
	struct tp_endpoint client = {};
	struct bpf_sock *sk = skb->sk;
	struct tp_config *cfg;
	struct tcp_head tcp;
	__u32 offset;
	__u8 kind;

	/* A connection has its listener's filter until tproxyd takes it off. */
	if (sk && sk->state != BPF_TCP_LISTEN)
		return PACKET_PASS;
	if (bpf_skb_load_bytes(skb, 0, &tcp, sizeof(tcp))) {
		COUNT(hold_malformed);
		return PACKET_DROP;
	}
	kind = tcp.flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN);
	if (kind != TCP_SYN && !(kind & (TCP_RST | TCP_FIN)) &&
	    skb->len == (tcp.offset >> 4) * 4) /* mostly the end of a handshake */
		return PACKET_PASS;
	cfg = config_get();
	if (!cfg)
		return PACKET_PASS;
	if (packet_client(skb, &client, &offset)) {
		COUNT(hold_malformed);
		return PACKET_DROP;
	}
	client.port = bpf_ntohs(tcp.source);
	if (skb->mark == cfg->grant)
		return tcp.flags & TCP_SYN ? granted(skb, offset, &tcp, &client) : PACKET_PASS;
	if (kind == TCP_SYN)
		return hold(skb, offset, &tcp, &client);
	return stray(skb, &client);
}

/* A client that tproxyd may be connecting for has gone. */
static __always_inline void hold_gone(const struct tp_record *rec, __u64 cookie)
{
	struct tp_event_gone *event;
	void *ring;

	ring = proxy_ring(rec->slot);
	if (!ring)
		return;
	event = bpf_ringbuf_reserve(ring, sizeof(*event), 0);
	if (!event)
		return; /* the deadline of the hold finds out */
	event->type = TP_EVENT_GONE;
	event->reserved = 0;
	event->cookie = cookie;
	bpf_ringbuf_submit(event, 0);
}

#endif
