// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 * The kernel's answer is "the longest prefix, first table that has one". With the three rules that
 * every host starts with, tables local, main and default are consulted in order, and merging them
 * into one trie of "route here" and "error here" gives the same answer for everything but a more
 * specific route in a later table, where the merged answer is that there is a route, and nothing is
 * claimed. With any other rule the answer may depend on the source or a mark, so then nothing is
 * published at all; the same for a namespace with very many routes.
 *
 * Any change leads to a whole new dump. Entries of this namespace that are not in it are removed.
 */
#include "routes.h"

#include <bpf/bpf.h>
#include <libmnl/libmnl.h>
#include <linux/fib_rules.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <string.h>

#include "event.h"

#define ROUTES_MAX  512 /* with more than that a host is a router, and has a default route */
#define SETTLE_MS   100 /* routes that flap are not followed more often */
#define RETRY_MS    1000
#define MAPPED_BITS 96 /* before an IPv4 address */
#define NETNS_BITS  64
#define MAX_ERRNO   4095

struct route {
	struct tp_route_key key;
	__u32 metric;
	__u32 error;
};

struct snapshot {
	struct route *routes;
	size_t count;
	int unusable; /* rules or numbers beyond what is modelled */
};

static __u32 route_type_error(const struct rtmsg *rtm)
{
	switch (rtm->rtm_type) {
	/* TCP goes to no broadcast address, and "throw" means to go on to a table that is empty. */
	case RTN_BROADCAST:
	case RTN_MULTICAST:
	case RTN_THROW:
		return ENETUNREACH;
	case RTN_BLACKHOLE:
		return EINVAL;
	case RTN_UNREACHABLE:
		return EHOSTUNREACH;
	case RTN_PROHIBIT:
		return EACCES;
	}
	return 0;
}

static void add_route(struct snapshot *snap, const struct route *route)
{
	for (size_t i = 0; i < snap->count; i++) {
		struct route *old = &snap->routes[i];

		if (memcmp(&old->key, &route->key, sizeof(route->key)))
			continue;
		/* Of one prefix the lowest metric counts; at the same one, that there is a route.
		 */
		if (route->metric < old->metric || (route->metric == old->metric && !route->error))
			*old = *route;
		return;
	}
	if (snap->count == ROUTES_MAX)
		snap->unusable = 1;
	else
		snap->routes[snap->count++] = *route;
}

/* Those that are read, where they are as long as what is read of them. */
static int read_attribute(const struct nlattr *attr, void *data)
{
	static const size_t sizes[RTA_MAX + 1] = {
		[RTA_DST] = sizeof(struct in_addr),
		[RTA_TABLE] = sizeof(__u32),
		[RTA_PRIORITY] = sizeof(__u32),
		[RTA_CACHEINFO] = sizeof(struct rta_cacheinfo),
	};
	const struct nlattr **table = data;
	unsigned int type = mnl_attr_get_type(attr);

	if (type > RTA_MAX || !sizes[type])
		return MNL_CB_OK;
	if (mnl_attr_get_payload_len(attr) < sizes[type])
		return MNL_CB_ERROR;
	table[type] = attr;
	return MNL_CB_OK;
}

static struct tp_route_key route_key(__u64 netns, int family, unsigned int bits, const void *ip)
{
	struct tp_route_key key = {.netns = netns, .prefixlen = NETNS_BITS + bits};

	if (family == AF_INET) {
		key.prefixlen += MAPPED_BITS;
		key.ip[10] = key.ip[11] = 0xff;
		if (ip)
			memcpy(key.ip + 12, ip, 4);
	} else if (ip) {
		memcpy(key.ip, ip, 16);
	}
	return key;
}

struct dump {
	struct snapshot *snap;
	__u64 netns;
};

