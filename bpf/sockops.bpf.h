/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The life of a record after connect(). It is freed when the client's connection has ended and its
 * descriptor has gone, whichever comes last; the accepted socket has a copy of its own by then.
 *
 * barrier() ends one branch wherever two read different context fields: clang would otherwise merge
 * the loads into one through a computed pointer, which the verifier refuses.
 */
#ifndef TPROXY_SOCKOPS_BPF_H
#define TPROXY_SOCKOPS_BPF_H

static __always_inline void port_free(struct tp_record *rec, __u64 cookie)
{
	struct tp_port_key key;
	__u64 *owner;

	if (!rec->src.family)
		return;
	tp_port_key_set(&key, rec->netns, &rec->src, rec->proxy_port);
	owner = bpf_map_lookup_elem(&map_ports, &key);
	if (owner && *owner == cookie)
		bpf_map_delete_elem(&map_ports, &key);
}

/* Returns what has been reached, this included; a second time it is not added. */
static __always_inline __u32 record_reach(struct tp_record *rec, __u32 what)
{
	if (!(rec->reached & what))
		__sync_fetch_and_add(&rec->reached, what);
	return rec->reached;
}

static __always_inline void record_free(__u64 cookie)
{
	if (!bpf_map_delete_elem(&map_socks, &cookie)) /* two may find both reached */
		COUNT(record_freed);
}

/* A client that was lent something for its handshake has this callback, which nothing here needs,
 * for a note of it: it is there without a look-up. Whose callbacks another program has written
 * over is looked up, too, where that can be seen. */
#define CALLBACK_LENT BPF_SOCK_OPS_RTO_CB_FLAG

static __always_inline int is_lent_nothing(struct bpf_sock_ops *ctx)
{
	const int all = BPF_SOCK_OPS_STATE_CB_FLAG | CALLBACK_LENT;

	return (ctx->bpf_sock_ops_cb_flags & all) == BPF_SOCK_OPS_STATE_CB_FLAG;
}

/* TCP_USER_TIMEOUT in ms; bpf_getsockopt knows it from Linux 6.1 on. */
static __always_inline __u32 user_timeout(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct inet_connection_sock *full = sk ? (void *)bpf_skc_to_tcp_sock(sk) : NULL;

	return full ? full->icsk_user_timeout : 0;
}

/*
 * The upper bound of a held connect(). TCP_USER_TIMEOUT makes the kernel end the handshake with the
 * ETIMEDOUT of its own; it is taken back when the handshake has succeeded. A client that has set
 * one keeps its own.
 */
static __always_inline void connect_timeout_set(struct bpf_sock_ops *ctx, struct tp_record *rec)
{
	struct tp_config *cfg = config_get();
	__u32 slot = rec->slot;
	int timeout;

	if (!cfg || slot >= TP_MAX_PROXIES || !cfg->proxies[slot].connect_timeout ||
	    user_timeout(ctx))
		return;
	timeout = cfg->proxies[slot].connect_timeout;
	if (!bpf_setsockopt(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout)))
		rec->flags |= TP_RECORD_TIMEOUT_LENT;
}

static __always_inline void connect_timeout_take_back(struct bpf_sock_ops *ctx,
						      struct tp_record *rec)
{
	int none = 0;

	if (rec->flags & TP_RECORD_TIMEOUT_LENT)
		bpf_setsockopt(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT, &none, sizeof(none));
	rec->flags &= ~TP_RECORD_TIMEOUT_LENT;
}

static __always_inline void reuseaddr_take_back(struct bpf_sock_ops *ctx, struct tp_record *rec)
{
	int off = 0;

	if (rec->flags & TP_RECORD_REUSE_LENT)
		bpf_setsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &off, sizeof(off));
	rec->flags &= ~TP_RECORD_REUSE_LENT;
}

/* Others have no record that it would take a look-up to miss. */
static __always_inline int is_redirected(struct bpf_sock_ops *ctx)
{
	__be32 w[4];

	if (ctx->family == AF_INET)
		return ctx->remote_ip4 == LOOPBACK_V4;
	barrier();
	w[0] = ctx->remote_ip6[0];
	w[1] = ctx->remote_ip6[1];
	w[2] = ctx->remote_ip6[2];
	w[3] = ctx->remote_ip6[3];
	return ip_is_proxy_address(w);
}

