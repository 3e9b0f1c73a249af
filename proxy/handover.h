/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The control socket, over which another tproxyd takes everything over from this one, and the part
 * of the one that gives (takeover.h is the other's). Part of the master: nothing here waits.
 */
#ifndef TPROXY_HANDOVER_H
#define TPROXY_HANDOVER_H

#include "proxy.h"

struct handover {
	enum handover_state {
		HANDOVER_IDLE,	   /* nobody is there */
		HANDOVER_GREETING, /* somebody is, and has not said who he is */
		HANDOVER_SENDING,  /* the offer stands; descriptors are being sent */
		HANDOVER_WAITING,  /* the offer stands; all is sent */
	} state;
	uint64_t deadline_ms; /* of the state */
	uint64_t retry_ms;    /* when to try again to send; 0: when there is room for it */
	uint32_t number;      /* of the offer */
	uint32_t sessions;    /* that it comprises */
	uint32_t count, sent; /* descriptors */
	int32_t *fds;	      /* all of them, ascending */
	int peer;	      /* as in shared memory, which is the other's once it is taken */
	pid_t pid;	      /* whom we are talking to */
};

/*
 * Where the control socket is of the tproxyd that serves this instance, or this part of it, in this
 * network namespace: NAME@INODE.sock or NAME@INODE.K-N.sock in RUN_DIR. INODE is the namespace's,
 * and goes to ret_netns (may be NULL).
 */
#define CONTROL_PATH_LEN 100 /* what fits in an address */
int control_path(const struct proxy *p, char ret_path[CONTROL_PATH_LEN], uint64_t *ret_netns,
		 struct failure *f);

/* Makes the control socket, or makes one that was inherited our own. */
int handover_listen(struct proxy *p, struct failure *f);

/* Nobody can connect any more. */
void handover_unlisten(struct proxy *p);

enum handover_step {
	HANDOVER_NOTHING,
	HANDOVER_BEGIN, /* stop all work, then call handover_offer() */
	HANDOVER_BACK,	/* the offer was not taken: work on */
	HANDOVER_TAKEN, /* nothing is ours any more */
};

/* Whether there is an offer that may be taken at any moment. */
int handover_stands(const struct handover *h);

/* What is to be waited for: a descriptor, or -1, and its events. */
int handover_fd(const struct proxy *p, const struct handover *h, short *ret_events);

/* When handover_step() has something to do though nothing comes; 0: never. */
uint64_t handover_deadline(const struct handover *h);

/* What has come is looked at. `busy` says why nothing can be handed over now; NULL: it can. */
enum handover_step handover_step(struct proxy *p, struct handover *h, const char *busy);

/* To be called when nobody works: everything that is open is offered. 0, or -errno with the offer
 * taken back. */
int handover_offer(struct proxy *p, struct handover *h, struct failure *f);

/* Breaks off, whatever has come of it. */
void handover_forget(struct proxy *p, struct handover *h);

/* Takes an offer back, for a reason of ours. HANDOVER_TAKEN where it was too late. */
enum handover_step handover_cancel(struct proxy *p, struct handover *h);

/* Closes everything, and last the connection, which tells the other one. */
void handover_leave(const struct handover *h);

#endif
