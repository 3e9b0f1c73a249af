// SPDX-License-Identifier: BSD-2-Clause
#include "local.h"

#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>

/* 127.0.0.0/8, to all of which the source is 127.0.0.1. */
static int is_loopback(const struct tp_endpoint *address)
{
	return address->family == AF_INET && address->ip[12] == 127;
}

_Static_assert(LOCAL_PLACES == 1 << 8, "place_of");

static uint32_t place_of(const struct tp_endpoint *address)
{
	uint32_t word, mixed = 0;

	for (size_t i = 0; i < sizeof(address->ip); i += sizeof(word)) {
		memcpy(&word, address->ip + i, sizeof(word));
		mixed = (mixed ^ ntohl(word)) * 0x9e3779b1U;
	}
	return mixed >> 24; /* all that was mixed in has a part in these bits */
}

int local_expected(const struct local *l, const struct tp_endpoint *address)
{
	return is_loopback(address) ||
	       !memcmp(l->ip[place_of(address)], address->ip, sizeof(address->ip));
}

int local_learn(struct local *l, const struct tp_endpoint *address,
		const struct tp_endpoint *source)
{
	uint8_t *place = l->ip[place_of(address)];

	if (is_loopback(address))
		return 1;
	if (!memcmp(address->ip, source->ip, sizeof(address->ip))) {
		memcpy(place, address->ip, sizeof(address->ip));
		return 1;
	}
	if (!memcmp(place, address->ip, sizeof(address->ip)))
		memset(place, 0, sizeof(address->ip));
	return 0;
}
