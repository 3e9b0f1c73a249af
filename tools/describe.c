// SPDX-License-Identifier: BSD-2-Clause
#include "describe.h"

#include <bpf/bpf.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/instance.h"
#include "lib/links.h"
#include "lib/mounts.h"
#include "lib/sockdiag.h"
#include "listeners.h"
#include "mapread.h"
#include "process.h"

static json_t *time_text(uint64_t realtime_ns)
{
	time_t seconds = realtime_ns / 1000000000;
	struct tm tm;
	char text[64] = "";

	if (!realtime_ns)
		return tree_null();
	if (localtime_r(&seconds, &tm))
		strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S%z", &tm);
	return tree_string(text);
}

static void describe_config(json_t *tree, const struct tp_config *cfg)
{
	char build[32];

	snprintf(build, sizeof(build), "%016llx", (unsigned long long)cfg->build);
	tree_set(tree, "abi", tree_number(cfg->abi));
	tree_set(tree, "build", tree_string(build));
	tree_set(tree, "loaded", time_text(cfg->loaded_ns));
	tree_set(tree, "enabled", tree_bool(cfg->enabled));
	tree_set(tree, "port", tree_number(cfg->port));
	tree_set(tree, "ports", tree_number(cfg->ports));
	tree_set(tree, "policy",
		 tree_string(cfg->policy == TP_POLICY_REFUSE ? "refuse" : "direct"));
}

static void add_cgroup(json_t *cgroups, uint64_t id)
{
	char path[PATH_MAX];
	json_t *cgroup;
	size_t i;

	json_array_foreach (cgroups, i, cgroup) {
		if (tree_value(cgroup, "id") == id)
			return;
	}
	cgroup = tree_object();
	tree_set(cgroup, "id", tree_number(id));
	tree_set(cgroup, "path", cgroup_path(id, path) ? tree_null() : tree_string(path));
	tree_add(cgroups, cgroup);
}

/* By cgroup, then in the order of the table of programs. */
static int link_order(const void *a, const void *b)
{
	const struct hook_link *x = a, *y = b;

	if (x->pinned_cgroup != y->pinned_cgroup)
		return x->pinned_cgroup < y->pinned_cgroup ? -1 : 1;
	return (int)x->prog - (int)y->prog;
}

static json_t *describe_links(const struct hook_link *links, size_t count, json_t *cgroups)
{
	json_t *hooks = tree_array();

	for (size_t i = 0; i < count; i++) {
		const struct hook_link *l = &links[i];
		json_t *hook = tree_object();

		add_cgroup(cgroups, l->pinned_cgroup);
		tree_set(hook, "hook", tree_string(pin_progs[l->prog].name));
		tree_set(hook, "link", tree_number(l->link_id));
		tree_set(hook, "program", tree_number(l->prog_id));
		tree_set(hook, "cgroup", l->cgroup_id ? tree_number(l->cgroup_id) : tree_null());
		tree_set(hook, "pinned_cgroup", tree_number(l->pinned_cgroup));
		tree_set(hook, "pin", tree_string(l->pin));
		tree_add(hooks, hook);
	}
	return hooks;
}

static int pinned(const char *instance, const char *object)
{
	char path[PATH_MAX];
	struct stat st;

	return !lstat(instance_pin(instance, object, path), &st);
}

static int linked(const struct hook_link *links, size_t count, int prog, uint64_t cgroup)
{
	for (size_t i = 0; i < count; i++)
		if ((int)links[i].prog == prog && links[i].pinned_cgroup == cgroup)
			return 1;
	return 0;
}

/* Every map, every program, and of each attached cgroup every link; without any cgroup, one of
 * each. */
