/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The process that service managers know: it starts workers, which share its descriptors and their
 * memory (shared.h), one after the other, becomes another binary on SIGHUP, and hands everything
 * over to another tproxyd that asks for it.
 */
#ifndef TPROXY_MASTER_H
#define TPROXY_MASTER_H

#include "proxy.h"

/* Serves until told to stop. Returns the exit status. */
int master_run(struct proxy *p, char **argv);

#endif
