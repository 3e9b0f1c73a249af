// SPDX-License-Identifier: BSD-2-Clause
#include "repair.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <string.h>

#include "generation.h"
#include "log.h"
#include "unload.h"

static bool has_side_pins(const struct set *set)
{
	for (size_t i = 0; i < set->count; i++)
		if (set->pins[i].side && set->pins[i].kind == PIN_PROG)
			return true;
	return false;
}

/* Of another version we do not know which it should have. */
static bool has_all_maps(const struct set *set)
{
	for (int m = 0; m < PIN_MAP_COUNT && !set->other_abi; m++)
		if (!set_find(set, PIN_MAP, m, false))
			return false;
	return true;
}

bool repair_needed(const struct set *set, const struct set *side)
{
	return side->exists || (set->exists && (!has_all_maps(set) || has_side_pins(set)));
}

static int set_reread(struct set *set, struct failure *f)
{
	char name[TP_NAME_LEN];

	snprintf(name, sizeof(name), "%s", set->name);
	set_free(set);
	return set_read(name, "", set, f);
}

/*
 * Whether an interrupted upgrade had got as far as swapping all links: each one runs what was about
 * to be pinned, or is pinned already.
 */
static bool upgrade_got_through(const struct set *set)
{
	bool alive = false;

	for (size_t i = 0; i < set->count; i++) {
		const struct pin *pin = &set->pins[i], *next;

		if (pin->kind != PIN_LINK || !pin->link.cgroup_id)
			continue;
		next = set_find(set, PIN_PROG, pin->index, true);
		if (!next)
			next = set_find(set, PIN_PROG, pin->index, false);
		if (!next || next->id != pin->link.prog_id)
			return false;
		alive = true;
	}
	return alive;
}

static int side_pins_rename(const struct set *set, struct failure *f)
{
	char from[PATH_MAX], to[PATH_MAX];

	for (size_t i = 0; i < set->count; i++) {
		const struct pin *pin = &set->pins[i];

		if (!pin->side)
			continue;
		set_path(set, pin->file, from);
		snprintf(to, sizeof(to), "%.*s", (int)(strlen(from) - strlen(PIN_NEW_SUFFIX)),
			 from);
		if (rename(from, to))
			return fail(f, -errno, "cannot rename %s to %s: %m", from, to);
	}
	return 0;
}

static int link_swap_back(const struct set *set, const struct pin *pin, struct failure *f)
{
	LIBBPF_OPTS(bpf_link_update_opts, opts, .flags = BPF_F_REPLACE);
	const struct pin *old = set_find(set, PIN_PROG, pin->index, false);
	const struct pin *new = set_find(set, PIN_PROG, pin->index, true);

	if (!old || !new || pin->link.prog_id != new->id)
		return 0;
	opts.old_prog_fd = new->fd;
	if (bpf_link_update(pin->fd, old->fd, &opts) && errno != ENOLINK)
		return fail(f, -errno, "cannot update the program of %s/%s: %m", set->dir,
			    pin->file);
	return 0;
}

static int upgrade_take_back(const struct set *set, struct failure *f)
{
	char path[PATH_MAX];
	int err;

	for (size_t i = 0; i < set->count; i++)
		if (set->pins[i].kind == PIN_LINK) {
			err = link_swap_back(set, &set->pins[i], f);
			if (err)
				return err;
		}
	for (size_t i = 0; i < set->count; i++)
		if (set->pins[i].side && unlink(set_path(set, set->pins[i].file, path)))
			return fail(f, -errno, "cannot remove %s: %m", path);
	return 0;
}

/* A map whose pin somebody removed: programs in force still hold it. An fd, or -ENOENT: none does.
 */
static int map_find(const struct set *set, enum pin_map map)
{
	for (size_t i = 0; i < set->count; i++) {
		const struct pin *pin = &set->pins[i];
		int prog _cleanup_fd_ = -1, fd;

		if (pin->kind == PIN_LINK)
			prog = bpf_prog_get_fd_by_id(pin->link.prog_id);
		else if (pin->kind == PIN_PROG && !pin->side)
			prog = fcntl(pin->fd, F_DUPFD_CLOEXEC, 0);
		if (prog < 0)
			continue;
		fd = instance_find_map(prog, map);
		if (fd >= 0)
			return fd;
	}
	return -ENOENT;
}

static int map_repin(const struct set *set, enum pin_map map, struct failure *f)
{
	int fd _cleanup_fd_ = map_find(set, map);
	char path[PATH_MAX];

	if (fd < 0)
		return fail(f, fd, "cannot open %s of instance %s again: %s", pin_maps[map].name,
			    set->name, strerror(-fd));
	if (bpf_obj_pin(fd, set_path(set, pin_maps[map].name, path)))
		return fail(f, -errno, "cannot pin %s: %m", path);
	log_notice("instance %s: pinned %s again, which had gone", set->name, pin_maps[map].name);
	return 0;
}

static int maps_recover(const struct set *set, struct failure *f)
{
	int err = 0;

	for (int m = 0; m < PIN_MAP_COUNT; m++) {
		int fd _cleanup_fd_ = -1;

		if (set_find(set, PIN_MAP, m, false))
			continue;
		fd = map_find(set, m);
		if (fd >= 0)
			continue;
		/* The programs that need it are not even pinned: this set does nothing. */
		log_notice("instance %s: removing what is left of it, %s has gone", set->name,
			   pin_maps[m].name);
		return unload_set(set, f);
	}
	for (int m = 0; !err && m < PIN_MAP_COUNT; m++)
		if (!set_find(set, PIN_MAP, m, false))
			err = map_repin(set, m, f);
	return err;
}

int repair_instance(struct set *set, const struct set *side, struct failure *f)
{
	int err = 0;

	if (side->exists) {
		log_notice("instance %s: removing what an interrupted run left in %s", set->name,
			   side->dir);
		err = set->exists ? generation_retire(side, set, f) : unload_set(side, f);
	}
	if (!err && has_side_pins(set)) {
		bool through = upgrade_got_through(set);

		log_notice("instance %s: an upgrade was interrupted, %s it", set->name,
			   through ? "completing" : "taking back");
		if (!through)
			err = upgrade_take_back(set, f);
		else
			err = side_pins_rename(set, f);
		if (!err)
			err = set_reread(set, f);
	}
	if (!err && set->exists && !has_all_maps(set)) {
		err = maps_recover(set, f);
		if (!err)
			err = set_reread(set, f);
	}
	return err;
}
