// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Theory of operation, hook by hook:
 *
 * - connect4/6 decides what happens to a connect() (connect.bpf.h). A redirected one leaves a
 * record in map_socks under the client's socket cookie.
 * - sockops, at the client's end: TCP_CONNECT, when the port is known and the SYN unsent, ties the
 *   port to the cookie in map_ports; STATE -> CLOSE frees the port. At the accepted end, known
 * by the mark cloned from its listener, PASSIVE_ESTABLISHED copies the record to the socket, where
 * it lives as long as the socket does.
 * - sock_release, or the CLOSE that comes after it, frees the record.
 * - getsockopt answers SO_ORIGINAL_DST, on the accepted end.
 * - getpeername answers with the original destination, on the client's end, and tells tproxyd's
 *   accept() who came in.
 * - getsockname answers with the address and port the server sees, once tproxyd knows it.
 * - doorman, a filter on tproxyd's listeners, holds handshakes until the upstream is connected.
 *
 * Every entry point leaves at once, and counts why, what is not its business.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#include "abi.h"
#include "compat.bpf.h"
#include "maps.bpf.h"
#include "addr.bpf.h"
#include "connect.bpf.h"
#include "doorman.bpf.h"
#include "sockops.bpf.h"
#include "sockopt.bpf.h"

static __always_inline int is_tcp(struct bpf_sock_addr *ctx)
{
	return ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP;
}

SEC("cgroup/connect4")
int tp_connect4(struct bpf_sock_addr *ctx)
{
	struct tp_endpoint dst = {.family = AF_INET};
	struct tp_config *cfg = config_get();
	enum verdict verdict;
	__u16 port = 0;

	if (!cfg || ctx->user_family != AF_INET) /* another family is refused */
		return 1;
	if (!is_tcp(ctx)) {
		COUNT(not_tcp);
		return 1;
	}
	ip_set_v4(dst.ip, ctx->user_ip4);
	dst.port = bpf_ntohs(ctx->user_port);
	verdict = connect_decide(ctx, cfg, &dst, &port);
	if (verdict != VERDICT_REDIRECT)
		return connect_not_redirected(ctx, cfg, &dst, verdict);
	ctx->user_ip4 = LOOPBACK_V4;
	ctx->user_port = bpf_htons(port);
	return 1;
}

