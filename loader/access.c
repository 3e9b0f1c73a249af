// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 *				root alone	with a group
 *	maps			0600		0660	mapped and updated by tproxyd
 *	prog_doorman		0600		0640	which puts it on its listeners
 *	other programs, links	0600		0600
 *	the directory		0700		0750
 *	/sys/fs/bpf		as it is	searched by the group
 *
 * systemd mounts /sys/fs/bpf with mode 0700: then it is given to the group to search, not to list
 * (0710), which opens nothing but names that one knows with modes of their own. Where everybody may
 * search it, or the group can already, nothing is done.
 */
#include "access.h"

#include <fcntl.h>
#include <grp.h>
#include <string.h>
#include <sys/stat.h>

#include "instance.h"
#include "log.h"

#define NO_GROUP ((gid_t)-1) /* to chown(2): change nothing */

int access_group(const char *name, gid_t *ret_group, struct failure *f)
{
	struct group *found;
	unsigned long number;
	char *end;

	*ret_group = ACCESS_ROOT;
	if (!name)
		return 0;
	found = getgrnam(name);
	number = strtoul(name, &end, 10);
	if (found)
		*ret_group = found->gr_gid;
	else if (*name >= '0' && *name <= '9' && !*end && number < NO_GROUP)
		*ret_group = number;
	else if (!name[strspn(name, "0123456789+- ")])
		return fail(f, -EINVAL,
			    "group '%s' is neither a name nor a number from 0 to %u; give one, or "
			    "leave it out to keep the pins root's alone",
			    name, NO_GROUP - 1);
	else
		return fail(f, -ENOENT,
			    "there is no group %s to open the pins to; make it with: groupadd "
			    "--system %s",
			    name, name);
	return 0;
}

bool access_is_tight(uid_t owner, mode_t mode)
{
	return !owner && !(mode & (S_IWGRP | S_IRWXO));
}

bool access_is_strangers(const char *path)
{
	struct stat st;

	return !lstat(path, &st) && st.st_uid;
}

gid_t access_holder(const char *dir)
{
	struct stat st;

	return lstat(dir, &st) ? ACCESS_ROOT : st.st_gid;
}

static mode_t pin_mode(const char *file, gid_t group)
{
	const char *doorman = pin_progs[PIN_PROG_doorman].pin;

	if (group == ACCESS_ROOT)
		return 0600;
	if (!strncmp(file, PIN_MAP_PREFIX, strlen(PIN_MAP_PREFIX)))
		return 0660;
	if (!strncmp(file, doorman, strlen(doorman))) /* or the one on its way to that name */
		return 0640;
	return 0600;
}

static bool is_so(const struct stat *st, mode_t mode, gid_t group)
{
	return (st->st_mode & 07777) == mode && st->st_gid == group && !st->st_uid;
}

/* Mode last: what is opened by it is the right group's by then. */
static int make_so(int dir, const char *file, mode_t mode, gid_t group)
{
	if (fchownat(dir, file, 0, group, AT_SYMLINK_NOFOLLOW) || fchmodat(dir, file, mode, 0))
		return -errno;
	return 0;
}

/* What is pinned in `dir`: how much is not as it should be; `change` makes it so. Or -errno. */
static int walk(const char *path, gid_t group, bool change)
{
	DIR *dir _cleanup_dir_ = opendir(path);
	struct dirent *e;
	struct stat st;
	int count = 0, err;

	if (!dir)
		return -errno;
	while ((e = readdir(dir))) {
		mode_t mode = pin_mode(e->d_name, group);
		gid_t owner = mode == 0600 ? ACCESS_ROOT : group;

		if (e->d_name[0] == '.')
			continue;
		if (fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW))
			return -errno;
		if (is_so(&st, mode, owner))
			continue;
		count++;
		err = change ? make_so(dirfd(dir), e->d_name, mode, owner) : 0;
		if (err)
			return err;
	}
	return count;
}

/* Whether the members of a group can get to the instance's directory. */
static bool way_is_open(const struct stat *root, gid_t group)
{
	return group == ACCESS_ROOT || root->st_mode & S_IXOTH ||
	       (root->st_gid == group && root->st_mode & S_IXGRP);
}

struct members {
	const char *but; /* an instance that does not count */
	gid_t group;
	bool found;
};

