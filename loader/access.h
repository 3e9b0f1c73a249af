/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who may open what is pinned: root alone, or one group as well, which is how a tproxyd without
 * root comes in. The modes in bpffs are the setting's only memory.
 */
#ifndef TPROXY_LOADER_ACCESS_H
#define TPROXY_LOADER_ACCESS_H

#include <stdbool.h>
#include <sys/types.h>

#include "failure.h"

#define ACCESS_ROOT ((gid_t)0) /* no group: root alone */

/* The group of that name, or of that number; NULL is ACCESS_ROOT. */
int access_group(const char *name, gid_t *ret_group, struct failure *f);

/* Whether a directory's owner and mode are such that nobody but root can have touched what is in
 * it. */
bool access_is_tight(uid_t owner, mode_t mode);

/* 1 where a pin, the directory or the way to it is not as it should be, 0, or -errno. */
int access_differs(const char *dir, gid_t group, struct failure *f);

/* Makes it so, the directory and the way to it last. Doing it again changes nothing. */
int access_set(const char *dir, gid_t group, struct failure *f);

/* The same without the way, which the set that is in force has with its group. */
int access_set_pins(const char *dir, gid_t group, struct failure *f);

/* Closes the way to the instances of a group again if none is left. */
void access_close_way(void);

#endif
