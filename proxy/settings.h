/* SPDX-License-Identifier: BSD-2-Clause */
/* tproxyd's settings; the table that fills them is in main.c. */
#ifndef TPROXY_SETTINGS_H
#define TPROXY_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "opts.h"

struct settings {
	struct opt_common common; /* first: see struct opt_program */
	uint64_t connect_timeout; /* ms */
	uint64_t drain_timeout;	  /* ms */
	uint64_t grace;		  /* ms */
	uint64_t max_sessions;
	uint64_t uid_share; /* OPT_SHARE of max_sessions */
	uint64_t cgroup_share;
	uint64_t idle_timeout; /* ms; 0: none */
	uint64_t half_closed_timeout;
	uint64_t keepalive;    /* ms; 0: none */
	int hold;	       /* off, on */
	uint64_t native_retry; /* ms */
	int log_level; /* index into the choices of --log-level, which are in syslog order from err
			*/
	int log_sessions;	    /* no, yes */
	char *part;		    /* "K/N", or NULL: the whole */
	uint16_t part_index, parts; /* what it says: K - 1 and N; 0 and 1 */
	bool check;		    /* only say whether we could serve */
	bool takeover;		    /* from the one that serves */
};

#endif
