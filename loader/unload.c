// SPDX-License-Identifier: BSD-2-Clause
#include "unload.h"

#include <bpf/bpf.h>
#include <string.h>

#include "access.h"
#include "log.h"
#include "remedy.h"

#define DETACH_TRIES 5

struct removal {
	const struct set *set;
	struct failure *f;
	int err; /* first */
};

int unload_detach(int fd)
{
	for (int try = 0; bpf_link_detach(fd); try++)
		if (try == DETACH_TRIES)
			return -errno;
	return 0;
}

static void pin_remove(struct removal *rm, const struct pin *pin)
{
	char path[PATH_MAX];
	int err = pin->kind == PIN_LINK ? unload_detach(pin->fd) : 0;

	if (err) { /* it stays pinned, so that the next run finds it */
		if (!rm->err)
			rm->err = fail(rm->f, err, "cannot detach %s: %s%s",
				       set_path(rm->set, pin->file, path), strerror(-err),
				       remedy(err));
		return;
	}
	if (unlink(set_path(rm->set, pin->file, path)) && errno != ENOENT && !rm->err)
		rm->err = fail(rm->f, -errno, "cannot remove %s: %m", path);
}

/* Those of hooks that only another version has may redirect: they go first. */
static void links_remove(struct removal *rm)
{
	for (size_t n = 0; n < rm->set->count; n++)
		if (rm->set->pins[n].kind == PIN_LINK && rm->set->pins[n].index == PIN_UNKNOWN)
			pin_remove(rm, &rm->set->pins[n]);
	for (int i = PIN_HOOK_COUNT - 1; i >= 0; i--)
		for (size_t n = 0; n < rm->set->count; n++) {
			const struct pin *pin = &rm->set->pins[n];

			if (pin->kind == PIN_LINK && pin->index == (int)set_attach_order[i])
				pin_remove(rm, pin);
		}
}

static void others_remove(struct removal *rm)
{
	const struct set *set = rm->set;

	for (size_t n = 0; n < set->count; n++)
		if (set->pins[n].kind == PIN_PROG)
			pin_remove(rm, &set->pins[n]);
	for (size_t n = 0; n < set->count; n++)
		if (set->pins[n].kind == PIN_MAP && set->pins[n].index != PIN_MAP_config)
			pin_remove(rm, &set->pins[n]);
	for (size_t n = 0; n < set->count; n++)
		if (set->pins[n].kind == PIN_MAP && set->pins[n].index == PIN_MAP_config)
			pin_remove(rm, &set->pins[n]);
}

static bool redirects(const struct pin *pin)
{
	return pin->kind == PIN_LINK &&
	       (pin->index == PIN_UNKNOWN || set_prog_redirects(pin->index));
}

int unload_redirecting(const struct set *set, struct failure *f)
{
	struct removal rm = {.set = set, .f = f};

	for (size_t n = 0; n < set->count; n++)
		if (redirects(&set->pins[n]))
			pin_remove(&rm, &set->pins[n]);
	return rm.err;
}

int unload_map(const struct set *set, enum pin_map map, struct failure *f)
{
	const struct pin *pin = set_find(set, PIN_MAP, map, false);
	struct removal rm = {.set = set, .f = f};

	if (pin)
		pin_remove(&rm, pin);
	return rm.err;
}

int unload_retired(const struct set *set, struct failure *f)
{
	struct removal rm = {.set = set, .f = f};

	if (!set->exists)
		return 0;
	links_remove(&rm);
	if (!rm.err) /* what a link is of is known by the rest */
		others_remove(&rm);
	if (!rm.err && !set->foreign && rmdir(set->dir) && errno != ENOENT)
		rm.err = fail(f, -errno, "cannot remove %s: %m", set->dir);
	return rm.err;
}

int unload_set(const struct set *set, struct failure *f)
{
	if (set->config && set->config->magic == ABI_MAGIC && set->config->abi == ABI_VERSION)
		__atomic_store_n(&set->config->enabled, 0, __ATOMIC_RELEASE);
	return unload_retired(set, f);
}

static size_t links_count(const struct set *set)
{
	size_t count = 0;

	for (size_t n = 0; n < set->count; n++)
		count += set->pins[n].kind == PIN_LINK;
	return count;
}

/* A stranger's has no hooks of ours in it, and is not to keep those of the instance in force. */
static int side_read(const char *name, struct set *ret, struct failure *f)
{
	char dir[PATH_MAX];
	int err = set_read(name, PIN_NEW_SUFFIX, ret, f);

	if (!err || !access_is_strangers(instance_dir(name, PIN_NEW_SUFFIX, dir)))
		return err;
	log_warning("left alone: %s", f->text);
	return 0;
}

int unload_run(const char *name, struct failure *f)
{
	struct set set _cleanup_set_ = {0}, side _cleanup_set_ = {0};
	struct failure foreign;
	size_t links;
	int err;

	err = set_read(name, "", &set, f);
	if (!err)
		err = side_read(name, &side, f);
	if (err)
		return err;
	/* First: once the directory has gone nothing tells whose the way is. */
	access_close_way(name, access_holder(set.dir));
	err = unload_set(&set, f);
	if (!err)
		err = unload_set(&side, f);
	if (err)
		return err;
	links = links_count(&set) + links_count(&side);
	if (set_refuse_foreign(&set, &foreign))
		log_warning("left alone: %s", foreign.text);
	if (set_refuse_foreign(&side, &foreign))
		log_warning("left alone: %s", foreign.text);
	if (set.count == set.foreign && side.count == side.foreign &&
	    (set.foreign || !set.exists) && (side.foreign || !side.exists))
		log_info("instance %s: nothing is loaded, nothing to unload", name);
	else
		log_info("instance %s: unloaded, %zu link%s removed", name, links,
			 links == 1 ? "" : "s");
	return 0;
}
