/* SPDX-License-Identifier: BSD-2-Clause */
/* What a successor does with the descriptors and the memory of a process that stopped anywhere. */
#ifndef TPROXY_RECOVER_H
#define TPROXY_RECOVER_H

#include <poll.h>

#include "proxy.h"

struct recovery {
	struct pollfd *polls; /* by descriptor: what it is ready for */
	uint32_t count;
	int *clients; /* accepted by the predecessor, and not entered anywhere */
	uint32_t client_count;
};

/*
 * Looks at every descriptor of the process, strikes out of the shared memory those that are closed,
 * and closes those that are in nobody's books. Before anything else is opened: a number that is
 * still in the books of a dead process must not come to mean something new.
 */
int recover_descriptors(struct proxy *p, struct recovery *ret, struct failure *f);

/* Rebuilds the lists of sessions and pipes. On a fresh table and pool. */
int recover_lists(struct proxy *p, const struct recovery *r, struct failure *f);

/* Goes on with every session. Once all else is in place: they may connect, accept and end. */
void recover_sessions(struct proxy *p, const struct recovery *r);

/* All descriptor numbers of this process are below it. */
uint32_t recover_fd_table_size(uint64_t fd_limit);

void recover_free(struct recovery *r);

#endif
