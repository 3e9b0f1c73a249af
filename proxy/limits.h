/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who may have one session more: as many as the table, the descriptors and the memory allow, and of
 * one user, or of one cgroup, only so many that others find room. docs/limits.md says what a client
 * meets that may not.
 */
#ifndef TPROXY_LIMITS_H
#define TPROXY_LIMITS_H

#include "proxy.h"

/* Whether there is room for anybody; closes idle pipes for it. Counts what there was none of. */
int limits_room(struct proxy *p);

/*
 * Room for this client: then it is counted as having a session, until limits_leave(). 0, or a
 * reason, which was counted, why not.
 */
const char *limits_enter(struct proxy *p, const struct tp_record *client);
void limits_leave(struct proxy *p, const struct session *s);

/* Counts who has the sessions that a predecessor left. 0, or -ENOMEM. */
int limits_recover(struct proxy *p);

/* Counts what a system call failed for want of. */
void limits_count_errno(struct proxy *p, int err);

void limits_free(struct proxy *p);

#endif
