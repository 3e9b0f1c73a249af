// SPDX-License-Identifier: BSD-2-Clause
#include "plan.h"

#include <stdarg.h>
#include <string.h>

#include "access.h"

static bool map_fits(const struct pin *pin, const struct bpf_map *map)
{
	return pin && pin->key_size == bpf_map__key_size(map) &&
	       pin->value_size == bpf_map__value_size(map) &&
	       pin->map_flags == bpf_map__map_flags(map);
}

/*
 * bpf_map__reuse_fd() takes any map of the type: whether the programs can live with it is ours to
 * say. Where they cannot there will be new maps.
 */
static int maps_compare(const struct set *set, const struct object *obj, struct plan *plan,
			struct failure *f)
{
	bool resize = false, other = set->other_abi;

	for (int m = 0; m < PIN_MAP_COUNT; m++) {
		const struct pin *pin = set_find(set, PIN_MAP, m, false);
		bool fits = map_fits(pin, obj->map[m]);
		bool same_size = pin && pin->max_entries == bpf_map__max_entries(obj->map[m]);

		other |= !fits || (!same_size && !object_map_sized(m));
		resize |= fits && !same_size;
	}
	if (!set->other_abi && (!set->config || set->config->magic != ABI_MAGIC))
		return fail(f, -EPROTO,
			    "map_config of instance %s cannot be read; unload it first: "
			    "tproxy-load --unload --name %s",
			    set->name, set->name);
	plan->generation = other ? "another version" : resize ? "other map sizes" : NULL;
	plan->keep_maps = !other;
	return 0;
}

static const char *reload_reason(const struct set *set)
{
	if (set->config->build != object_build())
		return "another build";
	for (int p = 0; p < PIN_PROG_COUNT; p++)
		if (!set_find(set, PIN_PROG, p, false))
			return "a pin was missing";
	for (size_t i = 0; i < set->count; i++) {
		const struct pin *pin = &set->pins[i];

		if (pin->kind == PIN_LINK && pin->link.cgroup_id &&
		    pin->link.prog_id != set_find(set, PIN_PROG, pin->index, false)->id)
			return "a link held another program";
	}
	return NULL;
}

bool plan_keeps(const struct cgroups *cgs, const struct pin *pin)
{
	return pin->link.cgroup_id == pin->link.pinned_cgroup &&
	       cgroups_contain(cgs, pin->link.cgroup_id);
}

static bool config_differs(const struct tp_config *config, const struct settings *settings)
{
	return config->port != settings->port || config->ports != settings->ports ||
	       config->policy != (__u32)settings->policy || !config->enabled;
}

int plan_make(const struct settings *settings, const struct cgroups *cgs, const struct set *set,
	      const struct object *obj, struct plan *ret, struct failure *f)
{
	struct plan plan = {0};
	int err = access_check_way(set->name, settings->group, f);

	if (err)
		return err;
	if (!set->exists) {
		plan.fresh = true;
		plan.attach = cgs->count * PIN_HOOK_COUNT;
		*ret = plan;
		return 0;
	}
	err = maps_compare(set, obj, &plan, f);
	if (err)
		return err;
	plan.settings = set->config && config_differs(set->config, settings);
	err = access_differs(set->dir, settings->group, f);
	if (err < 0)
		return err;
	plan.access = err;
	for (size_t c = 0; c < cgs->count; c++)
		for (int p = 0; p < PIN_HOOK_COUNT; p++)
			plan.attach += !set_find_link(set, p, cgs->items[c].id);
	for (size_t i = 0; i < set->count; i++) {
		const struct pin *pin = &set->pins[i];

		if (pin->kind != PIN_LINK || plan_keeps(cgs, pin))
			continue;
		plan.detach++;
		/* From a cgroup to one inside it, or back: in between both programs would run. */
		if (!plan.generation && plan.attach &&
		    cgroups_overlapping(cgs, pin->link.cgroup_id))
			plan.generation = "cgroups inside one another";
	}
	if (!plan.generation)
		plan.reload = reload_reason(set);
	*ret = plan;
	return 0;
}

bool plan_empty(const struct plan *plan)
{
	return !plan->fresh && !plan->generation && !plan->reload && !plan->settings &&
	       !plan->access && !plan->attach && !plan->detach;
}

static void clause(char buf[256], const char *fmt, ...) _printf_(2, 3);

static void clause(char buf[256], const char *fmt, ...)
{
	size_t used = strlen(buf);
	va_list ap;

	if (used)
		used += snprintf(buf + used, 256 - used, ", ");
	va_start(ap, fmt);
	vsnprintf(buf + used, 256 - used, fmt, ap);
	va_end(ap);
}

const char *plan_describe(const struct plan *plan, const struct settings *settings, char buf[256])
{
	buf[0] = 0;
	if (plan->fresh)
		clause(buf, "loaded");
	if (plan->reload)
		clause(buf, "programs replaced (%s)", plan->reload);
	if (plan->generation)
		clause(buf, "maps and programs replaced (%s), %llu connections", plan->generation,
		       (unsigned long long)settings->max_connections);
	if (plan->settings)
		clause(buf, "settings stored");
	if (plan->access)
		clause(buf, "access rights set");
	if (plan->attach && !plan->fresh && !plan->generation)
		clause(buf, "%zu link%s added", plan->attach, plan->attach == 1 ? "" : "s");
	if (plan->detach && !plan->generation)
		clause(buf, "%zu link%s removed", plan->detach, plan->detach == 1 ? "" : "s");
	if (plan_empty(plan))
		clause(buf, "unchanged");
	return buf;
}
