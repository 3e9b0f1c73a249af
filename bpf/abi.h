/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the BPF programs and user space: every byte that crosses is defined here and
 * nowhere else. Included by both sides.
 *
 * A change of any layout, of a map's key or of a meaning bumps ABI_VERSION. Every program, on
 * either side, compares it with map_config before it touches anything else: magic and abi come
 * first there in every version. tproxy-load carries entries over from other versions, older or
 * newer, by the names of their members: a name keeps its meaning for ever, and 0 means that a
 * member is not known.
 */
#ifndef TPROXY_ABI_H
#define TPROXY_ABI_H

#include <linux/types.h>
#include <stddef.h>

#define ABI_MAGIC   0x74707879 /* "tpxy" */
#define ABI_VERSION 6

#define TP_MAX_RECORDS (1 << 24) /* in map_socks, whatever --max-connections says */
#define TP_NAME_LEN    32	 /* instance name, NUL included */
#define TP_COMM_LEN    16	 /* the kernel's TASK_COMM_LEN */
#define TP_CC_LEN      16	 /* the kernel's TCP_CA_NAME_MAX */
#define TP_CC_LOCAL    "reno" /* congestion control of legs on this host, where it paces otherwise */
#define TP_MAX_PROXIES 16     /* tproxyds registered at once: one a network namespace, or several */
#define TP_NO_SLOT     TP_MAX_PROXIES /* a proxy that is no tproxyd: it has no ring and no settings */
#define TP_MAX_PORTS   16

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
	__u64 cookie;		/* client's socket cookie */
	__u64 netns;		/* cookie of its network namespace */
	__u64 cgroup_id;	/* cgroup of the process that called connect() */
	__u64 start_ns;		/* CLOCK_BOOTTIME of connect() */
	struct tp_endpoint dst; /* original destination */
	struct tp_endpoint src; /* client address, known from TCP_CONNECT_CB on */
	__u32 pid;		/* tgid in the initial pid namespace */
	__u32 uid;
	__u32 gid;
	struct tp_endpoint
		local; /* what getsockname answers: the source the server sees; 0: unknown */
	char comm[TP_COMM_LEN];
	char congestion[TP_CC_LEN]; /* the client's own congestion control */
	__u32 mark;		    /* the client's SO_MARK */
	__u32 seq;		    /* of the held SYN: which attempt of this socket is meant */
	__u16 proxy_port;	    /* listener port the client was sent to, host order */
	__u8 slot;		    /* of its tproxyd in tp_config.proxies, or TP_NO_SLOT */
	__u8 flags;    /* TP_RECORD_...; programs write it in the client's context only */
	__u32 reached; /* TP_REACHED_... */
};

#define TP_RECORD_BOUND_ADDR 1 /* the client had chosen src.ip with bind() */
#define TP_RECORD_BOUND_PORT 2 /* and src.port */
#define TP_RECORD_REUSE_LENT \
	4 /* the hook has set SO_REUSEADDR on the client, for the upstream's bind() */
#define TP_RECORD_TIMEOUT_LENT	  8  /* sockops has set TCP_USER_TIMEOUT on the client */
#define TP_RECORD_CONGESTION_LENT 16 /* the client runs another congestion control than its own */
#define TP_RECORD_COPIED	  32 /* by tproxy-load, from the maps of an earlier generation */

/*
 * Each is added once, atomically, as it may happen on any CPU: whoever then finds both CLOSED and
 * RELEASED frees the record.
 */
#define TP_REACHED_ACCEPTED 1	    /* the accepted socket has its copy */
#define TP_REACHED_CLOSED   0x100   /* the client's connection has ended */
#define TP_REACHED_RELEASED 0x10000 /* the client's descriptor has gone */

/*
 * Key of map_ports, where the address is the client's and the value its socket cookie (__u64), and
 * of map_failed, where it is a destination.
 */
struct tp_port_key {
	__u64 netns;
	__u8 ip[16];	  /* as in tp_endpoint */
	__u16 port;	  /* host order */
	__u16 proxy_port; /* 0 in map_failed */
	__u32 reserved;
};

static inline __attribute__((always_inline)) void tp_port_key_set(struct tp_port_key *key,
								  __u64 netns,
								  const struct tp_endpoint *address,
								  __u16 proxy_port)
{
	key->netns = netns;
	__builtin_memcpy(key->ip, address->ip, sizeof(key->ip));
	key->port = address->port;
	key->proxy_port = proxy_port;
	key->reserved = 0;
}

/* Value of map_failed: a destination that failed a moment ago. */
struct tp_failed {
	__u64 until; /* CLOCK_BOOTTIME, ns */
	__u32 error; /* what its clients meet meanwhile: EADDRNOTAVAIL, as there is no local port
		      * for it, or 0: what they meet without the proxy */
	__u32 reserved;
};

