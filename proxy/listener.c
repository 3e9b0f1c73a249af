// SPDX-License-Identifier: BSD-2-Clause
#include "listener.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "congestion.h"
#include "endpoint.h"
#include "hold.h"
#include "log.h"
#include "routes.h"
#include "session.h"
#include "stats.h"

#define DEAD_MS		     3000
#define SELFTEST_TIMEOUT_MS  2000
#define KEEPALIVE_IDLE_S     60
#define KEEPALIVE_INTERVAL_S 10
#define SELFTEST_SOCKETS     1000
#define MARK_TRIES	     5
#define MARK_MS		     10

static const struct tp_endpoint selftest_dst[FAMILY_COUNT] = {
	{{[10] = 0xff, 0xff, 127, 0, 0, 1}, TP_SELFTEST_PORT, AF_INET},
	{{[15] = 1}, TP_SELFTEST_PORT, AF_INET6},
};

static const struct tp_endpoint loopback[FAMILY_COUNT] = {
	{{[10] = 0xff, 0xff, 127, 0, 0, 1}, 0, AF_INET},
	{{[15] = 1}, 0, AF_INET6},
};

static int listen_on(const struct tp_endpoint *where, uint16_t port)
{
	struct tp_endpoint ep = *where;
	struct sockaddr_storage addr;
	int fd _cleanup_fd_ = -1;
	socklen_t len;
	int one = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S;

	ep.port = port;
	endpoint_to_sockaddr(&ep, &addr, &len);
	fd = socket(ep.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	if (fd < 0)
		return -errno;
	/*
	 * Accepted sockets inherit these. Without TCP_NODELAY a write-write-read client waits 40
	 * ms. The keepalive, over loopback, finds a client whose reset was lost.
	 */
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval)) ||
	    (ep.family == AF_INET6 &&
	     setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one))) ||
	    session_close_resets(fd, 1) || bind(fd, (struct sockaddr *)&addr, len) ||
	    listen(fd, INT32_MAX))
		return -errno; /* the kernel caps the backlog at net.core.somaxconn */
	return TAKE_FD(fd);
}

uint16_t listener_port(const struct proxy *p, int listener)
{
	return p->shared->port + listener / FAMILY_COUNT;
}

static int open_failed(const struct proxy *p, int listener, int err, struct failure *f)
{
	const char *ip = listener_family(listener) == LISTENER_V4 ? "127.0.0.1" : "[::1]";
	uint16_t port = listener_port(p, listener);

	if (err == -EADDRINUSE)
		return fail(
			f, err,
			"cannot listen on %s:%u: another process holds it (another tproxyd of "
			"instance %s, or a stranger); find it with: ss -ltnp 'sport = %u'; to take "
			"over from a tproxyd that runs: tproxyd --takeover, with its --part if it "
			"has one",
			ip, port, p->instance.name, port);
	return fail(f, err, "cannot listen on %s:%u: %s; is the loopback interface up?", ip, port,
		    strerror(-err));
}

/* Ports are dealt out one by one, so that parts differ by one port at most. */
static int is_ours(const struct proxy *p, int listener)
{
	return listener / FAMILY_COUNT % p->settings.parts == p->settings.part_index;
}

int listener_first(const struct proxy *p)
{
	return p->settings.part_index * FAMILY_COUNT + LISTENER_V4;
}

int listener_is_open(const struct proxy *p)
{
	return p->shared->listener[listener_first(p)] >= 0;
}

int listener_open(struct proxy *p, struct failure *f)
{
	p->shared->port = p->instance.config->port;
	p->shared->ports = p->instance.config->ports;
	if (!p->shared->port || !p->shared->ports || p->shared->ports > TP_MAX_PORTS)
		return fail(
			f, -EINVAL,
			"instance %s has no port, as if tproxy-load had been interrupted; tproxy "
			"doctor --name %s says how to go on",
			p->instance.name, p->instance.name);
	if (p->settings.parts > p->shared->ports)
		return fail(f, -EINVAL,
			    "part %s: instance %s has %u ports, and each part takes one at least; "
			    "load it with more: tproxy-load --ports",
			    p->settings.part, p->instance.name, p->shared->ports);
	for (int i = 0; i < p->shared->ports * FAMILY_COUNT; i++) {
		int family = listener_family(i), fd;

		if (!is_ours(p, i))
			continue;
		fd = listen_on(&loopback[family], listener_port(p, i));
		/* A namespace without IPv6 has no ::1; its clients have no IPv6 either. */
		if (family == LISTENER_V6 && (fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL))
			continue;
		if (fd < 0 && open_failed(p, i, fd, f) && i - family == listener_first(p))
			return fd;
		if (fd < 0) { /* its clients come to another port instead */
			log_warning("%s; going on without it", f->text);
			continue;
		}
		p->shared->listener[i] = fd;
		congestion_get(fd, p->shared->congestion);
		if (congestion_paces(p->shared->congestion))
			congestion_set(fd, TP_CC_LOCAL);
	}
	return 0;
}

