/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * An instance as user space sees it: its directory of pins, opened and checked against the ABI.
 * The only code that turns bpf/pins.h into paths.
 */
#ifndef TPROXY_INSTANCE_H
#define TPROXY_INSTANCE_H

#include <limits.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <stdint.h>

#include "../../bpf/abi.h"
#include "../../bpf/pins.h"
#include "failure.h"

enum pin_map {
#define X(name) PIN_MAP_##name,
	PIN_MAPS(X)
#undef X
		PIN_MAP_COUNT
};

enum pin_prog {
#define X(name, type) PIN_PROG_##name,
	PIN_HOOKS(X)
#undef X
		PIN_HOOK_COUNT,
	PIN_PROG_before_filters = PIN_HOOK_COUNT - 1,
#define X(name) PIN_PROG_##name,
	PIN_FILTERS(X)
#undef X
		PIN_PROG_COUNT
};

/* What a pinned map must look like. Any number of entries. */
struct pin_map_def {
	const char *name; /* file name and object name: map_config ... */
	__u32 type;
	__u32 key_size;
	__u32 value_size;
};

struct pin_prog_def {
	const char *name;		  /* without prefix: connect4 ... */
	const char *pin;		  /* file name: prog_connect4 ... */
	const char *object;		  /* function in the BPF object: tp_connect4 ... */
	enum bpf_attach_type attach_type; /* of hooks: those below PIN_HOOK_COUNT */
};

extern const struct pin_map_def pin_maps[PIN_MAP_COUNT];
extern const struct pin_prog_def pin_progs[PIN_PROG_COUNT];

struct counter_def {
	const char *name;
	const char *text;
};

#define COUNTER_COUNT (sizeof(struct tp_stats) / sizeof(__u64))
extern const struct counter_def counters[COUNTER_COUNT]; /* in the order of struct tp_stats */

#define PROXY_COUNTER_COUNT (sizeof(struct tp_proxy_stats) / sizeof(__u64))
extern const struct counter_def proxy_counters[PROXY_COUNTER_COUNT]; /* of struct tp_proxy_stats */

/* A name may hold a-z, 0-9, - and _, begins with a letter or digit and is at most 31 long. */
int instance_name_check(const char *name, struct failure *f);

/* "/sys/fs/bpf/NAMESUFFIX" and "/sys/fs/bpf/NAME/OBJECT". Return buf. */
const char *instance_dir(const char *name, const char *suffix, char buf[PATH_MAX]);
const char *instance_pin(const char *name, const char *object, char buf[PATH_MAX]);

/* Where our programs keep what lasts until the host is restarted. */
#define RUN_DIR	 "/run/tproxy"
#define LOCK_DIR "/run/tproxy-load" /* of root's programs; RUN_DIR's user need not be root */

struct instance {
	char name[TP_NAME_LEN];
	int map[PIN_MAP_COUNT];	  /* fds; -1 where not asked for */
	struct tp_config *config; /* mapped; writable */
};

#define INSTANCE_INIT                                     \
	{                                                 \
		.map = { [0 ... PIN_MAP_COUNT - 1] = -1 } \
	}

/*
 * Opens the maps in `wanted` (bits 1 << PIN_MAP_x; map_config always) and checks type, sizes, magic
 * and ABI version before anything else is touched. Read-write.
 */
int instance_open(const char *name, unsigned int wanted, struct instance *ret, struct failure *f);
void instance_close(struct instance *inst);

/* To be called when map_failed or map_routes have been changed: the hooks look there anew. */
void instance_changed(const struct instance *inst);

/* Opens one pinned map and checks it is what our table says. Returns an fd or -errno. */
int instance_open_map(const char *name, const char *suffix, enum pin_map map, struct failure *f);

/* Opens the pinned doorman, which is a program without a link. Returns an fd or -errno. */
int instance_open_doorman(const char *name, struct failure *f);

/*
 * The map called as our table says among those that a program uses, whether it is pinned or not.
 * Returns an fd or -errno; -ENOENT if it uses none such.
 */
int instance_find_map(int prog_fd, enum pin_map map);

/* Whether a file's name is one of our tables'. Other programs pin maps in directories of theirs. */
int instance_is_pin(const char *file);

/* Calls cb for each directory of bpffs that holds a map_config or any other pin of ours. Returns
 * the first non-zero result of cb, 0, or -errno. */
int instance_each(int (*cb)(const char *name, void *user), void *user);

/* Sums map_stats over the CPUs. */
int instance_stats(const struct instance *inst, __u64 ret_values[COUNTER_COUNT], struct failure *f);

#endif
