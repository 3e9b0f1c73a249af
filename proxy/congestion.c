// SPDX-License-Identifier: BSD-2-Clause
#include "congestion.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

void congestion_get(int fd, char ret_name[TP_CC_LEN])
{
	socklen_t len = TP_CC_LEN;

	memset(ret_name, 0, TP_CC_LEN);
	getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, ret_name, &len);
}

int congestion_paces(const char name[TP_CC_LEN])
{
	return !strncmp(name, "bbr", 3);
}

void congestion_set(int fd, const char *name)
{
	setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, strnlen(name, TP_CC_LEN - 1));
}
