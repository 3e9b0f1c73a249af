/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What happens to a connect(): one decision for IPv4, v4-mapped and IPv6. Nothing is redirected
 * without a trusted listener to receive it and a record to answer for it.
 */
#ifndef TPROXY_CONNECT_BPF_H
#define TPROXY_CONNECT_BPF_H

enum verdict {
	VERDICT_OWN,	  /* of a proxy: was never redirected, and passes */
	VERDICT_PASS,	  /* untouched */
	VERDICT_REDIRECT, /* to the proxy's port on loopback; the record is stored */
	VERDICT_NO_PROXY, /* nobody to take it: the failure policy decides */
	VERDICT_NO_PORT,  /* no local port for the upstream: what the kernel says of that */
	VERDICT_NO_ROUTE, /* no way to the destination: what the kernel says of that */
};

/* Kernel sockets (NFS, SMB, Ceph) are never touched: a refusal makes NFS spin. */
static __always_inline int is_kernel_socket(const struct sock *full)
{
	return full && BPF_CORE_READ_BITFIELD(full, sk_kern_sock);
}

/* With IP_TRANSPARENT a socket may be bound to any address, and its peer's answers to it need not
 * come to where a proxy is. */
static __always_inline int is_transparent(const struct inet_sock *inet)
{
	if (!inet)
		return 0;
	if (bpf_core_field_exists(inet->inet_flags))
		return inet->inet_flags >> INET_FLAGS_TRANSPARENT & 1;
	return BPF_CORE_READ_BITFIELD((const struct inet_sock___bits *)inet, transparent);
}

static __always_inline const struct tp_proxy *registered(struct bpf_sock_addr *ctx,
							 const struct tp_config *cfg, __u32 tgid)
{
	for (int i = 0; i < TP_MAX_PROXIES; i++)
		if (cfg->proxies[i].tgid == tgid &&
		    cfg->proxies[i].netns == bpf_get_netns_cookie(ctx))
			return &cfg->proxies[i];
	return NULL;
}

/* Who listens on a port of loopback in the client's own network namespace; to be released. */
static __always_inline struct bpf_sock *listener_lookup(struct bpf_sock_addr *ctx, __u16 port,
							int v4)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size;

	if (v4) {
		tuple.ipv4.daddr = LOOPBACK_V4;
		tuple.ipv4.dport = bpf_htons(port);
		size = sizeof(tuple.ipv4);
	} else {
		tuple.ipv6.daddr[3] = bpf_htonl(1);
		tuple.ipv6.dport = bpf_htons(port);
		size = sizeof(tuple.ipv6);
	}
	return bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
}

/*
 * A proxy that was killed stays registered, and its pid may be anybody's by now. Where its listener
 * has gone too, that must not spare him the refusal; under the other policy the question is not
 * asked: there it makes a difference only until the next tproxyd registers, and only where others
 * serve the other parts. One that is leaving still connects for those it let in.
 */
static __always_inline int is_own_connection(struct bpf_sock_addr *ctx, const struct tp_config *cfg,
					     __u32 tgid)
{
	const struct tp_proxy *proxy = registered(ctx, cfg, tgid);
	struct tp_mark *mark;
	struct bpf_sock *sk;
	int ours;

	if (!proxy)
		return 0;
	if (cfg->policy != TP_POLICY_REFUSE || !cfg->port)
		return 1;
	sk = listener_lookup(ctx, proxy->port ?: cfg->port, 1); /* it always listens on IPv4 */
	if (!sk)
		return 0;
	mark = bpf_sk_storage_get(&map_listeners, sk, 0, 0);
	ours = mark && (mark->role == TP_ROLE_LISTENER || mark->role == TP_ROLE_LEAVING);
	bpf_sk_release(sk);
	return ours;
}

enum { FOUND_NOBODY = -2, FOUND_STRANGER }; /* from 0 on: a proxy */

/*
 * Answers whether a proxy is up, its slot then, and whether it is ours rather than somebody
 * squatting on the port. Global, as the next: the verifier looks at what comes after it once, and
 * not once for each port and each answer, of which Linux 5.10 would see no end.
 */
