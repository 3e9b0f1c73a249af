/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is pinned under an instance's name, whatever state it is in: complete, half-broken, left by
 * a killed run, or not ours at all. Nothing is changed here.
 */
#ifndef TPROXY_LOADER_SET_H
#define TPROXY_LOADER_SET_H

#include <stdbool.h>

#include "links.h"

#define PIN_UNKNOWN -1

enum pin_kind { PIN_MAP, PIN_PROG, PIN_LINK, PIN_FOREIGN };

struct pin {
	enum pin_kind kind;
	int index; /* enum pin_map or enum pin_prog; PIN_UNKNOWN: only another version has it */
	bool side; /* a prog_X~new: a program that was about to replace another */
	int fd;	   /* -1 if foreign */
	__u32 id;  /* of map or program */
	__u32 key_size; /* of a map */
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
	struct hook_link link;
	char file[256];
	const char *why; /* a foreign one: in what it is not ours */
};

struct set {
	char name[TP_NAME_LEN];
	char suffix[8];
	char dir[PATH_MAX];
	bool exists;
	struct pin *pins;
	size_t count;
	size_t foreign;
	struct tp_config *config; /* mapped, or NULL: none, or of another version */
	__u32 other_abi;	  /* which other version it is of; 0: none other that can be seen */
};

/*
 * Reads the directory of an instance (suffix "" or PIN_NEW_SUFFIX). No directory is no error. An
 * error is: a name that is no directory of root's alone, or no access.
 */
int set_read(const char *name, const char *suffix, struct set *ret, struct failure *f);
void set_free(struct set *set);

/* The pin of a map or a program, or NULL. */
struct pin *set_find(const struct set *set, enum pin_kind kind, int index, bool side);

/* The pin of a live link under its own name, or NULL. */
struct pin *set_find_link(const struct set *set, enum pin_prog prog, uint64_t cgroup_id);

/* A failure that names the foreign objects, or 0. */
int set_refuse_foreign(const struct set *set, struct failure *f);

/* NAME and NAME~new; refuses either if there is anything foreign in it. */
int set_read_both(const char *name, struct set *ret_set, struct set *ret_side, struct failure *f);

const char *set_path(const struct set *set, const char *file, char buf[PATH_MAX]);
const char *set_side_path(const struct set *set, const char *file, char buf[PATH_MAX]);

/*
 * The order in which programs are attached: those that redirect come last, when everything that a
 * redirected connection needs is in place. Detach in the reverse order.
 */
extern const enum pin_prog set_attach_order[PIN_HOOK_COUNT];
bool set_prog_redirects(int prog);

#define _cleanup_set_ _cleanup_(set_free)

#endif
