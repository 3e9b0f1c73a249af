// SPDX-License-Identifier: BSD-2-Clause
#include "upgrade.h"

#include <bpf/bpf.h>
#include <string.h>

#include "access.h"
#include "load.h"
#include "undo.h"
#include "unload.h"

struct upgrade {
	const struct settings *settings;
	const struct cgroups *cgs;
	const struct set *set;
	const struct object *obj;
	const struct plan *plan;
	struct failure *f;
	int *old_progs; /* fds, a pin of the set each; or -1 */
	struct undo undo;
};

static void upgrade_free(struct upgrade *up)
{
	undo_rollback(&up->undo); /* before what it borrows goes */
	for (size_t i = 0; up->old_progs && i < up->set->count; i++)
		fd_close(up->old_progs[i]);
	free(up->old_progs);
}

static int side_pins_make(struct upgrade *up)
{
	char path[PATH_MAX];
	int err = 0;

	for (int p = 0; !err && p < PIN_PROG_COUNT; p++)
		err = undo_pin(&up->undo, object_prog_fd(up->obj, p),
			       set_side_path(up->set, pin_progs[p].pin, path), up->f);
	return err;
}

static int side_pins_rename(struct upgrade *up)
{
	char from[PATH_MAX], to[PATH_MAX];
	int err = 0;

	for (int p = 0; !err && p < PIN_PROG_COUNT; p++) {
		const struct pin *old = set_find(up->set, PIN_PROG, p, false);

		err = undo_replace(&up->undo, set_side_path(up->set, pin_progs[p].pin, from),
				   set_path(up->set, pin_progs[p].pin, to), old ? old->fd : -1,
				   up->f);
	}
	return err;
}

static int links_swap(struct upgrade *up)
{
	for (size_t i = 0; i < up->set->count; i++) {
		const struct pin *pin = &up->set->pins[i];
		char path[PATH_MAX];
		int err;

		if (pin->kind != PIN_LINK || !pin->link.cgroup_id)
			continue;
		set_path(up->set, pin->file, path);
		up->old_progs[i] = bpf_prog_get_fd_by_id(pin->link.prog_id);
		if (up->old_progs[i] < 0)
			return fail(up->f, -errno, "cannot open the program of %s: %m", path);
		err = undo_swap(&up->undo, pin->fd, object_prog_fd(up->obj, pin->index),
				up->old_progs[i], path, up->f);
		if (err && err != -ENOLINK) /* its cgroup went a moment ago: it runs nothing now */
			return err;
	}
	return 0;
}

/* Whether a pin has the name of a link that is wanted, but is not that: dead, or renamed by a hand.
 */
static bool in_the_way(const struct upgrade *up, const struct pin *pin)
{
	return pin->kind == PIN_LINK && pin->link.cgroup_id != pin->link.pinned_cgroup &&
	       cgroups_contain(up->cgs, pin->link.pinned_cgroup);
}

/* A dead link cannot be brought to life again: nothing is lost that a rollback could restore. */
static void name_clear(const struct upgrade *up, const char *file)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < up->set->count; i++) {
		const struct pin *pin = &up->set->pins[i];

		if (!in_the_way(up, pin) || strcmp(pin->file, file))
			continue;
		bpf_link_detach(pin->fd);
		unlink(set_path(up->set, file, path));
	}
}

static int links_add(struct upgrade *up)
{
	char path[PATH_MAX], file[64];

	for (int i = 0; i < PIN_HOOK_COUNT; i++)
		for (size_t c = 0; c < up->cgs->count; c++) {
			enum pin_prog prog = set_attach_order[i];
			const struct cgroup *cg = &up->cgs->items[c];
			int prog_fd, err;

			if (set_find_link(up->set, prog, cg->id))
				continue;
			prog_fd = up->plan->reload ? object_prog_fd(up->obj, prog)
						   : set_find(up->set, PIN_PROG, prog, false)->fd;
			name_clear(up, link_name_format(prog, cg->id, file));
			err = undo_attach(&up->undo, prog_fd, cg->fd, pin_progs[prog].attach_type,
					  set_path(up->set, file, path), up->f);
			if (err)
				return err;
		}
	return 0;
}

/* Field by field, by aligned stores: proxies register in the same structure at the same time. */
static void settings_store(const struct upgrade *up)
{
	struct tp_config *config = up->set->config;

	__atomic_store_n(&config->policy, (__u32)up->settings->policy, __ATOMIC_RELAXED);
	__atomic_store_n(&config->build, object_build(), __ATOMIC_RELAXED);
	__atomic_store_n(&config->loaded_ns, load_time(), __ATOMIC_RELAXED);
	__atomic_store_n(&config->ports, (__u16)up->settings->ports, __ATOMIC_RELAXED);
	__atomic_store_n(&config->port, (__u16)up->settings->port, __ATOMIC_RELEASE);
	__atomic_store_n(&config->enabled, 1, __ATOMIC_RELEASE);
}

/* In the reverse order of attaching: what redirects goes first. Goes on after an error. */
static int links_remove(const struct upgrade *up)
{
	char path[PATH_MAX];
	int err = 0;

	for (int o = PIN_HOOK_COUNT - 1; o >= 0; o--)
		for (size_t i = 0; i < up->set->count; i++) {
			const struct pin *pin = &up->set->pins[i];
			int one;

			if (pin->kind != PIN_LINK || pin->index != (int)set_attach_order[o] ||
			    plan_keeps(up->cgs, pin) || in_the_way(up, pin)) /* gone already */
				continue;
			set_path(up->set, pin->file, path);
			one = unload_detach(pin->fd); /* or it stays pinned, to be found */
			if (!one && unlink(path) && errno != ENOENT)
				one = -errno;
			if (one && !err)
				err = fail(up->f, one,
					   "the new settings are in force, but "
					   "%s cannot be removed: %s; run it again",
					   path, strerror(-one));
		}
	return err;
}

/* All that can fail and be taken back. */
static int upgrade_prepare(struct upgrade *up)
{
	int err = 0;

	if (up->plan->reload)
		err = side_pins_make(up);
	/* Where the rights of all are to change that comes last: it is not taken back. */
	if (!err && up->plan->reload && !up->plan->access)
		err = access_set_pins(up->set->dir, up->settings->group, up->f);
	if (!err && up->plan->reload)
		err = links_swap(up);
	if (!err)
		err = links_add(up);
	if (!err && up->plan->reload)
		err = side_pins_rename(up);
	return err;
}

int upgrade_apply(const struct settings *settings, const struct cgroups *cgs, const struct set *set,
		  struct object *obj, const struct plan *plan, struct failure *f)
{
	struct upgrade up _cleanup_(upgrade_free) = {
		.settings = settings, .cgs = cgs, .set = set, .obj = obj, .plan = plan, .f = f};
	int err;

	if (plan->reload) {
		err = load_against(set, obj, true, f);
		if (err)
			return err;
	}
	up.old_progs = malloc((set->count + 1) * sizeof(int));
	if (!up.old_progs)
		return fail(f, -ENOMEM, "out of memory");
	for (size_t i = 0; i < set->count; i++)
		up.old_progs[i] = -1;
	err = upgrade_prepare(&up);
	if (err)
		return err;
	undo_commit(&up.undo);
	err = links_remove(&up);
	if (!err && plan->access)
		err = access_set(set->name, settings->group, f);
	if (plan->settings || plan->reload)
		settings_store(&up);
	return err;
}
