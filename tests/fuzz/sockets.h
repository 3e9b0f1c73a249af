/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sockets and pipes that are made of the input: every call that tproxyd makes on a descriptor is
 * answered by what comes next in it. Nothing reaches the network. That a descriptor is closed
 * twice, or used when it is closed, is a finding.
 *
 * To be included once: these functions take the place of the C library's in the whole program.
 */
#ifndef TPROXY_FUZZ_SOCKETS_H
#define TPROXY_FUZZ_SOCKETS_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../bpf/abi.h"
#include "fuzz.h"

#define FD_FIRST 256
#define FD_COUNT 256

static struct input *answers;	    /* what the calls are answered with */
static int addresses_are_whole = 1; /* IPv4 is v4-mapped (abi.h): checksums rely on that */
static uint8_t fd_open[FD_COUNT];   /* by descriptor less FD_FIRST */

static inline int fd_is_fake(int fd)
{
	return fd >= FD_FIRST && fd < FD_FIRST + FD_COUNT;
}

static inline int fd_is_open(int fd)
{
	return fd_is_fake(fd) && fd_open[fd - FD_FIRST];
}

static inline int fds_open(void)
{
	int count = 0;

	for (int i = 0; i < FD_COUNT; i++)
		count += fd_open[i];
	return count;
}

static inline int fd_new(void)
{
	for (int i = 0; i < FD_COUNT; i++)
		if (!fd_open[i]) {
			fd_open[i] = 1;
			return FD_FIRST + i;
		}
	errno = EMFILE;
	return -1;
}

static inline int failed(int error)
{
	errno = error;
	return -1;
}

/* 0, or -1 with an errno: as the input has it, mostly 0. */
static int answer(int fd)
{
	uint8_t error = take_byte(answers);

	if (!fd_is_open(fd))
		return failed(EBADF);
	return error < 0x80 ? 0 : failed((error & 0x7f) ?: EIO);
}

int socket(int family, int type, int protocol)
{
	(void)family;
	(void)type;
	(void)protocol;
	return take_byte(answers) == 0xff ? failed(EMFILE) : fd_new();
}

int pipe2(int fd[2], int flags)
{
	(void)flags;
	if (take_byte(answers) == 0xff)
		return failed(EMFILE);
	fd[0] = fd_new();
	fd[1] = fd_new();
	insist(fd[1] >= 0);
	return 0;
}

int close(int fd)
{
	if (!fd_is_fake(fd))
		return syscall(SYS_close, fd);
	insist(fd_open[fd - FD_FIRST]);
	fd_open[fd - FD_FIRST] = 0;
	return 0;
}

int connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	(void)addr;
	(void)len;
	return answer(fd);
}

int bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	(void)addr;
	(void)len;
	return answer(fd);
}

int shutdown(int fd, int how)
{
	(void)how;
	return answer(fd);
}

int epoll_ctl(int set, int op, int fd, struct epoll_event *event)
{
	(void)set;
	(void)op;
	(void)event;
	return answer(fd);
}

int getsockname(int fd, struct sockaddr *addr, socklen_t *len)
{
	if (answer(fd))
		return -1;
	take(answers, addr, *len < 28 ? *len : 28);
	if (take_byte(answers) & 1) /* as if it had been accepted */
		*(struct sockaddr_in *)addr = (struct sockaddr_in){
			.sin_family = AF_INET,
			.sin_port = htons(18000),
			.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	return 0;
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
	(void)level;
	if (level == SOL_SOCKET && option == SO_ERROR) {
		*(int *)value = take_byte(answers) & 0x7f;
		return 0;
	}
	if (answer(fd))
		return -1;
	take(answers, value, *len);
	return 0;
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
	(void)level;
	(void)option;
	(void)value;
	(void)len;
	return fd_is_open(fd) ? 0 : failed(EBADF);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	int ready = 0;

	(void)timeout;
	for (nfds_t i = 0; i < count; i++) {
		fds[i].revents = fds[i].fd < 0 ? 0 : take_byte(answers);
		ready += !!fds[i].revents;
	}
	return ready;
}

ssize_t splice(int from, off64_t *from_at, int to, off64_t *to_at, size_t len, unsigned int flags)
{
	uint32_t n;

	(void)from_at;
	(void)to_at;
	(void)flags;
	if (!fd_is_open(to))
		return failed(EBADF);
	if (answer(from))
		return -1;
	n = take_u16(answers);
	return n < len ? n : len;
}

ssize_t recv(int fd, void *data, size_t len, int flags)
{
	(void)flags;
	if (answer(fd))
		return -1;
	len = take_byte(answers) & 1 ? len : 0;
	take(answers, data, len);
	return len;
}

ssize_t send(int fd, const void *data, size_t len, int flags)
{
	(void)data;
	(void)flags;
	return answer(fd) ? -1 : (ssize_t)len;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	int *number;

	va_start(ap, request);
	number = va_arg(ap, int *);
	va_end(ap);
	if (answer(fd))
		return -1;
	*number = take_u16(answers);
	return 0;
}

static uint32_t sum_words(const uint8_t *p, size_t len)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += i & 1 ? p[i] : p[i] << 8;
	return sum;
}

static int sums_to_zero(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

/* A raw socket's packet must be one that a kernel takes: its lengths agree, its sums are right. */
static void check_packet(const uint8_t *p, size_t len)
{
	int v4 = p[0] >> 4 == 4;
	size_t head = v4 ? sizeof(struct iphdr) : sizeof(struct ip6_hdr);
	size_t body = v4 ? (p[2] << 8 | p[3]) - head : (size_t)(p[4] << 8 | p[5]);
	uint8_t protocol = v4 ? p[9] : p[6];
	uint32_t sum;

	insist(len >= head + 8 && (v4 || p[0] >> 4 == 6));
	insist(len == head + body);
	insist(!v4 || sums_to_zero(sum_words(p, head)));
	sum = sum_words(p + head, body);
	if (protocol != IPPROTO_ICMP)
		sum += sum_words(v4 ? p + 12 : p + 8, v4 ? 8 : 32) + protocol + body;
	insist(sums_to_zero(sum) || !addresses_are_whole);
}

ssize_t sendto(int fd, const void *data, size_t len, int flags, const struct sockaddr *to,
	       socklen_t to_len)
{
	(void)fd;
	(void)flags;
	(void)to;
	(void)to_len;
	check_packet(data, len);
	return len;
}

/* The log: whole lines, in printable ASCII whatever a peer calls itself. */
ssize_t write(int fd, const void *data, size_t len)
{
	const char *text = data;

	if (fd != STDERR_FILENO)
		return syscall(SYS_write, fd, data, len);
	insist(len && text[len - 1] == '\n');
	for (size_t i = 0; i < len; i++)
		insist(text[i] == '\n' || (text[i] >= 0x20 && text[i] < 0x7f));
	return len;
}

/* The mark of an accepted socket, with its client's record; one of a few clients. */
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_lookup_elem(int fd, const void *key, void *value)
{
	struct tp_mark *mark = value;

	(void)fd;
	if (answer(*(const int *)key))
		return -1;
	take(answers, mark, sizeof(*mark));
	mark->role = TP_ROLE_ACCEPTED;
	mark->client.cookie &= 7;
	mark->client.seq &= 3;
	return 0;
}

int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags)
{
	(void)fd;
	(void)key;
	(void)value;
	(void)flags;
	return 0;
}

#endif
