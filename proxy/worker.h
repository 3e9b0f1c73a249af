/* SPDX-License-Identifier: BSD-2-Clause */
/* The process that does the work. It may be killed at any instruction: the next one goes on. */
#ifndef TPROXY_WORKER_H
#define TPROXY_WORKER_H

#include "proxy.h"

/* Begins the books of this process: lists and free lists that say what is in shared memory. */
int worker_books(struct proxy *p, struct failure *f);

/* Takes over what a predecessor has left, registers, and says to the master that it serves. The
 * very first proves by a self-test that the hooks answer. */
int worker_start(struct proxy *p, struct failure *f);

/* Serves. 0 once told to stop and drained; LOOP_ORPHANED; or -errno. */
int worker_serve(struct proxy *p, struct failure *f);

/* This process will work no more, others will: gives up what is its own, leaves what is shared. */
int worker_retire(struct proxy *p, struct failure *f);

/* Ends all sessions and takes back all that was set up, for good. */
void worker_clean_up(struct proxy *p);

/* The signal that tells the master that its worker serves. */
#define SIGNAL_SERVING SIGUSR1

#endif
