// SPDX-License-Identifier: BSD-2-Clause
#include "instance.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define config_KEY   sizeof(__u32)
#define config_VALUE sizeof(struct tp_config)
#define config_TYPE  BPF_MAP_TYPE_ARRAY

#define socks_KEY   sizeof(__u64)
#define socks_VALUE sizeof(struct tp_record)
#define socks_TYPE  BPF_MAP_TYPE_HASH

#define ports_KEY   sizeof(struct tp_port_key)
#define ports_VALUE sizeof(__u64)
#define ports_TYPE  BPF_MAP_TYPE_HASH

#define live_socks_KEY	 sizeof(__u32)
#define live_socks_VALUE sizeof(__u32)
#define live_socks_TYPE	 BPF_MAP_TYPE_ARRAY_OF_MAPS

#define live_ports_KEY	 sizeof(__u32)
#define live_ports_VALUE sizeof(__u32)
#define live_ports_TYPE	 BPF_MAP_TYPE_ARRAY_OF_MAPS

#define listeners_KEY	sizeof(int)
#define listeners_VALUE sizeof(struct tp_mark)
#define listeners_TYPE	BPF_MAP_TYPE_SK_STORAGE

#define doors_KEY   sizeof(__u64)
#define doors_VALUE sizeof(struct tp_door)
#define doors_TYPE  BPF_MAP_TYPE_LRU_HASH

#define failed_KEY   sizeof(struct tp_port_key)
#define failed_VALUE sizeof(struct tp_failed)
#define failed_TYPE  BPF_MAP_TYPE_LRU_HASH

#define checked_KEY   sizeof(__u32)
#define checked_VALUE sizeof(__u64)
#define checked_TYPE  BPF_MAP_TYPE_ARRAY

#define rings_KEY   sizeof(__u32)
#define rings_VALUE sizeof(__u32)
#define rings_TYPE  BPF_MAP_TYPE_ARRAY_OF_MAPS

#define routes_KEY   sizeof(struct tp_route_key)
#define routes_VALUE sizeof(__u32)
#define routes_TYPE  BPF_MAP_TYPE_LPM_TRIE

#define stats_KEY   sizeof(__u32)
#define stats_VALUE sizeof(struct tp_stats)
#define stats_TYPE  BPF_MAP_TYPE_PERCPU_ARRAY

#define proxies_KEY   sizeof(__u32)
#define proxies_VALUE sizeof(struct tp_proxy_stats)
#define proxies_TYPE  BPF_MAP_TYPE_ARRAY

#define windows_KEY   sizeof(__u32)
#define windows_VALUE sizeof(struct tp_window)
#define windows_TYPE  BPF_MAP_TYPE_ARRAY

const struct pin_map_def pin_maps[PIN_MAP_COUNT] = {
#define X(n) {PIN_MAP_PREFIX #n, n##_TYPE, n##_KEY, n##_VALUE},
	PIN_MAPS(X)
#undef X
};

const struct pin_prog_def pin_progs[PIN_PROG_COUNT] = {
#define X(n, type) {#n, PIN_PROG_PREFIX #n, PIN_OBJECT_PREFIX #n, type},
	PIN_HOOKS(X)
#undef X
#define X(n) {#n, PIN_PROG_PREFIX #n, PIN_OBJECT_PREFIX #n, 0},
		PIN_FILTERS(X)
#undef X
};

const struct counter_def counters[COUNTER_COUNT] = {
#define X(name, text) {#name, text},
	TP_COUNTERS(X)
#undef X
};

const struct counter_def proxy_counters[PROXY_COUNTER_COUNT] = {
#define X(name, text) {#name, text},
	TP_PROXY_COUNTERS(X)
#undef X
};

