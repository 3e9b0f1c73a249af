// SPDX-License-Identifier: BSD-2-Clause
#include "set.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "access.h"
#include "remedy.h"

const enum pin_prog set_attach_order[PIN_HOOK_COUNT] = {
	PIN_PROG_sockops,      PIN_PROG_sock_release, PIN_PROG_getsockopt,
	PIN_PROG_getpeername4, PIN_PROG_getpeername6, PIN_PROG_getsockname4,
	PIN_PROG_getsockname6, PIN_PROG_connect4,     PIN_PROG_connect6,
};

bool set_prog_redirects(int prog)
{
	return prog == PIN_PROG_connect4 || prog == PIN_PROG_connect6;
}

/* What another version may have that this one does not know: by the prefixes alone. */
static void name_guess(struct pin *pin, const char *base)
{
	static const char *const prefixes[] = {[PIN_MAP] = PIN_MAP_PREFIX,
					       [PIN_PROG] = PIN_PROG_PREFIX,
					       [PIN_LINK] = PIN_LINK_PREFIX};

	for (size_t kind = 0; kind < ARRAY_SIZE(prefixes); kind++)
		if (!strncmp(base, prefixes[kind], strlen(prefixes[kind]))) {
			pin->kind = kind;
			pin->index = PIN_UNKNOWN;
			pin->why = NULL;
		}
}

/* What a file's name claims to be. */
static void name_parse(struct pin *pin, bool other_version)
{
	char base[sizeof(pin->file)];
	size_t len, suffix = strlen(PIN_NEW_SUFFIX);
	enum pin_prog prog;

	snprintf(base, sizeof(base), "%s", pin->file);
	len = strlen(base);
	if (len > suffix && !strcmp(base + len - suffix, PIN_NEW_SUFFIX)) {
		pin->side = true;
		base[len - suffix] = 0;
	}
	pin->kind = PIN_FOREIGN;
	pin->why = "no name that tproxy uses";
	if (other_version)
		name_guess(pin, base);
	for (int m = 0; m < PIN_MAP_COUNT; m++)
		if (!pin->side && !strcmp(base, pin_maps[m].name)) {
			pin->kind = PIN_MAP;
			pin->index = m;
		}
	for (int p = 0; p < PIN_PROG_COUNT; p++)
		if (!strcmp(base, pin_progs[p].pin)) {
			pin->kind = PIN_PROG;
			pin->index = p;
		}
	if (!pin->side && !link_name_parse(base, &prog, &pin->link.pinned_cgroup)) {
		pin->kind = PIN_LINK;
		pin->index = prog;
	}
}

/* The kernel has one call for all three kinds and answers a wrong guess with nonsense: ask first.
 */
static int fd_is(int fd, enum pin_kind kind)
{
	char path[64], target[64];
	const char *what;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		return -errno;
	target[n] = 0;
	what = strrchr(target, ':');
	if (!what)
		return 0;
	switch (kind) {
	case PIN_MAP:
		return !strcmp(what, ":bpf-map");
	case PIN_PROG:
		return !strcmp(what, ":bpf-prog");
	case PIN_LINK: /* by one name where it was created, by the other where it was opened */
		return !strcmp(what, ":bpf-link") || !strcmp(what, ":bpf_link");
	case PIN_FOREIGN:
		break;
	}
	return 0;
}

/* Whether what the kernel calls an object, cut short there, is `prefix` and then `name`. */
static bool is_called(const char *kernels, const char *prefix, const char *name)
{
	size_t len = strlen(prefix);

	return !strncmp(kernels, prefix, len) &&
	       !strncmp(kernels + len, name, BPF_OBJ_NAME_LEN - 1 - len);
}

/* Whether a link of a hook that only another version has runs a program of ours. */
static int unknown_link_inspect(struct pin *pin, const char **ret_why)
{
	struct bpf_link_info link = {};
	struct bpf_prog_info prog = {};
	__u32 len = sizeof(link);
	int fd _cleanup_fd_ = -1;

	if (bpf_obj_get_info_by_fd(pin->fd, &link, &len))
		return -errno;
	fd = bpf_prog_get_fd_by_id(link.prog_id);
	len = sizeof(prog);
	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &prog, &len))
		return -errno;
	pin->link.prog_id = link.prog_id;
	if (strncmp(prog.name, PIN_OBJECT_PREFIX, strlen(PIN_OBJECT_PREFIX)))
		*ret_why = "another link";
	return 0;
}

