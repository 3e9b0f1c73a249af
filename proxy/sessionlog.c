// SPDX-License-Identifier: BSD-2-Clause
#include "sessionlog.h"

#include <string.h>

#include "endpoint.h"
#include "escape.h"
#include "log.h"

#define LINE_MAX_LEN 512

static char pending[32 * LINE_MAX_LEN];
static size_t pending_len;

static const char *const end_names[] = {
	[END_CLOSED] = "closed",
	[END_RESET_CLIENT] = "reset-by-client",
	[END_RESET_UPSTREAM] = "reset-by-server",
	[END_CONNECT_FAILED] = "connect-failed",
	[END_CONNECT_TIMEOUT] = "connect-timeout",
	[END_CLIENT_GAVE_UP] = "client-gave-up",
	[END_DRAINED] = "drained",
	[END_NO_RESOURCES] = "no-resources",
	[END_IDLE] = "idle-timeout",
	[END_HALF_CLOSED] = "half-closed-timeout",
	[END_NOT_HELD] = "hold-off",
};

size_t sessionlog_format(const struct session *s, uint64_t now_ms, char *buf, size_t size)
{
	char dst[ENDPOINT_STRLEN], src[ENDPOINT_STRLEN], comm[4 * TP_COMM_LEN + 1];
	const struct tp_record *c = &s->client;
	const char *end;
	int n;

	/* The slot may be what a worker that went wrong has left. */
	end = s->end < ARRAY_SIZE(end_names) ? end_names[s->end] : "unknown";

	n = snprintf(
		buf, size,
		"session dst=%s src=%s pid=%u comm=\"%s\" uid=%u up=%llu down=%llu ms=%llu end=%s",
		endpoint_format(&c->dst, dst), endpoint_format(&c->src, src), c->pid,
		escape(c->comm, sizeof(c->comm), "\"\\", comm), c->uid,
		(unsigned long long)s->dir[CLIENT].bytes,
		(unsigned long long)s->dir[UPSTREAM].bytes,
		(unsigned long long)(now_ms - s->start_ms), end);
	if (s->error && n < (int)size)
		n += snprintf(buf + n, size - n, " error=\"%s\"", strerror(s->error));
	return n < (int)size ? (size_t)n : size - 1;
}

void sessionlog_add(const struct session *s, uint64_t now_ms)
{
	if (pending_len + LINE_MAX_LEN > sizeof(pending))
		sessionlog_flush();
	pending_len += log_prefix(LOG_INFO, pending + pending_len, sizeof(pending) - pending_len);
	pending_len += sessionlog_format(s, now_ms, pending + pending_len, LINE_MAX_LEN - 64);
	pending[pending_len++] = '\n';
}

void sessionlog_flush(void)
{
	if (pending_len)
		log_raw(pending, pending_len);
	pending_len = 0;
}
