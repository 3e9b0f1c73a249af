/* SPDX-License-Identifier: BSD-2-Clause */
/* The program file, which may be another than the one that runs: how a master becomes that one. */
#ifndef TPROXY_BINARY_H
#define TPROXY_BINARY_H

#include <limits.h>

#include "proxy.h"

/* How a master that becomes another binary hands its descriptors over, and what a binary is asked
 * about before: the number of the memory's descriptor, and its layout. */
#define BINARY_ENV_MEMORY "TPROXYD_MEMORY"
#define BINARY_ENV_LAYOUT "TPROXYD_LAYOUT"

/* The path by which the present binary was started, so that one put in its place is found. */
int binary_path(const char *argv0, char ret_path[PATH_MAX]);

/* Runs it with --check and `theirs`, for a child that shares the descriptors. Does not return. */
void binary_check(const char *path, char **theirs) __attribute__((noreturn));

/* Becomes it, with all descriptors. Returns only where that failed. */
void binary_become(struct proxy *p, const char *path, char **argv);

/* Sets or clears close-on-exec on everything but the standard descriptors. */
void binary_cloexec(uint64_t fd_limit, int on);

#endif