/* NULL, or in what a map or program is not ours. */
static int object_inspect(struct pin *pin, bool other_version, const char **ret_why)
{
	struct bpf_prog_info prog = {};
	struct bpf_map_info map = {};
	__u32 len;
	int err;

	*ret_why = NULL;
	switch (pin->kind) {
	case PIN_MAP:
		len = sizeof(map);
		if (bpf_obj_get_info_by_fd(pin->fd, &map, &len))
			return -errno;
		if (!is_called(map.name, "", pin->file) ||
		    (!other_version && map.type != pin_maps[pin->index].type))
			*ret_why = "another map";
		pin->id = map.id;
		pin->key_size = map.key_size;
		pin->value_size = map.value_size;
		pin->max_entries = map.max_entries;
		pin->map_flags = map.map_flags;
		return 0;
	case PIN_PROG:
		len = sizeof(prog);
		if (bpf_obj_get_info_by_fd(pin->fd, &prog, &len))
			return -errno;
		if (!is_called(prog.name, PIN_OBJECT_PREFIX,
			       pin->index == PIN_UNKNOWN ? pin->file + strlen(PIN_PROG_PREFIX)
							 : pin_progs[pin->index].name))
			*ret_why = "another program";
		pin->id = prog.id;
		return 0;
	case PIN_LINK:
		if (pin->index == PIN_UNKNOWN)
			return unknown_link_inspect(pin, ret_why);
		err = link_inspect(pin->fd, pin->index, &pin->link);
		if (err == -EINVAL)
			*ret_why = "another link";
		return err == -EINVAL ? 0 : err;
	case PIN_FOREIGN:
		break;
	}
	return 0;
}

static int pin_read(const struct set *set, int dir_fd, const char *file, struct pin *ret,
		    struct failure *f)
{
	struct pin pin = {.fd = -1};
	char path[PATH_MAX];
	struct stat st;
	int r;

	snprintf(pin.file, sizeof(pin.file), "%s", file);
	name_parse(&pin, set->other_abi);
	if (pin.kind == PIN_FOREIGN)
		goto out;
	if (fstatat(dir_fd, file, &st, AT_SYMLINK_NOFOLLOW))
		return fail(f, -errno, "cannot read %s: %m", set_path(set, file, path));
	if (!S_ISREG(st.st_mode)) {
		pin.kind = PIN_FOREIGN;
		pin.why = "no BPF object";
		goto out;
	}
	pin.fd = bpf_obj_get(set_path(set, file, path));
	if (pin.fd < 0)
		return fail(f, -errno, "cannot open %s: %m%s", path, remedy(errno));
	r = fd_is(pin.fd, pin.kind);
	if (r > 0)
		r = object_inspect(&pin, set->other_abi, &pin.why);
	else if (!r)
		pin.why = "another kind of BPF object";
	if (r < 0) {
		fd_close(pin.fd);
		return fail(f, r, "cannot inspect %s: %s%s", path, strerror(-r), remedy(r));
	}
	if (pin.why) {
		pin.fd = fd_close(pin.fd);
		pin.kind = PIN_FOREIGN;
	}
out:
	*ret = pin;
	return 0;
}

/*
 * Often everybody may make directories in bpffs (mode 1777): one that is not root's, or that others
 * may write to, or a symbolic link, was put there by somebody else and nothing in it can be
 * believed.
 */
static int dir_open(const char *path, const char *name, struct failure *f)
{
	int fd _cleanup_fd_ = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0 && (errno == ENOTDIR || errno == ELOOP))
		return fail(f, -ENOTDIR,
			    "%s is not a directory, so not ours; remove it or use another --name "
			    "than %s",
			    path, name);
	if (fd < 0)
		return fail(f, -errno, "cannot open %s: %m%s", path, remedy(errno));
	if (fstat(fd, &st))
		return fail(f, -errno, "cannot read %s: %m", path);
	if (!access_is_tight(st.st_uid, st.st_mode))
		return fail(
			f, -EPERM,
			"%s belongs to uid %u with mode %04o, ours belong to root with mode "
			"0700 or 0750, so others may have touched what is in it; if that was you: "
			"chown root %s; chmod 0700 %s; else remove it, or use another --name than "
			"%s",
			path, st.st_uid, st.st_mode & 07777, path, path, name);
	return TAKE_FD(fd);
}

/* Which other version a set is of: the first two members of map_config are the same in all. */
static __u32 other_abi(const struct set *set)
{
	struct bpf_map_info info = {};
	char path[PATH_MAX];
	__u32 *value _cleanup_free_ = NULL;
	__u32 len = sizeof(info), zero = 0;
	int fd _cleanup_fd_ = bpf_obj_get(set_path(set, pin_maps[PIN_MAP_config].name, path));

	if (fd < 0 || !fd_is(fd, PIN_MAP) || bpf_obj_get_info_by_fd(fd, &info, &len) ||
	    info.type != BPF_MAP_TYPE_ARRAY || info.value_size < 2 * sizeof(*value))
		return 0;
	value = malloc(info.value_size);
	if (!value || bpf_map_lookup_elem(fd, &zero, value) || value[0] != ABI_MAGIC)
		return 0;
	return value[1] != ABI_VERSION ? value[1] : 0;
}