__noinline int listener_at(struct bpf_sock_addr *ctx, __u32 port, __u32 v4)
{
	struct bpf_sock *sk = listener_lookup(ctx, port, v4);
	int found = FOUND_STRANGER;
	struct tp_mark *mark;

	if (!sk)
		return FOUND_NOBODY;
	mark = bpf_sk_storage_get(&map_listeners, sk, 0, 0);
	if (mark && mark->role == TP_ROLE_LISTENER) {
		found = (__u8)mark->slot;
		/* For sockops, which cannot ask before Linux 5.15; a proxy that is no tproxyd does
		 * not know it. */
		if (!mark->netns)
			mark->netns = bpf_get_netns_cookie(ctx);
	}
	bpf_sk_release(sk);
	return found;
}

/* From the at-th on, the next of the ports that a proxy serves: port << 8 | slot. */
__noinline int listener_search(struct bpf_sock_addr *ctx, __u32 first, __u32 ports, __u32 at,
			       __u32 v4)
{
	int ret = FOUND_NOBODY;

	for (__u32 i = 0; i < TP_MAX_PORTS && i < ports; i++, at++) {
		int found;

		if (at >= ports)
			at = 0;
		found = listener_at(ctx, first + at, v4);
		if (found >= 0)
			return (first + at) << 8 | found;
		if (found == FOUND_STRANGER)
			ret = found;
	}
	return ret;
}

/*
 * A client that has chosen a source port of its own goes to the first port: two with one source are
 * to meet there, see source_taken(). Where nobody serves a port its clients go to the next. Notes
 * in the record who takes it.
 */
static __always_inline enum verdict
listener_find(struct bpf_sock_addr *ctx, const struct tp_config *cfg, int v4, struct tp_record *rec)
{
	__u16 port = rec->flags & TP_RECORD_BOUND_PORT ? cfg->port : tp_port_of(cfg, rec->cookie);
	int found = listener_search(ctx, cfg->port, cfg->ports, port - cfg->port, v4);

	if (found >= 0) {
		rec->netns = bpf_get_netns_cookie(ctx);
		rec->slot = found;
		rec->proxy_port = found >> 8;
		return VERDICT_REDIRECT;
	}
	if (found == FOUND_NOBODY)
		COUNT(no_listener);
	else
		COUNT(untrusted_listener);
	return VERDICT_NO_PROXY;
}

/* The errno that connect() would meet for want of a route; 0: there is one, or it is not known. */
static __always_inline int route_error(__u64 netns, const struct tp_endpoint *dst)
{
	struct tp_route_key key;
	__u32 *error;

	key.prefixlen = 8 * (sizeof(key.netns) + sizeof(key.ip));
	key.netns = netns;
	__builtin_memcpy(key.ip, dst->ip, sizeof(key.ip));
	error = bpf_map_lookup_elem(&map_routes, &key);
	return error ? *error : 0;
}

/* A failure of the destination that is not long ago, or NULL. */
static __always_inline const struct tp_failed *failed_before(const struct tp_record *rec)
{
	const struct tp_failed *failed;
	struct tp_port_key key;

	tp_port_key_set(&key, rec->netns, &rec->dst, 0);
	failed = bpf_map_lookup_elem(&map_failed, &key);
	return failed && failed->until > bpf_ktime_get_boot_ns() ? failed : NULL;
}

static __always_inline enum verdict failed_verdict(const struct tp_failed *failed,
						   const struct tp_record *rec)
{
	if (!failed->error) {
		COUNT(failed_before);
		return VERDICT_PASS;
	}
	/* One that chose its source, or has a mark and so perhaps another, has other ports left. */
	if (!retval_settable() || rec->mark ||
	    rec->flags & (TP_RECORD_BOUND_ADDR | TP_RECORD_BOUND_PORT))
		return VERDICT_REDIRECT;
	COUNT(no_local_port);
	return VERDICT_NO_PORT;
}

/* See map_checked. That two destinations have one would cost an errno; so that nobody brings it
 * about, a number that is not known goes into it. */
static __always_inline __u64 fingerprint(const struct tp_config *cfg, const struct tp_record *rec,
					 __u32 changes)
{
	const __u64 spread = 0x9e3779b97f4a7c15;
	const __u32 *w = (const __u32 *)rec->dst.ip;
	__u64 h = (rec->netns ^ (__u64)changes << 32 ^ cfg->grant) * spread;

	h = (h ^ h >> 32 ^ ((__u64)w[0] << 32 | w[1])) * spread;
	h = (h ^ h >> 32 ^ ((__u64)w[2] << 32 | w[3])) * spread;
	h = (h ^ h >> 32 ^ rec->dst.port) * spread;
	return h ^ h >> 32;
}

