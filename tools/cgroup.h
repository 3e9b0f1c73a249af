/* SPDX-License-Identifier: BSD-2-Clause */
/* Control groups made for one command: their processes and their end. Paths are absolute. */
#ifndef TPROXY_CGROUP_H
#define TPROXY_CGROUP_H

#include <sys/types.h>

#include "lib/failure.h"

/* Moves the calling process. 0, or -errno. */
int cgroup_enter(const char *path);

/* Sends a signal to every process of the cgroup and of those below it. Returns how many got it. */
unsigned int cgroup_signal(const char *path, int signal);

/* Waits until no process is left in the cgroup or below. 0, or -ETIMEDOUT. No such cgroup: 0. */
int cgroup_wait_empty(const char *path, int timeout_ms);

/* Kills what is in it and below, and waits for the end of that. No such cgroup: 0. */
int cgroup_kill(const char *path, struct failure *f);

/* Removes it with all below it; no process may be left there. No such cgroup: 0. */
int cgroup_remove(const char *path, struct failure *f);

#endif
