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

/* Whether somebody else than root has made what is there, as often everybody may (mode 1777). */
bool access_is_strangers(const char *path);

/* 1 where a pin, the directory or the way to it is not as it should be, 0, or -errno. */
int access_differs(const char *dir, gid_t group, struct failure *f);

/* The group that a directory of pins was given to; ACCESS_ROOT: none, or no directory. */
gid_t access_holder(const char *dir);

/*
 * Makes it so for an instance in force, the directory and the way to it last; the way of the group
 * that it had is closed. Doing it again changes nothing.
 */
int access_set(const char *name, gid_t group, struct failure *f);

/* The parts of it: pins and their directory; the way to them. */
int access_set_pins(const char *dir, gid_t group, struct failure *f);
int access_open_way(const char *name, gid_t group, struct failure *f);

/* Fails where the way to instance `name` could not be opened to a group: to be asked before the
 * first change. */
int access_check_way(const char *name, gid_t group, struct failure *f);

/*
 * Closes the way of the group that instance `name` has, or had, unless another instance has it too.
 * What an administrator has opened to somebody else stays.
 */
void access_close_way(const char *name, gid_t group);

#endif
