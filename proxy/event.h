/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The epoll datum: {type, slot, generation}, never a pointer, so that an event for something that
 * has gone is recognised and a successor can arm the same sockets again.
 */
#ifndef TPROXY_EVENT_H
#define TPROXY_EVENT_H

#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>

enum event_type {
	EVENT_SIGNAL,
	EVENT_LISTENER, /* slot: which one */
	EVENT_CLIENT,	/* slot, generation: the session */
	EVENT_UPSTREAM,
	EVENT_HOLD, /* the doorman's ring */
	EVENT_ROUTES,
};

static inline uint64_t event_pack(enum event_type type, uint32_t slot, uint32_t generation)
{
	return (uint64_t)type << 56 | (uint64_t)slot << 32 | generation;
}

static inline enum event_type event_type(uint64_t datum)
{
	return datum >> 56;
}

static inline uint32_t event_slot(uint64_t datum)
{
	return datum >> 32 & 0xffffff;
}

static inline uint32_t event_generation(uint64_t datum)
{
	return (uint32_t)datum;
}

/* 0 or -errno. The set may have the descriptor already, from a predecessor: with the same datum, as
 * closing it would have taken it out. */
static inline int event_add(int epoll, int fd, uint32_t events, uint64_t datum)
{
	struct epoll_event ev = {.events = events, .data.u64 = datum};

	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &ev) && errno != EEXIST ? -errno : 0;
}

#endif