struct tp_endpoint listener_address(int family, uint16_t port)
{
	struct tp_endpoint ep = loopback[family == AF_INET ? LISTENER_V4 : LISTENER_V6];

	ep.port = port;
	return ep;
}

int listener_index(const struct proxy *p, int family, uint16_t port)
{
	uint16_t at = port - p->shared->port;

	if (at >= p->shared->ports)
		return -1;
	return at * FAMILY_COUNT + (family == AF_INET ? LISTENER_V4 : LISTENER_V6);
}

int listener_is(const struct proxy *p, const struct tp_endpoint *ep)
{
	struct tp_endpoint ours = listener_address(ep->family, ep->port);

	return listener_index(p, ep->family, ep->port) >= 0 && !memcmp(ep, &ours, sizeof(ours));
}

static int mark_set(const struct proxy *p, int fd, enum tp_role role)
{
	struct tp_mark mark = {
		.role = role, .slot = p->shared->slot, .netns = p->shared->netns, .tagged = 1};
	int map = p->instance.map[PIN_MAP_listeners];

	/* The kernel makes a new one each time, and what it makes it from is short for moments. */
	for (int try = 0; bpf_map_update_elem(map, &fd, &mark, BPF_ANY); try++) {
		if (errno != ENOMEM || try == MARK_TRIES)
			return -errno;
		poll(NULL, 0, MARK_MS);
	}
	return 0;
}

/*
 * Where a network namespace has gone with its tproxyd, nobody comes to clear the slot. Whether a
 * pid is alive can be asked only in the pid namespace that it is a number of; and one that is dead
 * for longer than it takes to start another worker is dead for good.
 */
static struct tp_proxy *slot_of_the_dead(const struct proxy *p, struct tp_proxy *slots)
{
	__u32 seen[TP_MAX_PROXIES];

	if (p->tgid != (uint32_t)getpid())
		return NULL;
	for (int i = 0; i < TP_MAX_PROXIES; i++)
		seen[i] = slots[i].tgid;
	poll(NULL, 0, DEAD_MS);
	for (int i = 0; i < TP_MAX_PROXIES; i++) {
		__u32 tgid = seen[i];

		/* UINT32_MAX: its worker had died, and its master did before there was another. */
		if ((tgid == UINT32_MAX || (kill(tgid, 0) && errno == ESRCH)) &&
		    __atomic_compare_exchange_n(&slots[i].tgid, &tgid, UINT32_MAX, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
			slots[i].port = 0;
			return &slots[i];
		}
	}
	return NULL;
}

/* Whoever takes it next names its port last: until then it must not pass for its predecessor's. */
static void slot_free(struct tp_proxy *slot, __u32 tgid)
{
	if (!__atomic_compare_exchange_n(&slot->tgid, &tgid, UINT32_MAX, 0, __ATOMIC_ACQ_REL,
					 __ATOMIC_RELAXED))
		return; /* somebody else has, and it may be given away again */
	__atomic_store_n(&slot->port, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&slot->tgid, 0, __ATOMIC_RELEASE);
}

/*
 * Whether who is entered in a slot of our network namespace is gone: we hold his port, or have his
 * pid, or his port is none of the instance's any more. His pid, which anybody may have been given
 * since, must not stay exempt.
 */
static int is_stale(const struct proxy *p, const struct tp_proxy *slot, __u32 tgid)
{
	const struct tp_config *config = p->instance.config;
	uint16_t port = slot->port;
	int i;

	if (tgid == p->tgid)
		return 1;
	if (!port && tgid == UINT32_MAX) /* somebody is about to name it */
		return 0;
	port = port ?: config->port; /* one of an older version has all */
	i = listener_index(p, AF_INET, port);
	if (i >= 0 && p->shared->listener[i] >= 0)
		return 1;
	return (uint16_t)(port - config->port) >= config->ports;
}

/* The slot that was a predecessor's, or NULL. It may be another part's by now. */
static struct tp_proxy *inherited_slot(const struct proxy *p)
{
	struct tp_proxy *slot;

