// SPDX-License-Identifier: BSD-2-Clause
#include "cgroups.h"

#include <string.h>
#include <sys/stat.h>

#include "instance.h"
#include "links.h"
#include "mounts.h"

/* Whether `inner` is `outer` or below it. */
static bool path_within(const char *inner, const char *outer)
{
	size_t len = strlen(outer);

	if (!strcmp(outer, "/"))
		return true;
	return !strncmp(inner, outer, len) && (inner[len] == '/' || !inner[len]);
}

static int cgroup_add(struct cgroups *cgs, const char *path, struct failure *f)
{
	struct cgroup *cg = &cgs->items[cgs->count];
	int err;

	cg->fd = cgroup_open(path, &cg->id, f);
	if (cg->fd < 0)
		return cg->fd;
	err = cgroup_path_of(cg->fd, cg->path);
	if (err) {
		cg->fd = fd_close(cg->fd);
		return fail(f, err, "cannot find cgroup %s in the cgroup2 hierarchy: %s", path,
			    strerror(-err));
	}
	if (cgroups_contain(cgs, cg->id)) {
		cg->fd = fd_close(cg->fd);
		return 0;
	}
	for (size_t i = 0; i < cgs->count; i++) {
		const char *other = cgs->items[i].path;

		if (!path_within(cg->path, other) && !path_within(other, cg->path))
			continue;
		cg->fd = fd_close(cg->fd);
		return fail(
			f, -EINVAL,
			"--cgroup: one of %s and %s is inside the other, where the hooks would run "
			"twice; name only the outer one",
			other, cg->path);
	}
	cgs->count++;
	return 0;
}

int cgroups_open(const struct settings *set, struct cgroups *ret, struct failure *f)
{
	struct cgroups cgs _cleanup_cgroups_ = {0};
	size_t wanted = set->cgroups.count;
	char root[PATH_MAX];
	int err;

	cgs.items = calloc(wanted ? wanted : 1, sizeof(*cgs.items));
	if (!cgs.items)
		return fail(f, -ENOMEM, "out of memory");
	if (!wanted) {
		err = cgroup2_root(root, f);
		if (!err)
			err = cgroup_add(&cgs, root, f);
		if (err)
			return err;
	}
	for (size_t i = 0; i < wanted; i++) {
		err = cgroup_add(&cgs, set->cgroups.items[i], f);
		if (err)
			return err;
	}
	*ret = cgs;
	cgs = (struct cgroups){0};
	return 0;
}

void cgroups_close(struct cgroups *cgs)
{
	for (size_t i = 0; i < cgs->count; i++)
		fd_close(cgs->items[i].fd);
	free(cgs->items);
	*cgs = (struct cgroups){0};
}

bool cgroups_contain(const struct cgroups *cgs, uint64_t id)
{
	for (size_t i = 0; i < cgs->count; i++)
		if (cgs->items[i].id == id)
			return true;
	return false;
}

bool cgroups_cover(const struct cgroups *cgs, const char *path)
{
	for (size_t i = 0; i < cgs->count; i++)
		if (path_within(path, cgs->items[i].path))
			return true;
	return false;
}

const struct cgroup *cgroups_overlapping(const struct cgroups *cgs, uint64_t id)
{
	char path[PATH_MAX];

	if (!id || cgroup_path(id, path))
		return NULL;
	for (size_t i = 0; i < cgs->count; i++) {
		const struct cgroup *cg = &cgs->items[i];

		if (path_within(cg->path, path) || path_within(path, cg->path))
			return cg;
	}
	return NULL;
}

struct overlap {
	const struct cgroups *cgs;
	const char *name;
	struct failure *f;
};

static int overlap_with(const char *name, void *user)
{
	struct hook_link *links _cleanup_free_ = NULL;
	struct overlap *o = user;
	char dir[PATH_MAX], path[PATH_MAX] = "";
	struct stat st;
	size_t count;
	int err;

	/* Where everybody may make directories only root's can hold links to a cgroup. */
	if (!strcmp(name, o->name) || lstat(instance_dir(name, "", dir), &st) || st.st_uid)
		return 0;
	err = links_read(name, &links, &count, o->f);
	if (err)
		return err;
	for (size_t l = 0; l < count; l++) {
		const struct cgroup *ours = cgroups_overlapping(o->cgs, links[l].cgroup_id);

		if (!ours)
			continue;
		cgroup_path(links[l].cgroup_id, path);
		return fail(o->f, -EBUSY,
			    "instance %s is attached to cgroup %.300s already, which overlaps "
			    "%.300s; choose another --cgroup, or unload it with: tproxy-load "
			    "--unload --name %s",
			    name, path, ours->path, name);
	}
	return 0;
}

int cgroups_check_overlap(const struct cgroups *cgs, const char *name, struct failure *f)
{
	struct overlap o = {cgs, name, f};

	return instance_each(overlap_with, &o);
}
