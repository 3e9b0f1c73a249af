/* SPDX-License-Identifier: BSD-2-Clause */
/* The event loop: the one place that maps events to what is done about them. */
#ifndef TPROXY_LOOP_H
#define TPROXY_LOOP_H

#include <signal.h>

#include "proxy.h"

/* The signal that a worker gets when its master dies. */
#define SIGNAL_ORPHANED SIGUSR2

/* Makes the epoll set where a predecessor has not, the signal descriptor, and watches the
 * listeners. */
int loop_init(struct proxy *p, struct failure *f);

/* Serves until told to stop and drained. 0, LOOP_ORPHANED once the master has died, or -errno where
 * the loop itself failed. */
#define LOOP_ORPHANED 1
int loop_run(struct proxy *p, struct failure *f);

void loop_free(struct proxy *p);

#endif
