// SPDX-License-Identifier: BSD-2-Clause
/*
 * The least that hooks do for a proxy that holds handshakes, shows its connections in two maps and
 * answers for them. A connection has an entry in each map, made and removed, and its SYN is handed
 * over and dropped; what must be known of it is asked for, each by one call: who connects and when,
 * who listens, whether the destination has a route or has just failed, which congestion control
 * there is. The answers are tested, as they must be, and counted, but nothing is redirected, and
 * nobody's question about a connection answered. IPv4 without IP options.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#include "../../bpf/abi.h"
#include "../../bpf/addr.bpf.h"
#include "../../bpf/compat.bpf.h"
#include "../../bpf/maps.bpf.h"
#include "least.h"

#define IP_HEADER   20
#define TCP_HEADER  20
#define TCP_SYN	    0x02
#define PACKET_PASS 0x7fffffff
#define PACKET_DROP 0

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, TP_RING_SIZE);
} ring SEC(".maps");

static __always_inline struct tp_endpoint endpoint(__be32 ip, __u16 port)
{
	struct tp_endpoint endpoint = {.family = AF_INET, .port = port};

	ip_set_v4(endpoint.ip, ip);
	return endpoint;
}

/* --- connect() ------------------------------------------------------------------------------- */

static __always_inline int ask_listener(struct bpf_sock_addr *ctx)
{
	struct bpf_sock_tuple tuple = {.ipv4 = {.daddr = ctx->user_ip4, .dport = ctx->user_port}};
	struct bpf_sock *sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4),
						BPF_F_CURRENT_NETNS, 0);
	struct tp_mark *mark;
	int ours;

	if (!sk)
		return 0;
	mark = bpf_sk_storage_get(&map_listeners, sk, 0, 0);
	ours = mark && mark->role == TP_ROLE_LISTENER;
	bpf_sk_release(sk);
	return ours;
}

/* Whether the kernel, or a failure before, is to answer instead. */
static __always_inline int ask_destination(const struct tp_record *rec)
{
	struct tp_route_key route = {.prefixlen = 8 * (sizeof(route.netns) + sizeof(route.ip)),
				     .netns = rec->netns};
	struct tp_port_key key;
	__u32 *error;

	tp_port_key_set(&key, rec->netns, &rec->dst, 0);
	__builtin_memcpy(route.ip, rec->dst.ip, sizeof(route.ip));
	error = bpf_map_lookup_elem(&map_routes, &route);
	return bpf_map_lookup_elem(&map_failed, &key) || (error && *error);
}

static __always_inline void ask_client(struct tp_record *rec)
{
	__u64 ids = bpf_get_current_uid_gid();

	rec->uid = (__u32)ids;
	rec->gid = ids >> 32;
	rec->pid = bpf_get_current_pid_tgid() >> 32;
	rec->cgroup_id = bpf_get_current_cgroup_id();
	rec->start_ns = bpf_ktime_get_boot_ns();
	bpf_get_current_comm(rec->comm, sizeof(rec->comm));
}

static __always_inline void ask_congestion(struct bpf_sock_addr *ctx,
					   const struct inet_connection_sock *full,
					   struct tp_record *rec)
{
	char local[TP_CC_LEN] = TP_CC_LOCAL;

	congestion_copy(full, rec->congestion);
	if (cc_is(rec->congestion, "bbr"))
		bpf_setsockopt(ctx, IPPROTO_TCP, TCP_CONGESTION, local, sizeof(local));
}

SEC("cgroup/connect4")
int prog_connect4(struct bpf_sock_addr *ctx)
{
	struct tp_record rec;
	const void *full;

	if (ctx->user_ip4 != bpf_htonl(LEAST_ADDRESS)) /* the relay's */
		return 1;
	full = ctx->sk ? bpf_skc_to_tcp_sock(ctx->sk) : NULL;
	if (!full || BPF_CORE_READ_BITFIELD((const struct sock *)full, sk_kern_sock) ||
	    !ask_listener(ctx))
		return 1;
	rec = (struct tp_record){.cookie = bpf_get_socket_cookie(ctx),
				 .netns = bpf_get_netns_cookie(ctx),
				 .dst = endpoint(ctx->user_ip4, bpf_ntohs(ctx->user_port)),
				 .proxy_port = bpf_ntohs(ctx->user_port)};
	if (ask_destination(&rec))
		return 1;
	ask_client(&rec);
	ask_congestion(ctx, full, &rec);
	if (!bpf_map_update_elem(&map_socks, &rec.cookie, &rec, BPF_NOEXIST))
		COUNT(redirected);
	return 1;
}

