/* SPDX-License-Identifier: BSD-2-Clause */
/* What one tproxyd process works with; there is one, in main.c. */
#ifndef TPROXY_PROXY_H
#define TPROXY_PROXY_H

#include <linux/types.h>
#include <stdint.h>

#include "instance.h"
#include "pipes.h"
#include "settings.h"
#include "endpoint.h"
#include "table.h"

enum { LISTENER_V4, LISTENER_V6, LISTENER_COUNT };

struct ring_buffer;
struct mnl_socket;

struct proxy {
	struct settings settings;
	struct instance instance;
	struct table table;
	struct pipes pipes;
	int epoll;
	int signals;		      /* signalfd */
	int listener[LISTENER_COUNT]; /* -1 where the family is not to be had */
	uint16_t port;
	int raw[LISTENER_COUNT];  /* raw sockets that answer held clients; -1: hold is off */
	struct ring_buffer *ring; /* what the doorman delivers; NULL: hold is off */
	int ring_fd;
	struct mnl_socket *netlink; /* tells of changed routes; NULL: hold is off */
	uint32_t slot;		    /* in map_config.proxies */
	uint32_t tgid;		    /* as the kernel sees it; what is registered */
	__u64 netns;
	uint64_t fd_limit;
	uint64_t now_ms;      /* CLOCK_MONOTONIC, read once a turn */
	uint64_t resume_ms;   /* when to accept again; 0: accepting */
	uint64_t drain_until; /* 0: not draining */
	int paces;	      /* the namespace's congestion control is none for loopback */
	int trusted;	      /* the listeners are marked: clients are sent here */
};

#endif
