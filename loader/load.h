/* SPDX-License-Identifier: BSD-2-Clause */
/* The first load of an instance. The protocol is docs/pins.md. */
#ifndef TPROXY_LOADER_LOAD_H
#define TPROXY_LOADER_LOAD_H

#include <stdbool.h>

#include "cgroups.h"
#include "object.h"
#include "set.h"
#include "undo.h"

/* Loads, pins and attaches all of an opened object, or nothing. No NAME and no NAME~new may exist.
 */
int load_first(const struct settings *settings, const struct cgroups *cgs, struct object *obj,
	       struct failure *f);

/* Loads an opened object against the maps of a set: all of them, or less those of our size. */
int load_against(const struct set *set, struct object *obj, bool sized, struct failure *f);

/* Pins all of a loaded object in NAME~new, which must not exist; attaches from there those programs
 * that redirect, or first the others. */
int load_pin(struct undo *u, const struct object *obj, const char *name, struct failure *f);
int load_attach(struct undo *u, const struct object *obj, const struct cgroups *cgs,
		const char *name, bool redirecting, struct failure *f);

/* The mark that nobody else has, for tp_config.grant; 0: it could not be had. */
__u32 load_grant(void);

/* CLOCK_REALTIME in ns, for tp_config.loaded_ns. */
__u64 load_time(void);

#endif