/*
 * Value of map_checked (__u64), by its own lower bits: a fingerprint of a network namespace and a
 * destination against which neither map_failed nor map_routes had anything when that was last
 * looked up. It counts as long as tp_config.changes, which is part of it, is the same.
 */
#define TP_CHECKED 1024

/*
 * Key of map_routes, a trie: where a connection cannot go. The value (__u32) is the errno of the
 * missing route, 0 where there is one. Written by the tproxyds of each network namespace.
 */
struct tp_route_key {
	__u32 prefixlen; /* in bits, over what follows: 64 of netns, 96 more before an IPv4 prefix
			  */
	__u64 netns;
	__u8 ip[16]; /* as in tp_endpoint */
} __attribute__((packed));

enum tp_role {
	TP_ROLE_NONE,
	TP_ROLE_LISTENER, /* trusted listener: clients may be sent here */
	TP_ROLE_ACCEPTED, /* accepted from one, with the client's record */
	TP_ROLE_REGISTER, /* throw-away socket: connect() to TP_REGISTER_PORT stores the caller's
			   * tgid and netns, and passes */
	TP_ROLE_SELFTEST, /* throw-away socket: connect() to TP_SELFTEST_PORT is redirected even for
			   * a proxy */
	TP_ROLE_LEAVING,  /* listener to which no more clients are sent; those on their way come in
			   */
};

#define TP_REGISTER_PORT 0 /* such a connect() cannot succeed, and need not */
#define TP_SELFTEST_PORT 9 /* of loopback: redirected or not, it does not leave the host */

/*
 * Value of map_listeners (BPF_MAP_TYPE_SK_STORAGE, BPF_F_CLONE). User space writes it, through a
 * descriptor of the socket, with role and, for a listener, slot and tagged set. A listener's mark
 * is cloned into each accepted socket, which is how sockops knows the accepted end; there it is
 * completed with the record.
 */
struct tp_mark {
	__u32 role;
	__u32 tgid;		 /* REGISTER: stored by connect() */
	__u64 netns;		 /* stored by the connect hooks */
	__u32 slot;		 /* LISTENER: of its tproxyd in tp_config.proxies, or TP_NO_SLOT */
	__u32 tagged;		 /* LISTENER: its accept() returns tags */
	struct tp_record client; /* ACCEPTED */
};

/*
 * What accept() on a tagged listener returns for a client's address: enough of the record for a
 * tproxyd to know whom of those it waits for it has let in. In the lower bits of a multicast
 * address and in the port; no peer has such an address, so that none can pass for a tag. The
 * doorman sees to raw packets.
 */
#define TP_TAG_V4	   0xe0000000 /* 224.0.0.0/4 */
#define TP_TAG_V6	   0xff000000 /* the first four bytes of ff00::/8 */
#define TP_TAG_ADDRESS	   0x0fffffff
#define TP_TAG_COOKIE_BITS 20 /* of those waited for at one time */
#define TP_TAG_SEQ_BITS	   24
#define TP_NO_TAG	   ((__u64)-1)

static inline __attribute__((always_inline)) __u64 tp_tag(const struct tp_record *record)
{
	return (record->cookie & ((1 << TP_TAG_COOKIE_BITS) - 1)) << TP_TAG_SEQ_BITS |
	       (record->seq & ((1 << TP_TAG_SEQ_BITS) - 1));
}

/*
 * The doorman, a filter on a listener, holds a client's handshake until its upstream is connected:
 * it hands the SYN to tproxyd and drops it; tproxyd sends it again, with the instance's grant mark,
 * when the client may come in. It keeps no state: a client whose SYN or event got lost sends
 * another.
 */

/* Value of map_doors, by the listener's socket cookie: what the doorman cannot ask the kernel for.
 */
struct tp_door {
	__u64 netns;
	__u16 proxy_port;
	__u16 slot; /* the tproxyd that this listener belongs to now */
	__u32 reserved;
};

enum tp_event_type {
	TP_EVENT_SYN,	/* a held SYN; the packet follows the record */
	TP_EVENT_GONE,	/* a held client gave up, or met the error it was sent */
	TP_EVENT_STRAY, /* a packet that came before its connection was in place, to be sent again
			 */
};

/* Generations of map_socks and map_ports that the doorman looks in, by index. Most of the time
 * there is one. */
enum tp_live { TP_LIVE_PRESENT, TP_LIVE_NEXT, TP_LIVE_PREVIOUS, TP_LIVE_MAPS };

#define TP_RING_SIZE (1 << 22) /* bytes: some 19,000 events */

