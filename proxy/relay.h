/* SPDX-License-Identifier: BSD-2-Clause */
/* Moves bytes of one direction of a session, by splice through a borrowed pipe. */
#ifndef TPROXY_RELAY_H
#define TPROXY_RELAY_H

#include "pipes.h"
#include "table.h"

enum relay_result {
	RELAY_WAIT,    /* an edge on one of the sockets will say when to go on */
	RELAY_MORE,    /* there is more to do at once, but others want a turn */
	RELAY_UNSURE,  /* moved what came; whether the source has more was not asked */
	RELAY_STARVED, /* bytes wait, and no pipe is to be had */
	RELAY_SHUT,    /* this direction has ended and its FIN was passed on */
	RELAY_RESET,   /* one end was reset and all that came before has been passed on */
};

/*
 * Moves what can be moved from fd[from] to the other side. Unless `thorough`, after a small amount
 * it does not ask the source for more.
 */
enum relay_result relay_pump(struct session *s, enum side from, struct pipes *pipes, int thorough);

/* A side announced urgent data (EPOLLPRI): from now on its mark is looked for. */
void relay_urgent(struct session *s, enum side side);

/* Finishes what a predecessor that died may have left half done in a direction: the counts, and an
 * urgent byte that was sent and not yet taken. */
void relay_recover(struct session *s, enum side from, struct pipes *pipes);

/* Gives the pipe of both directions back, with whatever is in them. */
void relay_release(struct session *s, struct pipes *pipes);

#endif