/*
 * What is known against the destination; VERDICT_REDIRECT: nothing. With `changes` of before the
 * maps are read, what is found in them counts for no later state of theirs.
 */
static __always_inline enum verdict destination_check(const struct tp_config *cfg,
						      const struct tp_record *rec, __u32 changes)
{
	const struct tp_failed *failed;
	__u64 *checked = NULL, print = 0;

	if (!rec->mark) { /* a mark may have routes of its own */
		__u32 index;

		print = fingerprint(cfg, rec, changes);
		index = print % TP_CHECKED;
		checked = bpf_map_lookup_elem(&map_checked, &index);
		if (checked && *checked == print)
			return VERDICT_REDIRECT;
	}
	failed = failed_before(rec);
	if (failed) {
		enum verdict verdict = failed_verdict(failed, rec);

		if (verdict != VERDICT_REDIRECT)
			return verdict;
	}
	if (!rec->mark && route_error(rec->netns, &rec->dst)) {
		COUNT(no_route);
		return VERDICT_NO_ROUTE;
	}
	if (!failed && checked)
		*checked = print;
	return VERDICT_REDIRECT;
}

/*
 * The source that the client has chosen with bind(). Notes in the record what of it was chosen; an
 * address that was not is the loopback one, which the kernel will take for the redirected
 * connection.
 */
static __always_inline void source_read(struct bpf_sock *sk, struct tp_record *rec)
{
	rec->src.port = sk->src_port;
	if (rec->src.port)
		rec->flags |= TP_RECORD_BOUND_PORT;
	/* An IPv4 socket has leftovers of an earlier connection in src_ip6. */
	if (sk->family == AF_INET) {
		ip_set_v4(rec->src.ip, sk->src_ip4);
		barrier();
		if (ip_v4(rec->src.ip)) {
			rec->flags |= TP_RECORD_BOUND_ADDR;
			return;
		}
	} else {
		ip_set_v6(rec->src.ip, sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2],
			  sk->src_ip6[3]);
		if (!ip_is_zero(rec->src.ip)) {
			rec->flags |= TP_RECORD_BOUND_ADDR;
			return;
		}
	}
	if (rec->dst.family == AF_INET)
		ip_set_v4(rec->src.ip, LOOPBACK_V4);
	else
		ip_set_v6(rec->src.ip, 0, 0, 0, bpf_htonl(1));
}

/* One source port to two destinations is two connections; redirected, it would be one twice. */
static __always_inline int source_taken(const struct tp_record *rec)
{
	struct tp_port_key key;

	if (!(rec->flags & TP_RECORD_BOUND_PORT))
		return 0;
	tp_port_key_set(&key, rec->netns, &rec->src, rec->proxy_port);
	return bpf_map_lookup_elem(&map_ports, &key) != NULL;
}

/* Where the kernel's answer depends on what exactly the destination is. */
static __always_inline int is_loopback_source(const struct tp_record *rec)
{
	return rec->flags & TP_RECORD_BOUND_ADDR && ip_is_v4(rec->src.ip) &&
	       rec->src.ip[12] == 127 && rec->dst.ip[12] != 127;
}

/*
 * A client is lent SO_REUSEADDR, from Linux 6.1 on, for the upstream's bind() to its port, and
 * another congestion control where its own paces by what it measures (bbr), which halves the
 * throughput of loopback, where there is nothing to measure.
 */
static __always_inline void reuseaddr_lend(struct bpf_sock_addr *ctx, struct tp_record *rec)
{
	int on = 0;

	if (!(rec->flags & TP_RECORD_BOUND_PORT))
		return;
	if (bpf_getsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) || on)
		return;
	on = 1;
	if (!bpf_setsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		rec->flags |= TP_RECORD_REUSE_LENT;
}

static __always_inline void congestion_lend(struct bpf_sock_addr *ctx, const struct tp_config *cfg,
					    const struct inet_connection_sock *full,
					    struct tp_record *rec)
{
	char local[TP_CC_LEN] = TP_CC_LOCAL;
	__u32 slot = rec->slot;

