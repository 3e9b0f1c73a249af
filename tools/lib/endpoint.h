/* SPDX-License-Identifier: BSD-2-Clause */
/* struct tp_endpoint (bpf/abi.h) to and from text and socket addresses. */
#ifndef TPROXY_ENDPOINT_H
#define TPROXY_ENDPOINT_H

#include <linux/types.h>
#include <sys/socket.h>

#include "../../bpf/abi.h"

#define ENDPOINT_STRLEN 56 /* "[" an IPv6 address "]:65535" and NUL */

/* Writes "192.0.2.1:80" or "[2001:db8::1]:80", "-" where the endpoint is not known. Returns buf. */
const char *endpoint_format(const struct tp_endpoint *ep, char buf[ENDPOINT_STRLEN]);

/* Fills an address of the endpoint's family; *ret_len is its length. 0, or -EAFNOSUPPORT. */
int endpoint_to_sockaddr(const struct tp_endpoint *ep, struct sockaddr_storage *ret_addr,
			 socklen_t *ret_len);

/* The reverse; a v4-mapped address gives AF_INET. 0, or -EAFNOSUPPORT. */
int endpoint_from_sockaddr(const struct sockaddr *addr, struct tp_endpoint *ret_ep);

#endif
