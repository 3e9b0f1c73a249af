// SPDX-License-Identifier: BSD-2-Clause
#include "congestion.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#define NAME_LEN 16 /* TCP_CA_NAME_MAX */

int congestion_paces(int fd)
{
	char name[NAME_LEN] = "";
	socklen_t len = sizeof(name);

	return !getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len) && !strncmp(name, "bbr", 3);
}

void congestion_local(int fd)
{
	setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}
