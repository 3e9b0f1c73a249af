/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * getsockopt on the accepted end: SO_ORIGINAL_DST as netfilter's REDIRECT answers it, so that
 * proxies written for that work unchanged. Answered from the socket's own copy of the record, even
 * where the kernel's call succeeded: with conntrack active it names the proxy itself, and a proxy
 * that believes it dials itself.
 */
#ifndef TPROXY_SOCKOPT_BPF_H
#define TPROXY_SOCKOPT_BPF_H

#define SOL_IP		0
#define SOL_IPV6	41
#define SO_ORIGINAL_DST 80 /* IP6T_SO_ORIGINAL_DST is the same number */

struct sockaddr_in_out {
	__u16 family;
	__be16 port;
	__be32 addr;
	__u8 zero[8];
};

struct sockaddr_in6_out {
	__u16 family;
	__be16 port;
	__be32 flowinfo;
	__u8 addr[16];
	__u32 scope_id;
};

/* clang merges the two stores into one of 8 bytes, which the verifier rejects: hence volatile. */
static __always_inline void sockopt_done(struct bpf_sockopt *ctx, int len)
{
	*(volatile int *)&ctx->optlen = len;
	*(volatile int *)&ctx->retval = 0;
}

/* An error of our own choice needs Linux 5.18; before, the kernel's own error stands. */
static __always_inline int sockopt_fail(struct bpf_sockopt *ctx, int err)
{
	if (!retval_settable())
		return 1;
	*(volatile int *)&ctx->optlen = 0;
	retval_set(err);
	return 1;
}

static __always_inline int answer_v4(struct bpf_sockopt *ctx, const struct tp_record *rec)
{
	struct sockaddr_in_out *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return sockopt_fail(ctx, -EINVAL);
	if (rec->dst.family != AF_INET) {
		COUNT(original_dst_missing);
		return sockopt_fail(ctx, -ENOENT);
	}
	out->family = AF_INET;
	out->port = bpf_htons(rec->dst.port);
	out->addr = ip_v4(rec->dst.ip);
	__builtin_memset(out->zero, 0, sizeof(out->zero));
	sockopt_done(ctx, sizeof(*out));
	COUNT(original_dst);
	return 1;
}

static __always_inline int answer_v6(struct bpf_sockopt *ctx, const struct tp_record *rec)
{
	struct sockaddr_in6_out *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return sockopt_fail(ctx, -EINVAL);
	if (rec->dst.family != AF_INET6) {
		COUNT(original_dst_missing);
		return sockopt_fail(ctx, -ENOENT);
	}
	out->family = AF_INET6;
	out->port = bpf_htons(rec->dst.port);
	out->flowinfo = 0;
	__builtin_memcpy(out->addr, rec->dst.ip, sizeof(out->addr));
	out->scope_id = 0;
	sockopt_done(ctx, sizeof(*out));
	COUNT(original_dst);
	return 1;
}

/*
 * The record of a client that was lent its congestion control. A socket's cookie and network
 * namespace cannot be asked for here on all kernels; but only clients of a tproxyd are lent any.
 */
static __always_inline const struct tp_record *lent_record(struct bpf_sock *sk)
{
	struct tp_config *cfg = config_get();
	struct tp_endpoint src = {};

	if (!cfg)
		return NULL;
	src.port = sk->src_port;
	if (sk->family == AF_INET) {
		ip_set_v4(src.ip, sk->src_ip4);
		barrier();
	} else {
		ip_set_v6(src.ip, sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]);
	}
	for (int i = 0; i < TP_MAX_PROXIES; i++) {
		const struct tp_record *rec;
		struct tp_port_key key;
		__u64 *cookie;

		if (!cfg->proxies[i].netns)
			continue;
		tp_port_key_set(&key, cfg->proxies[i].netns, &src, bpf_ntohs(sk->dst_port));
		cookie = bpf_map_lookup_elem(&map_ports, &key);
		rec = cookie ? bpf_map_lookup_elem(&map_socks, cookie) : NULL;
		if (rec && rec->flags & TP_RECORD_CONGESTION_LENT)
			return rec;
	}
	return NULL;
}

static __always_inline int answer_congestion(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct tp_record *rec;
	char *out = ctx->optval;

	if (!sk || sk->protocol != IPPROTO_TCP || (void *)(out + 3) > ctx->optval_end ||
	    !cc_is(out, TP_CC_LOCAL))
		return 1;
	rec = lent_record(sk);
	if (!rec)
		return 1;
	out = ctx->optval;
	for (int i = 0; i < TP_CC_LEN && (void *)(out + i + 1) <= ctx->optval_end; i++)
		out[i] = rec->congestion[i];
	return 1;
}

static __always_inline int sockopt_answer(struct bpf_sockopt *ctx)
{
	const struct tp_record *rec;
	struct tp_mark *mark;
	struct bpf_sock *sk;

	/*
	 * A buffer larger than a page is shown to us cut short, and the call would then fail with
	 * EFAULT for every program of the cgroup (iptables reads such): say "nothing changed".
	 */
	if (ctx->optlen > ctx->optval_end - ctx->optval) {
		ctx->optlen = 0;
		return 1;
	}
	if (ctx->level == IPPROTO_TCP && ctx->optname == TCP_CONGESTION)
		return answer_congestion(ctx);
	if (ctx->optname != SO_ORIGINAL_DST)
		return 1;
	sk = ctx->sk;
	if (!sk || sk->protocol != IPPROTO_TCP)
		return 1;
	mark = bpf_sk_storage_get(&map_listeners, sk, 0, 0);
	if (!mark || (mark->role != TP_ROLE_LISTENER && mark->role != TP_ROLE_LEAVING &&
		      mark->role != TP_ROLE_ACCEPTED))
		return 1;
	rec = &mark->client; /* all zero while there is none */
	if (ctx->level == SOL_IP)
		return answer_v4(ctx, rec);
	if (ctx->level == SOL_IPV6 && sk->family == AF_INET6)
		return answer_v6(ctx, rec);
	return 1;
}

#endif
