// SPDX-License-Identifier: BSD-2-Clause
/*
 * The least that hooks do for a proxy that holds handshakes and shows its connections in two maps:
 * an entry in each, made and removed, and the SYN handed over and dropped. They ask nothing, decide
 * nothing and answer nothing. Those of cgroups are for clients alone; IPv4 without IP options.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#include "../../bpf/abi.h"
#include "../../bpf/compat.bpf.h"
#include "least.h"

#define AF_INET	    2
#define IP_HEADER   20
#define TCP_HEADER  20
#define TCP_SYN	    0x02
#define PACKET_PASS 0x7fffffff
#define PACKET_DROP 0

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct tp_record);
} socks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct tp_port_key);
	__type(value, __u64);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, TP_RING_SIZE);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u64);
	__type(value, __u32);
} listeners SEC(".maps");

SEC("cgroup/connect4")
int prog_connect4(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct tp_record rec = {.cookie = cookie};

	rec.dst.port = bpf_ntohs(ctx->user_port);
	bpf_map_update_elem(&socks, &cookie, &rec, BPF_ANY);
	return 1;
}

static __always_inline void port_key(struct bpf_sock_ops *ctx, struct tp_port_key *ret_key)
{
	struct tp_endpoint client = {.port = ctx->local_port};

	*(__be32 *)(client.ip + 12) = ctx->local_ip4;
	tp_port_key_set(ret_key, 0, &client, 0);
}

SEC("sockops")
int prog_sockops(struct bpf_sock_ops *ctx)
{
	struct tp_port_key key;
	__u64 cookie;

	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		cookie = bpf_get_socket_cookie(ctx);
		port_key(ctx, &key);
		bpf_map_update_elem(&ports, &key, &cookie, BPF_ANY);
		bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	} else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE) {
		cookie = bpf_get_socket_cookie(ctx);
		port_key(ctx, &key);
		bpf_map_delete_elem(&ports, &key);
		bpf_map_delete_elem(&socks, &cookie);
	}
	return 1;
}

static __always_inline struct tp_endpoint client_of(const __u8 *head)
{
	struct tp_endpoint client = {.family = AF_INET,
				     .port = head[IP_HEADER] << 8 | head[IP_HEADER + 1]};

	__builtin_memcpy(client.ip + 12, head + 12, 4);
	return client;
}

/*
 * A packet that comes while its connection moves from its request to its own socket finds the
 * listener, which would answer with a reset: it is handed over, too. A large one is dropped, and
 * the client sends it again by itself.
 */
static __always_inline int stray(struct __sk_buff *skb, const __u8 *head)
{
	const __u8 *tcp = head + IP_HEADER;
	__u64 socket = bpf_get_socket_cookie(skb);
	struct tp_event_stray *event;
	__u32 len;

	if (skb->len == (tcp[12] >> 4) * 4 || !bpf_map_lookup_elem(&listeners, &socket))
		return PACKET_PASS;
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

SEC("socket")
int prog_doorman(struct __sk_buff *skb)
{
	struct tp_event_syn *event;
	__u8 head[IP_HEADER + TCP_HEADER];
	__u8 *tcp = head + IP_HEADER;

	if (bpf_skb_load_bytes_relative(skb, 0, head, sizeof(head), BPF_HDR_START_NET))
		return PACKET_DROP;
	if (skb->mark == LEAST_GRANT) /* without the payload, which is tproxyd's */
		return (tcp[12] >> 4) * 4;
	if (!(tcp[13] & TCP_SYN))
		return stray(skb, head);
	if (tcp[13] != TCP_SYN || tcp[12] >> 4 != (TCP_HEADER + LEAST_OPTIONS) / 4)
		return PACKET_DROP; /* none that a client of the bench sends */
	event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event)
		return PACKET_DROP;
	__builtin_memset(event, 0, sizeof(*event));
	event->type = TP_EVENT_SYN;
	event->client.src = client_of(head);
	event->client.proxy_port = tcp[2] << 8 | tcp[3];
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
	return PACKET_DROP;
}

char _license[] SEC("license") = "BSD"; /* none of what it does takes the GPL */
