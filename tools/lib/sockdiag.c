// SPDX-License-Identifier: BSD-2-Clause
#include "sockdiag.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>

#include "endpoint.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

/* What the kernel fills a dump's messages up to, at most; MNL_SOCKET_BUFFER_SIZE is no constant. */
#define RECEIVE_SIZE 32768

/*
 * linux/tcp.h, which knows the byte counters, cannot be included beside netinet/tcp.h, which knows
 * the states. This is the head of the kernel's struct tcp_info up to what is read here (Linux 4.1).
 */
struct tcp_info_head {
	uint8_t before[8 + 24 * 4];
	uint64_t pacing_rate, max_pacing_rate;
	uint64_t bytes_acked, bytes_received;
};

_Static_assert(offsetof(struct tcp_info_head, bytes_acked) == 120, "tcpi_bytes_acked");

struct collection {
	struct sockdiag_socket *sockets;
	size_t count, room;
};

static void collection_free(struct collection *c)
{
	free(c->sockets);
}

/* SYN and FIN take a sequence number each and are counted with the bytes. */
static void without_flags(struct sockdiag_socket *s)
{
	int fin_acked = s->state == TCP_FIN_WAIT2;
	int fin_received = s->state == TCP_CLOSE_WAIT || s->state == TCP_LAST_ACK ||
			   s->state == TCP_CLOSING;

	if (s->sent)
		s->sent -= 1 + fin_acked;
	if (s->received)
		s->received -= fin_received;
}

static int message_info(const struct nlattr *attr, void *user)
{
	struct sockdiag_socket *s = user;
	struct tcp_info_head info;

	if (mnl_attr_get_type(attr) != INET_DIAG_INFO ||
	    mnl_attr_get_payload_len(attr) < sizeof(info))
		return MNL_CB_OK;
	memcpy(&info, mnl_attr_get_payload(attr), sizeof(info));
	s->sent = info.bytes_acked;
	s->received = info.bytes_received;
	without_flags(s);
	return MNL_CB_OK;
}

static void message_local(const struct inet_diag_msg *m, struct tp_endpoint *ret)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = m->id.idiag_sport};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = m->id.idiag_sport};

	if (m->idiag_family == AF_INET) {
		memcpy(&in.sin_addr, m->id.idiag_src, 4);
		endpoint_from_sockaddr((struct sockaddr *)&in, ret);
		if (in.sin_addr.s_addr == INADDR_ANY)
			ret->family = 0;
	} else {
		memcpy(&in6.sin6_addr, m->id.idiag_src, 16);
		endpoint_from_sockaddr((struct sockaddr *)&in6, ret);
		if (IN6_IS_ADDR_UNSPECIFIED(&in6.sin6_addr))
			ret->family = 0;
	}
}

static int message_read(const struct nlmsghdr *nlh, void *user)
{
	const struct inet_diag_msg *m = mnl_nlmsg_get_payload(nlh);
	struct sockdiag_socket s = {};
	struct collection *c = user;

	if (mnl_nlmsg_get_payload_len(nlh) < sizeof(*m))
		return MNL_CB_OK;
	if (c->count == c->room) {
		size_t room = c->room ? 2 * c->room : 64;
		struct sockdiag_socket *more = reallocarray(c->sockets, room, sizeof(*more));

		if (!more)
			return MNL_CB_ERROR; /* errno is ENOMEM */
		c->sockets = more;
		c->room = room;
	}
	s.cookie = (uint64_t)m->id.idiag_cookie[1] << 32 | m->id.idiag_cookie[0];
	s.inode = m->idiag_inode;
	s.uid = m->idiag_uid;
	s.state = m->idiag_state;
	message_local(m, &s.local);
	mnl_attr_parse(nlh, sizeof(*m), message_info, &s);
	c->sockets[c->count++] = s;
	return MNL_CB_OK;
}

/* A netlink socket belongs to the namespace it was made in: go there, make it, come back. */
static int open_in(pid_t pid, struct mnl_socket **ret, struct failure *f)
{
	int ours _cleanup_fd_ = -1, theirs _cleanup_fd_ = -1, err;
	char path[64];

	if (!pid) {
		*ret = mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC);
		return *ret ? 0 : fail(f, -errno, "cannot open a sock_diag socket: %m");
	}
	snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
	theirs = open(path, O_RDONLY | O_CLOEXEC);
	if (theirs < 0)
		return fail(f, -errno, "cannot open %s: %m", path);
	ours = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (ours < 0)
		return fail(f, -errno, "cannot open /proc/self/ns/net: %m");
	if (setns(theirs, CLONE_NEWNET))
		return fail(f, -errno, "cannot enter the network namespace of process %d: %m", pid);
	*ret = mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC);
	err = *ret ? 0 : -errno;
	if (setns(ours, CLONE_NEWNET)) {
		if (*ret)
			mnl_socket_close(*ret);
		return fail(f, -errno, "cannot return to the own network namespace: %m");
	}
	return err ? fail(f, err, "cannot open a sock_diag socket: %s", strerror(-err)) : 0;
}

