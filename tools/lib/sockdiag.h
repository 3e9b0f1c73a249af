/* SPDX-License-Identifier: BSD-2-Clause */
/* TCP sockets as the kernel lists them over NETLINK_SOCK_DIAG (sock_diag(7)), in any namespace. */
#ifndef TPROXY_SOCKDIAG_H
#define TPROXY_SOCKDIAG_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../../bpf/abi.h"
#include "failure.h"

struct sockdiag_query {
	pid_t netns_of;	     /* whose network namespace; 0: our own */
	uint32_t states;     /* bits 1 << TCP_x; 0: all */
	uint16_t local_port; /* host order; 0: any */
	uint16_t remote_port;
};

struct sockdiag_socket {
	uint64_t cookie;	  /* unique over all namespaces from Linux 5.10 on */
	struct tp_endpoint local; /* family 0 where it is the wildcard address; port is set */
	uint64_t sent;		  /* payload bytes the peer acknowledged */
	uint64_t received;	  /* payload bytes */
	uint32_t inode;
	uint32_t uid;
	uint8_t state; /* TCP_x */
};

/*
 * Both families, sorted by cookie; *ret is to be freed. 0, or -errno: -ESRCH and -ENOENT where the
 * process has gone, -EPERM where its namespace may not be entered.
 */
int sockdiag_tcp(const struct sockdiag_query *query, struct sockdiag_socket **ret,
		 size_t *ret_count, struct failure *f);

/* In a result of sockdiag_tcp(); NULL if it is not there. */
const struct sockdiag_socket *sockdiag_find(const struct sockdiag_socket *sockets, size_t count,
					    uint64_t cookie);

/* "ESTABLISHED" and so on. */
const char *sockdiag_state(uint8_t state);

/* The kernel's cookie for our own network namespace; 0 where it has none to tell (before 5.14). */
uint64_t sockdiag_netns_cookie(void);

#endif
