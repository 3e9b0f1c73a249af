// SPDX-License-Identifier: BSD-2-Clause
#include "control.h"

#include <errno.h>
#include <string.h>

#include "util.h"

#define MAGIC "tpxd"

struct header {
	char magic[4];
	uint16_t version;
	uint16_t type;
};

_Static_assert(sizeof(struct header) == 8, "no padding is sent");
_Static_assert(sizeof(struct control_hello) == 16 + TP_NAME_LEN + SHARED_LAYOUT_LEN, "nor here");
_Static_assert(sizeof(struct control_offer) == 20, "nor here");
_Static_assert(sizeof(struct header) + sizeof(struct control_batch) <= CONTROL_MAX &&
		       sizeof(struct header) + CONTROL_TEXT_LEN <= CONTROL_MAX,
	       "a message fits");

static int is_printable(char c)
{
	return c >= ' ' && c <= '~';
}

/* Text, its end, and nothing but zeros after it. */
static int is_string(const char *s, size_t size)
{
	size_t len = strnlen(s, size);

	if (!len || len == size)
		return 0;
	for (size_t i = 0; i < size; i++)
		if (i < len ? !is_printable(s[i]) : s[i] != 0)
			return 0;
	return 1;
}

static size_t format_text(const char *text, uint8_t *buf)
{
	size_t len = 0;

	for (; *text && len < CONTROL_TEXT_LEN - 1; text++)
		if (is_printable(*text))
			buf[len++] = *text;
	if (!len)
		buf[len++] = '?';
	return len;
}

size_t control_format(const struct control_message *m, uint8_t buf[CONTROL_MAX])
{
	struct header head = {MAGIC, CONTROL_VERSION, m->type};
	uint8_t *body = buf + sizeof(head);
	size_t len = 0;

	memcpy(buf, &head, sizeof(head));
	switch (m->type) {
	case CONTROL_HELLO:
		memcpy(body, &m->hello, len = sizeof(m->hello));
		break;
	case CONTROL_REFUSE:
		len = format_text(m->text, body);
		break;
	case CONTROL_OFFER:
		memcpy(body, &m->offer, len = sizeof(m->offer));
		break;
	case CONTROL_FDS_BATCH:
		memcpy(body, m->batch.fd, len = m->batch.count * sizeof(m->batch.fd[0]));
		break;
	case CONTROL_TAKEN:
		memcpy(body, &m->taken, len = sizeof(m->taken));
		break;
	}
	return sizeof(head) + len;
}

static int parse_hello(const uint8_t *body, size_t len, struct control_hello *ret)
{
	if (len != sizeof(*ret))
		return -EPROTO;
	memcpy(ret, body, len);
	return is_string(ret->name, sizeof(ret->name)) &&
			       is_string(ret->layout, sizeof(ret->layout))
		       ? 0
		       : -EPROTO;
}

static int parse_text(const uint8_t *body, size_t len, char *ret)
{
	if (!len || len >= CONTROL_TEXT_LEN)
		return -EPROTO;
	memcpy(ret, body, len);
	return is_string(ret, CONTROL_TEXT_LEN) && strlen(ret) == len ? 0 : -EPROTO;
}

static int parse_offer(const uint8_t *body, size_t len, struct control_offer *ret)
{
	if (len != sizeof(*ret))
		return -EPROTO;
	memcpy(ret, body, len);
	if (!ret->number || !ret->count || ret->top <= STDERR_FILENO ||
	    ret->memory <= STDERR_FILENO || ret->memory > ret->top ||
	    ret->connection <= STDERR_FILENO || ret->connection == ret->memory ||
	    ret->count > (uint32_t)ret->top - STDERR_FILENO)
		return -EPROTO;
	return 0;
}

static int parse_batch(const uint8_t *body, size_t len, struct control_batch *ret)
{
	int32_t last = STDERR_FILENO;

	if (!len || len % sizeof(ret->fd[0]) || len > sizeof(ret->fd))
		return -EPROTO;
	ret->count = len / sizeof(ret->fd[0]);
	memcpy(ret->fd, body, len);
	for (uint32_t i = 0; i < ret->count; last = ret->fd[i++])
		if (ret->fd[i] <= last)
			return -EPROTO;
	return 0;
}

static int parse_taken(const uint8_t *body, size_t len, uint32_t *ret)
{
	if (len != sizeof(*ret))
		return -EPROTO;
	memcpy(ret, body, len);
	return *ret ? 0 : -EPROTO;
}

int control_parse(const uint8_t *buf, size_t len, struct control_message *ret)
{
	const uint8_t *body = buf + sizeof(struct header);
	struct header head;

	if (len < sizeof(head))
		return -EPROTO;
	memcpy(&head, buf, sizeof(head));
	if (memcmp(head.magic, MAGIC, sizeof(head.magic)))
		return -EPROTO;
	if (head.version != CONTROL_VERSION && head.type != CONTROL_REFUSE)
		return -EPROTONOSUPPORT;
	memset(ret, 0, sizeof(*ret));
	ret->type = head.type;
	len -= sizeof(head);
	switch (head.type) {
	case CONTROL_HELLO:
		return parse_hello(body, len, &ret->hello);
	case CONTROL_REFUSE:
		return parse_text(body, len, ret->text);
	case CONTROL_OFFER:
		return parse_offer(body, len, &ret->offer);
	case CONTROL_FDS_BATCH:
		return parse_batch(body, len, &ret->batch);
	case CONTROL_TAKEN:
		return parse_taken(body, len, &ret->taken);
	}
	return -EPROTO;
}
