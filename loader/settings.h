/* SPDX-License-Identifier: BSD-2-Clause */
/* What the administrator asks of the loader: command line over configuration file over defaults. */
#ifndef TPROXY_LOADER_SETTINGS_H
#define TPROXY_LOADER_SETTINGS_H

#include <stdbool.h>
#include <sys/types.h>

#include "../bpf/abi.h"
#include "opts.h"

struct settings {
	struct opt_common common; /* first: opts.h fills it */
	char *group_name;	  /* NULL: root alone */
	gid_t group;		  /* found by it: access.h */
	struct opt_list cgroups;  /* empty: the root of the cgroup2 hierarchy */
	uint64_t port;
	uint64_t ports;
	uint64_t max_connections;
	int policy; /* enum tp_policy */
	bool unload;
	bool check;
	bool quiet;
	bool verbose;
};

/* The word for a policy in messages; the option's own words are in main.c's table. */
static inline const char *policy_text(int policy)
{
	return policy == TP_POLICY_REFUSE ? "refused when no proxy" : "direct when no proxy";
}

#endif
