// SPDX-License-Identifier: BSD-2-Clause
/*
 * What the kernel answers over netlink: routes and rules (tproxyd), sockets (tproxy).
 *
 * Input: a byte that says which dump it is; messages, each a type (less 16, except for those of the
 * protocol itself), flags, a length and the bytes. The framing is right: libmnl believes it.
 */
#include "fuzz.h"

#include "../../proxy/routes.c"
#include "../../tools/lib/sockdiag.c"

#define NETNS 4711

static void routes(void *received, size_t size, int rules)
{
	struct snapshot snap = {.routes = calloc(ROUTES_MAX, sizeof(*snap.routes))};
	struct dump dump = {&snap, NETNS};

	mnl_cb_run(received, size, 0, 0, rules ? on_rule : on_route, &dump);
	insist(snap.count <= ROUTES_MAX);
	for (size_t i = 0; i < snap.count; i++) {
		const struct route *route = &snap.routes[i];

		insist(route->key.netns == NETNS);
		insist(route->key.prefixlen >= NETNS_BITS &&
		       route->key.prefixlen <= NETNS_BITS + 128);
		for (size_t j = 0; j < i; j++)
			insist(memcmp(&route->key, &snap.routes[j].key, sizeof(route->key)));
	}
	free(snap.routes);
}

static void sockets(void *received, size_t size)
{
	struct collection c = {0};

	mnl_cb_run(received, size, 0, 0, message_read, &c);
	for (size_t i = 0; i < c.count; i++) {
		char text[ENDPOINT_STRLEN];

		insist(*endpoint_format(&c.sockets[i].local, text));
		insist(*sockdiag_state(c.sockets[i].state));
	}
	collection_free(&c);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return 0;
}

/* Of its very size, so that reading past it is found. Returns malloced memory. */
static void *frame(struct input *in, size_t *ret_size)
{
	char *received = NULL;
	size_t used = 0;

	while (in->size) {
		uint8_t type = take_byte(in);
		struct nlmsghdr head = {
			.nlmsg_type = type >= 0xf0 ? type & 0xf : type + NLMSG_MIN_TYPE,
			.nlmsg_flags = take_byte(in),
		};
		size_t len = take_u16(in) % 1024;

		if (len > in->size)
			len = in->size;
		head.nlmsg_len = sizeof(head) + len;
		received = realloc(received, used + NLMSG_ALIGN(head.nlmsg_len));
		memcpy(received + used, &head, sizeof(head));
		take(in, received + used + sizeof(head), NLMSG_ALIGN(len));
		used += NLMSG_ALIGN(head.nlmsg_len);
	}
	*ret_size = used;
	return received;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	uint8_t which = take_byte(&in);
	size_t len;
	void *received = frame(&in, &len);

	if (!received)
		return 0;
	if (which % 3 == 2)
		sockets(received, len);
	else
		routes(received, len, which % 3);
	free(received);
	return 0;
}
