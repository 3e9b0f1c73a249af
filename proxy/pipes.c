// SPDX-License-Identifier: BSD-2-Clause
#include "pipes.h"

#include <fcntl.h>

#include "table.h"
#include "util.h"

/*
 * A pipe page carries one fragment of a received segment, on loopback up to 32 KiB: the default 16
 * pages hold up to 512 KiB of bulk traffic, and nothing is allocated until bytes are in flight.
 */
#define IDLE_MAX 64

void pipes_init(struct pipes *p, struct pipe *all, uint32_t max, uint32_t *used)
{
	*p = (struct pipes){.all = all,
			    .max = max,
			    .used = used,
			    .first_free = NO_PIPE,
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
	p->first_free = p->first_closed = NO_PIPE;
	p->idle = p->open = 0;
}

static void chain_free(struct pipes *p, uint32_t index)
{
	p->all[index].next_free = p->first_free;
	p->first_free = index;
	p->idle++;
}

static void chain_closed(struct pipes *p, uint32_t index)
{
	p->all[index].next_free = p->first_closed;
	p->first_closed = index;
}

/* One entry more, without descriptors yet. */
static int grow(struct pipes *p)
{
	uint32_t index = *p->used;

	if (index == p->max)
		return -ENOMEM;
	p->all[index].fd[0] = p->all[index].fd[1] = -1;
	chain_closed(p, index);
	__atomic_store_n(p->used, index + 1, __ATOMIC_RELEASE);
	return 0;
}

int pipes_take(struct pipes *p, uint32_t *ret_index)
{
	uint32_t i = p->first_free;
	int err;

	if (i != NO_PIPE) {
		p->first_free = p->all[i].next_free;
		p->idle--;
		*ret_index = i;
		return 0;
	}
	if (p->first_closed == NO_PIPE) {
		err = grow(p);
		if (err)
			return err;
	}
	i = p->first_closed;
	/* The kernel writes the numbers before the descriptors exist: there is no moment at which
	 * they are open and not entered. */
	if (pipe2(p->all[i].fd, O_NONBLOCK | O_CLOEXEC))
		return -errno;
	p->first_closed = p->all[i].next_free;
	p->open++;
	*ret_index = i;
	return 0;
}

void pipes_put(struct pipes *p, uint32_t index)
{
	if (p->idle >= IDLE_MAX)
		pipes_discard(p, index);
	else
		chain_free(p, index);
}

void pipes_trim(struct pipes *p)
{
	while (p->first_free != NO_PIPE) {
		uint32_t i = p->first_free;

		p->first_free = p->all[i].next_free;
		p->idle--;
		pipes_discard(p, i);
	}
}

void pipes_discard(struct pipes *p, uint32_t index)
{
	close_both(&p->all[index]);
	chain_closed(p, index);
	p->open--;
}

void pipes_restore(struct pipes *p, uint32_t index, enum pipe_state state)
{
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