	if (!full)
		return;
	congestion_copy(full, rec->congestion);
	if (slot < TP_MAX_PROXIES && cfg->proxies[slot].paces && cc_is(rec->congestion, "bbr") &&
	    !bpf_setsockopt(ctx, IPPROTO_TCP, TCP_CONGESTION, local, sizeof(local)))
		rec->flags |= TP_RECORD_CONGESTION_LENT;
}

/* What was lent for an attempt that came to nothing still is. */
static __always_inline void still_lent(const struct tp_record *last, struct tp_record *rec)
{
	if (rec->flags & TP_RECORD_BOUND_PORT)
		rec->flags |= last->flags & TP_RECORD_REUSE_LENT;
	if (last->flags & TP_RECORD_CONGESTION_LENT &&
	    cc_is(rec->congestion, TP_CC_LOCAL)) { /* unless it has chosen another since */
		__builtin_memcpy(rec->congestion, last->congestion, TP_CC_LEN);
		rec->flags |= TP_RECORD_CONGESTION_LENT;
	}
}

static __always_inline void take_back(struct bpf_sock_addr *ctx, struct tp_record *rec)
{
	char now[TP_CC_LEN] = "";
	int off = 0;

	if (rec->flags & TP_RECORD_REUSE_LENT)
		bpf_setsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &off, sizeof(off));
	if (rec->flags & TP_RECORD_CONGESTION_LENT &&
	    !bpf_getsockopt(ctx, IPPROTO_TCP, TCP_CONGESTION, now, sizeof(now)) &&
	    cc_is(now, TP_CC_LOCAL))
		bpf_setsockopt(ctx, IPPROTO_TCP, TCP_CONGESTION, rec->congestion, TP_CC_LEN);
}

static __always_inline long record_store(struct bpf_sock_addr *ctx, const struct tp_config *cfg,
					 const void *full, struct tp_record *rec)
{
	__u64 ids = bpf_get_current_uid_gid();
	const struct tp_record *last;
	long err;

	rec->cgroup_id = bpf_get_current_cgroup_id();
	rec->start_ns = bpf_ktime_get_boot_ns();
	rec->uid = (__u32)ids;
	rec->gid = ids >> 32;
	bpf_get_current_comm(rec->comm, sizeof(rec->comm));
	reuseaddr_lend(ctx, rec);
	congestion_lend(ctx, cfg, full, rec);
	err = bpf_map_update_elem(&map_socks, &rec->cookie, rec, BPF_NOEXIST);
	/* Which error it is cannot be asked: before Linux 6.4 it is no negative long. */
	last = err ? bpf_map_lookup_elem(&map_socks, &rec->cookie) : NULL;
	if (last) {
		still_lent(last, rec);
		err = bpf_map_update_elem(&map_socks, &rec->cookie, rec, BPF_ANY);
	}
	if (err)
		take_back(ctx, rec);
	return err;
}

/*
 * Of an earlier, redirected attempt of a socket that now connects without: getpeername must not
 * answer from that one, nor may the loader bring it from the generation before us. But where that
 * has redirected this connection just now, its record is none of the earlier attempt, and what that
 * was lent may be lent on.
 */
static __always_inline void record_drop(struct bpf_sock_addr *ctx, const struct tp_endpoint *dst,
					__u64 cookie)
{
	struct tp_record *rec = bpf_map_lookup_elem(&map_socks, &cookie);
	int redirected = ip_is_proxy_address((const __be32 *)dst->ip);
	__u32 previous = TP_LIVE_PREVIOUS;
	void *socks = NULL;

	if (!redirected)
		socks = bpf_map_lookup_elem(&map_live_socks, &previous);
	if (!rec && socks)
		rec = bpf_map_lookup_elem(socks, &cookie);
	if (!rec)
		return;
	if (!redirected || !(rec->flags & TP_RECORD_COPIED))
		take_back(ctx, rec);
	bpf_map_delete_elem(&map_socks, &cookie);
	if (socks)
		bpf_map_delete_elem(socks, &cookie);
}

/* What a socket of tproxyd's own was made for; those have marks, and go to these ports alone. */
static __always_inline __u32 special_role(struct bpf_sock_addr *ctx, struct bpf_sock *sk,
					  __u16 port, __u32 tgid)
{
	struct tp_mark *mark;

	if (port != TP_REGISTER_PORT && port != TP_SELFTEST_PORT)
		return TP_ROLE_NONE;
	mark = bpf_sk_storage_get(&map_listeners, sk, 0, 0);
	if (!mark)
		return TP_ROLE_NONE;
	if (mark->role == TP_ROLE_REGISTER) {
		mark->tgid = tgid;
		mark->netns = bpf_get_netns_cookie(ctx);
	}
	return mark->role;
}