static void config_map(struct set *set)
{
	const struct pin *pin = set_find(set, PIN_MAP, PIN_MAP_config, false);
	void *p;

	if (!pin || set->other_abi || pin->value_size != sizeof(*set->config))
		return;
	p = mmap(NULL, sizeof(*set->config), PROT_READ | PROT_WRITE, MAP_SHARED, pin->fd, 0);
	if (p != MAP_FAILED)
		set->config = p;
}

int set_read(const char *name, const char *suffix, struct set *ret, struct failure *f)
{
	struct set set _cleanup_set_ = {0};
	DIR *dir _cleanup_dir_ = NULL;
	struct dirent *e;
	int fd, err;

	snprintf(set.name, sizeof(set.name), "%s", name);
	snprintf(set.suffix, sizeof(set.suffix), "%s", suffix);
	instance_dir(name, suffix, set.dir);
	fd = dir_open(set.dir, name, f);
	if (fd < 0 && fd != -ENOENT)
		return fd;
	set.exists = fd >= 0;
	set.other_abi = set.exists ? other_abi(&set) : 0;
	dir = set.exists ? fdopendir(fd) : NULL;
	if (set.exists && !dir) {
		fd_close(fd);
		return fail(f, -ENOMEM, "out of memory");
	}
	while (dir && (e = readdir(dir))) {
		struct pin *more;

		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		more = reallocarray(set.pins, set.count + 1, sizeof(*set.pins));
		if (!more)
			return fail(f, -ENOMEM, "out of memory");
		set.pins = more;
		err = pin_read(&set, dirfd(dir), e->d_name, &set.pins[set.count], f);
		if (err)
			return err;
		set.foreign += set.pins[set.count++].kind == PIN_FOREIGN;
	}
	config_map(&set);
	*ret = set;
	set = (struct set){0};
	return 0;
}

void set_free(struct set *set)
{
	for (size_t i = 0; i < set->count; i++)
		fd_close(set->pins[i].fd);
	free(set->pins);
	if (set->config)
		munmap(set->config, sizeof(*set->config));
	*set = (struct set){0};
}

struct pin *set_find(const struct set *set, enum pin_kind kind, int index, bool side)
{
	for (size_t i = 0; i < set->count; i++) {
		struct pin *pin = &set->pins[i];

		if (pin->kind == kind && pin->index == index && pin->side == side)
			return pin;
	}
	return NULL;
}

struct pin *set_find_link(const struct set *set, enum pin_prog prog, uint64_t cgroup_id)
{
	for (size_t i = 0; i < set->count; i++) {
		struct pin *pin = &set->pins[i];

		if (pin->kind == PIN_LINK && pin->index == (int)prog &&
		    pin->link.cgroup_id == cgroup_id && pin->link.pinned_cgroup == cgroup_id)
			return pin;
	}
	return NULL;
}

int set_refuse_foreign(const struct set *set, struct failure *f)
{
	char all[700] = "";

	if (!set->foreign)
		return 0;
	for (size_t i = 0; i < set->count; i++) {
		const struct pin *pin = &set->pins[i];
		size_t used = strlen(all);

		if (pin->kind == PIN_FOREIGN)
			snprintf(all + used, sizeof(all) - used, "%s%s (%s)", used ? ", " : "",
				 pin->file, pin->why);
	}
	return fail(f, -EEXIST,
		    "in %s there is what is not ours: %s; remove it or use another --name",
		    set->dir, all);
}

int set_read_both(const char *name, struct set *ret_set, struct set *ret_side, struct failure *f)
{
	int err = set_read(name, "", ret_set, f);

	if (!err)
		err = set_read(name, PIN_NEW_SUFFIX, ret_side, f);
	if (!err)
		err = set_refuse_foreign(ret_set, f);
	if (!err)
		err = set_refuse_foreign(ret_side, f);
	return err;
}

const char *set_path(const struct set *set, const char *file, char buf[PATH_MAX])
{
	if (snprintf(buf, PATH_MAX, "%s/%s", set->dir, file) >= PATH_MAX)
		buf[0] = 0;
	return buf;
}

const char *set_side_path(const struct set *set, const char *file, char buf[PATH_MAX])
{
	if (snprintf(buf, PATH_MAX, "%s/%s" PIN_NEW_SUFFIX, set->dir, file) >= PATH_MAX)
		buf[0] = 0;
	return buf;
}
