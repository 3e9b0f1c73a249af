/* SPDX-License-Identifier: BSD-2-Clause */
/* One line a session, written when it has ended; lines of one batch of events go out together. */
#ifndef TPROXY_SESSIONLOG_H
#define TPROXY_SESSIONLOG_H

#include "table.h"

void sessionlog_add(const struct session *s, uint64_t now_ms);
void sessionlog_flush(void);

/* The line without priority or newline. Returns its length, at most size - 1. */
size_t sessionlog_format(const struct session *s, uint64_t now_ms, char *buf, size_t size);

#endif
