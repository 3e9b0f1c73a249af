/* SPDX-License-Identifier: BSD-2-Clause */
/* The BPF object that is embedded in this program. */
#ifndef TPROXY_LOADER_OBJECT_H
#define TPROXY_LOADER_OBJECT_H

#include <bpf/libbpf.h>
#include <stdbool.h>

#include "instance.h"

struct tproxy_bpf;

struct object {
	struct tproxy_bpf *skel;
	struct bpf_map *map[PIN_MAP_COUNT];
	struct bpf_program *prog[PIN_PROG_COUNT];
};

/* Identifies the embedded object: a hash of its bytes. */
__u64 object_build(void);

/* What libbpf and the verifier have to say goes to stderr, or nowhere. */
void object_verbose(bool verbose);

/* Opens it without loading; maps may be resized or replaced by live ones before object_load(). */
int object_open(__u64 max_connections, struct object *ret, struct failure *f);
int object_load(struct object *obj, struct failure *f);
void object_close(struct object *obj);

int object_map_fd(const struct object *obj, enum pin_map map);
int object_prog_fd(const struct object *obj, enum pin_prog prog);

/* Whether a map's max_entries is the max-connections setting. */
bool object_map_sized(enum pin_map map);

#define _cleanup_object_ _cleanup_(object_close)

#endif
