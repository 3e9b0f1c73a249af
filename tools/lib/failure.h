/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The sentence that goes with an error: whoever finds the fault knows the object and the reason,
 * whoever stops the error's way logs the sentence, once.
 */
#ifndef TPROXY_FAILURE_H
#define TPROXY_FAILURE_H

#include "util.h"

struct failure {
	char text[1024]; /* names object, reason and next step; no newline, no final stop */
};

/* Sets the sentence and returns `err` (negative errno), so that `return fail(...)` reads well. */
int fail(struct failure *f, int err, const char *fmt, ...) _printf_(3, 4);

#endif
