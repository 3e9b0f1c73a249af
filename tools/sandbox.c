// SPDX-License-Identifier: BSD-2-Clause
#include "sandbox.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "cgroup.h"
#include "lib/mounts.h"
#include "process.h"

#define LOCK_SUFFIX   ".lock"
#define CGROUP_PREFIX "tproxy-"

static void lock_path(const struct sandbox *box, char buf[PATH_MAX])
{
	snprintf(buf, PATH_MAX, LOCK_DIR "/%s" LOCK_SUFFIX, box->name);
}

static int set_paths(struct sandbox *box, const char *name, struct failure *f)
{
	char root[PATH_MAX];
	int err = cgroup2_root(root, f);

	if (err)
		return err;
	snprintf(box->name, sizeof(box->name), "%s", name);
	if (snprintf(box->cgroup, PATH_MAX, "%s/" CGROUP_PREFIX "%s", root, name) >= PATH_MAX ||
	    snprintf(box->proxy, PATH_MAX, "%s/proxy", box->cgroup) >= PATH_MAX ||
	    snprintf(box->command, PATH_MAX, "%s/command", box->cgroup) >= PATH_MAX)
		return fail(f, -ENAMETOOLONG, "the path of the cgroup2 root %s is too long", root);
	return 0;
}

/*
 * Opens and locks; `flags` are of open(). Whoever had the lock before may have removed the file
 * between our open() and flock(): then ours is no longer the one others see.
 */
static int lock_try(struct sandbox *box, int flags, int operation, struct failure *f)
{
	char path[PATH_MAX];
	int fd _cleanup_fd_ = -1;
	struct stat st;

	lock_path(box, path);
	fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
	if (fd < 0)
		return fail(f, -errno, "cannot open %s: %m", path);
	if (flock(fd, operation))
		return fail(f, -errno, "cannot lock %s: %m", path);
	if (fstat(fd, &st))
		return fail(f, -errno, "cannot read %s: %m", path);
	if (!st.st_nlink)
		return fail(f, -ENOENT, "%s has been removed", path);
	box->lock = TAKE_FD(fd);
	return 0;
}

static int lock_make(struct sandbox *box, struct failure *f)
{
	int err;

	do
		err = lock_try(box, O_CREAT, LOCK_EX, f);
	while (err == -ENOENT);
	return err;
}

static void lock_remove(struct sandbox *box)
{
	char path[PATH_MAX];

	lock_path(box, path);
	unlink(path);
	box->lock = fd_close(box->lock);
}

/* The control sockets of its tproxyd, if that was killed. */
static void remove_sockets(const struct sandbox *box)
{
	DIR *dir _cleanup_dir_ = opendir(RUN_DIR);
	size_t len = strlen(box->name);
	struct dirent *e;

	while (dir && (e = readdir(dir)))
		if (!strncmp(e->d_name, box->name, len) && e->d_name[len] == '@')
			unlinkat(dirfd(dir), e->d_name, 0);
}

static int make_cgroups(const struct sandbox *box, struct failure *f)
{
	const char *const paths[] = {box->cgroup, box->proxy, box->command};

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
		if (mkdir(paths[i], 0755))
			return fail(f, -errno, "cannot make the cgroup %s: %m", paths[i]);
	return 0;
}

int sandbox_create(struct sandbox *ret, struct failure *f)
{
	struct sandbox box = SANDBOX_INIT;
	char name[TP_NAME_LEN];
	struct failure ignored;
	int err;

	if (mkdir(LOCK_DIR, 0700) && errno != EEXIST)
		return fail(f, -errno, "cannot make %s: %m%s", LOCK_DIR,
			    geteuid() ? "; run as root" : "");
	snprintf(name, sizeof(name), SANDBOX_INSTANCE_PREFIX "%d-%llu", getpid(),
		 (unsigned long long)process_start_time(getpid()));
	err = set_paths(&box, name, f);
	if (!err)
		err = lock_make(&box, f);
	if (err)
		return err;
	err = make_cgroups(&box, f);
	if (err) {
		cgroup_remove(box.cgroup, &ignored);
		lock_remove(&box);
		return err;
	}
	*ret = box;
	return 0;
}

static int unload(const struct sandbox *box, const struct caller *caller, struct failure *f)
{
	char loader[PATH_MAX], dir[PATH_MAX], output[sizeof(f->text)];
	char *argv[] = {program_find("tproxy-load", loader),
			"--name",
			(char *)box->name,
			"--unload",
			"--quiet",
			NULL};
	int code;

	if (access(instance_dir(box->name, "", dir), F_OK) &&
	    access(instance_dir(box->name, PIN_NEW_SUFFIX, dir), F_OK))
		return 0;
	code = command_run(argv, caller, output, sizeof(output), f);
	if (code <= 0)
		return code;
	return fail(f, -EIO,
		    "cannot unload instance %s (exit code %d): %.700s; try: tproxy-load --name "
		    "%s --unload",
		    box->name, code, output, box->name);
}

