/* SPDX-License-Identifier: BSD-2-Clause */
/* What a killed run, or a hand, left behind: brought back to a whole set, or to none. */
#ifndef TPROXY_LOADER_REPAIR_H
#define TPROXY_LOADER_REPAIR_H

#include "set.h"

/* Whether repair_instance() would change anything. */
bool repair_needed(const struct set *set, const struct set *side);

/*
 * Brings NAME to one of two states and reads it into `set` again (it was read before): every map is
 * pinned and no side pin is left, or there is no directory. NAME~new is removed.
 */
int repair_instance(struct set *set, const struct set *side, struct failure *f);

#endif
