// SPDX-License-Identifier: BSD-2-Clause
#include "load.h"

#include <bpf/bpf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>

#include "access.h"
#include "set.h"

__u32 load_grant(void)
{
	__u32 grant = 0;

	while (!grant)
		if (getrandom(&grant, sizeof(grant), 0) != sizeof(grant))
			return 0;
	return grant;
}

__u64 load_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (__u64)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int load_config(const struct object *obj, const struct settings *settings, struct failure *f)
{
	struct tp_config config = {
		.magic = ABI_MAGIC,
		.abi = ABI_VERSION,
		.policy = settings->policy,
		.port = settings->port,
		.ports = settings->ports,
		.build = object_build(),
		.loaded_ns = load_time(),
		.grant = load_grant(),
	};
	__u32 zero = 0;

	if (!config.grant)
		return fail(f, -errno, "cannot get a random number: %m");
	snprintf(config.name, sizeof(config.name), "%s", settings->common.name);
	if (bpf_map_update_elem(object_map_fd(obj, PIN_MAP_config), &zero, &config, BPF_ANY))
		return fail(f, -errno, "cannot write map_config: %m");
	return 0;
}

int load_against(const struct set *set, struct object *obj, bool sized, struct failure *f)
{
	for (int m = 0; m < PIN_MAP_COUNT; m++) {
		int err;

		if (object_map_sized(m) && !sized)
			continue;
		err = bpf_map__reuse_fd(obj->map[m], set_find(set, PIN_MAP, m, false)->fd);
		if (err)
			return fail(f, err, "cannot use the pinned %s: %s", pin_maps[m].name,
				    strerror(-err));
	}
	return object_load(obj, f);
}

int load_pin(struct undo *u, const struct object *obj, const char *name, struct failure *f)
{
	char dir[PATH_MAX], path[PATH_MAX + 32];
	int err = undo_mkdir(u, instance_dir(name, PIN_NEW_SUFFIX, dir), f);

	if (err)
		return err;
	for (int m = 0; m < PIN_MAP_COUNT; m++) {
		snprintf(path, sizeof(path), "%s/%s", dir, pin_maps[m].name);
		err = undo_pin(u, object_map_fd(obj, m), path, f);
		if (err)
			return err;
	}
	for (int p = 0; p < PIN_PROG_COUNT; p++) {
		snprintf(path, sizeof(path), "%s/%s", dir, pin_progs[p].pin);
		err = undo_pin(u, object_prog_fd(obj, p), path, f);
		if (err)
			return err;
	}
	return 0;
}

int load_attach(struct undo *u, const struct object *obj, const struct cgroups *cgs,
		const char *name, bool redirecting, struct failure *f)
{
	char dir[PATH_MAX], path[PATH_MAX + 80], file[64];

	instance_dir(name, PIN_NEW_SUFFIX, dir);
	for (int i = 0; i < PIN_HOOK_COUNT; i++)
		for (size_t c = 0; c < cgs->count; c++) {
			enum pin_prog prog = set_attach_order[i];
			int err;

			if (set_prog_redirects(prog) != redirecting)
				continue;
			snprintf(path, sizeof(path), "%s/%s", dir,
				 link_name_format(prog, cgs->items[c].id, file));
			err = undo_attach(u, object_prog_fd(obj, prog), cgs->items[c].fd,
					  pin_progs[prog].attach_type, path, f);
			if (err)
				return err;
		}
	return 0;
}

/* The hooks see enabled = 0 and let everything pass until the very last store. */
static int load_steps(struct undo *u, const struct object *obj, const struct settings *settings,
		      const struct cgroups *cgs, struct failure *f)
{
	const char *name = settings->common.name;
	char dir[PATH_MAX], side[PATH_MAX];
	struct tp_config *config;
	int err;

	instance_dir(name, "", dir);
	instance_dir(name, PIN_NEW_SUFFIX, side);
	config = mmap(NULL, sizeof(*config), PROT_READ | PROT_WRITE, MAP_SHARED,
		      object_map_fd(obj, PIN_MAP_config), 0);
	if (config == MAP_FAILED)
		return fail(f, -errno, "cannot map map_config: %m");
	err = load_pin(u, obj, name, f);
	if (!err)
		err = load_attach(u, obj, cgs, name, false, f);
	if (!err)
		err = load_attach(u, obj, cgs, name, true, f);
	if (!err)
		err = access_set_pins(side, settings->group, f);
	if (!err)
		err = undo_rename(u, side, dir, f);
	if (!err) /* last, so that no failure has to close it */
		err = access_open_way(name, settings->group, f);
	if (!err) {
		__atomic_store_n(&config->enabled, 1, __ATOMIC_RELEASE);
		undo_commit(u);
	}
	munmap(config, sizeof(*config));
	return err;
}

int load_first(const struct settings *settings, const struct cgroups *cgs, struct object *obj,
	       struct failure *f)
{
	struct undo undo _cleanup_undo_ = {0};
	int err = object_load(obj, f);

	if (!err)
		err = load_config(obj, settings, f);
	if (!err)
		err = load_steps(&undo, obj, settings, cgs, f);
	return err;
}
