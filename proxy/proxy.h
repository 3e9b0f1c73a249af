/* SPDX-License-Identifier: BSD-2-Clause */
/* What one process of tproxyd works with; there is one, in main.c. */
#ifndef TPROXY_PROXY_H
#define TPROXY_PROXY_H

#include <linux/types.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "endpoint.h"
#include "headroom.h"
#include "instance.h"
#include "local.h"
#include "pipes.h"
#include "settings.h"
#include "shared.h"
#include "shares.h"
#include "table.h"

struct ring_buffer;
struct mnl_socket;

struct proxy {
	struct settings settings;
	struct instance instance;
	struct shared *shared; /* what a successor goes on from */
	struct table table;
	struct pipes pipes;
	struct shares uids, cgroups; /* sessions of each */
	struct headroom headroom;
	struct local local;	      /* destinations that are this host */
	struct tp_proxy_stats *stats; /* in map_proxies */
	int signals;		      /* signalfd */
	int notify;		      /* to the service manager; -1: there is none */
	struct ring_buffer *ring;     /* what the doorman delivers; NULL: hold is off */
	unsigned int ring_events;     /* read in this turn */
	uint64_t press_ms;	      /* when to let in again at the earliest */
	uint32_t press_from;	      /* slot: with whom to begin then; NO_SLOT: the oldest */
	unsigned int selftest_grants; /* given to ourselves */
	uint64_t routes_ms;	      /* when they were published last */
	int routes_due;		      /* they have changed since */
	struct mnl_socket *netlink;   /* tells of changed routes; NULL: hold is off */
	int busy;		      /* so many events that what can wait does */
	unsigned int busy_turns;      /* in a row */
	unsigned int grants[LISTENER_COUNT]; /* clients let in at that listener in this turn */
	unsigned int granted;		     /* at all of them */
	uint32_t tgid;			     /* as the kernel sees it; what is registered */
	__u64 netns;
	uint64_t fd_limit;
	uint64_t now_ms;       /* CLOCK_MONOTONIC, read once a turn */
	uint64_t idle_look_ms; /* when to look for idle sessions */
	uint64_t resume_ms;    /* when to accept again; 0: accepting */
	pid_t master;	       /* of a worker: who started it */
	int orphaned;	       /* of a worker: that one has died */
	int no_heir;	       /* the worker dies with its master */
	int conn;	       /* to a tproxyd that we take over from; -1: none */
	uint32_t offer;	       /* what we have is another's still, and this its offer; 0: ours */
	struct {
		int32_t raw[FAMILY_COUNT], ring;
	} spare;   /* until then: what is to be entered once it is ours */
	int heir;  /* the master was a worker: it has given up privileges already */
	int fresh; /* no worker of this binary has come to serve yet */
};

/* CLOCK_MONOTONIC. */
static inline uint64_t monotonic_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

#endif
