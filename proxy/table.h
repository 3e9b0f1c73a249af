/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The session table: one fixed slot a session, in shared memory (a memfd), with everything that is
 * known of the session in it. No pointers: a successor that maps the table elsewhere can read it.
 *
 * A slot is on exactly one list, and its field `list` is what counts: the links and list heads
 * follow from it and are rebuilt by a successor. A reference to a session is {slot, generation}:
 * the generation changes when the slot is freed, so an event that was queued for a session now gone
 * is recognised.
 */
#ifndef TPROXY_TABLE_H
#define TPROXY_TABLE_H

#include <linux/types.h>
#include <stdint.h>

#include "../bpf/abi.h"
#include "failure.h"

#define NO_SLOT		UINT32_MAX
#define NO_PIPE		UINT32_MAX
#define TABLE_MAX_SLOTS (1U << 24) /* what the event datum can carry */

enum session_list {
	LIST_FREE,
	LIST_HELD,    /* the client's handshake is held, the upstream's under way; oldest first */
	LIST_GRANTED, /* upstream connected, client let in, not accepted yet; oldest first */
	LIST_REFUSED, /* upstream failed, the client is being told; oldest first */
	LIST_CONNECTING, /* accepted at once (not held), the upstream's handshake under way; oldest
			    first */
	LIST_RELAY,	 /* relaying; nothing to do until an event comes */
	LIST_READY,	 /* relaying; was interrupted for fairness, goes on in this turn */
	LIST_STARVED,	 /* relaying; bytes wait for a pipe, oldest first */
	LIST_UNSURE, /* relaying; its sources may hold more than was taken: asked before we sleep */
	LIST_CLOSING, /* to be closed after this batch of events */
	LIST_COUNT
};

enum side { CLIENT, UPSTREAM };

enum source_end {
	SOURCE_OPEN,
	SOURCE_FIN,   /* the source sent FIN; passed on once the pipe is empty */
	SOURCE_RESET, /* the source was reset; passed on once the pipe is empty */
};

/*
 * One direction: bytes from fd[side] to fd[!side]. What is in the pipe is the difference of two
 * counts, each of which one store changes: with what the pipe says a successor can tell which one
 * is late.
 */
struct direction {
	uint64_t taken; /* from the source socket */
	uint64_t bytes; /* delivered to the destination socket */
	uint32_t pipe;	/* index in the pool, NO_PIPE while nothing is in flight */
	uint8_t source; /* enum source_end */
	uint8_t shut;	/* FIN passed on: nothing more will flow */
	uint8_t urgent; /* enum urgent_step */
	uint8_t reserved;
};

/* How far the passing on of an urgent byte has come. */
enum urgent_step {
	URGENT_NONE,
	URGENT_SENDING, /* it may have been sent, it is still in the source */
	URGENT_SENT,	/* it may have been taken from the source */
};

static inline uint64_t direction_queued(const struct direction *d)
{
	return d->taken - d->bytes;
}

enum session_end {
	END_CLOSED,	  /* both directions ended with FIN */
	END_RESET_CLIENT, /* the client reset it */
	END_RESET_UPSTREAM,
	END_CONNECT_FAILED, /* `error` says why */
	END_CONNECT_TIMEOUT,
	END_CLIENT_GAVE_UP, /* before the upstream answered */
	END_DRAINED,	    /* still open when the drain deadline came */
	END_NO_RESOURCES,   /* no descriptor for the upstream */
	END_IDLE,	    /* no bytes for idle-timeout */
	END_HALF_CLOSED,    /* none the other way for half-closed-timeout after a FIN */
	END_NOT_HELD,	    /* held when hold was switched off */
};

