/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The pool of pipes that bytes in flight sit in. A direction borrows one for as long as it holds
 * bytes; an idle session holds none. Pipes are referred to by index, as the session table must not
 * hold pointers. Their descriptors are in shared memory, the free lists are not.
 */
#ifndef TPROXY_PIPES_H
#define TPROXY_PIPES_H

#include <stdint.h>

/*
 * A splice moves no more than the pipe has pages for, 16 as it is made: a wide one takes streams a
 * sixteenth of the calls. All pipes of a user may have 64 MiB without privileges
 * (fs.pipe-user-pages-soft); wide ones get a quarter, so that sessions whose destination does not
 * read keep no more from the others.
 */
#define PIPE_WIDE  (1U << 20) /* bytes */
#define PIPES_WIDE 16	      /* of all tproxyds of an instance that share a network namespace */

struct pipe {
	int fd[2];     /* read end, write end; both non-blocking; -1 where there is none */
	uint32_t next; /* in its list; of a lent one: whether it is wide */
};

struct pipes {
	struct pipe *all;
	uint32_t max;		 /* length of `all` */
	uint32_t *used;		 /* shared: entries below have been initialised */
	uint32_t first_idle[2];	 /* of those that are open and free, the wide ones apart */
	uint32_t first_closed;	 /* entries without descriptors, chained like these */
	uint32_t idle;		 /* open and free */
	uint32_t open;		 /* open, free or lent */
	uint32_t wide, wide_max; /* of these; how many may be */
};

void pipes_init(struct pipes *p, struct pipe *all, uint32_t max, uint32_t *used, uint32_t wide_max);

/* Closes all. */
void pipes_free(struct pipes *p);

/* Index of an empty pipe. -EMFILE, -ENFILE or -ENOMEM where none is to be had. It is stored before
 * anything can enter the pipe. */
int pipes_take(struct pipes *p, uint32_t *ret_index);

/* Exchanges an empty pipe for a wide one, if one is to be had. */
void pipes_widen(struct pipes *p, uint32_t *index);

/* Gives an empty pipe back. */
void pipes_put(struct pipes *p, uint32_t index);

/* Closes the idle ones: descriptors have become scarce. */
void pipes_trim(struct pipes *p);

/* Closes a pipe that may still hold bytes. */
void pipes_discard(struct pipes *p, uint32_t index);

/* What a successor finds. */
enum pipe_state {
	PIPE_CLOSED, /* one end at least, or never opened */
	PIPE_LENT,   /* a direction refers to it */
	PIPE_EMPTY,
	PIPE_ABANDONED, /* holds bytes that belong to nobody any more */
};

/* Puts entry `index` where it belongs; to be called once for each of those used, on a fresh pool.
 */
void pipes_restore(struct pipes *p, uint32_t index, enum pipe_state state);

#endif