	if (p->shared->slot >= TP_MAX_PROXIES)
		return NULL;
	slot = &p->instance.config->proxies[p->shared->slot];
	if (!slot->tgid || slot->netns != p->netns ||
	    (slot->port && slot->port != listener_port(p, listener_first(p))))
		return NULL;
	/* Without the port another one may have both. */
	return listener_is_open(p) || slot->tgid == p->shared->serving ? slot : NULL;
}

/* The slot that was a predecessor's, with its pid in it still, or a free one. */
static struct tp_proxy *take_slot(const struct proxy *p)
{
	struct tp_proxy *slots = p->instance.config->proxies, *ours = inherited_slot(p);

	for (int i = 0; i < TP_MAX_PROXIES; i++) {
		__u32 tgid = slots[i].tgid;

		if (&slots[i] != ours && tgid && slots[i].netns == p->netns &&
		    is_stale(p, &slots[i], tgid))
			slot_free(&slots[i], tgid);
	}
	if (ours)
		return ours;
	for (int i = 0; i < TP_MAX_PROXIES; i++) {
		__u32 free_slot = 0;

		if (__atomic_compare_exchange_n(&slots[i].tgid, &free_slot, UINT32_MAX, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return &slots[i];
	}
	return slot_of_the_dead(p, slots);
}

int listener_identify(struct proxy *p, struct failure *f)
{
	struct sockaddr_in nowhere = {.sin_family = AF_INET,
				      .sin_port = htons(TP_REGISTER_PORT),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct tp_mark mark = {0};
	int fd _cleanup_fd_ = -1;
	int err;

	/* The hook runs before it is tried. */
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	if (fd < 0)
		return fail(f, -errno, "cannot open a socket: %m");
	err = mark_set(p, fd, TP_ROLE_REGISTER);
	if (err)
		return fail(f, err, "cannot mark a socket in map_listeners of instance %s: %s",
			    p->instance.name, strerror(-err));
	(void)!connect(fd, (struct sockaddr *)&nowhere, sizeof(nowhere));
	if (bpf_map_lookup_elem(p->instance.map[PIN_MAP_listeners], &fd, &mark))
		return fail(f, -errno, "cannot read map_listeners of instance %s: %m",
			    p->instance.name);
	if (!mark.tgid && !p->instance.config->enabled)
		return fail(f, -EAGAIN,
			    "the hooks of instance %s are loaded but not enabled, as if "
			    "tproxy-load had "
			    "been interrupted; tproxy doctor --name %s says how to go on",
			    p->instance.name, p->instance.name);
	if (!mark.tgid)
		return fail(
			f, -EXDEV,
			"this process is in no cgroup that the hooks of instance %s are attached "
			"to, "
			"so they could not answer for the connections it accepts; start it inside "
			"one "
			"of them (tproxy status --name %s), or add its own: tproxy-load --cgroup",
			p->instance.name, p->instance.name);
	p->tgid = mark.tgid;
	p->netns = mark.netns;
	return 0;
}

int listener_register(struct proxy *p, struct failure *f)
{
	struct tp_proxy *slot;
	int err = listener_identify(p, f);

	if (err)
		return err;
	p->shared->netns = p->netns;
	slot = take_slot(p);
	if (!slot)
		return fail(f, -EUSERS,
			    "instance %s has %d proxies registered already, the most it can "
			    "have; stop one (tproxy status --name %s)",
			    p->instance.name, TP_MAX_PROXIES, p->instance.name);
	p->shared->slot = slot - p->instance.config->proxies;
	slot->connect_timeout = p->settings.hold ? p->settings.connect_timeout : 0;
	slot->paces = congestion_paces(p->shared->congestion);
	slot->netns = p->netns;
	__atomic_store_n(&slot->port, listener_port(p, listener_first(p)), __ATOMIC_RELEASE);
	__atomic_store_n(&slot->tgid, p->tgid, __ATOMIC_RELEASE);
	return 0;
}

int listener_trust(struct proxy *p, struct failure *f)
{
	for (int i = 0; i < LISTENER_COUNT; i++) {
		int err = p->shared->listener[i] < 0
				  ? 0
				  : mark_set(p, p->shared->listener[i], TP_ROLE_LISTENER);

		if (err)
			return fail(f, err,
				    "cannot mark the listener in map_listeners of instance %s: %s",
				    p->instance.name, strerror(-err));
	}
	return 0;
}

int listener_distrust(struct proxy *p)
{
	int ret = 0;

	for (int i = 0; i < LISTENER_COUNT; i++) {
		int err = p->shared->listener[i] < 0
				  ? 0
				  : mark_set(p, p->shared->listener[i], TP_ROLE_LEAVING);

		ret = ret ?: err;
	}
	return ret;
}

void listener_disown(struct proxy *p)
{
	struct tp_proxy *slot;

	if (p->shared->slot >= TP_MAX_PROXIES || !listener_is_open(p))
		return;
	/* While the port is ours the slot is that names it: nobody else can have registered. Where
	 * hooks were loaded anew it may be another part's that has the number. */
	slot = &p->instance.config->proxies[p->shared->slot];
	if (slot->tgid && slot->netns == p->shared->netns &&
	    slot->port == listener_port(p, listener_first(p)))
		__atomic_store_n(&slot->tgid, UINT32_MAX, __ATOMIC_RELEASE);
}

/* Whether the slot in map_config is still this proxy's; a successor may have taken it over. */
static int owns_slot(const struct proxy *p)
{
	const struct tp_proxy *slots = p->instance.config ? p->instance.config->proxies : NULL;
	uint32_t slot = p->shared->slot;

	return slots && p->tgid && slot < TP_MAX_PROXIES && slots[slot].tgid == p->tgid &&
	       slots[slot].netns == p->netns;
}

/* While the port is ours: whoever takes it next finds nothing that is taken away from him then. */
static void unregister(struct proxy *p)
{
	struct tp_proxy *slots = p->instance.config->proxies, *ours = &slots[p->shared->slot];
	int others = 0;

	hold_withdraw(p);
	p->stats = &stats_nowhere;
	p->shared->slot = TP_NO_SLOT;
	slot_free(ours, p->tgid);
	routes_close(p);
	for (int i = 0; i < TP_MAX_PROXIES; i++)
		others |= slots[i].tgid && slots[i].netns == p->netns;
	if (!others) /* else they are theirs, too */
		routes_withdraw(p);
}

void listener_close(struct proxy *p)
{
	if (owns_slot(p))
		unregister(p);
	for (int i = 0; i < LISTENER_COUNT; i++)
		p->shared->listener[i] = fd_close(p->shared->listener[i]);
}

static __u64 tag_of(const struct sockaddr_storage *addr)
{
	struct tp_endpoint client;
	__u32 last;

	if (endpoint_from_sockaddr((const struct sockaddr *)addr, &client))
		return TP_NO_TAG;
	memcpy(&last, client.ip + 12, sizeof(last));
	last = ntohl(last);
	if (client.family == AF_INET ? !IN_MULTICAST(last) : client.ip[0] != 0xff)
		return TP_NO_TAG;
	return (__u64)(last & TP_TAG_ADDRESS) << 16 | client.port;
}

int listener_accept(int listener, __u64 *ret_tag)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);
	int fd = accept4(listener, (struct sockaddr *)&addr, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0)
		return -errno;
	*ret_tag = tag_of(&addr);
	return fd;
}

int listener_record(const struct proxy *p, int fd, struct tp_record *ret_record)
{
	struct tp_mark mark;

	if (bpf_map_lookup_elem(p->instance.map[PIN_MAP_listeners], &fd, &mark) ||
	    mark.role != TP_ROLE_ACCEPTED)
		return -ENOENT;
	*ret_record = mark.client;
	return 0;
}

/* Whether SO_ORIGINAL_DST on `fd` names `dst`. */
static int original_dst_is(int fd, const struct tp_endpoint *dst)
{
	int v4 = dst->family == AF_INET;
	struct sockaddr_storage addr = {0};
	socklen_t len = v4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	struct tp_endpoint answer;

	if (getsockopt(fd, v4 ? SOL_IP : SOL_IPV6, 80 /* SO_ORIGINAL_DST */, &addr, &len) ||
	    endpoint_from_sockaddr((struct sockaddr *)&addr, &answer))
		return 0;
	return !memcmp(&answer, dst, sizeof(answer));
}

/* Accepts until the connection with `cookie` is met; others are served. fd or -errno. */
static int accept_own(struct proxy *p, int listener, __u64 cookie)
{
	struct pollfd polls[] = {{.fd = listener, .events = POLLIN},
				 {.fd = p->shared->ring, .events = POLLIN}};
	uint64_t deadline = monotonic_ms() + SELFTEST_TIMEOUT_MS;
	struct tp_record rec;

	/* Others may keep coming. */
	while (monotonic_ms() < deadline &&
	       poll(polls, ARRAY_SIZE(polls), SELFTEST_TIMEOUT_MS) > 0) {
		int fd;

		hold_events(p);
		fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0 && errno == EAGAIN)
			continue;
		if (fd < 0)
			return -errno;
		if (!listener_record(p, fd, &rec) && rec.cookie == cookie)
			return fd;
		session_accepted(p, fd, TP_NO_TAG);
	}
	return -ETIMEDOUT;
}

/*
 * A socket that the hooks will send to a listener of ours, not to one of another part's, and that
 * listener. Its cookie decides; they are numbers in a row. fd or -errno.
 */
static int selftest_socket(const struct proxy *p, int family, int *ret_listener, __u64 *ret_cookie)
{
	for (int i = 0; i < SELFTEST_SOCKETS; i++) {
		int fd _cleanup_fd_ = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
					     IPPROTO_TCP);
		socklen_t size = sizeof(*ret_cookie);
		int at, err;

		if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_COOKIE, ret_cookie, &size))
			return -errno;
		at = listener_index(p, family, tp_port_of(p->instance.config, *ret_cookie));
		if (at < 0 || p->shared->listener[at] < 0)
			continue;
		*ret_listener = p->shared->listener[at];
		err = mark_set(p, fd, TP_ROLE_SELFTEST);
		return err ?: TAKE_FD(fd);
	}
	return -EADDRNOTAVAIL;
}