static json_t *missing_pins(const char *name, const struct hook_link *links, size_t count,
			    const json_t *cgroups)
{
	json_t *missing = tree_array(), *cgroup;
	char pin[64];
	size_t i;

	for (int m = 0; m < PIN_MAP_COUNT; m++)
		if (!pinned(name, pin_maps[m].name))
			tree_add(missing, tree_string(pin_maps[m].name));
	for (int p = 0; p < PIN_PROG_COUNT; p++) {
		if (!pinned(name, pin_progs[p].pin))
			tree_add(missing, tree_string(pin_progs[p].pin));
		if (p >= PIN_HOOK_COUNT)
			continue;
		if (!json_array_size(cgroups)) {
			snprintf(pin, sizeof(pin), PIN_LINK_PREFIX "%s", pin_progs[p].name);
			tree_add(missing, tree_string(pin));
		}
		json_array_foreach (cgroups, i, cgroup) {
			uint64_t id = tree_value(cgroup, "id");

			if (linked(links, count, p, id))
				continue;
			snprintf(pin, sizeof(pin), PIN_LINK_PREFIX "%s_%llu", pin_progs[p].name,
				 (unsigned long long)id);
			tree_add(missing, tree_string(pin));
		}
	}
	return missing;
}

/* What has no business in the directory: tproxy-load refuses to touch a set that has such. */
static json_t *strange_pins(const char *name)
{
	json_t *strange = tree_array();
	char path[PATH_MAX];
	DIR *dir _cleanup_dir_ = opendir(instance_dir(name, "", path));
	struct dirent *e;

	while (dir && (e = readdir(dir)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..") &&
		    !instance_is_pin(e->d_name))
			tree_add(strange, tree_string(e->d_name));
	return strange;
}

static json_t *describe_proxies(const struct tp_config *cfg, uint64_t netns)
{
	int global = process_pids_are_global();
	json_t *proxies = tree_array();
	char comm[PROCESS_COMM_LEN];

	for (int i = 0; i < TP_MAX_PROXIES; i++) {
		const struct tp_proxy *p = &cfg->proxies[i];
		json_t *proxy;

		if (!p->tgid || p->tgid == UINT32_MAX)
			continue;
		proxy = tree_object();
		tree_set(proxy, "slot", tree_number(i));
		tree_set(proxy, "pid", tree_number(p->tgid));
		tree_set(proxy, "comm",
			 global ? tree_string(process_comm(p->tgid, comm)) : tree_null());
		tree_set(proxy, "port", tree_number(p->port ?: cfg->port));
		tree_set(proxy, "netns", tree_number(p->netns));
		tree_set(proxy, "here", netns ? tree_bool(p->netns == netns) : tree_null());
		tree_set(proxy, "alive",
			 global ? tree_bool(process_start_time(p->tgid) != 0) : tree_null());
		tree_add(proxies, proxy);
	}
	return proxies;
}

/* What each of the proxies has counted. */
static int describe_proxy_counters(json_t *tree, const struct instance *inst, struct failure *f)
{
	json_t *proxy;
	size_t i;

	json_array_foreach (json_object_get(tree, "proxies"), i, proxy) {
		__u64 values[PROXY_COUNTER_COUNT];
		__u32 slot = tree_value(proxy, "slot");
		json_t *all = tree_object();

		if (bpf_map_lookup_elem(inst->map[PIN_MAP_proxies], &slot, values))
			return fail(f, -errno, "cannot read map_proxies of instance %s: %m",
				    inst->name);
		for (size_t c = 0; c < PROXY_COUNTER_COUNT; c++)
			tree_set(all, proxy_counters[c].name, tree_number(values[c]));
		tree_set(proxy, "counters", all);
	}
	return 0;
}

static int describe_maps(json_t *tree, const struct instance *inst, struct failure *f)
{
	static const enum pin_map hashes[] = {PIN_MAP_socks, PIN_MAP_ports};
	__u64 values[COUNTER_COUNT];
	json_t *all = tree_object();
	int err;

	err = instance_stats(inst, values, f);
	for (size_t i = 0; !err && i < COUNTER_COUNT; i++)
		tree_set(all, counters[i].name, tree_number(values[i]));
	tree_set(tree, "counters", all);
	if (!err)
		err = describe_proxy_counters(tree, inst, f);
	all = tree_object();
	for (size_t i = 0; !err && i < ARRAY_SIZE(hashes); i++) {
		struct map_contents c _cleanup_(map_contents_free) = {};
		json_t *map;

		err = mapread(inst, hashes[i], &c, f);
		if (err)
			break;
		map = tree_object();
		tree_set(map, "id", tree_number(c.id));
		tree_set(map, "used", tree_number(c.count));
		tree_set(map, "max", tree_number(c.max));
		tree_set(all, pin_maps[hashes[i]].name, map);
	}
	tree_set(tree, "maps", all);
	return err;
}

static int describe_pins(json_t *tree, const char *name, struct hook_link **ret_links,
			 size_t *ret_count, struct failure *f)
{
	json_t *cgroups;
	int err = links_read(name, ret_links, ret_count, f);

	if (err)
		return err;
	if (*ret_count)
		qsort(*ret_links, *ret_count, sizeof(**ret_links), link_order);
	cgroups = tree_array();
	tree_set(tree, "hooks", describe_links(*ret_links, *ret_count, cgroups));
	tree_set(tree, "missing_pins", missing_pins(name, *ret_links, *ret_count, cgroups));
	tree_set(tree, "strange_pins", strange_pins(name));
	tree_set(tree, "cgroups", cgroups);
	return 0;
}

/* The pinned map, else the one that the hooks in force use. An fd or -errno. */
static int map_find(const char *name, const struct hook_link *links, size_t count, enum pin_map map)
{
	struct failure ignored;
	int fd = instance_open_map(name, "", map, &ignored);

	for (size_t i = 0; fd < 0 && i < count; i++) {
		int prog _cleanup_fd_ = bpf_prog_get_fd_by_id(links[i].prog_id);

		if (prog >= 0)
			fd = instance_find_map(prog, map);
	}
	return fd;
}

static int config_read(const char *name, const struct hook_link *links, size_t count,
		       struct tp_config *ret)
{
	int fd _cleanup_fd_ = map_find(name, links, count, PIN_MAP_config);
	struct bpf_map_info info = {};
	__u32 len = sizeof(info), zero = 0;

	if (fd < 0)
		return fd;
	if (bpf_obj_get_info_by_fd(fd, &info, &len))
		return -errno;
	if (info.value_size != sizeof(*ret))
		return -EPROTO;
	if (bpf_map_lookup_elem(fd, &zero, ret))
		return -errno;
	return ret->magic == ABI_MAGIC && ret->abi == ABI_VERSION ? 0 : -EPROTO;
}

static uint64_t max_connections(const char *name, const struct hook_link *links, size_t count)
{
	int fd _cleanup_fd_ = map_find(name, links, count, PIN_MAP_socks);
	struct bpf_map_info info = {};
	__u32 len = sizeof(info);

	return fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &len) ? 0 : info.max_entries;
}

