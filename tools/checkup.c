// SPDX-License-Identifier: BSD-2-Clause
#include "checkup.h"

#include <bpf/bpf.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/instance.h"
#include "lib/mounts.h"

#define MAX_PROGRAMS 128
#define FULL_PERCENT 90

/* One instance under examination. */
struct patient {
	json_t *findings;
	const json_t *in, *all;
	const char *name;
	char load[1024]; /* the command that loads it as it was: the fix of most things */
};

static void well(const struct patient *p, const char *text)
{
	finding(p->findings, PROBE_OK, p->name, NULL, "%s", text);
}

static void check_pins(const struct patient *p)
{
	json_t *missing = json_object_get(p->in, "missing_pins"), *one;
	size_t i;

	json_array_foreach (missing, i, one)
		finding(p->findings, PROBE_FAIL, p->name, p->load, "pin %s is missing",
			json_string_value(one));
	if (!tree_true(p->in, "enabled"))
		finding(p->findings, PROBE_FAIL, p->name, p->load,
			"not enabled: a load was interrupted, the hooks let everything pass");
	if (!json_array_size(missing) && tree_true(p->in, "enabled"))
		well(p, "all pins are there, the hooks are enabled");
}

static void check_links(const struct patient *p)
{
	json_t *cgroup, *hook;
	int dead = 0;
	size_t i;

	json_array_foreach (json_object_get(p->in, "cgroups"), i, cgroup) {
		if (*tree_text(cgroup, "path"))
			continue;
		dead++;
		finding(p->findings, PROBE_FAIL, p->name, p->load,
			"the cgroup with id %" PRIu64
			" has been removed: its hooks are dead, and a new "
			"cgroup of the same name is not intercepted",
			tree_value(cgroup, "id"));
	}
	json_array_foreach (json_object_get(p->in, "hooks"), i, hook) {
		dead += json_is_null(json_object_get(hook, "cgroup"));
	}
	if (!dead && json_array_size(json_object_get(p->in, "cgroups")))
		well(p, "every link is attached");
}

static void check_mode(const struct patient *p)
{
	const char *path = tree_text(p->in, "directory");
	char fix[256];
	struct stat st;

	if (stat(path, &st))
		return;
	if (!(st.st_mode & 0027) && !st.st_uid) {
		well(p, "the directory of pins is root's alone");
		return;
	}
	snprintf(fix, sizeof(fix), "chown root %s; chmod 0700 %s", path, path);
	finding(p->findings, PROBE_FAIL, p->name, fix,
		"%s has mode %04o and belongs to user %u: others can reach the pins", path,
		st.st_mode & 07777, st.st_uid);
}

/* Who answers on the port in this network namespace. */
static void check_port(const struct patient *p)
{
	json_t *one;
	char fix[128];
	size_t i;

	json_array_foreach (json_object_get(p->in, "listeners"), i, one) {
		if (!json_is_false(json_object_get(one, "trusted")))
			continue;
		snprintf(fix, sizeof(fix),
			 "stop process %" PRIu64 ", or load with another --port and "
			 "start tproxyd anew",
			 tree_value(one, "pid"));
		finding(p->findings, PROBE_FAIL, p->name, fix,
			"%s is held by a stranger: pid %" PRIu64 " (%s), uid %" PRIu64
			"; no connection is "
			"sent to it",
			tree_text(one, "address"), tree_value(one, "pid"), tree_text(one, "comm"),
			tree_value(one, "uid"));
	}
}

static void check_proxies(const struct patient *p)
{
	const json_t *serving = json_object_get(p->in, "serving");
	int refuse = !strcmp(tree_text(p->in, "policy"), "refuse"), dead = 0;
	json_t *proxy;
	char fix[64];
	size_t i;

	snprintf(fix, sizeof(fix), "tproxyd --name %s", p->name);
	json_array_foreach (json_object_get(p->in, "proxies"), i, proxy) {
		if (!json_is_false(json_object_get(proxy, "alive")))
			continue;
		dead++;
		finding(p->findings, PROBE_FAIL, p->name, fix,
			"tproxyd (pid %" PRIu64 ") has registered but is dead",
			tree_value(proxy, "pid"));
	}
	if (json_is_true(serving))
		well(p, "tproxyd serves in this network namespace");
	else if (json_is_null(serving))
		finding(p->findings, PROBE_WARN, p->name,
			"run tproxy doctor as root, outside of containers",
			"cannot tell whether who listens on the port is trusted");
	else if (!dead)
		finding(p->findings, refuse ? PROBE_FAIL : PROBE_WARN, p->name, fix,
			"no tproxyd serves in this network namespace: connections %s",
			refuse ? "are refused" : "go direct");
}

static void check_maps(const struct patient *p)
{
	json_t *maps = json_object_get(p->in, "maps"), *map;
	const char *name;
	char fix[sizeof(p->load) + 64];

	json_object_foreach (maps, name, map) {
		uint64_t used = tree_value(map, "used"), max = tree_value(map, "max");

		if (used * 100 < max * FULL_PERCENT)
			continue;
		snprintf(fix, sizeof(fix), "%s --max-connections %" PRIu64, p->load, 4 * max);
		finding(p->findings, PROBE_WARN, p->name, fix,
			"%s holds %" PRIu64 " of at most %" PRIu64 " entries", name, used, max);
	}
}