/*
 * Value of map_windows, by slot of a tproxyd and user: how many SYNs of that user have come since
 * the window began. It ends when what was in the ring at its beginning has been read. So of one
 * user there are at most twice TP_WINDOW_SYNS events in a ring, half of what it holds.
 */
struct tp_window {
	__u64 end; /* position in the ring */
	__u32 syns;
	__u32 reserved;
};

#define TP_WINDOW_BITS 8 /* users whose numbers hash to the same window share it */
#define TP_WINDOWS     (1 << TP_WINDOW_BITS) /* a tproxyd */
#define TP_WINDOW_SYNS 4800

/*
 * A granted SYN carries, as its payload, whose it is and the source address that the server sees.
 * The doorman puts that in the record, where getsockname finds it, and cuts it off: TCP never sees
 * it.
 */
struct tp_grant {
	__u64 cookie; /* the client's */
	struct tp_endpoint local;
	__u32 reserved;
};

/* What of a SYN cannot be known from the record. Numbers are in host order. */
struct tp_syn {
	__u32 seq;
	__u16 window;
	__u8 flags; /* byte 13 of the TCP header */
	__u8 options_len;
	__u8 options[40];
};

/* What comes out of a ring of map_rings; a ring belongs to one tproxyd. */
struct tp_event_syn {
	__u32 type;
	__u32 reserved;
	struct tp_record client;
	struct tp_syn syn;
};

struct tp_event_gone {
	__u32 type;
	__u32 reserved;
	__u64 cookie; /* the client's */
};

#define TP_STRAY_MAX	65515 /* what fits into an IP packet */
#define TP_STRAY_SMALL	256
#define TP_STRAY_MEDIUM 4096

struct tp_event_stray {
	__u32 type;
	__u32 len;
	struct tp_endpoint client;
	__u16 proxy_port;
	__u16 reserved;
	__u8 segment[TP_STRAY_MAX]; /* TCP header and data; the checksum may be unfinished. As
				     * much is there as the smallest reservation for len has. */
};

enum tp_policy {
	TP_POLICY_DIRECT, /* no proxy: the connection goes out untouched */
	TP_POLICY_REFUSE, /* no proxy: connect() fails with ECONNREFUSED (EPERM before Linux 5.18)
			   */
};

/* A registered proxy: its connections from that network namespace are left alone. */
struct tp_proxy {
	__u64 netns;
	__u32 tgid; /* as the kernel sees it in the initial pid namespace; 0: slot free; UINT32_MAX:
		       taken, by a proxy whose worker is about to come */
	__u32 connect_timeout; /* ms after which a held client meets ETIMEDOUT; 0: by its own timer
				*/
	__u32 paces; /* the namespace's congestion control paces, which slows a loopback down */
	__u16 port;  /* the first of the listener ports that are its own, host order; 0: that of
			tp_config */
	__u16 reserved;
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
	__u16 port;    /* first listener port on 127.0.0.1 and ::1, host order; 0: not serving */
	__u16 ports;   /* so many, 1 to TP_MAX_PORTS: see tp_port_of() */
	__u32 grant;   /* SO_MARK of SYNs that the doorman lets pass; random, made by the loader */
	__u64 build;   /* identifies the BPF object that is loaded */
	__u64 loaded_ns; /* CLOCK_REALTIME of the last load */
	__u32 changes;	 /* to map_failed and map_routes so far; counted when they have been made */
	__u32 reserved;
	char name[TP_NAME_LEN];
	struct tp_proxy proxies[TP_MAX_PROXIES];
};

/*
 * The port that a client is sent to, by its socket cookie. Connections to one address and port can
 * be as many as there are local ports, some 28,000: they are spread over several. Cookies are
 * numbers in a row, of which a connection takes a few, so what is taken is not their remainder.
 */
static inline __u16 tp_port_of(const struct tp_config *config, __u64 cookie)
{
	__u32 mixed = (__u32)cookie * 0x9e3779b1U;

	return config->port + (mixed >> 16) % (config->ports + !config->ports);
}