/* What is in force is shown even where its pins are not whole. */
static json_t *describe_instance(const char *name)
{
	struct instance inst _cleanup_(instance_close) = INSTANCE_INIT;
	struct hook_link *links _cleanup_free_ = NULL;
	json_t *tree = tree_object(), *listeners;
	struct failure f, second;
	struct tp_config config;
	char dir[PATH_MAX];
	size_t count = 0;
	int err, r;

	tree_set(tree, "name", tree_string(name));
	tree_set(tree, "directory", tree_string(instance_dir(name, "", dir)));
	err = instance_open(name, ~0U, &inst, &f);
	r = describe_pins(tree, name, &links, &count, err ? &second : &f);
	tree_set(tree, "max_connections", tree_number(max_connections(name, links, count)));
	if (!config_read(name, links, count, &config)) {
		describe_config(tree, &config);
		tree_set(tree, "proxies", describe_proxies(&config, sockdiag_netns_cookie()));
		listeners = listeners_describe(name, config.port, config.ports);
		tree_set(tree, "serving", listeners_serving(listeners));
		tree_set(tree, "listeners", listeners);
	}
	if (!err)
		err = r ?: describe_maps(tree, &inst, &f);
	if (err)
		tree_set(tree, "error", tree_string(f.text));
	return tree;
}

static int add_instance(const char *name, void *user)
{
	tree_add(user, describe_instance(name));
	return 0;
}

json_t *describe_instances(const char *name)
{
	json_t *instances = tree_array();

	if (name)
		add_instance(name, instances);
	else
		instance_each(add_instance, instances); /* no bpffs: no instances */
	return instances;
}