struct session {
	uint32_t generation;
	uint32_t prev, next; /* in its list */
	uint8_t list;	     /* enum session_list */
	uint8_t end;	     /* enum session_end, once closing */
	uint8_t broken : 2;  /* bit 1 << side: that socket has reported an error */
	uint8_t urgent : 2;  /* bit 1 << side: that side has sent urgent data */
	uint8_t watched : 2; /* bit 1 << side: that socket is in the epoll set */
	uint8_t reset : 1;   /* close both ends with RST */
	uint8_t early : 1;   /* the upstream spoke before the client was accepted */
	uint8_t hashed;	     /* found by its client's cookie */
	uint8_t tries;	     /* how often the client was sent its error */
	uint8_t by_icmp;     /* the upstream was refused by an ICMP error */
	uint8_t ended; /* bit 1 << side: that side's FIN is here; no urgent byte lies before it,
			  unless `urgent` says so */
	uint8_t unsure : 2;   /* bit 1 << side: that side may have sent more than was taken */
	uint8_t put_off : 1;  /* the end of the upstream's handshake was, and it has not spoken yet
			       */
	uint8_t untuned : 1;  /* the upstream has not got yet what only a stream needs */
	uint8_t : 1;	      /* of earlier versions, from which sessions are taken over */
	uint8_t again : 1;    /* its socket was let in before, and may be accepted as it was then */
	int32_t fd[2];	      /* by enum side; -1 where there is none */
	int32_t error;	      /* errno of a failed connect */
	uint32_t hash_next;   /* those that were held are found by their client's cookie */
	uint64_t start_ms;    /* CLOCK_MONOTONIC; 0: not filled in yet, so there is no session */
	uint64_t deadline_ms; /* of its list, 0: none; of a relaying one: when it last relayed */
	union {
		struct tp_syn syn;	 /* while list_is_hold() */
		struct direction dir[2]; /* from then on; by the side that sends */
	};
	struct tp_record client;
};

_Static_assert(sizeof(struct session) <= 256, "a session costs at most 256 bytes");

/* No byte can flow yet: what is kept is the client's SYN. */
static inline int list_is_hold(enum session_list list)
{
	return list >= LIST_HELD && list <= LIST_REFUSED;
}

struct list_head {
	uint32_t first, last, count;
};

/* The slots are in shared memory, the rest is one process's view of them. */
struct table {
	uint32_t slots;
	uint32_t *used; /* shared: slots below have been used; memory follows the peak, not the
			   limit */
	struct list_head lists[LIST_COUNT];
	struct session *sessions;
	uint32_t *buckets; /* first slot by hash of the client's cookie */
	uint32_t bucket_mask;
};

/* `sessions` and `used` are zero, or as another process left them: then table_rebuild() comes next.
 */
int table_init(struct table *t, struct session *sessions, uint32_t slots, uint32_t *used,
	       struct failure *f);
void table_free(struct table *t);

/* Puts every session on the list that its slot names, those with deadlines in the order of these;
 * frees the slots that were being filled in. 0, or -ENOMEM. */
int table_rebuild(struct table *t);

static inline struct session *table_at(struct table *t, uint32_t slot)
{
	return &t->sessions[slot];
}

static inline uint32_t table_slot(const struct table *t, const struct session *s)
{
	return s - t->sessions;
}

/* A cleared session on `list`, or NULL when the table is full. Its directions are empty. */
struct session *table_take(struct table *t, enum session_list list);

/*
 * Moves a session to the end of a list; LIST_FREE gives the slot back. One that leaves the hold
 * loses its SYN and gets two empty directions before that.
 */
void table_move(struct table *t, struct session *s, enum session_list list);

/* The oldest on a list, or NULL. */
struct session *table_first(struct table *t, enum session_list list);

/* The session that {slot, generation} refers to, or NULL if that one has gone. */
struct session *table_find(struct table *t, uint32_t slot, uint32_t generation);

/* Enters a session under its client's cookie, finds and removes it. */
void table_hash_add(struct table *t, struct session *s);
void table_hash_remove(struct table *t, struct session *s);
struct session *table_by_cookie(struct table *t, __u64 cookie);

/* The granted session whose client has that tag; NULL where none has, or more than one, or its
 * client was let in before. */
struct session *table_granted(struct table *t, __u64 tag);

/* Everything in the slot is filled in: from here on it is a session. */
static inline void table_begin(struct session *s, uint64_t now_ms)
{
	__atomic_store_n(&s->start_ms, now_ms, __ATOMIC_RELEASE);
}

/* Sessions that are not free. */
uint32_t table_used(const struct table *t);

#endif
