/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What `tproxy run` makes for one command, and how the next one sweeps what a killed one left:
 *
 *	/run/tproxy-load/run-PID-START.lock	flock'ed by the owner while it lives
 *	CGROUP2/tproxy-run-PID-START	where the hooks are attached, with
 *		.../proxy		tproxyd, so that its sockets run the hooks
 *		.../command		the command
 *	instance run-PID-START		pinned by tproxy-load
 *
 * The lock comes first and goes last, so that whatever else exists under a name whose lock file is
 * there but held by nobody is stale. Without a lock file nothing can be known: cgroups are shared
 * more widely than /run (containers, private mounts), and a name's owner may hold a lock that is
 * not to be seen from here. Such a name is never swept. START is the owner's start time, so a
 *reused pid makes no name twice. Sweeping and the ordinary end are the same function.
 */
#ifndef TPROXY_SANDBOX_H
#define TPROXY_SANDBOX_H

#include <limits.h>

#include "lib/instance.h"
#include "spawn.h"

#define SANDBOX_INSTANCE_PREFIX "run-"

struct sandbox {
	char name[TP_NAME_LEN]; /* of the instance */
	char cgroup[PATH_MAX];
	char proxy[PATH_MAX];
	char command[PATH_MAX];
	int lock;
};

#define SANDBOX_INIT       \
	{                  \
		.lock = -1 \
	}

/* Lock and cgroups. On failure nothing is left. */
int sandbox_create(struct sandbox *ret, struct failure *f);

/* Kills what is in it, unloads its instance, removes cgroups and lock. Goes on after a failure and
 * then returns the first. */
int sandbox_destroy(struct sandbox *box, const struct caller *caller, struct failure *f);

/* Calls cb for each name with a lock file whose owner has ended, the lock being held meanwhile.
 * Returns the first non-zero result, or 0. */
int sandbox_each_stale(int (*cb)(struct sandbox *box, void *user), void *user);

/* The same for each cgroup or instance without a lock file here, whose owner is not to be seen
 * either: it may have ended, or live elsewhere. Only to be reported. */
int sandbox_each_unknown(int (*cb)(struct sandbox *box, void *user), void *user);

#endif
