/* SPDX-License-Identifier: BSD-2-Clause */
/* Bytes that others have chosen, for lines that people, terminals and scripts read. */
#ifndef TPROXY_ESCAPE_H
#define TPROXY_ESCAPE_H

#include <stddef.h>

/*
 * Writes up to `len` bytes of text, or as far as its end, to `out`, which has room for 4 * len + 1:
 * all but printable ASCII, and what is in `also`, as \xNN. Returns out.
 */
const char *escape(const char *text, size_t len, const char *also, char *out);

#endif