static int selftest_family(struct proxy *p, int family, struct failure *f)
{
	const struct tp_endpoint *dst = &selftest_dst[family];
	int client _cleanup_fd_ = -1, server _cleanup_fd_ = -1, listener = -1;
	char text[ENDPOINT_STRLEN];
	struct sockaddr_storage addr;
	socklen_t len;
	__u64 cookie;

	endpoint_format(dst, text);
	endpoint_to_sockaddr(dst, &addr, &len);
	client = selftest_socket(p, dst->family, &listener, &cookie);
	if (client < 0)
		return fail(f, client, "self-test: cannot prepare a socket: %s", strerror(-client));
	if (connect(client, (struct sockaddr *)&addr, len) && errno != EINPROGRESS)
		return fail(f, -errno,
			    "self-test: a connection to %s was not redirected to port %u: %m; see "
			    "tproxy doctor",
			    text, listener_port(p, listener_first(p)));
	server = accept_own(p, listener, cookie);
	if (server < 0)
		return fail(f, server,
			    "self-test: a connection to %s did not arrive at port %u; see "
			    "tproxy doctor",
			    text, listener_port(p, listener_first(p)));
	if (!original_dst_is(server, dst))
		return fail(f, -EPROTO,
			    "self-test: SO_ORIGINAL_DST does not name %s; are other programs "
			    "attached to the getsockopt hook? see tproxy doctor",
			    text);
	return 0;
}

int listener_selftest(struct proxy *p, struct failure *f)
{
	for (int i = 0; i < FAMILY_COUNT; i++) {
		int err = p->shared->listener[listener_first(p) + i] < 0 ? 0
									 : selftest_family(p, i, f);

		if (err)
			return err;
	}
	return 0;
}