SEC("cgroup/connect6")
int tp_connect6(struct bpf_sock_addr *ctx)
{
	struct tp_endpoint dst = {.family = AF_INET6};
	struct tp_config *cfg = config_get();
	enum verdict verdict;
	__u16 port = 0;

	if (!cfg || ctx->user_family != AF_INET6) /* another family is refused */
		return 1;
	if (!is_tcp(ctx)) {
		COUNT(not_tcp);
		return 1;
	}
	ip_set_v6(dst.ip, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
	dst.port = bpf_ntohs(ctx->user_port);
	if (ip_is_v4(dst.ip))
		dst.family = AF_INET;
	verdict = connect_decide(ctx, cfg, &dst, &port);
	if (verdict != VERDICT_REDIRECT)
		return connect_not_redirected(ctx, cfg, &dst, verdict);
	ctx->user_ip6[0] = 0;
	ctx->user_ip6[1] = 0;
	if (dst.family == AF_INET) {
		ctx->user_ip6[2] = V4_MAPPED_WORD;
		ctx->user_ip6[3] = LOOPBACK_V4;
	} else {
		ctx->user_ip6[2] = 0;
		ctx->user_ip6[3] = bpf_htonl(1);
	}
	ctx->user_port = bpf_htons(port);
	return 1;
}

SEC("sockops")
int tp_sockops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		client_connecting(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		client_connected(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		proxy_accepted(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == BPF_TCP_CLOSE)
			client_closed(ctx);
		break;
	}
	return 1; /* and ctx->reply as it is: other programs' tuning stands */
}

SEC("cgroup/sock_release")
int tp_sock_release(struct bpf_sock *sk)
{
	if (sk->protocol == IPPROTO_TCP)
		client_released(sk);
	return 1;
}

SEC("cgroup/getsockopt")
int tp_getsockopt(struct bpf_sockopt *ctx)
{
	return sockopt_answer(ctx);
}

static __always_inline struct tp_record *client_record(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 cookie;

	if (!sk || !may_have_record(sk))
		return NULL;
	cookie = bpf_get_socket_cookie(ctx);
	return bpf_map_lookup_elem(&map_socks, &cookie);
}

/* accept() asks here for the address that it returns. A client that chose its own has no tag. */
static __always_inline struct tp_mark *tagged_mark(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tp_mark *mark = sk && may_have_record(sk) ? accepted_mark(sk) : NULL;

	return mark && mark->tagged ? mark : NULL;
}

SEC("cgroup/getpeername4")
int tp_getpeername4(struct bpf_sock_addr *ctx)
{
	struct tp_mark *mark = tagged_mark(ctx);
	struct tp_record *rec;

	if (mark) {
		__u64 tag = tp_tag(&mark->client);

		ctx->user_ip4 = bpf_htonl(TP_TAG_V4 | tag >> 16);
		ctx->user_port = bpf_htons(tag);
		return 1;
	}
	rec = client_record(ctx);
	if (rec && rec->dst.family == AF_INET) {
		ctx->user_ip4 = ip_v4(rec->dst.ip);
		ctx->user_port = bpf_htons(rec->dst.port);
		COUNT(peername);
	}
	return 1;
}

SEC("cgroup/getpeername6")
int tp_getpeername6(struct bpf_sock_addr *ctx)
{
	struct tp_mark *mark = tagged_mark(ctx);
	struct tp_record *rec;

	if (mark) {
		__u64 tag = tp_tag(&mark->client);

		ctx->user_ip6[0] = bpf_htonl(TP_TAG_V6);
		ctx->user_ip6[3] = bpf_htonl(tag >> 16);
		ctx->user_port = bpf_htons(tag);
		return 1;
	}
	rec = client_record(ctx);
	if (rec) {
		const __be32 *w = (const __be32 *)rec->dst.ip;

		ctx->user_ip6[0] = w[0];
		ctx->user_ip6[1] = w[1];
		ctx->user_ip6[2] = w[2];
		ctx->user_ip6[3] = w[3];
		ctx->user_port = bpf_htons(rec->dst.port);
		COUNT(peername);
	}
	return 1;
}

/*
 * Only what the socket has for the redirected connection is answered otherwise: not what it has
 * before or after, bound or disconnected. One that was bound to all of its source has that still
 * when its connection failed.
 */
static __always_inline int has_local(const struct tp_record *rec)
{
	const __u32 bound = TP_RECORD_BOUND_ADDR | TP_RECORD_BOUND_PORT;
	const __u32 over = TP_REACHED_ACCEPTED | TP_REACHED_CLOSED;

	return rec->local.family &&
	       !((rec->flags & bound) == bound && (rec->reached & over) == TP_REACHED_CLOSED);
}

SEC("cgroup/getsockname4")
int tp_getsockname4(struct bpf_sock_addr *ctx)
{
	struct tp_record *rec = client_record(ctx);

	if (rec && has_local(rec) && rec->local.family == AF_INET &&
	    ctx->user_ip4 == ip_v4(rec->src.ip) && ctx->user_port == bpf_htons(rec->src.port)) {
		ctx->user_ip4 = ip_v4(rec->local.ip);
		ctx->user_port = bpf_htons(rec->local.port);
		COUNT(sockname);
	}
	return 1;
}

SEC("cgroup/getsockname6")
int tp_getsockname6(struct bpf_sock_addr *ctx)
{
	struct tp_record *rec = client_record(ctx);
	const __be32 *src, *local;

	if (!rec || !has_local(rec))
		return 1;
	src = (const __be32 *)rec->src.ip;
	local = (const __be32 *)rec->local.ip;
	if (ctx->user_ip6[0] != src[0] || ctx->user_ip6[1] != src[1] ||
	    ctx->user_ip6[2] != src[2] || ctx->user_ip6[3] != src[3] ||
	    ctx->user_port != bpf_htons(rec->src.port))
		return 1;
	ctx->user_ip6[0] = local[0];
	ctx->user_ip6[1] = local[1];
	ctx->user_ip6[2] = local[2];
	ctx->user_ip6[3] = local[3];
	ctx->user_port = bpf_htons(rec->local.port);
	COUNT(sockname);
	return 1;
}

SEC("socket")
int tp_doorman(struct __sk_buff *skb)
{
	return doorman(skb);
}

/* bpf_skc_to_tcp_sock is for GPL programs only; the dual licence of the file includes it. */
char _license[] SEC("license") = "Dual BSD/GPL";
