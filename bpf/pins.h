/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Everything that is pinned, and where. An instance is one directory of bpffs:
 *
 *	/sys/fs/bpf/NAME/map_config ...		the maps below
 *	/sys/fs/bpf/NAME/prog_connect4 ...	the programs below
 *	/sys/fs/bpf/NAME/link_connect4_4711 ...	one link a program and attached cgroup (its id)
 *
 * bpffs refuses a '.' in a name. '~' cannot occur in an instance name, so NAME~new (a generation
 * that is not in force yet, or no longer), NAME~old (one on its way to that name) and
 * prog_connect4~new (a program that replaces another) never clash with anything.
 */
#ifndef TPROXY_PINS_H
#define TPROXY_PINS_H

#define BPFFS_ROOT	     "/sys/fs/bpf"
#define PIN_DEFAULT_INSTANCE "tproxy"
#define PIN_NEW_SUFFIX	     "~new"
#define PIN_OLD_SUFFIX	     "~old"

#define PIN_MAP_PREFIX	"map_"
#define PIN_PROG_PREFIX "prog_"
#define PIN_LINK_PREFIX "link_"

#define PIN_OBJECT_PREFIX "tp_" /* of the names of programs in the kernel */

/* X(name): pinned as map_NAME, called map_NAME in the object. */
#define PIN_MAPS(X)   \
	X(config)     \
	X(socks)      \
	X(ports)      \
	X(live_socks) \
	X(live_ports) \
	X(listeners)  \
	X(doors)      \
	X(rings)      \
	X(routes)     \
	X(failed)     \
	X(checked)    \
	X(stats)      \
	X(proxies)    \
	X(windows)

/* X(name, attach type): pinned as prog_NAME, called tp_NAME in the object, attached to a cgroup. */
#define PIN_HOOKS(X)                                  \
	X(connect4, BPF_CGROUP_INET4_CONNECT)         \
	X(connect6, BPF_CGROUP_INET6_CONNECT)         \
	X(sockops, BPF_CGROUP_SOCK_OPS)               \
	X(getsockopt, BPF_CGROUP_GETSOCKOPT)          \
	X(getpeername4, BPF_CGROUP_INET4_GETPEERNAME) \
	X(getpeername6, BPF_CGROUP_INET6_GETPEERNAME) \
	X(getsockname4, BPF_CGROUP_INET4_GETSOCKNAME) \
	X(getsockname6, BPF_CGROUP_INET6_GETSOCKNAME) \
	X(sock_release, BPF_CGROUP_INET_SOCK_RELEASE)

/* X(name): pinned likewise, without a link: tproxyd attaches it to its listeners. */
#define PIN_FILTERS(X) X(doorman)

#endif
