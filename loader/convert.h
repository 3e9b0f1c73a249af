/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Values of one version's maps turned into another version's: by the names of their members, as the
 * BTF of both maps tells them. No sockets and no maps in here, bytes in and bytes out.
 */
#ifndef TPROXY_LOADER_CONVERT_H
#define TPROXY_LOADER_CONVERT_H

#include <linux/types.h>
#include <stddef.h>

#include "util.h"

struct btf;

/* How `size` bytes are laid out. */
struct layout {
	const struct btf *btf;
	__u32 type;
	size_t size;
};

struct convert_step;

/* What is to be done for each value. One of zeroes copies nothing. */
struct converter {
	struct convert_step *steps;
	size_t count;
	size_t room;
	size_t size; /* of a result */
};

/*
 * Members that both sides have under the same name are copied, structures and arrays element by
 * element; numbers become wider or narrower. All else, bitfields and padding included, becomes
 * zero. Neither side is read or written beyond its size, whatever the BTF says. 0, -ENOMEM, or
 * -E2BIG: types of more parts than any of ours.
 */
int converter_make(const struct layout *from, const struct layout *to, struct converter *ret);

void converter_free(struct converter *c);

void convert(const struct converter *c, const void *from, void *to);

#endif