/* Whether a program is that of one of our instances' hooks. */
static int is_ours(const json_t *all, __u32 id)
{
	json_t *in, *hook;
	size_t i, j;

	json_array_foreach (all, i, in) {
		json_array_foreach (json_object_get(in, "hooks"), j, hook) {
			if (tree_value(hook, "program") == id)
				return 1;
		}
	}
	return 0;
}

static void report_program(json_t *findings, const char *what, const char *hook, __u32 id)
{
	struct bpf_prog_info info = {};
	__u32 len = sizeof(info);
	int fd _cleanup_fd_ = bpf_prog_get_fd_by_id(id);
	char fix[96];

	if (fd >= 0)
		bpf_obj_get_info_by_fd(fd, &info, &len);
	snprintf(fix, sizeof(fix), "see whose it is: bpftool prog show id %u; bpftool cgroup tree",
		 id);
	finding(findings, PROBE_WARN, what, fix,
		"a program that is none of ours runs on the hook %s too: id %u, '%.*s'; it may "
		"change or "
		"refuse the same connections",
		hook, id, BPF_OBJ_NAME_LEN, info.name);
}

/* What runs on our hooks for the processes of a cgroup: attached there or to any ancestor. */
static int check_foreign(json_t *findings, const char *what, const char *path, const json_t *all)
{
	struct failure ignored;
	uint64_t id;
	int fd _cleanup_fd_ = cgroup_open(path, &id, &ignored), found = 0;

	if (fd < 0)
		return 0;
	for (int p = 0; p < PIN_HOOK_COUNT; p++) {
		__u32 ids[MAX_PROGRAMS], count = MAX_PROGRAMS;

		if (bpf_prog_query(fd, pin_progs[p].attach_type, BPF_F_QUERY_EFFECTIVE, NULL, ids,
				   &count))
			continue;
		for (__u32 i = 0; i < count; i++) {
			if (is_ours(all, ids[i]))
				continue;
			report_program(findings, what, pin_progs[p].name, ids[i]);
			found++;
		}
	}
	return found;
}

static void check_neighbours(const struct patient *p)
{
	json_t *cgroup;
	int found = 0;
	size_t i;

	json_array_foreach (json_object_get(p->in, "cgroups"), i, cgroup) {
		const char *path = tree_text(cgroup, "path");

		if (*path) /* "/a/b", of the hierarchy */
			found += check_foreign(p->findings, p->name, path[1] ? path + 1 : ".",
					       p->all);
	}
	if (!found)
		well(p, "no other programs on its hooks");
}

static void _printf_(2, 3) load_append(struct patient *p, const char *fmt, ...)
{
	size_t used = strlen(p->load);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(p->load + used, sizeof(p->load) - used, fmt, ap);
	va_end(ap);
}

/*
 * Without a configuration file the settings came from the command line: without them again, the
 * hooks would move to the root cgroup.
 */
static void load_command(struct patient *p)
{
	char config[64 + TP_NAME_LEN];
	json_t *cgroup;
	size_t i;

	load_append(p, "tproxy-load --name %s", p->name);
	snprintf(config, sizeof(config), "/etc/tproxy/%s.conf", p->name);
	if (!access(config, F_OK))
		return;
	if (!json_object_get(p->in, "abi")) {
		load_append(p, ", with the options it was loaded with");
		return;
	}
	json_array_foreach (json_object_get(p->in, "cgroups"), i, cgroup) {
		const char *path = tree_text(cgroup, "path");

		if (strcmp(path, "/")) /* relative to the root of the hierarchy */
			load_append(p, " --cgroup %s", *path ? path + 1 : "PATH");
	}
	load_append(p, " --port %" PRIu64 " --on-proxy-down %s", tree_value(p->in, "port"),
		    tree_text(p->in, "policy"));
}

void checkup_instance(json_t *findings, const json_t *in, const json_t *all)
{
	struct patient p = {findings, in, all, tree_text(in, "name"), ""};

	load_command(&p);
	/* A pin that is missing is said below, once. */
	if (*tree_text(in, "error") && !json_array_size(json_object_get(in, "missing_pins")))
		finding(findings, PROBE_FAIL, p.name, p.load, "%s", tree_text(in, "error"));
	check_mode(&p);
	if (!json_object_get(in, "abi")) /* nothing else could be read */
		return;
	check_pins(&p);
	check_links(&p);
	check_port(&p);
	check_proxies(&p);
	check_maps(&p);
	check_neighbours(&p);
}

void checkup_root_cgroup(json_t *findings)
{
	if (!check_foreign(findings, "root cgroup", ".", NULL))
		finding(findings, PROBE_OK, "root cgroup", NULL, "no other programs on our hooks");
}