static int on_route(const struct nlmsghdr *nlh, void *user)
{
	const struct rtmsg *rtm = mnl_nlmsg_get_payload(nlh);
	const struct nlattr *attr[RTA_MAX + 1] = {0};
	struct dump *dump = user;
	struct route route;
	size_t address;
	__u32 table;

	if (mnl_nlmsg_get_payload_len(nlh) < sizeof(*rtm) ||
	    mnl_attr_parse(nlh, sizeof(*rtm), read_attribute, attr) < 0)
		return MNL_CB_ERROR;
	address = rtm->rtm_family == AF_INET ? sizeof(struct in_addr) : sizeof(struct in6_addr);
	if (rtm->rtm_dst_len > 8 * address ||
	    (attr[RTA_DST] && mnl_attr_get_payload_len(attr[RTA_DST]) < address))
		return MNL_CB_ERROR;
	table = rtm->rtm_table;
	if (attr[RTA_TABLE])
		table = mnl_attr_get_u32(attr[RTA_TABLE]);
	if (table != RT_TABLE_LOCAL && table != RT_TABLE_MAIN && table != RT_TABLE_DEFAULT)
		return MNL_CB_OK;
	if (rtm->rtm_flags & (RTM_F_CLONED | RTNH_F_DEAD))
		return MNL_CB_OK;
	route.key = route_key(dump->netns, rtm->rtm_family, rtm->rtm_dst_len,
			      attr[RTA_DST] ? mnl_attr_get_payload(attr[RTA_DST]) : NULL);
	route.metric = attr[RTA_PRIORITY] ? mnl_attr_get_u32(attr[RTA_PRIORITY]) : 0;
	route.error = route_type_error(rtm);
	if (attr[RTA_CACHEINFO] && route.error) {
		const struct rta_cacheinfo *info = mnl_attr_get_payload(attr[RTA_CACHEINFO]);

		if ((int)info->rta_error < 0 && (int)info->rta_error >= -MAX_ERRNO)
			route.error = -(int)info->rta_error;
	}
	add_route(dump->snap, &route);
	return dump->snap->unusable ? MNL_CB_STOP : MNL_CB_OK;
}

/* The rules of a fresh namespace: local, main, default, without any condition. */
static int on_rule(const struct nlmsghdr *nlh, void *user)
{
	const struct fib_rule_hdr *rule = mnl_nlmsg_get_payload(nlh);
	struct dump *dump = user;

	if (mnl_nlmsg_get_payload_len(nlh) < sizeof(*rule))
		return MNL_CB_ERROR;
	if (rule->action != FR_ACT_TO_TBL || rule->src_len || rule->dst_len || rule->tos ||
	    (rule->table != RT_TABLE_LOCAL && rule->table != RT_TABLE_MAIN &&
	     rule->table != RT_TABLE_DEFAULT))
		dump->snap->unusable = 1;
	return MNL_CB_OK;
}

static int dump_one(struct dump *dump, int family, int type, mnl_cb_t cb)
{
	char buf[32768] __attribute__((aligned(NLMSG_ALIGNTO)));
	struct mnl_socket *nl = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buf);
	int n, r = MNL_CB_OK;

	if (!nl)
		return -errno;
	nlh->nlmsg_type = type;
	nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	/* struct rtmsg and struct fib_rule_hdr have the same size and begin with the family. */
	((struct rtmsg *)mnl_nlmsg_put_extra_header(nlh, sizeof(struct rtmsg)))->rtm_family =
		family;
	if (mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) < 0 ||
	    mnl_socket_sendto(nl, nlh, nlh->nlmsg_len) < 0)
		r = -1;
	while (r > 0 && (n = mnl_socket_recvfrom(nl, buf, sizeof(buf))) > 0)
		r = mnl_cb_run(buf, n, 0, mnl_socket_get_portid(nl), cb, dump);
	mnl_socket_close(nl);
	return r < 0 || n < 0 ? -EIO : 0;
}

static int take_snapshot(struct proxy *p, struct snapshot *snap)
{
	static const int families[] = {AF_INET, AF_INET6};
	struct dump dump = {snap, p->netns};
	int err = 0;

	/* Clients wait meanwhile: of what cannot be used no more is read. */
	for (size_t i = 0; !err && !snap->unusable && i < ARRAY_SIZE(families); i++) {
		/* What no route matches; a default route replaces it. */
		struct route none = {route_key(p->netns, families[i], 0, NULL), UINT32_MAX,
				     ENETUNREACH};

		add_route(snap, &none);
		err = dump_one(&dump, families[i], RTM_GETRULE, on_rule);
		if (!err && !snap->unusable)
			err = dump_one(&dump, families[i], RTM_GETROUTE, on_route);
	}
	if (snap->unusable)
		snap->count = 0;
	return err;
}