static __always_inline enum verdict connect_decide(struct bpf_sock_addr *ctx,
						   const struct tp_config *cfg,
						   const struct tp_endpoint *dst, __u16 *ret_port)
{
	/* So early that no processor reads the maps that it counts before it. */
	__u32 changes = *(const volatile __u32 *)&cfg->changes;
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	int v4 = dst->family == AF_INET;
	struct bpf_sock *sk = ctx->sk;
	enum verdict verdict;
	struct tp_record rec;
	const void *full;
	__u32 role;

	if (!sk)
		return VERDICT_PASS;
	role = special_role(ctx, sk, dst->port, tgid);
	if (role == TP_ROLE_REGISTER)
		return VERDICT_OWN;
	if (role != TP_ROLE_SELFTEST && is_own_connection(ctx, cfg, tgid)) {
		COUNT(own_connection);
		return VERDICT_OWN;
	}
	full = bpf_skc_to_tcp_sock(sk); /* it begins with what it is made of, down to its sock */
	if (is_kernel_socket(full)) {
		COUNT(kernel_socket);
		return VERDICT_PASS;
	}
	if (sk->bound_dev_if) {
		COUNT(bound_device);
		return VERDICT_PASS;
	}
	if (!dst->port || !ip_is_unicast(dst->ip)) {
		COUNT(not_unicast);
		return VERDICT_PASS;
	}
	if (!v4 && ip_is_link_local_v6(dst->ip)) { /* its scope cannot be seen here */
		COUNT(link_local);
		return VERDICT_PASS;
	}
	if ((__u16)(dst->port - cfg->port) < cfg->ports &&
	    ip_is_proxy_address((const __be32 *)dst->ip)) {
		COUNT(to_proxy);
		return VERDICT_PASS;
	}
	if (!cfg->port) {
		COUNT(no_listener);
		return VERDICT_NO_PROXY;
	}
	rec = (struct tp_record){
		.cookie = bpf_get_socket_cookie(ctx), .dst = *dst, .pid = tgid, .mark = sk->mark};
	source_read(sk, &rec);
	if (rec.flags & TP_RECORD_BOUND_ADDR && is_transparent(full)) {
		COUNT(transparent);
		return VERDICT_PASS;
	}
	verdict = listener_find(ctx, cfg, v4, &rec);
	if (verdict != VERDICT_REDIRECT)
		return verdict;
	if (is_loopback_source(&rec)) {
		COUNT(loopback_source);
		return VERDICT_PASS;
	}
	if (source_taken(&rec)) {
		COUNT(source_taken);
		return VERDICT_PASS;
	}
	verdict = destination_check(cfg, &rec, changes);
	if (verdict != VERDICT_REDIRECT)
		return verdict;
	if (record_store(ctx, cfg, full, &rec)) {
		COUNT(no_record_space);
		return VERDICT_NO_PROXY;
	}
	COUNT(redirected);
	*ret_port = rec.proxy_port;
	return VERDICT_REDIRECT;
}

/* The return value of a connect hook for anything that is not redirected. */
static __always_inline int connect_not_redirected(struct bpf_sock_addr *ctx,
						  const struct tp_config *cfg,
						  const struct tp_endpoint *dst,
						  enum verdict verdict)
{
	if (verdict == VERDICT_OWN)
		return 1;
	record_drop(ctx, dst, bpf_get_socket_cookie(ctx));
	/* The error is ours to return, rather than the connection to let pass: should a route have
	 * come up this instant, it would pass the proxy by, or have no error any more. */
	if (verdict == VERDICT_NO_ROUTE && retval_settable()) {
		retval_set(-(route_error(bpf_get_netns_cookie(ctx), dst) ?: ENETUNREACH));
		return 0;
	}
	if (verdict == VERDICT_NO_PORT) {
		retval_set(-EADDRNOTAVAIL);
		return 0;
	}
	if (verdict == VERDICT_NO_PROXY) {
		if (cfg->policy == TP_POLICY_REFUSE) {
			COUNT(refused_by_policy);
			retval_set(-ECONNREFUSED);
			return 0;
		}
		COUNT(passed_by_policy);
	}
	return 1;
}

#endif
