/* SPDX-License-Identifier: BSD-2-Clause */
/* Taking a set of pins away: all that is ours, nothing else. */
#ifndef TPROXY_LOADER_UNLOAD_H
#define TPROXY_LOADER_UNLOAD_H

#include "set.h"

/*
 * Removes what is ours of a set and, if it is empty then, its directory. The hooks are switched off
 * first and map_config, by which an instance is known, goes last: a killed run leaves nothing in
 * force and something that the next one finds. Goes on after an error and returns the first; but
 * while a link is left, so is the rest.
 */
int unload_set(const struct set *set, struct failure *f);

/* Likewise, where the configuration is still in use: another generation has the same. */
int unload_retired(const struct set *set, struct failure *f);

/*
 * Detaches a link: one that is only unlinked detaches some time later, after an RCU grace period,
 * and not at all while somebody holds it open. Of a dead one the kernel says that it is detached.
 */
int unload_detach(int fd);

/* Only the links by which connections are redirected: no new ones come to this set from here on. */
int unload_redirecting(const struct set *set, struct failure *f);

/* Only the pin of a map, which those that use it keep. */
int unload_map(const struct set *set, enum pin_map map, struct failure *f);

/* --unload: the instance and what killed runs left of it. Says what was done. */
int unload_run(const char *name, struct failure *f);

#endif