/*
 * The same of a socket that is asked about, or released. One that is not connected may have a
 * record whatever its address is: it keeps that of an earlier connection, or of an attempt that
 * came to nothing. What has ended by itself still has its peer.
 */
static __always_inline int may_have_record(struct bpf_sock *sk)
{
	__be32 w[4];

	if (!sk->dst_port)
		return 1;
	if (sk->family == AF_INET)
		return sk->dst_ip4 == LOOPBACK_V4;
	barrier();
	w[0] = sk->dst_ip6[0];
	w[1] = sk->dst_ip6[1];
	w[2] = sk->dst_ip6[2];
	w[3] = sk->dst_ip6[3];
	return ip_is_proxy_address(w);
}

/* What a proxy has accepted has the proxy's address as its peer's, too, and a mark instead of a
 * record. */
static __always_inline struct tp_mark *accepted_mark(struct bpf_sock *sk)
{
	struct tp_mark *mark = bpf_sk_storage_get(&map_listeners, sk, 0, 0);

	return mark && mark->role == TP_ROLE_ACCEPTED ? mark : NULL;
}

/* Client end: the handshake is over, and what was changed for it is as it was. Only one that was
 * lent something has to be looked up. */
static __always_inline void client_connected(struct bpf_sock_ops *ctx)
{
	__u64 cookie;
	struct tp_record *rec;

	if (is_lent_nothing(ctx) || !is_redirected(ctx))
		return;
	cookie = bpf_get_socket_cookie(ctx);
	rec = bpf_map_lookup_elem(&map_socks, &cookie);
	if (!rec)
		return;
	connect_timeout_take_back(ctx, rec);
	reuseaddr_take_back(ctx, rec);
}

/*
 * Whether a record is of an earlier attempt: hooks of another generation have redirected this one.
 * That it is over tells, or that the generation in force, mostly ours, has a later one.
 */
static __always_inline int is_superseded(const struct tp_record *rec, __u64 *cookie)
{
	__u32 present = TP_LIVE_PRESENT;
	struct tp_record *other;
	void *socks;

	if (rec->reached & TP_REACHED_CLOSED)
		return 1;
	socks = bpf_map_lookup_elem(&map_live_socks, &present);
	if (!socks || map_id(socks) == map_id(&map_socks))
		return 0; /* ours is the one in force */
	other = bpf_map_lookup_elem(socks, cookie);
	return other && other->start_ns > rec->start_ns;
}

/* Client end. What matters is the family of the connection, not of the socket (v4-mapped). */
static __always_inline void client_connecting(struct bpf_sock_ops *ctx)
{
	struct tp_endpoint src = {};
	struct tp_port_key key;
	struct tp_record *rec;
	__u64 cookie;
	int callbacks;

	if (!is_redirected(ctx))
		return;
	cookie = bpf_get_socket_cookie(ctx);
	rec = bpf_map_lookup_elem(&map_socks, &cookie);
	if (!rec)
		return;
	if (is_superseded(rec, &cookie)) {
		record_free(cookie);
		return;
	}
	src.family = rec->dst.family;
	src.port = ctx->local_port;
	if (src.family == AF_INET) {
		ip_set_v4(src.ip, ctx->local_ip4);
		barrier();
	} else {
		ip_set_v6(src.ip, ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2],
			  ctx->local_ip6[3]);
	}
	rec->src = src;
	connect_timeout_set(ctx, rec);
	tp_port_key_set(&key, rec->netns, &src, rec->proxy_port);
	if (bpf_map_update_elem(&map_ports, &key, &cookie, BPF_ANY))
		COUNT(no_port_space);
	callbacks = ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;
	if (rec->flags & (TP_RECORD_REUSE_LENT | TP_RECORD_TIMEOUT_LENT))
		callbacks |= CALLBACK_LENT;
	bpf_sock_ops_cb_flags_set(ctx, callbacks);
}