static int look_for_member(const char *name, void *user)
{
	struct members *m = user;
	char dir[PATH_MAX];

	m->found |= strcmp(name, m->but) && access_holder(instance_dir(name, "", dir)) == m->group;
	return m->found;
}

/*
 * Whether the way is open as access_open_way() makes it of what systemd makes, to the group that
 * instance `name` has or had, and to no other instance.
 */
static bool way_is_its_own(const struct stat *root, const char *name, gid_t group)
{
	struct members m = {.but = name, .group = group};

	if (group == ACCESS_ROOT || root->st_uid || root->st_gid != group ||
	    (root->st_mode & 0777) != 0710)
		return false;
	instance_each(look_for_member, &m);
	return !m.found;
}

/* Reads how the way is; fails where it could not be opened. */
static int way_read(struct stat *ret, const char *name, gid_t group, struct failure *f)
{
	char dir[PATH_MAX];

	if (stat(BPFFS_ROOT, ret))
		return fail(f, -errno, "cannot read %s: %m", BPFFS_ROOT);
	if (way_is_open(ret, group) || !(ret->st_mode & S_IRWXG) || ret->st_gid == group ||
	    way_is_its_own(ret, name, access_holder(instance_dir(name, "", dir))))
		return 0;
	return fail(f, -EPERM,
		    "%s can be searched by group %u only, so group %u cannot get to its pins; use "
		    "one --group for all instances, or open it to everybody: chmod 0711 %s",
		    BPFFS_ROOT, ret->st_gid, group, BPFFS_ROOT);
}

int access_check_way(const char *name, gid_t group, struct failure *f)
{
	struct stat st;

	return group == ACCESS_ROOT ? 0 : way_read(&st, name, group, f);
}

int access_open_way(const char *name, gid_t group, struct failure *f)
{
	struct stat st;
	int err = way_read(&st, name, group, f);

	if (err)
		return err;
	if (way_is_open(&st, group))
		return 0;
	if (make_so(AT_FDCWD, BPFFS_ROOT, (st.st_mode & 07777) | S_IXGRP, group))
		return fail(f, -errno,
			    "cannot let group %u search %s: %m; run it as root, with CAP_CHOWN",
			    group, BPFFS_ROOT);
	log_notice("%s: group %u may search it now, to get to its pins", BPFFS_ROOT, group);
	return 0;
}

int access_differs(const char *dir, gid_t group, struct failure *f)
{
	struct stat own, root;
	int count;

	if (stat(dir, &own) || stat(BPFFS_ROOT, &root))
		return fail(f, -errno, "cannot read %s: %m", dir);
	count = walk(dir, group, false);
	if (count < 0)
		return fail(f, count, "cannot read %s: %s", dir, strerror(-count));
	return count || !is_so(&own, group == ACCESS_ROOT ? 0700 : 0750, group) ||
	       !way_is_open(&root, group);
}

int access_set_pins(const char *dir, gid_t group, struct failure *f)
{
	int err = walk(dir, group, true);

	if (err >= 0)
		err = make_so(AT_FDCWD, dir, group == ACCESS_ROOT ? 0700 : 0750, group);
	if (err < 0)
		return fail(f, err,
			    "cannot give %s and the pins in it to group %u: %s; run it as root, "
			    "with CAP_CHOWN",
			    dir, group, strerror(-err));
	return 0;
}

void access_close_way(const char *name, gid_t group)
{
	struct stat st;

	/* The mode first: one that root's own group can search is not taken for closed. */
	if (stat(BPFFS_ROOT, &st) || !way_is_its_own(&st, name, group) ||
	    chmod(BPFFS_ROOT, st.st_mode & 07700) || chown(BPFFS_ROOT, 0, 0))
		return;
	log_notice("%s: group %u may not search it any more, it has no pins there", BPFFS_ROOT,
		   group);
}

int access_set(const char *name, gid_t group, struct failure *f)
{
	char dir[PATH_MAX];
	gid_t before = access_holder(instance_dir(name, "", dir));
	int err;

	/* First: once the directory has been given away nothing tells whose the way is. */
	if (before != group)
		access_close_way(name, before);
	err = access_set_pins(dir, group, f);
	return err ?: access_open_way(name, group, f);
}