static int in_snapshot(const struct snapshot *snap, const struct tp_route_key *key)
{
	for (size_t i = 0; i < snap->count; i++)
		if (!memcmp(&snap->routes[i].key, key, sizeof(*key)))
			return 1;
	return 0;
}

/* 0 or -errno: then it is not all there, and what is may be wrong without the rest. */
static int publish(struct proxy *p, const struct snapshot *snap)
{
	int map = p->instance.map[PIN_MAP_routes];
	struct tp_route_key key, next, *at = NULL;

	/* First where routes are, then what is said of the rest: never too much in between. */
	for (int errors = 0; errors <= 1; errors++)
		for (size_t i = 0; i < snap->count; i++)
			if (!!snap->routes[i].error == errors &&
			    bpf_map_update_elem(map, &snap->routes[i].key, &snap->routes[i].error,
						BPF_ANY))
				return -errno;
	while (!bpf_map_get_next_key(map, at, &next)) {
		if (at && at->netns == p->netns && !in_snapshot(snap, at))
			bpf_map_delete_elem(map, at);
		key = next;
		at = &key;
	}
	if (at && at->netns == p->netns && !in_snapshot(snap, at))
		bpf_map_delete_elem(map, at);
	instance_changed(&p->instance);
	return 0;
}

/* 0, or -errno where they could not be read. What did not come about is tried again. */
static int republish(struct proxy *p)
{
	struct snapshot snap = {.routes = calloc(ROUTES_MAX, sizeof(*snap.routes))};
	int err = snap.routes ? take_snapshot(p, &snap) : -ENOMEM;
	int lost = err ?: publish(p, &snap);

	p->routes_due = 0;
	p->routes_ms = p->now_ms;
	if (lost) { /* claim nothing rather than something wrong */
		snap.count = 0;
		publish(p, &snap);
		p->routes_due = 1;
		p->routes_ms += RETRY_MS - SETTLE_MS;
	}
	free(snap.routes);
	return err;
}

int routes_open(struct proxy *p, struct failure *f)
{
	static const int groups[] = {RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE,  RTNLGRP_IPV4_RULE,
				     RTNLGRP_IPV6_RULE,	 RTNLGRP_IPV4_IFADDR, RTNLGRP_LINK};
	int err;

	p->netlink = mnl_socket_open2(NETLINK_ROUTE, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (!p->netlink || mnl_socket_bind(p->netlink, 0, MNL_SOCKET_AUTOPID) < 0)
		return fail(f, -errno, "cannot open a netlink socket: %m");
	for (size_t i = 0; i < ARRAY_SIZE(groups); i++)
		if (mnl_socket_setsockopt(p->netlink, NETLINK_ADD_MEMBERSHIP, (void *)&groups[i],
					  sizeof(groups[i])) < 0)
			return fail(f, -errno, "cannot subscribe to route changes: %m");
	err = event_add(p->shared->epoll, mnl_socket_get_fd(p->netlink), EPOLLIN,
			event_pack(EVENT_ROUTES, 0, 0));
	if (!err)
		err = republish(p);
	return err ? fail(f, err, "cannot read the routes: %s", strerror(-err)) : 0;
}

void routes_event(struct proxy *p)
{
	char buf[8192];

	if (!p->netlink)
		return;
	/* What changed does not matter, nor that messages may have been lost (ENOBUFS). */
	while (mnl_socket_recvfrom(p->netlink, buf, sizeof(buf)) > 0 || errno == ENOBUFS)
		;
	p->routes_due = 1;
	routes_settle(p);
}

void routes_settle(struct proxy *p)
{
	if (!p->routes_due || p->now_ms < p->routes_ms + SETTLE_MS)
		return;
	republish(p);
}

uint64_t routes_deadline(const struct proxy *p)
{
	return p->routes_due ? p->routes_ms + SETTLE_MS : 0;
}

void routes_withdraw(struct proxy *p)
{
	struct snapshot none = {0};

	publish(p, &none);
}

void routes_close(struct proxy *p)
{
	if (p->netlink)
		mnl_socket_close(p->netlink);
	p->netlink = NULL;
	p->routes_due = 0;
}