int sandbox_destroy(struct sandbox *box, const struct caller *caller, struct failure *f)
{
	struct failure second;
	int err, first;

	if (box->lock < 0)
		return 0;
	/* Processes, hooks, cgroup: a survivor must not run on without the hooks, nor a link be
	 * left without its cgroup. */
	first = cgroup_kill(box->cgroup, f);
	err = unload(box, caller, first ? &second : f);
	if (!first)
		first = err;
	err = cgroup_remove(box->cgroup, first ? &second : f);
	if (!first)
		first = err;
	remove_sockets(box);
	if (!first)
		lock_remove(box);
	else
		box->lock = fd_close(box->lock); /* the name stays known to the next sweep */
	return first;
}

/* run-PID-START and nothing else: an administrator's run-away is not ours to sweep. */
static int name_parse(const char *name, pid_t *ret_pid, uint64_t *ret_start)
{
	unsigned long long start;
	char again[TP_NAME_LEN];
	int pid;

	if (sscanf(name, SANDBOX_INSTANCE_PREFIX "%d-%llu", &pid, &start) != 2 || pid <= 0)
		return -EINVAL;
	snprintf(again, sizeof(again), SANDBOX_INSTANCE_PREFIX "%d-%llu", pid, start);
	if (strcmp(again, name))
		return -EINVAL;
	*ret_pid = pid;
	*ret_start = start;
	return 0;
}

/* Whether the process that made it is alive, as far as one sees from this pid namespace. */
static int owner_lives(const char *name)
{
	uint64_t start;
	pid_t pid;

	return !name_parse(name, &pid, &start) && process_start_time(pid) == start;
}

struct names {
	char (*all)[TP_NAME_LEN];
	size_t count;
};

static void names_free(struct names *names)
{
	free(names->all);
}

/* Adds a sandbox's name, once. Without memory the name is left to another time. */
static int names_add(const char *name, void *user)
{
	struct names *names = user;
	uint64_t start;
	pid_t pid;
	void *more;

	if (name_parse(name, &pid, &start))
		return 0;
	for (size_t i = 0; i < names->count; i++)
		if (!strcmp(names->all[i], name))
			return 0;
	more = reallocarray(names->all, names->count + 1, sizeof(*names->all));
	if (more) {
		names->all = more;
		snprintf(names->all[names->count++], TP_NAME_LEN, "%s", name);
	}
	return 0;
}

/* What is between prefix and suffix in the names of a directory. */
static void names_add_from(struct names *names, const char *path, const char *prefix,
			   const char *suffix)
{
	size_t prefix_len = strlen(prefix), suffix_len = strlen(suffix);
	DIR *dir _cleanup_dir_ = opendir(path);
	char name[NAME_MAX + 1];
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		size_t len = strlen(e->d_name);

		if (len <= prefix_len + suffix_len || strncmp(e->d_name, prefix, prefix_len) ||
		    strcmp(e->d_name + len - suffix_len, suffix))
			continue;
		snprintf(name, sizeof(name), "%.*s", (int)(len - prefix_len - suffix_len),
			 e->d_name + prefix_len);
		names_add(name, names);
	}
}

int sandbox_each_stale(int (*cb)(struct sandbox *box, void *user), void *user)
{
	struct names names _cleanup_(names_free) = {0};
	struct failure ignored;
	int r = 0;

	names_add_from(&names, LOCK_DIR, "", LOCK_SUFFIX);
	for (size_t i = 0; !r && i < names.count; i++) {
		struct sandbox box = SANDBOX_INIT;

		if (owner_lives(names.all[i]) || set_paths(&box, names.all[i], &ignored) ||
		    lock_try(&box, 0, LOCK_EX | LOCK_NB, &ignored))
			continue;
		r = cb(&box, user);
		box.lock = fd_close(box.lock);
	}
	return r;
}

int sandbox_each_unknown(int (*cb)(struct sandbox *box, void *user), void *user)
{
	struct names names _cleanup_(names_free) = {0};
	char root[PATH_MAX], path[PATH_MAX];
	struct failure ignored;
	int r = 0;

	instance_each(names_add, &names);
	if (!cgroup2_root(root, &ignored))
		names_add_from(&names, root, CGROUP_PREFIX, "");
	for (size_t i = 0; !r && i < names.count; i++) {
		struct sandbox box = SANDBOX_INIT;

		if (owner_lives(names.all[i]) || set_paths(&box, names.all[i], &ignored))
			continue;
		lock_path(&box, path);
		if (access(path, F_OK) && errno == ENOENT &&
		    (!access(box.cgroup, F_OK) || !access(instance_dir(box.name, "", root), F_OK)))
			r = cb(&box, user); /* it has not ended since it was listed */
	}
	return r;
}
