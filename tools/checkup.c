// SPDX-License-Identifier: BSD-2-Clause
#include "checkup.h"

#include <bpf/bpf.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/instance.h"
#include "lib/mounts.h"
#include "lib/sockdiag.h"
#include "process.h"

#define MAX_PROGRAMS 128
#define FULL_PERCENT 90

/* One instance under examination. */
struct patient {
	json_t *findings;
	const json_t *in, *all;
	const char *name;
	char load[64]; /* the fix of most things */
};

static void well(const struct patient *p, const char *text)
{
	finding(p->findings, PROBE_OK, p->name, NULL, "%s", text);
}

static void check_pins(const struct patient *p)
{
	json_t *missing = json_object_get(p->in, "missing_pins"), *one;
	size_t i;

	json_array_foreach(missing, i, one)
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

	json_array_foreach(json_object_get(p->in, "cgroups"), i, cgroup) {
		if (*tree_text(cgroup, "path"))
			continue;
		dead++;
		finding(p->findings, PROBE_FAIL, p->name, p->load,
			"the cgroup with id %" PRIu64 " has been removed: its hooks are dead, and a new "
			"cgroup of the same name is not intercepted", tree_value(cgroup, "id"));
	}
	json_array_foreach(json_object_get(p->in, "hooks"), i, hook) {
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

static int is_registered(const struct patient *p, uint32_t inode)
{
	json_t *proxy;
	size_t i;

	json_array_foreach(json_object_get(p->in, "proxies"), i, proxy) {
		if (process_has_socket(tree_value(proxy, "pid"), inode))
			return 1;
	}
	return 0;
}

/* Answers on the port, in this network namespace: ours, a stranger's, or nobody's. */
static int check_port(const struct patient *p)
{
	struct sockdiag_query query = {.states = 1 << TCP_LISTEN,
				       .local_port = tree_value(p->in, "port")};
	struct sockdiag_socket *sockets _cleanup_free_ = NULL;
	char comm[PROCESS_COMM_LEN], fix[128];
	struct failure f;
	size_t count;
	int ours = 0;

	if (sockdiag_tcp(&query, &sockets, &count, &f)) {
		finding(p->findings, PROBE_WARN, p->name, NULL, "%s", f.text);
		return 0;
	}
	for (size_t i = 0; i < count; i++) {
		pid_t pid;

		if (is_registered(p, sockets[i].inode)) {
			ours++;
			continue;
		}
		pid = process_with_socket(sockets[i].inode);
		snprintf(fix, sizeof(fix), "stop process %d, or load with another --port and restart tproxyd",
			 pid);
		finding(p->findings, PROBE_FAIL, p->name,
			pid ? fix : "find it with: ss -ltnp (as root), and stop it",
			"port %u is held by a stranger: pid %d (%s), uid %u; no connection is sent to it",
			query.local_port, pid, process_comm(pid, comm), sockets[i].uid);
	}
	return ours;
}

static void check_proxies(const struct patient *p)
{
	int refuse = !strcmp(tree_text(p->in, "policy"), "refuse"), listening = check_port(p), dead = 0;
	json_t *proxy;
	char fix[64];
	size_t i;

	snprintf(fix, sizeof(fix), "tproxyd --name %s", p->name);
	json_array_foreach(json_object_get(p->in, "proxies"), i, proxy) {
		if (tree_true(proxy, "alive"))
			continue;
		dead++;
		finding(p->findings, PROBE_FAIL, p->name, fix,
			"tproxyd (pid %" PRIu64 ") has registered but is dead", tree_value(proxy, "pid"));
	}
	if (listening)
		well(p, "tproxyd serves in this network namespace");
	else if (!dead)
		finding(p->findings, refuse ? PROBE_FAIL : PROBE_WARN, p->name, fix,
			"no tproxyd serves in this network namespace: connections %s",
			refuse ? "are refused" : "go direct");
}

static void check_maps(const struct patient *p)
{
	json_t *maps = json_object_get(p->in, "maps"), *map;
	const char *name;
	char fix[128];

	json_object_foreach(maps, name, map) {
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

	json_array_foreach(all, i, in) {
		json_array_foreach(json_object_get(in, "hooks"), j, hook) {
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
	snprintf(fix, sizeof(fix), "see whose it is: bpftool prog show id %u; bpftool cgroup tree", id);
	finding(findings, PROBE_WARN, what, fix,
		"a program that is none of ours runs on the hook %s too: id %u, '%.*s'; it may change or "
		"refuse the same connections", hook, id, BPF_OBJ_NAME_LEN, info.name);
}

/* What runs on our hooks for the processes of a cgroup: attached there or to any ancestor. */
static int check_foreign(json_t *findings, const char *what, const char *path, const json_t *all)
{
	struct failure ignored;
	uint64_t id;
	int fd _cleanup_fd_ = cgroup_open(path, &id, &ignored), found = 0;

	if (fd < 0)
		return 0;
	for (int p = 0; p < PIN_PROG_COUNT; p++) {
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

	json_array_foreach(json_object_get(p->in, "cgroups"), i, cgroup) {
		const char *path = tree_text(cgroup, "path");

		if (*path) /* "/a/b", of the hierarchy */
			found += check_foreign(p->findings, p->name, path[1] ? path + 1 : ".", p->all);
	}
	if (!found)
		well(p, "no other programs on its hooks");
}

void checkup_instance(json_t *findings, const json_t *in, const json_t *all)
{
	struct patient p = {findings, in, all, tree_text(in, "name"), ""};

	snprintf(p.load, sizeof(p.load), "tproxy-load --name %s", p.name);
	if (*tree_text(in, "error"))
		finding(findings, PROBE_FAIL, p.name, p.load, "%s", tree_text(in, "error"));
	check_mode(&p);
	if (!json_object_get(in, "abi")) /* nothing else could be read */
		return;
	check_pins(&p);
	check_links(&p);
	check_proxies(&p);
	check_maps(&p);
	check_neighbours(&p);
}

void checkup_root_cgroup(json_t *findings)
{
	if (!check_foreign(findings, "root cgroup", ".", NULL))
		finding(findings, PROBE_OK, "root cgroup", NULL, "no other programs on our hooks");
}
