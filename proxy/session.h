/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state machine of a session: held -> granted -> relaying -> closing -> gone, or held ->
 * refused -> gone; without hold accepted -> connecting -> relaying -> closing -> gone.
 */
#ifndef TPROXY_SESSION_H
#define TPROXY_SESSION_H

#include "proxy.h"

/* Takes an accepted connection over, whatever becomes of it. Where its tag does not say whose it is
 * its record does. */
void session_accepted(struct proxy *p, int fd, __u64 tag);

/*
 * Starts a session for a client whose SYN is held. Where there is no room nothing happens: its next
 * SYN may find some. `again`: that socket was let in before, for another connection.
 */
void session_held(struct proxy *p, const struct tp_record *client, const struct tp_syn *syn,
		  int again);

/* Ends a session; it is closed and logged after the batch. `reset`: with RST instead of FIN. */
void session_finish(struct proxy *p, struct session *s, enum session_end end, int reset);

/*
 * Whether close() sends RST instead of FIN. Sockets are born so: when master and worker die at
 * once, bytes are lost with the pipes, and a FIN would have the ends take what came before for all.
 * -errno.
 */
int session_close_resets(int fd, int on);

/* Ends a session that has relayed nothing for too long. */
void session_timed_out(struct proxy *p, struct session *s, enum session_end end);

/* An epoll event on one of the session's sockets. */
void session_event(struct proxy *p, struct session *s, enum side side, uint32_t events);

/*
 * Goes on with a session that a predecessor left at whatever instruction. `ready` is what poll()
 * says of its sockets by side: edges that were reported before are not reported again.
 */
void session_recover(struct proxy *p, struct session *s, const uint32_t ready[2]);

/* One more turn for the sessions that were interrupted, and for those that waited for a pipe. */
void session_run_ready(struct proxy *p);

/* Ends the ones whose deadline has come. */
void session_expire(struct proxy *p);

/* Milliseconds of CLOCK_MONOTONIC of the next deadline, 0: none. */
uint64_t session_next_deadline(const struct proxy *p);

/* Ends all that are left, with a reset. */
void session_end_all(struct proxy *p);

/* Closes the ended ones and logs them. After each batch of events. */
void session_reap(struct proxy *p);

#endif
