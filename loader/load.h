/* SPDX-License-Identifier: BSD-2-Clause */
/* The first load of an instance. The protocol is docs/pins.md. */
#ifndef TPROXY_LOADER_LOAD_H
#define TPROXY_LOADER_LOAD_H

#include "cgroups.h"
#include "object.h"
#include "undo.h"

/* Loads, pins and attaches all of an opened object, or nothing. No NAME and no NAME~new may exist.
 */
int load_first(const struct settings *settings, const struct cgroups *cgs, struct object *obj,
	       struct failure *f);

/* CLOCK_REALTIME in ns, for tp_config.loaded_ns. */
__u64 load_time(void);

#endif
