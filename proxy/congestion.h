/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Congestion control of connections that do not leave the host. One that paces by measured
 * bandwidth (bbr) halves the throughput of loopback, where there is nothing to measure: such legs
 * get reno, which every kernel has. Legs to other hosts keep the host's choice.
 */
#ifndef TPROXY_CONGESTION_H
#define TPROXY_CONGESTION_H

/* Whether the default of this namespace, which `fd` (TCP) was made with, needs replacing. */
int congestion_paces(int fd);

/* Sets reno; for a listener, on all that it accepts. Best effort: it is about speed only. */
void congestion_local(int fd);

#endif
