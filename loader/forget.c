// SPDX-License-Identifier: BSD-2-Clause
#include "forget.h"

#include <string.h>

#include "generation.h"
#include "mounts.h"
#include "plan.h"
#include "transfer.h"

int forget_find(const struct set *set, const struct cgroups *wanted, struct cgroups *ret,
		struct failure *f)
{
	struct cgroups found _cleanup_cgroups_ = {
		.items = calloc(set->count + 1, sizeof(*found.items))};

	if (!found.items)
		return fail(f, -ENOMEM, "out of memory");
	for (size_t i = 0; i < set->count; i++) {
		const struct pin *pin = &set->pins[i];
		struct cgroup *cg = &found.items[found.count];

		if (pin->kind != PIN_LINK || plan_keeps(wanted, pin) ||
		    cgroups_contain(&found, pin->link.cgroup_id) ||
		    cgroup_path(pin->link.cgroup_id, cg->path))
			continue;
		cg->fd = -1;
		cg->id = pin->link.cgroup_id;
		found.count++;
	}
	*ret = found;
	found = (struct cgroups){0};
	return 0;
}

struct known {
	uint64_t cgroup_id;
	bool left_out;
};

struct forget {
	const struct cgroups *left_out, *wanted;
	struct known *known; /* to ask the kernel for each record would take long */
	size_t count, size;
};

static void forget_free(struct forget *f)
{
	free(f->known);
}

static bool is_left_out(struct forget *f, uint64_t id)
{
	char path[PATH_MAX];
	bool left_out;

	for (size_t i = 0; i < f->count; i++)
		if (f->known[i].cgroup_id == id)
			return f->known[i].left_out;
	left_out = !cgroup_path(id, path) && cgroups_cover(f->left_out, path) &&
		   !cgroups_cover(f->wanted, path);
	if (f->count == f->size) {
		struct known *known = reallocarray(f->known, 2 * f->size + 16, sizeof(*known));

		if (!known)
			return left_out;
		f->known = known;
		f->size = 2 * f->size + 16;
	}
	f->known[f->count++] = (struct known){id, left_out};
	return left_out;
}

/* What counts is the cgroup in which the socket was made; this is where connect() was called. */
static bool is_forgotten(const void *key, const void *value, void *context)
{
	struct tp_record rec;

	(void)key;
	memcpy(&rec, value, sizeof(rec));
	return rec.reached & TP_REACHED_ACCEPTED && is_left_out(context, rec.cgroup_id);
}

int forget_connections(const struct set *set, const struct cgroups *left_out,
		       const struct cgroups *wanted, struct failure *f)
{
	struct forget context _cleanup_(forget_free) = {left_out, wanted, NULL, 0, 0};
	int records, ports, err;

	if (!left_out->count)
		return 0;
	records = set_find(set, PIN_MAP, PIN_MAP_socks, false)->fd;
	ports = set_find(set, PIN_MAP, PIN_MAP_ports, false)->fd;
	err = transfer_sweep(records, is_forgotten, &context, f);
	return err ?: transfer_sweep(ports, generation_is_stray, &records, f);
}
