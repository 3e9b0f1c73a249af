/* SPDX-License-Identifier: BSD-2-Clause */
/* The event loop: the one place that maps events to what is done about them. */
#ifndef TPROXY_LOOP_H
#define TPROXY_LOOP_H

#include "proxy.h"

/* Makes the epoll and signal descriptors and watches the listeners. */
int loop_init(struct proxy *p, struct failure *f);

/* Serves until told to stop and drained. 0, or -errno where the loop itself failed. */
int loop_run(struct proxy *p, struct failure *f);

void loop_free(struct proxy *p);

#endif
