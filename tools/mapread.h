/* SPDX-License-Identifier: BSD-2-Clause */
/* Whole hash maps at once. */
#ifndef TPROXY_MAPREAD_H
#define TPROXY_MAPREAD_H

#include <stddef.h>

#include "lib/failure.h"
#include "lib/instance.h"

struct map_contents {
	void *keys, *values; /* malloced */
	size_t count;
	__u32 max; /* entries the map can hold */
	__u32 id;
};

/*
 * Reads one of our pinned hash maps (map_socks, map_ports) in batches: the kernel walks by bucket,
 * so that entries coming and going meanwhile neither repeat nor hide others, as with
 * BPF_MAP_GET_NEXT_KEY whose walk starts again where its key has gone. 0, or -errno.
 */
int mapread(const struct instance *inst, enum pin_map map, struct map_contents *ret,
	    struct failure *f);
void map_contents_free(struct map_contents *contents);

#endif