static void cleanup_mnl(struct mnl_socket **nl)
{
	if (*nl)
		mnl_socket_close(*nl);
}

static int dump(struct mnl_socket *nl, int family, const struct sockdiag_query *query,
		struct collection *c)
{
	char buf[RECEIVE_SIZE] __attribute__((aligned(NLMSG_ALIGNTO)));
	struct inet_diag_req_v2 *req;
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buf);
	int r;

	nlh->nlmsg_type = SOCK_DIAG_BY_FAMILY;
	nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	nlh->nlmsg_seq = family;
	req = mnl_nlmsg_put_extra_header(nlh, sizeof(*req));
	req->sdiag_family = family;
	req->sdiag_protocol = IPPROTO_TCP;
	req->idiag_ext = 1 << (INET_DIAG_INFO - 1);
	req->idiag_states = query->states ? query->states : ~0U;
	req->id.idiag_sport = htons(query->local_port);
	req->id.idiag_dport = htons(query->remote_port);
	if (mnl_socket_sendto(nl, nlh, nlh->nlmsg_len) < 0)
		return -errno;
	do {
		ssize_t n = mnl_socket_recvfrom(nl, buf, sizeof(buf));

		if (n < 0)
			return -errno;
		r = mnl_cb_run(buf, n, family, mnl_socket_get_portid(nl), message_read, c);
	} while (r > MNL_CB_STOP);
	return r == MNL_CB_ERROR ? -errno : 0;
}

static int by_cookie(const void *a, const void *b)
{
	uint64_t x = ((const struct sockdiag_socket *)a)->cookie;
	uint64_t y = ((const struct sockdiag_socket *)b)->cookie;

	return (x > y) - (x < y);
}

int sockdiag_tcp(const struct sockdiag_query *query, struct sockdiag_socket **ret,
		 size_t *ret_count, struct failure *f)
{
	struct collection c _cleanup_(collection_free) = {};
	struct mnl_socket *nl _cleanup_(cleanup_mnl) = NULL;
	int err;

	err = open_in(query->netns_of, &nl, f);
	if (err)
		return err;
	err = mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) ? -errno : 0;
	if (!err)
		err = dump(nl, AF_INET, query, &c);
	if (!err)
		err = dump(nl, AF_INET6, query, &c);
	if (err)
		return fail(f, err,
			    "cannot list the TCP sockets (sock_diag): %s; the kernel may lack "
			    "CONFIG_INET_DIAG",
			    strerror(-err));
	if (c.count)
		qsort(c.sockets, c.count, sizeof(*c.sockets), by_cookie);
	*ret = TAKE_PTR(c.sockets);
	*ret_count = c.count;
	return 0;
}

const struct sockdiag_socket *sockdiag_find(const struct sockdiag_socket *sockets, size_t count,
					    uint64_t cookie)
{
	struct sockdiag_socket key = {.cookie = cookie};

	return count ? bsearch(&key, sockets, count, sizeof(key), by_cookie) : NULL;
}

const char *sockdiag_state(uint8_t state)
{
	static const char *const words[] = {
		[TCP_ESTABLISHED] = "ESTABLISHED",
		[TCP_SYN_SENT] = "SYN_SENT",
		[TCP_SYN_RECV] = "SYN_RECV",
		[TCP_FIN_WAIT1] = "FIN_WAIT1",
		[TCP_FIN_WAIT2] = "FIN_WAIT2",
		[TCP_TIME_WAIT] = "TIME_WAIT",
		[TCP_CLOSE] = "CLOSE",
		[TCP_CLOSE_WAIT] = "CLOSE_WAIT",
		[TCP_LAST_ACK] = "LAST_ACK",
		[TCP_LISTEN] = "LISTEN",
		[TCP_CLOSING] = "CLOSING",
	};

	return state < ARRAY_SIZE(words) && words[state] ? words[state] : "UNKNOWN";
}

uint64_t sockdiag_netns_cookie(void)
{
	int fd _cleanup_fd_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(uint64_t);
	uint64_t cookie = 0;

	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len))
		return 0;
	return cookie;
}
