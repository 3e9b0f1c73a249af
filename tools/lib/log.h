/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Messages to stderr. Where stderr is the journal each line carries its priority as <N>, elsewhere
 * the program's name. Library code does not log above debug; whoever stops an error's way logs it
 * once, naming the object, the reason and what to do next.
 */
#ifndef TPROXY_LOG_H
#define TPROXY_LOG_H

#include <stdint.h>
#include <syslog.h>

#include "util.h"

/* program: shown before each message where stderr is not the journal; kept by reference. */
void log_init(const char *program);

/* max: least important priority that is written (LOG_ERR..LOG_DEBUG); LOG_INFO at start. */
void log_set_level(int max);

void log_write(int priority, const char *fmt, ...) _printf_(2, 3);

/* For callers that put lines together themselves: what goes before a message (the length written),
 * and the write of whole lines. */
size_t log_prefix(int priority, char *buf, size_t size);
void log_raw(const char *lines, size_t len);

/* From now on a reader of stderr that does not read, or a full disk, costs lines and never time.
 * For programs that do not hand stderr on to others. */
void log_nonblocking(void);

/* Lines that were lost since the last call. */
unsigned int log_take_lost(void);

#define log_error(...)	 log_write(LOG_ERR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_notice(...)	 log_write(LOG_NOTICE, __VA_ARGS__)
#define log_info(...)	 log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)	 log_write(LOG_DEBUG, __VA_ARGS__)

/* For what a peer can trigger: at most `burst` messages in `interval_ms`. */
struct log_limit {
	unsigned int burst;
	unsigned int interval_ms;
	unsigned int count;
	unsigned int missed;
	uint64_t begin_ms;
};

/* Whether one more may be written now; *ret_missed is how many were not since the last one. */
int log_allowed(struct log_limit *limit, unsigned int *ret_missed);

#endif
