/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What outlives a worker: descriptors, and this memory that says what each is for. A worker may
 * stop at any instruction; its successor, with the same descriptor table, reads this and goes on.
 * Whatever is not here (list heads, free lists, the hash) is rebuilt from what is.
 *
 * Rules for everybody who writes here, on which recover.c relies:
 *	- a descriptor is entered as soon as it is made; one that is not entered is found all the
 *	  same: a client that had been accepted is adopted, anything else is closed;
 *	- it is closed first and taken out then; the successor looks which numbers are still open
 *	  before it opens anything itself;
 *	- what makes an entry count (a session's list, its start) is written last.
 */
#ifndef TPROXY_SHARED_H
#define TPROXY_SHARED_H

#include <stdint.h>

#include "failure.h"
#include "pipes.h"
#include "table.h"

#define SHARED_LAYOUT 4 /* to be raised with any change to what is in the memory */

enum { LISTENER_V4, LISTENER_V6, FAMILY_COUNT };
#define LISTENER_COUNT (TP_MAX_PORTS * FAMILY_COUNT)

/* Listeners are numbered port by port; the first two are those of the first port. */
static inline int listener_family(int listener)
{
	return listener % FAMILY_COUNT;
}

struct shared {
	uint32_t magic;
	uint32_t layout;
	uint32_t size[3];		 /* of this, of a session, of a pipe */
	uint32_t slots, pipes;		 /* how many there is room for */
	uint32_t slots_used, pipes_used; /* those below have been used at some time */
	int32_t memfd;
	int32_t epoll;
	int32_t listener[LISTENER_COUNT]; /* -1: not used, or not to be had */
	int32_t raw[FAMILY_COUNT]; /* raw sockets that answer held clients; -1: hold is off */
	int32_t ring;		   /* what the doorman delivers; -1: hold is off */
	uint32_t doorman;	   /* id of the program that is on all listeners; 0: none */
	/* The master's own: */
	int32_t signals; /* signalfd */
	int32_t control; /* listens for one that wants to take over; -1: nobody can */
	int32_t peer;	 /* the connection with it; where it has come to have everything, its end */
	uint32_t offer;	 /* the last one made, and what has become of it: shared_offer() */
	uint32_t heir;	 /* pid of who takes the master's place when it dies; 0: not decided */
	uint32_t slot;	 /* in map_config.proxies; TP_NO_SLOT: not registered yet */
	uint32_t serving;	    /* pid of the worker that has come to serve; 0: none ever did */
	uint32_t workers;	    /* how many there have been */
	uint32_t stops;		    /* how often we were told to stop */
	uint32_t stop_signal;	    /* the last time by which */
	uint16_t port;		    /* of the instance, the first one, host order */
	uint16_t ports;		    /* how many */
	char congestion[TP_CC_LEN]; /* the default of the listeners' network namespace */
	uint64_t netns;		    /* cookie of the listeners' network namespace */
	uint64_t drain_until;	    /* CLOCK_MONOTONIC in ms; 0: not draining */
};

/* Makes the memory for as many sessions and pipes as there can be with that many descriptors; pages
 * that are never used cost nothing. */
int shared_create(uint64_t fd_limit, struct shared **ret, struct failure *f);

/* Maps memory that another binary made. -EPROTO: it is laid out otherwise. */
int shared_attach(int memfd, struct shared **ret, struct failure *f);

/* Before a successor reads it: whoever scribbled over it may have done so over what says how much
 * of it there is. -EPROTO: the memory cannot be used. */
int shared_check(struct shared *sh, struct failure *f);

/* What two binaries must agree on for the one to take over from the other. Returns buf. */
#define SHARED_LAYOUT_LEN 64
const char *shared_layout(char buf[SHARED_LAYOUT_LEN]);

/*
 * Everything may be offered to another process that has this memory mapped too. Then one of them
 * claims it, or either withdraws the offer; whoever comes first decides, whatever he dies of in
 * the next moment. Claimed, it is the other's for good.
 */
uint32_t shared_offer(struct shared *sh);		/* returns its number */
uint32_t shared_offers(const struct shared *sh);	/* the number of the last one */
int shared_claim(struct shared *sh, uint32_t offer);	/* 0: it was withdrawn */
int shared_withdraw(struct shared *sh, uint32_t offer); /* 0: it was claimed */

/* Whether it falls to us to take the master's place: there may be two who could. */
int shared_inherit(struct shared *sh);

struct session *shared_sessions(struct shared *sh);
struct pipe *shared_pipes(struct shared *sh);

#endif
