/* SPDX-License-Identifier: BSD-2-Clause */
/* What tproxyd may do, and less of it stage by stage. The table for operators is
 * docs/privileges.md. */
#ifndef TPROXY_PRIVILEGE_H
#define TPROXY_PRIVILEGE_H

#include "failure.h"

/* Stage 1, before anything is opened. */
int privilege_begin(struct failure *f);

/* Stage 2, of the master, once it has opened what takes privileges. */
int privilege_master(struct failure *f);

/* Stage 3, of a worker, as soon as it may open something to try with. `map` is any map of the
 * instance's, to try with. */
int privilege_worker(int map, struct failure *f);

#endif
