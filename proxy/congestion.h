/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Congestion control of connections that do not leave the host. One that paces by measured
 * bandwidth (bbr) halves the throughput of loopback, where there is nothing to measure: such legs
 * get reno, which every kernel has. Legs to other hosts keep the host's choice, or the client's.
 */
#ifndef TPROXY_CONGESTION_H
#define TPROXY_CONGESTION_H

#include "../bpf/abi.h"

/* What a TCP socket has; "" where that cannot be told. */
void congestion_get(int fd, char ret_name[TP_CC_LEN]);

/* Whether that needs replacing on a connection within the host. */
int congestion_paces(const char name[TP_CC_LEN]);

/* For a listener, on all that it accepts. Best effort: it is about speed only. */
void congestion_set(int fd, const char *name);

#endif
