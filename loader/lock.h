/* SPDX-License-Identifier: BSD-2-Clause */
/* One loader at a time, for all instances: they look at one another's cgroups. */
#ifndef TPROXY_LOADER_LOCK_H
#define TPROXY_LOADER_LOCK_H

#include "failure.h"

/*
 * Waits for the lock. Returns the descriptor that holds it until it is closed, or -errno. Only root
 * can open the file, so nobody else can hold a loader up.
 */
int lock_take(struct failure *f);

#endif
