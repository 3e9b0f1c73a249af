/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the BPF programs and user space: every byte that crosses is defined here and
 * nowhere else. Included by both sides.
 *
 * A change of any layout, of a map's key or of a meaning bumps ABI_VERSION. Every program, on either
 * side, compares it with map_config before it touches anything else.
 */
#ifndef TPROXY_ABI_H
#define TPROXY_ABI_H

#include <linux/types.h>

#define ABI_MAGIC 0x74707879 /* "tpxy" */
#define ABI_VERSION 1

#define TP_NAME_LEN 32	 /* instance name, NUL included */
#define TP_COMM_LEN 16	 /* the kernel's TASK_COMM_LEN */
#define TP_MAX_PROXIES 8 /* tproxyd processes registered at once: one a network namespace */

/*
 * An address and port. IPv4 is stored v4-mapped (::ffff:a.b.c.d), so that one code path serves both
 * families and the last four numbers of a bpftool dump are the IPv4 address. Bytes of ip are in
 * network order, port is in host order so that a dump reads 443 and not 47873.
 */
struct tp_endpoint {
	__u8 ip[16];
	__u16 port;
	__u16 family; /* AF_INET or AF_INET6: what is in ip; 0 while the endpoint is not known */
};

/* What is known of an intercepted connection. Value of map_socks; copied to the accepted socket. */
struct tp_record {
	__u64 cookie;	 /* client's socket cookie */
	__u64 netns;	 /* cookie of its network namespace */
	__u64 cgroup_id; /* cgroup of the process that called connect() */
	__u64 start_ns;	 /* CLOCK_BOOTTIME of connect() */
	struct tp_endpoint dst; /* original destination */
	struct tp_endpoint src; /* client address, known from TCP_CONNECT_CB on */
	__u32 pid;		/* tgid in the initial pid namespace */
	__u32 uid;
	__u32 gid;
	__u16 proxy_port; /* listener port the client was sent to, host order */
	__u16 reserved;
	char comm[TP_COMM_LEN];
};

/* Key of map_ports; the value is the client's socket cookie (__u64). */
struct tp_port_key {
	__u64 netns;
	__u8 ip[16]; /* client address, as in tp_endpoint */
	__u16 port;  /* client port, host order */
	__u16 proxy_port;
	__u32 reserved;
};

enum tp_role {
	TP_ROLE_NONE,
	TP_ROLE_LISTENER, /* trusted listener: clients may be sent here */
	TP_ROLE_ACCEPTED, /* accepted from one, with the client's record */
	TP_ROLE_REGISTER, /* throw-away socket: connect() stores the caller's tgid and netns, passes */
	TP_ROLE_SELFTEST, /* throw-away socket: connect() is redirected even for a proxy */
};

/*
 * Value of map_listeners (BPF_MAP_TYPE_SK_STORAGE, BPF_F_CLONE). User space writes it, through a
 * descriptor of the socket, with only the role set. A listener's mark is cloned into each accepted
 * socket, which is how sockops knows the accepted end; there it is completed with the record.
 */
struct tp_mark {
	__u32 role;
	__u32 tgid;  /* REGISTER: stored by connect() */
	__u64 netns; /* stored by the connect hooks */
	struct tp_record client; /* ACCEPTED */
};

enum tp_policy {
	TP_POLICY_DIRECT, /* no proxy: the connection goes out untouched */
	TP_POLICY_REFUSE, /* no proxy: connect() fails with ECONNREFUSED (EPERM before Linux 5.18) */
};

/* A registered proxy: its connections from that network namespace are left alone. */
struct tp_proxy {
	__u64 netns;
	__u32 tgid; /* as the kernel sees it in the initial pid namespace; 0: slot free */
	__u32 reserved;
};

/*
 * Value of map_config (array of one, mmapable). Written by aligned stores through a mapping, never
 * by an update of the whole value: loader and proxies write different fields at the same time.
 */
struct tp_config {
	__u32 magic;
	__u32 abi;
	__u32 enabled; /* the loader's commit; 0: hooks let everything pass */
	__u32 policy;  /* enum tp_policy */
	__u16 port;    /* listener port on 127.0.0.1 and ::1, host order; 0: not serving */
	__u16 reserved[3];
	__u64 build;	 /* identifies the BPF object that is loaded */
	__u64 loaded_ns; /* CLOCK_REALTIME of the last load */
	char name[TP_NAME_LEN];
	struct tp_proxy proxies[TP_MAX_PROXIES];
};

/* Counters, one a decision: X(name, what it says to a human). Value of map_stats, per CPU. */
#define TP_COUNTERS(X)                                                                      \
	X(redirected, "connections sent to the proxy")                                      \
	X(own_connection, "connections of a registered proxy, left alone")                  \
	X(to_proxy, "connections made straight to the proxy's port, left to be reset")      \
	X(kernel_socket, "connections of the kernel itself, left alone")                    \
	X(not_tcp, "connects of other protocols, left alone")                               \
	X(bound_device, "sockets bound to a device, left alone")                            \
	X(not_unicast, "destinations that are no unicast address or port, left alone")      \
	X(link_local, "IPv6 link-local destinations, left alone")                           \
	X(no_listener, "no proxy listening in the client's network namespace")              \
	X(untrusted_listener, "the proxy's port is held by a stranger")                     \
	X(no_record_space, "map_socks is full or out of memory")                            \
	X(passed_by_policy, "went direct because no proxy could take them")                 \
	X(refused_by_policy, "refused because no proxy could take them")                    \
	X(no_port_space, "map_ports is full or out of memory: the proxy will reset these")  \
	X(accepted, "accepted by the proxy with their record")                              \
	X(accepted_unknown, "accepted by the proxy without a record: it resets these")      \
	X(original_dst, "SO_ORIGINAL_DST answered")                                         \
	X(original_dst_missing, "SO_ORIGINAL_DST asked on an accepted socket that has none") \
	X(peername, "getpeername answered with the original destination")                   \
	X(record_freed, "records freed")

struct tp_stats {
#define X(name, text) __u64 name;
	TP_COUNTERS(X)
#undef X
};

/*
 * A socket option of our own, answered by the getsockopt hook on an accepted socket: the whole
 * struct tp_record in one call. The level is one that no protocol uses.
 */
#define TP_SOL 0x7470
#define TP_SO_RECORD 1

_Static_assert(sizeof(struct tp_endpoint) == 20, "tp_endpoint");
_Static_assert(sizeof(struct tp_record) == 104, "tp_record");
_Static_assert(sizeof(struct tp_port_key) == 32, "tp_port_key");
_Static_assert(sizeof(struct tp_mark) == 120, "tp_mark");
_Static_assert(sizeof(struct tp_proxy) == 16, "tp_proxy");
_Static_assert(sizeof(struct tp_config) == 200, "tp_config");

#endif
