/* SPDX-License-Identifier: BSD-2-Clause */
/* --check: what a run would do, or why it could not. */
#ifndef TPROXY_LOADER_CHECK_H
#define TPROXY_LOADER_CHECK_H

#include "failure.h"
#include "settings.h"

/* Loads the programs into the kernel, where they are gone again afterwards; pins and attaches
 * nothing. */
int check_run(const struct settings *settings, struct failure *f);

#endif