/* --- the life of a connection ---------------------------------------------------------------- */

static __always_inline void client_connecting(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct tp_record *rec = bpf_map_lookup_elem(&map_socks, &cookie);
	struct tp_port_key key;

	if (!rec)
		return;
	rec->src = endpoint(ctx->local_ip4, ctx->local_port);
	tp_port_key_set(&key, rec->netns, &rec->src, 0);
	bpf_map_update_elem(&map_ports, &key, &cookie, BPF_ANY);
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void relay_accepted(struct bpf_sock_ops *ctx)
{
	struct tp_mark *mark = ctx->sk ? bpf_sk_storage_get(&map_listeners, ctx->sk, 0, 0) : NULL;
	struct tp_endpoint client;
	struct tp_port_key key;
	struct tp_record *rec;
	__u64 *cookie;

	if (!mark)
		return;
	client = endpoint(ctx->remote_ip4, bpf_ntohl(ctx->remote_port));
	tp_port_key_set(&key, mark->netns, &client, 0);
	cookie = bpf_map_lookup_elem(&map_ports, &key);
	rec = cookie ? bpf_map_lookup_elem(&map_socks, cookie) : NULL;
	if (!rec)
		return;
	mark->client = *rec;
	__sync_fetch_and_add(&rec->reached, TP_REACHED_ACCEPTED);
	COUNT(accepted);
}

static __always_inline void client_closed(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx), *owner;
	struct tp_record *rec = bpf_map_lookup_elem(&map_socks, &cookie);
	struct tp_port_key key;

	if (!rec)
		return;
	tp_port_key_set(&key, rec->netns, &rec->src, 0);
	owner = bpf_map_lookup_elem(&map_ports, &key);
	if (owner && *owner == cookie)
		bpf_map_delete_elem(&map_ports, &key);
	if (!bpf_map_delete_elem(&map_socks, &cookie))
		COUNT(record_freed);
}

SEC("sockops")
int prog_sockops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (ctx->remote_ip4 == bpf_htonl(LEAST_ADDRESS))
			client_connecting(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		relay_accepted(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == BPF_TCP_CLOSE)
			client_closed(ctx);
		break;
	}
	return 1;
}

/* Both ends of a client's connection have the same address; what was accepted has a mark. */
SEC("cgroup/sock_release")
int prog_sock_release(struct bpf_sock *sk)
{
	struct tp_record *rec;
	__u64 cookie;

	if (sk->dst_ip4 != bpf_htonl(LEAST_ADDRESS) || bpf_sk_storage_get(&map_listeners, sk, 0, 0))
		return 1;
	cookie = bpf_get_socket_cookie(sk);
	rec = bpf_map_lookup_elem(&map_socks, &cookie);
	if (rec)
		__sync_fetch_and_add(&rec->reached, TP_REACHED_RELEASED);
	return 1;
}

/* Nobody asks here but accept(). */
SEC("cgroup/getpeername4")
int prog_getpeername4(struct bpf_sock_addr *ctx)
{
	(void)ctx;
	return 1;
}

/* --- the listener's filter ------------------------------------------------------------------- */

static __always_inline struct tp_endpoint client_of(const __u8 *head)
{
	return endpoint(*(const __be32 *)(head + 12), head[IP_HEADER] << 8 | head[IP_HEADER + 1]);
}

/*
 * A packet that comes while its connection moves from its request to its own socket finds the
 * listener, which would answer with a reset: it is handed over, too. A large one is dropped, and
 * the client sends it again by itself.
 */
