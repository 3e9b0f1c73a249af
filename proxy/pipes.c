// SPDX-License-Identifier: BSD-2-Clause
#include "pipes.h"

#include <fcntl.h>

#include "table.h"
#include "util.h"

#define IDLE_MAX 64 /* beyond which narrow ones are closed */

void pipes_init(struct pipes *p, struct pipe *all, uint32_t max, uint32_t *used, uint32_t wide_max)
{
	*p = (struct pipes){.all = all,
			    .max = max,
			    .used = used,
			    .wide_max = wide_max,
			    .first_idle = {NO_PIPE, NO_PIPE},
			    .first_closed = NO_PIPE};
}

/* Each number goes out of the entry only when it is closed (shared.h). */
static void close_both(struct pipe *pipe)
{
	pipe->fd[0] = fd_close(pipe->fd[0]);
	pipe->fd[1] = fd_close(pipe->fd[1]);
}

void pipes_free(struct pipes *p)
{
	for (uint32_t i = 0; p->used && i < *p->used; i++)
		close_both(&p->all[i]);
	p->first_idle[0] = p->first_idle[1] = p->first_closed = NO_PIPE;
	p->idle = p->open = p->wide = 0;
}

static void chain(struct pipes *p, uint32_t *first, uint32_t index)
{
	p->all[index].next = *first;
	*first = index;
}

static void chain_idle(struct pipes *p, uint32_t index, int wide)
{
	chain(p, &p->first_idle[wide], index);
	p->idle++;
}

/* The first of a list that has one. */
static uint32_t lend(struct pipes *p, int wide)
{
	uint32_t index = p->first_idle[wide];

	p->first_idle[wide] = p->all[index].next;
	p->all[index].next = wide;
	p->idle--;
	return index;
}

/* One entry more, without descriptors yet. */
static int grow(struct pipes *p)
{
	uint32_t index = *p->used;

	if (index == p->max)
		return -ENOMEM;
	p->all[index].fd[0] = p->all[index].fd[1] = -1;
	chain(p, &p->first_closed, index);
	__atomic_store_n(p->used, index + 1, __ATOMIC_RELEASE);
	return 0;
}

static int open_one(struct pipes *p)
{
	int err = p->first_closed == NO_PIPE ? grow(p) : 0;
	uint32_t index = p->first_closed;

	if (err)
		return err;
	/* The kernel writes the numbers before the descriptors exist: there is no moment at which
	 * they are open and not entered. */
	if (pipe2(p->all[index].fd, O_NONBLOCK | O_CLOEXEC))
		return -errno;
	p->first_closed = p->all[index].next;
	p->open++;
	chain_idle(p, index, 0);
	return 0;
}

int pipes_take(struct pipes *p, uint32_t *ret_index)
{
	int err = p->first_idle[0] == NO_PIPE ? open_one(p) : 0;

	if (err && p->first_idle[1] == NO_PIPE)
		return err;
	*ret_index = lend(p, !!err);
	return 0;
}

void pipes_widen(struct pipes *p, uint32_t *index)
{
	uint32_t narrow = *index;

	if (p->all[narrow].next)
		return;
	if (p->first_idle[1] != NO_PIPE) {
		*index = lend(p, 1);
		pipes_put(p, narrow);
	} else if (p->wide < p->wide_max &&
		   fcntl(p->all[narrow].fd[0], F_SETPIPE_SZ, PIPE_WIDE) >= 0) {
		p->all[narrow].next = 1;
		p->wide++;
	}
}

void pipes_put(struct pipes *p, uint32_t index)
{
	int wide = p->all[index].next;

	if (p->idle >= IDLE_MAX && !wide)
		pipes_discard(p, index);
	else
		chain_idle(p, index, wide);
}

void pipes_trim(struct pipes *p)
{
	for (int wide = 0; wide <= 1; wide++)
		while (p->first_idle[wide] != NO_PIPE)
			pipes_discard(p, lend(p, wide));
}

void pipes_discard(struct pipes *p, uint32_t index)
{
	close_both(&p->all[index]);
	p->wide -= p->all[index].next;
	chain(p, &p->first_closed, index);
	p->open--;
}

void pipes_restore(struct pipes *p, uint32_t index, enum pipe_state state)
{
	struct pipe *pipe = &p->all[index];

	pipe->next = fcntl(pipe->fd[0], F_GETPIPE_SZ) >= (int)PIPE_WIDE;
	p->wide += pipe->next;
	p->open++;
	switch (state) {
	case PIPE_LENT:
		break;
	case PIPE_EMPTY:
		pipes_put(p, index);
		break;
	case PIPE_CLOSED:
	case PIPE_ABANDONED:
		pipes_discard(p, index);
		break;
	}
}