/* Client end: the socket may live on, and connect to somewhere else. */
static __always_inline void congestion_take_back(struct bpf_sock_ops *ctx, struct tp_record *rec)
{
	char now[TP_CC_LEN] = "";

	if (!(rec->flags & TP_RECORD_CONGESTION_LENT))
		return;
	/* Unless it has chosen another one since. */
	if (!bpf_getsockopt(ctx, IPPROTO_TCP, TCP_CONGESTION, now, sizeof(now)) &&
	    cc_is(now, TP_CC_LOCAL))
		bpf_setsockopt(ctx, IPPROTO_TCP, TCP_CONGESTION, rec->congestion, TP_CC_LEN);
	rec->flags &= ~TP_RECORD_CONGESTION_LENT;
}

/*
 * Client end, on the way to CLOSE. One that never got in may have a tproxyd connecting for it. The
 * record stays for getsockname as long as somebody has the socket open.
 */
static __always_inline void client_closed(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct tp_record *rec = bpf_map_lookup_elem(&map_socks, &cookie);

	if (!rec)
		return;
	if (!(rec->reached & TP_REACHED_ACCEPTED)) /* not even when its own handshake was over */
		hold_gone(rec, cookie);
	if (ctx->args[0] == BPF_TCP_SYN_SENT) {
		connect_timeout_take_back(ctx, rec);
		reuseaddr_take_back(ctx, rec);
	}
	if (!(rec->reached & TP_REACHED_RELEASED))
		congestion_take_back(ctx, rec);
	port_free(rec, cookie);
	/* From here on it may be freed, and be another's. */
	if (record_reach(rec, TP_REACHED_CLOSED) & TP_REACHED_RELEASED)
		record_free(cookie);
}

/* Nobody has the client's socket open any more; its connection may still be ending. */
static __always_inline void client_released(struct bpf_sock *sk)
{
	struct tp_record *rec;
	__u64 cookie;

	if (!may_have_record(sk) || accepted_mark(sk))
		return;
	cookie = bpf_get_socket_cookie(sk);
	rec = bpf_map_lookup_elem(&map_socks, &cookie);
	if (!rec)
		return;
	/* One whose SYN was never sent (TCP_FASTOPEN_CONNECT) is in SYN_SENT, and STATE_CB not on.
	 */
	if (!(record_reach(rec, TP_REACHED_RELEASED) & TP_REACHED_CLOSED) &&
	    sk->state != BPF_TCP_CLOSE && rec->src.family)
		return;
	port_free(rec, cookie);
	record_free(cookie);
}

/* Accepted end, before accept() can return it. Of two generations either may know the client, or
 * both. */
static __always_inline void proxy_accepted(struct bpf_sock_ops *ctx)
{
	struct tp_endpoint peer = {};
	struct tp_port_key key;
	struct tp_record *rec;
	struct bpf_sock *sk = ctx->sk;
	struct tp_mark *mark;
	__u64 *cookie;

	if (!sk)
		return;
	mark = bpf_sk_storage_get(&map_listeners, sk, 0, 0);
	if (!mark || (mark->role != TP_ROLE_LISTENER && mark->role != TP_ROLE_LEAVING &&
		      mark->role != TP_ROLE_ACCEPTED))
		return;
	if (ctx->family == AF_INET) {
		ip_set_v4(peer.ip, ctx->remote_ip4);
		barrier();
	} else {
		ip_set_v6(peer.ip, ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2],
			  ctx->remote_ip6[3]);
	}
	peer.port = bpf_ntohl(ctx->remote_port);
	tp_port_key_set(&key, mark->netns, &peer, ctx->local_port);
	cookie = bpf_map_lookup_elem(&map_ports, &key);
	rec = cookie ? bpf_map_lookup_elem(&map_socks, cookie) : NULL;
	if (!is_record_of(rec, peer.port))
		rec = NULL;
	if (mark->role == TP_ROLE_ACCEPTED) {
		if (rec)
			record_reach(rec, TP_REACHED_ACCEPTED);
		return;
	}
	if (!rec) {
		COUNT(accepted_unknown);
		return;
	}
	mark->client = *rec;
	mark->role = TP_ROLE_ACCEPTED;
	record_reach(rec, TP_REACHED_ACCEPTED); /* the last that is asked of it */
	COUNT(accepted);
}

#endif