static __always_inline int stray(struct __sk_buff *skb, const __u8 *head)
{
	const __u8 *tcp = head + IP_HEADER;
	struct tp_event_stray *event;
	__u32 len;

	event = bpf_ringbuf_reserve(&ring,
				    offsetof(struct tp_event_stray, segment) + TP_STRAY_SMALL, 0);
	if (!event)
		return PACKET_DROP;
	len = skb->len;
	if (!len_bound(&len, TCP_HEADER, TP_STRAY_SMALL) ||
	    bpf_skb_load_bytes(skb, 0, event->segment, len)) {
		bpf_ringbuf_discard(event, 0);
		return PACKET_DROP;
	}
	event->type = TP_EVENT_STRAY;
	event->len = len;
	event->client = client_of(head);
	event->proxy_port = tcp[2] << 8 | tcp[3];
	bpf_ringbuf_submit(event, 0);
	return PACKET_DROP;
}

/* Takes what the server sees of the client off the SYN that is sent again. */
static __always_inline int granted(struct __sk_buff *skb, const __u8 *tcp)
{
	__u32 header = (tcp[12] >> 4) * 4;
	struct tp_grant grant;
	struct tp_record *rec;

	if (!(tcp[13] & TCP_SYN))
		return PACKET_PASS;
	if (bpf_skb_load_bytes(skb, header, &grant, sizeof(grant)))
		return PACKET_DROP;
	rec = bpf_map_lookup_elem(&map_socks, &grant.cookie);
	if (rec)
		rec->local = grant.local;
	return header;
}

static __always_inline struct tp_record *record_of(struct __sk_buff *skb, const __u8 *head)
{
	struct tp_endpoint client = client_of(head);
	__u64 listener = bpf_get_socket_cookie(skb);
	struct tp_door *door = bpf_map_lookup_elem(&map_doors, &listener);
	struct tp_port_key key;
	__u64 *cookie;

	if (!door)
		return NULL;
	tp_port_key_set(&key, door->netns, &client, 0);
	cookie = bpf_map_lookup_elem(&map_ports, &key);
	return cookie ? bpf_map_lookup_elem(&map_socks, cookie) : NULL;
}

SEC("socket")
int prog_doorman(struct __sk_buff *skb)
{
	struct tp_event_syn *event;
	__u8 head[IP_HEADER + TCP_HEADER];
	__u8 *tcp = head + IP_HEADER;
	struct bpf_sock *sk = skb->sk;
	struct tp_record *rec;

	if (sk && sk->state != BPF_TCP_LISTEN)
		return PACKET_PASS;
	if (bpf_skb_load_bytes(skb, 0, tcp, TCP_HEADER))
		return PACKET_DROP;
	if (!(tcp[13] & TCP_SYN) && skb->len == (tcp[12] >> 4) * 4) /* the end of a handshake */
		return PACKET_PASS;
	if (bpf_skb_load_bytes_relative(skb, 0, head, IP_HEADER, BPF_HDR_START_NET))
		return PACKET_DROP;
	if (skb->mark == LEAST_GRANT)
		return granted(skb, tcp);
	if (!(tcp[13] & TCP_SYN))
		return stray(skb, head);
	if (tcp[13] != TCP_SYN || tcp[12] >> 4 != (TCP_HEADER + LEAST_OPTIONS) / 4)
		return PACKET_DROP; /* none that a client of the bench sends */
	rec = record_of(skb, head);
	event = rec ? bpf_ringbuf_reserve(&ring, sizeof(*event), 0) : NULL;
	if (!event)
		return PACKET_DROP;
	event->type = TP_EVENT_SYN;
	event->client = *rec;
	event->syn.seq = tcp[4] << 24 | tcp[5] << 16 | tcp[6] << 8 | tcp[7];
	event->syn.window = tcp[14] << 8 | tcp[15];
	event->syn.flags = TCP_SYN;
	event->syn.options_len = LEAST_OPTIONS;
	if (bpf_skb_load_bytes_relative(skb, sizeof(head), event->syn.options, LEAST_OPTIONS,
					BPF_HDR_START_NET)) {
		bpf_ringbuf_discard(event, 0);
		return PACKET_DROP;
	}
	bpf_ringbuf_submit(event, 0);
	COUNT(held);
	return PACKET_DROP;
}

/* bpf_skc_to_tcp_sock is for GPL programs only; what is BSD-licensed may be used as one. */
char _license[] SEC("license") = "Dual BSD/GPL";
