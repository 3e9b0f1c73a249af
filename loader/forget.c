// SPDX-License-Identifier: BSD-2-Clause
#include "forget.h"

#include <string.h>

#include "log.h"
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
	int ports;
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

/* While its connection lives nobody else can have its port. */
static void port_remove(int ports, const struct tp_record *rec)
{
	struct tp_port_key key;
	__u64 owner;

	tp_port_key_set(&key, rec->netns, &rec->src, rec->proxy_port);
	if (rec->src.family && !entry_read(ports, &key, &owner) && owner == rec->cookie)
		entry_delete(ports, &key);
}

/*
 * The record has the cgroup of whoever called connect(). What counts is that of whoever made the
 * socket, mostly the same.
 */
static bool is_forgotten(const void *key, const void *value, void *context)
{
	struct forget *f = context;
	struct tp_record rec;

	(void)key;
	memcpy(&rec, value, sizeof(rec));
	if (!(rec.reached & (TP_REACHED_ACCEPTED | TP_REACHED_CLOSED)) ||
	    !is_left_out(f, rec.cgroup_id))
		return false;
	port_remove(f->ports, &rec);
	return true;
}

void forget_connections(const struct set *set, const struct cgroups *left_out,
			const struct cgroups *wanted)
{
	struct forget context _cleanup_(forget_free) = {
		.left_out = left_out,
		.wanted = wanted,
		.ports = set_find(set, PIN_MAP, PIN_MAP_ports, false)->fd,
	};
	struct failure f;

	if (!left_out->count)
		return;
	if (programs_wait(&f) || transfer_sweep(set_find(set, PIN_MAP, PIN_MAP_socks, false)->fd,
						is_forgotten, &context, &f))
		log_warning("instance %s: the new settings are in force, but records of "
			    "connections of cgroups that were left out stay until the hooks are "
			    "unloaded: %s",
			    set->name, f.text);
}