int instance_name_check(const char *name, struct failure *f)
{
	size_t len = strlen(name);

	if (len && len < TP_NAME_LEN && name[0] != '-' && name[0] != '_' &&
	    strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") == len)
		return 0;
	return fail(f, -EINVAL,
		    "--name: '%s' cannot name an instance; use at most %d of a-z, 0-9, - and _, "
		    "beginning with a letter or digit",
		    name, TP_NAME_LEN - 1);
}

const char *instance_dir(const char *name, const char *suffix, char buf[PATH_MAX])
{
	snprintf(buf, PATH_MAX, "%s/%s%s", BPFFS_ROOT, name, suffix);
	return buf;
}

const char *instance_pin(const char *name, const char *object, char buf[PATH_MAX])
{
	snprintf(buf, PATH_MAX, "%s/%s/%s", BPFFS_ROOT, name, object);
	return buf;
}

int instance_open_map(const char *name, const char *suffix, enum pin_map map, struct failure *f)
{
	const struct pin_map_def *def = &pin_maps[map];
	struct bpf_map_info info = {};
	__u32 len = sizeof(info);
	char dir[PATH_MAX], path[PATH_MAX + 64];
	int fd _cleanup_fd_ = -1;

	snprintf(path, sizeof(path), "%s/%s", instance_dir(name, suffix, dir), def->name);
	fd = bpf_obj_get(path);
	if (fd < 0) {
		int err = -errno;

		/* What is in force may be on other cgroups than the default: nothing to guess. */
		if (err == -ENOENT && !access(dir, F_OK))
			return fail(
				f, err,
				"cannot open %s: there is no such pin; see how to load it again "
				"with: tproxy doctor --name %s",
				path, name);
		if (err == -ENOENT)
			return fail(f, err,
				    "cannot open %s: there is no such pin; load the hooks with: "
				    "tproxy-load --name %s",
				    path, name);
		if (err == -EPERM || err == -EACCES)
			return fail(f, err,
				    "cannot open %s: %s; run as root, or open the pins to a "
				    "group of this user with: tproxy-load --group",
				    path, strerror(-err));
		return fail(f, err, "cannot open %s: %s", path, strerror(-err));
	}
	if (bpf_obj_get_info_by_fd(fd, &info, &len))
		return fail(f, -EINVAL,
			    "%s is not a BPF map, so not ours; remove it or use another --name",
			    path);
	if (info.type != def->type || strcmp(info.name, def->name))
		return fail(f, -EINVAL,
			    "%s is not ours (map '%s', id %u); remove it or use another --name",
			    path, info.name, info.id);
	if (info.key_size != def->key_size || info.value_size != def->value_size)
		return fail(f, -EPROTO,
			    "%s was made by another version of tproxy (entries of %u+%u bytes, "
			    "expected %u+%u); load the hooks that came with this program: tproxy "
			    "doctor --name %s says how",
			    path, info.key_size, info.value_size, def->key_size, def->value_size,
			    name);
	return TAKE_FD(fd);
}

int instance_open_doorman(const char *name, struct failure *f)
{
	LIBBPF_OPTS(bpf_obj_get_opts, read_only, .file_flags = BPF_F_RDONLY);
	char path[PATH_MAX];
	int fd = bpf_obj_get_opts(instance_pin(name, pin_progs[PIN_PROG_doorman].pin, path),
				  &read_only);

	if (fd < 0)
		return fail(f, -errno,
			    "cannot open %s: %m; see how to load it again with: tproxy doctor "
			    "--name %s",
			    path, name);
	return fd;
}

static int config_map(struct instance *inst, struct failure *f)
{
	struct tp_config *cfg = mmap(NULL, sizeof(*cfg), PROT_READ | PROT_WRITE, MAP_SHARED,
				     inst->map[PIN_MAP_config], 0);

	if (cfg == MAP_FAILED)
		return fail(f, -errno, "cannot map the pinned map_config of instance %s: %m",
			    inst->name);
	inst->config = cfg;
	if (cfg->magic != ABI_MAGIC || cfg->abi != ABI_VERSION)
		return fail(f, -EPROTO,
			    "the hooks of instance %s speak version %u, this program %u; load the "
			    "hooks that came with it: tproxy doctor --name %s says how",
			    inst->name, cfg->magic == ABI_MAGIC ? cfg->abi : 0, ABI_VERSION,
			    inst->name);
	return 0;
}

int instance_open(const char *name, unsigned int wanted, struct instance *ret, struct failure *f)
{
	struct instance inst _cleanup_(instance_close) = INSTANCE_INIT;
	int err;

	snprintf(inst.name, sizeof(inst.name), "%s", name);
	for (int m = 0; m < PIN_MAP_COUNT; m++) {
		if (m != PIN_MAP_config && !(wanted & 1U << m))
			continue;
		inst.map[m] = instance_open_map(name, "", m, f);
		if (inst.map[m] < 0)
			return inst.map[m];
		if (m == PIN_MAP_config) {
			err = config_map(&inst, f);
			if (err)
				return err;
		}
	}
	*ret = inst;
	inst = (struct instance)INSTANCE_INIT;
	return 0;
}

void instance_close(struct instance *inst)
{
	for (int m = 0; m < PIN_MAP_COUNT; m++)
		inst->map[m] = fd_close(inst->map[m]);
	if (inst->config)
		munmap(inst->config, sizeof(*inst->config));
	inst->config = NULL;
}

void instance_changed(const struct instance *inst)
{
	__atomic_add_fetch(&inst->config->changes, 1, __ATOMIC_SEQ_CST);
}

int instance_find_map(int prog_fd, enum pin_map map)
{
	struct bpf_prog_info info = {};
	__u32 len = sizeof(info), ids[16] = {0};

	info.nr_map_ids = ARRAY_SIZE(ids);
	info.map_ids = (__u64)(unsigned long)ids;
	if (bpf_obj_get_info_by_fd(prog_fd, &info, &len))
		return -errno;
	for (__u32 i = 0; i < info.nr_map_ids && i < ARRAY_SIZE(ids); i++) {
		struct bpf_map_info found = {};
		int fd _cleanup_fd_ = bpf_map_get_fd_by_id(ids[i]);

		len = sizeof(found);
		if (fd < 0 || bpf_obj_get_info_by_fd(fd, &found, &len))
			continue;
		if (found.type == pin_maps[map].type && !strcmp(found.name, pin_maps[map].name))
			return TAKE_FD(fd);
	}
	return -ENOENT;
}

int instance_is_pin(const char *file)
{
	size_t prefix = strlen(PIN_LINK_PREFIX);

	for (int m = 0; m < PIN_MAP_COUNT; m++)
		if (!strcmp(file, pin_maps[m].name))
			return 1;
	for (int p = 0; p < PIN_PROG_COUNT; p++) {
		size_t len = strlen(pin_progs[p].name);

		if (!strcmp(file, pin_progs[p].pin) ||
		    (!strncmp(file, PIN_LINK_PREFIX, prefix) &&
		     !strncmp(file + prefix, pin_progs[p].name, len) && file[prefix + len] == '_'))
			return 1;
	}
	return 0;
}

/* Any pin will do: without map_config the hooks are in force all the same. */
static int dir_holds_pins(int root, const char *name)
{
	DIR *dir _cleanup_dir_ = NULL;
	struct dirent *e;
	int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return 0;
	dir = fdopendir(fd);
	if (!dir) {
		fd_close(fd);
		return 0;
	}
	while ((e = readdir(dir)))
		if (instance_is_pin(e->d_name))
			return 1;
	return 0;
}

int instance_each(int (*cb)(const char *name, void *user), void *user)
{
	DIR *dir _cleanup_dir_ = opendir(BPFFS_ROOT);
	struct dirent *e;
	struct failure ignored;
	int r;

	if (!dir)
		return -errno;
	while ((e = readdir(dir))) {
		if (instance_name_check(e->d_name, &ignored) ||
		    !dir_holds_pins(dirfd(dir), e->d_name))
			continue;
		r = cb(e->d_name, user);
		if (r)
			return r;
	}
	return 0;
}

int instance_stats(const struct instance *inst, __u64 ret_values[COUNTER_COUNT], struct failure *f)
{
	int cpus = libbpf_num_possible_cpus();
	struct tp_stats *values _cleanup_free_ = NULL;
	__u32 zero = 0;

	if (cpus < 0)
		return fail(f, cpus, "cannot read the number of CPUs: %s", strerror(-cpus));
	values = calloc(cpus, sizeof(*values));
	if (!values)
		return fail(f, -ENOMEM, "out of memory");
	if (bpf_map_lookup_elem(inst->map[PIN_MAP_stats], &zero, values))
		return fail(f, -errno, "cannot read map_stats of instance %s: %m", inst->name);
	memset(ret_values, 0, COUNTER_COUNT * sizeof(__u64));
	for (int cpu = 0; cpu < cpus; cpu++)
		for (size_t i = 0; i < COUNTER_COUNT; i++)
			ret_values[i] += ((const __u64 *)&values[cpu])[i];
	return 0;
}
