/* SPDX-License-Identifier: BSD-2-Clause */
/* Everything that a tproxyd which runs has is taken over from it; handover.h is the part of that
 * one. */
#ifndef TPROXY_TAKEOVER_H
#define TPROXY_TAKEOVER_H

#include "proxy.h"

/* Connects to the tproxyd that serves our instance in our network namespace, if one does: p->conn.
 * Before privileges are given up: it may be another user's. */
int takeover_connect(struct proxy *p, struct failure *f);

/*
 * Asks it for all it has. With the
 * instance open, to say what we are; it is closed then, as all numbers from 3 on must be free. On
 * success every descriptor of the other one is open under the same number, the memory is mapped,
 * and nothing is ours yet: p->offer says so. Or -errno.
 */
int takeover_receive(struct proxy *p, struct failure *f);

/*
 * From here on it is ours: the other one is told, and waited for, as nothing that we close is
 * closed while it has it too. -ECANCELED: the other one has lost patience and serves on.
 */
int takeover_claim(struct proxy *p, struct failure *f);

/* Gives up what is not ours yet, and says why. Returns 0 where it is ours already. */
int takeover_abandon(struct proxy *p, const char *why);

#endif
