/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The process that service managers know: it starts workers, which share its descriptors and their
 * memory (shared.h), one after the other, and becomes another binary on SIGHUP.
 */
#ifndef TPROXY_MASTER_H
#define TPROXY_MASTER_H

#include "proxy.h"

/* How a master that becomes another binary hands its descriptors over, and what a binary is asked
 * about before: the number of the memory's descriptor, and its layout. */
#define MASTER_ENV_MEMORY "TPROXYD_MEMORY"
#define MASTER_ENV_LAYOUT "TPROXYD_LAYOUT"

/* Sets or clears close-on-exec on everything but the standard descriptors. */
void master_set_cloexec(uint64_t fd_limit, int on);

/* Serves until told to stop. Returns the exit status. */
int master_run(struct proxy *p, char **argv);

#endif
