// SPDX-License-Identifier: BSD-2-Clause
#include "endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

static const __u8 mapped_prefix[12] = {[10] = 0xff, [11] = 0xff};

const char *endpoint_format(const struct tp_endpoint *ep, char buf[ENDPOINT_STRLEN])
{
	char ip[INET6_ADDRSTRLEN];

	if (ep->family == AF_INET && inet_ntop(AF_INET, ep->ip + 12, ip, sizeof(ip)))
		snprintf(buf, ENDPOINT_STRLEN, "%s:%u", ip, ep->port);
	else if (ep->family == AF_INET6 && inet_ntop(AF_INET6, ep->ip, ip, sizeof(ip)))
		snprintf(buf, ENDPOINT_STRLEN, "[%s]:%u", ip, ep->port);
	else
		snprintf(buf, ENDPOINT_STRLEN, "-");
	return buf;
}

int endpoint_to_sockaddr(const struct tp_endpoint *ep, struct sockaddr_storage *ret_addr,
			 socklen_t *ret_len)
{
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret_addr;
	struct sockaddr_in *in = (struct sockaddr_in *)ret_addr;

	switch (ep->family) {
	case AF_INET:
		memset(in, 0, sizeof(*in));
		in->sin_family = AF_INET;
		in->sin_port = htons(ep->port);
		memcpy(&in->sin_addr, ep->ip + 12, 4);
		*ret_len = sizeof(*in);
		return 0;
	case AF_INET6:
		memset(in6, 0, sizeof(*in6));
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(ep->port);
		memcpy(&in6->sin6_addr, ep->ip, 16);
		*ret_len = sizeof(*in6);
		return 0;
	}
	return -EAFNOSUPPORT;
}

int endpoint_from_sockaddr(const struct sockaddr *addr, struct tp_endpoint *ret_ep)
{
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
	const struct sockaddr_in *in = (const struct sockaddr_in *)addr;

	switch (addr->sa_family) {
	case AF_INET:
		ret_ep->family = AF_INET;
		ret_ep->port = ntohs(in->sin_port);
		memcpy(ret_ep->ip, mapped_prefix, 12);
		memcpy(ret_ep->ip + 12, &in->sin_addr, 4);
		return 0;
	case AF_INET6:
		ret_ep->port = ntohs(in6->sin6_port);
		memcpy(ret_ep->ip, &in6->sin6_addr, 16);
		ret_ep->family = memcmp(ret_ep->ip, mapped_prefix, 12) ? AF_INET6 : AF_INET;
		return 0;
	}
	return -EAFNOSUPPORT;
}
