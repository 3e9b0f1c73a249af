/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whether the memory limit of our own cgroup leaves room for one session more. At the limit the
 * kernel kills, and what a session costs (sockets, pipes) is not given back by a worker's death:
 * so new ones wait before that.
 */
#ifndef TPROXY_HEADROOM_H
#define TPROXY_HEADROOM_H

#include <stdint.h>

struct headroom {
	int limit, usage, stat; /* files of the cgroup; -1: no limit is known */
	unsigned int asked;	/* since the last look */
	uint64_t looked_ms;
	int none; /* what was found */
	int v1;
};

#define HEADROOM_INIT                                \
	{                                            \
		.limit = -1, .usage = -1, .stat = -1 \
	}

/* Finds the cgroup; where there is none with a limit there is always room. */
void headroom_open(struct headroom *h);
void headroom_close(struct headroom *h);

/* Asked before each new session. */
int headroom_left(struct headroom *h, uint64_t now_ms);

/* Bytes that the kernel would find by itself if they were needed, according to the text of a
 * memory.stat; `v1` chooses between the names that the two versions of cgroups have. */
uint64_t headroom_reclaimable(const char *stat, int v1);

#endif
