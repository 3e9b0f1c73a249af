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

void pipes_init(struct pipes *p)
{
	*p = (struct pipes){.first_free = NO_PIPE, .first_closed = NO_PIPE};
}

void pipes_free(struct pipes *p)
{
	for (uint32_t i = 0; i < p->allocated; i++) {
		fd_close(p->all[i].fd[0]);
		fd_close(p->all[i].fd[1]);
	}
	free(p->all);
	pipes_init(p);
}

/* Chains new entries, without descriptors yet. */
static int grow(struct pipes *p)
{
	uint32_t count = p->allocated ? p->allocated * 2 : 64;
	struct pipe *all = reallocarray(p->all, count, sizeof(*all));

	if (!all)
		return -ENOMEM;
	p->all = all;
	for (uint32_t i = p->allocated; i < count; i++) {
		all[i] = (struct pipe){{-1, -1}, p->first_closed};
		p->first_closed = i;
	}
	p->allocated = count;
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
	if (pipe2(p->all[i].fd, O_NONBLOCK | O_CLOEXEC))
		return -errno;
	p->first_closed = p->all[i].next_free;
	p->open++;
	*ret_index = i;
	return 0;
}

void pipes_put(struct pipes *p, uint32_t index)
{
	if (p->idle >= IDLE_MAX) {
		pipes_discard(p, index);
		return;
	}
	p->all[index].next_free = p->first_free;
	p->first_free = index;
	p->idle++;
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
	struct pipe *pipe = &p->all[index];

	pipe->fd[0] = fd_close(pipe->fd[0]);
	pipe->fd[1] = fd_close(pipe->fd[1]);
	pipe->next_free = p->first_closed;
	p->first_closed = index;
	p->open--;
}
