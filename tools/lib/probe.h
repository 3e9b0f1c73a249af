/* SPDX-License-Identifier: BSD-2-Clause */
/* What the running system offers of what the hooks need. */
#ifndef TPROXY_PROBE_H
#define TPROXY_PROBE_H

#include <stddef.h>

enum probe_result {
	PROBE_OK,
	PROBE_WARN, /* works, but less well, or could not be found out */
	PROBE_FAIL, /* the hooks cannot be loaded */
};

struct probe {
	const char *what;
	enum probe_result result;
	char found[256];
	char fix[256]; /* the next step; empty where none is needed */
};

#define PROBE_MAX 16

/*
 * Kernel version, BTF, cgroup2, bpffs, capabilities, program types, memory accounting, in an order
 * in which each explains those after it. Changes nothing. Fills at most `max`, returns the number.
 */
size_t probe_system(struct probe *ret, size_t max);

#endif