/* Counters, one a decision: X(name, what it says to a human). Value of map_stats, per CPU. */
#define TP_COUNTERS(X)                                                                             \
	X(redirected, "connections sent to the proxy")                                             \
	X(own_connection, "connections of a registered proxy, left alone")                         \
	X(to_proxy, "connections made straight to the proxy's port, left to be reset")             \
	X(kernel_socket, "connections of the kernel itself, left alone")                           \
	X(not_tcp, "connects of other protocols, left alone")                                      \
	X(bound_device, "sockets bound to a device, left alone")                                   \
	X(transparent, "bound to an address that may be another host's, left alone")               \
	X(source_taken, "bound to a source that another redirected socket has, left alone")        \
	X(loopback_source, "bound to a loopback address with another destination, left alone")     \
	X(not_unicast, "destinations that are no unicast address or port, left alone")             \
	X(link_local, "IPv6 link-local destinations, left alone")                                  \
	X(no_listener, "no proxy listening in the client's network namespace")                     \
	X(untrusted_listener, "the proxy's port is held by a stranger")                            \
	X(failed_before, "destinations that failed a moment ago, left alone for the native error") \
	X(no_local_port, "destinations for which no port is left, failed as without a proxy")      \
	X(no_route, "destinations without a route, failed as without a proxy")                     \
	X(no_record_space, "map_socks is full or out of memory")                                   \
	X(passed_by_policy, "went direct because no proxy could take them")                        \
	X(refused_by_policy, "refused because no proxy could take them")                           \
	X(no_port_space, "map_ports is full or out of memory: the proxy will reset these")         \
	X(accepted, "accepted by the proxy with their record")                                     \
	X(accepted_unknown, "accepted by the proxy without a record: it resets these")             \
	X(original_dst, "SO_ORIGINAL_DST answered")                                                \
	X(original_dst_missing, "SO_ORIGINAL_DST asked on an accepted socket that has none")       \
	X(peername, "getpeername answered with the original destination")                          \
	X(sockname, "getsockname answered with the source that the server sees")                   \
	X(held, "handshakes held until the upstream answers")                                      \
	X(hold_unknown, "SYNs at the proxy's port without a record: let through to be reset")      \
	X(hold_no_space, "held handshakes dropped because the ring is full: the client retries")   \
	X(hold_stray, "packets that came before their connection was in place, sent again")        \
	X(hold_malformed, "packets at the proxy's port that are no proper SYN, dropped")           \
	X(record_freed, "records freed")

struct tp_stats {
#define X(name, text) __u64 name;
	TP_COUNTERS(X)
#undef X
};

/*
 * What each tproxyd counts: X(name, what it says to a human). Value of map_proxies (an array,
 * mmapable), by slot of tp_config.proxies. That tproxyd writes it by aligned stores through a
 * mapping, but for over_ring_share, which is the doorman's; a tproxyd that was not there before
 * begins at 0. A SYN that is not answered comes again, and is counted again.
 */
#define TP_PROXY_COUNTERS(X)                                                           \
	X(sessions, "sessions open now")                                               \
	X(accepted, "sessions begun")                                                  \
	X(table_full, "told to wait: max-sessions reached")                            \
	X(over_uid_share, "told to wait: their user has max-sessions-per-uid")         \
	X(over_cgroup_share, "told to wait: their cgroup has max-sessions-per-cgroup") \
	X(over_ring_share, "told to wait: too many SYNs of their user at once")        \
	X(no_descriptors, "told to wait: no descriptors")                              \
	X(no_memory, "told to wait: no memory")                                        \
	X(no_local_port, "upstreams that failed for want of a local port")             \
	X(no_pipe, "times that bytes had to wait for a pipe")                          \
	X(idle_timeout, "sessions ended by idle-timeout")                              \
	X(half_closed_timeout, "sessions ended by half-closed-timeout")                \
	X(log_lines_lost, "lines that the log did not take")

struct tp_proxy_stats {
#define X(name, text) __u64 name;
	TP_PROXY_COUNTERS(X)
#undef X
};

_Static_assert(sizeof(struct tp_endpoint) == 20, "tp_endpoint");
_Static_assert(sizeof(struct tp_record) == 152, "tp_record");
_Static_assert(TP_TAG_COOKIE_BITS + TP_TAG_SEQ_BITS == 28 + 16, "tp_tag");
_Static_assert(sizeof(struct tp_port_key) == 32, "tp_port_key");
_Static_assert(sizeof(struct tp_route_key) == 28, "tp_route_key");
_Static_assert(sizeof(struct tp_mark) == 176, "tp_mark");
_Static_assert(sizeof(struct tp_syn) == 48, "tp_syn");
_Static_assert(sizeof(struct tp_grant) == 32, "tp_grant");
_Static_assert(sizeof(struct tp_event_syn) == 208, "tp_event_syn");
_Static_assert(sizeof(struct tp_event_gone) == 16, "tp_event_gone");
_Static_assert(offsetof(struct tp_event_stray, segment) == 32, "tp_event_stray");
_Static_assert(sizeof(struct tp_proxy) == 24, "tp_proxy");
_Static_assert(sizeof(struct tp_config) == 464, "tp_config");
_Static_assert(sizeof(struct tp_failed) == 16, "tp_failed");
_Static_assert(sizeof(struct tp_window) == 16, "tp_window");

#endif
