// SPDX-License-Identifier: BSD-2-Clause
#include "checkup.h"

#include <bpf/bpf.h>
#include <grp.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/instance.h"
#include "lib/mounts.h"
#include "lib/opts.h"

#define MAX_PROGRAMS 128
#define FULL_PERCENT 90

/* One instance under examination. */
struct patient {
	json_t *findings;
	const json_t *in, *all;
	const char *name;
	const char *load; /* the command that loads it as it was: the fix of most things */
};

static void well(const struct patient *p, const char *text)
{
	finding(p->findings, PROBE_OK, p->name, NULL, "%s", text);
}

/* A program that was to replace another is the trace of an interrupted upgrade; the rest is not
 * ours.
 */
static void check_strange_pins(const struct patient *p)
{
	size_t suffix = strlen(PIN_NEW_SUFFIX), i;
	json_t *one;

	json_array_foreach (json_object_get(p->in, "strange_pins"), i, one) {
		const char *file = json_string_value(one);
		size_t len = strlen(file);
		char fix[128 + PATH_MAX];

		if (len > suffix && !strcmp(file + len - suffix, PIN_NEW_SUFFIX)) {
			finding(p->findings, PROBE_WARN, p->name, p->load,
				"pin %s is left from an upgrade that was interrupted", file);
			continue;
		}
		snprintf(fix, sizeof(fix), "see what it is and remove it: %s/%s",
			 tree_text(p->in, "directory"), file);
		finding(p->findings, PROBE_FAIL, p->name, fix,
			"%s is among the pins but not ours: tproxy-load will not touch this "
			"instance",
			file);
	}
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
	if (!st.st_uid && !(st.st_mode & (S_IWGRP | S_IRWXO))) { /* as tproxy-load has it */
		well(p, "the directory of pins is root's, and nobody else may write to it");
		return;
	}
	snprintf(fix, sizeof(fix), "if that was you: chown root %s; chmod 0700 %s", path, path);
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

static int listens_at(const json_t *in, uint64_t port)
{
	char end[16];
	json_t *one;
	size_t i;

	snprintf(end, sizeof(end), ":%" PRIu64, port);
	json_array_foreach (json_object_get(in, "listeners"), i, one) {
		const char *at = strrchr(tree_text(one, "address"), ':');

		if (at && !strcmp(at, end))
			return 1;
	}
	return 0;
}

/* Where each part of the ports has a tproxyd of its own, one may have gone. */
static void check_parts(const struct patient *p)
{
	uint64_t first = tree_value(p->in, "port"), ports = tree_value(p->in, "ports");

	for (uint64_t port = first; port < first + ports; port++)
		if (!listens_at(p->in, port))
			finding(p->findings, PROBE_WARN, p->name,
				"start the tproxyd whose --part has that port; tproxy status "
				"shows the others",
				"nobody listens on port %" PRIu64
				": its clients are sent to the other ports",
				port);
}

static void check_proxies(const struct patient *p)
{
	const json_t *serving = json_object_get(p->in, "serving");
	int refuse = !strcmp(tree_text(p->in, "policy"), "refuse"), dead = 0, here = 0;
	json_t *proxy;
	char fix[64];
	size_t i;

	snprintf(fix, sizeof(fix), "tproxyd --name %s", p->name);
	json_array_foreach (json_object_get(p->in, "proxies"), i, proxy) {
		if (!json_is_false(json_object_get(proxy, "alive"))) {
			here |= tree_true(proxy, "here");
			continue;
		}
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
	if (here && json_is_array(json_object_get(p->in, "listeners")))
		check_parts(p);
}

static void check_maps(const struct patient *p)
{
	json_t *maps = json_object_get(p->in, "maps"), *map;
	const char *name;

	json_object_foreach (maps, name, map) {
		uint64_t used = tree_value(map, "used"), max = tree_value(map, "max");
		char *fix _cleanup_free_ = NULL;

		if (used * 100 < max * FULL_PERCENT)
			continue;
		if (max < TP_MAX_RECORDS)
			fix = checkup_load_command(
				p->in, 4 * max < TP_MAX_RECORDS ? 4 * max : TP_MAX_RECORDS);
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
	if (!strncmp(info.name, PIN_OBJECT_PREFIX, strlen(PIN_OBJECT_PREFIX))) {
		finding(findings, PROBE_FAIL, what, fix,
			"a program of tproxy (id %u, '%.*s') is on the hook %s, but no instance "
			"here has it: it was loaded where another bpffs is at " BPFFS_ROOT
			", or its pins were removed",
			id, BPF_OBJ_NAME_LEN, info.name, hook);
		return;
	}
	finding(findings, PROBE_WARN, what, fix,
		"a program that is none of ours runs on the hook %s too: id %u, '%.*s'; it may "
		"change or "
		"refuse the same connections",
		hook, id, BPF_OBJ_NAME_LEN, info.name);
}

/* What runs on our hooks for the processes of a cgroup: attached there or to any ancestor. How
 * many, or -ENOENT: cannot look. */
static int check_foreign(json_t *findings, const char *what, const char *path, const json_t *all)
{
	struct failure ignored;
	uint64_t id;
	int fd _cleanup_fd_ = cgroup_open(path, &id, &ignored), found = 0;

	if (fd < 0)
		return -ENOENT;
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
	int looked = 0, found = 0;
	json_t *cgroup;
	size_t i;

	json_array_foreach (json_object_get(p->in, "cgroups"), i, cgroup) {
		const char *path = tree_text(cgroup, "path");
		int n;

		if (!*path) /* gone */
			continue;
		n = check_foreign(p->findings, p->name, path[1] ? path + 1 : ".", p->all);
		if (n < 0)
			finding(p->findings, PROBE_WARN, p->name, "run tproxy doctor as root",
				"cannot look at the hooks of cgroup %s", path);
		looked++;
		found += n;
	}
	if (looked && !found)
		well(p, "no other programs on its hooks");
}

/* Such that a shell takes it for one word, in printable ASCII. */
static void put_quoted(FILE *out, const char *text)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
				    "/._-@:+,%=";

	if (*text && strspn(text, plain) == strlen(text)) {
		fputs(text, out);
		return;
	}
	fputs("$'", out); /* bash, zsh, and sh(1) as of POSIX.1-2024 */
	for (; *text; text++) {
		unsigned char c = *text;

		if (c < 0x20 || c >= 0x7f)
			fprintf(out, "\\%03o", c);
		else if (c == '\'' || c == '\\')
			fprintf(out, "\\%c", c);
		else
			fputc(c, out);
	}
	fputc('\'', out);
}

/* Whether the configuration file names cgroups. */
static int config_has_cgroups(const char *name)
{
	FILE *file _cleanup_file_ = NULL;
	char *line _cleanup_free_ = NULL, path[CONFIG_PATH_MAX], equals[2];
	size_t size = 0;

	file = fopen(opts_config_path(name, path), "re");
	while (file && getline(&line, &size, file) > 0)
		if (sscanf(line, " cgroup %1[=]", equals) == 1)
			return 1;
	return 0;
}

/* Without --cgroup the hooks would move to the root cgroup, and every process be intercepted. */
static void put_cgroups(FILE *out, const json_t *in, const char **ret_unknown)
{
	json_t *cgroups = json_object_get(in, "cgroups"), *cgroup;
	char root[PATH_MAX];
	struct failure ignored;
	size_t i;

	*ret_unknown = "";
	if (!json_array_size(cgroups) && !config_has_cgroups(tree_text(in, "name")))
		*ret_unknown = ", with each --cgroup as it was loaded: no link is left that tells "
			       "(without it that is the root cgroup, every process)";
	json_array_foreach (cgroups, i, cgroup) {
		const char *path = tree_text(cgroup, "path");

		fputs(" --cgroup ", out);
		if (!*path) {
			fputs("PATH", out);
			*ret_unknown = ", where PATH is the cgroup in the place of the one that "
				       "has been removed";
		} else if (path[1]) { /* relative to the root of the hierarchy */
			put_quoted(out, path + 1);
		} else {
			put_quoted(out, cgroup2_root(root, &ignored) ? "." : root);
		}
	}
}

/* Without --group the pins would be root's alone, and closed to a tproxyd that is not. */
static void put_group(FILE *out, const json_t *in)
{
	struct group *group;
	struct stat st;

	/* A stranger's would be let in by it. */
	if (lstat(tree_text(in, "directory"), &st) || st.st_uid || !st.st_gid)
		return;
	fputs(" --group ", out);
	group = getgrgid(st.st_gid);
	if (group)
		put_quoted(out, group->gr_name);
	else
		fprintf(out, "%u", st.st_gid);
}

char *checkup_load_command(const json_t *in, uint64_t max)
{
	const char *name = tree_text(in, "name"), *unknown;
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	if (!out)
		return NULL;
	fprintf(out, "tproxy-load --name %s", name);
	put_cgroups(out, in, &unknown);
	put_group(out, in);
	if (json_object_get(in, "abi"))
		fprintf(out, " --port %" PRIu64 " --ports %" PRIu64 " --on-proxy-down %s",
			tree_value(in, "port"), tree_value(in, "ports"), tree_text(in, "policy"));
	if (!max)
		max = tree_value(in, "max_connections");
	if (max)
		fprintf(out, " --max-connections %" PRIu64, max);
	fputs(unknown, out);
	if (!json_object_get(in, "abi"))
		fputs(", with --port, --ports and --on-proxy-down as it was loaded", out);
	fclose(out);
	return text;
}

void checkup_instance(json_t *findings, const json_t *in, const json_t *all)
{
	char *load _cleanup_free_ = checkup_load_command(in, 0);
	struct patient p = {findings, in, all, tree_text(in, "name"), load};

	/* A pin that is missing is said below, once. */
	if (*tree_text(in, "error") &&
	    (!json_object_get(in, "abi") || !json_array_size(json_object_get(in, "missing_pins"))))
		finding(findings, PROBE_FAIL, p.name, p.load, "%s", tree_text(in, "error"));
	check_mode(&p);
	if (!json_object_get(in, "abi")) /* nothing else could be read */
		return;
	check_pins(&p);
	check_strange_pins(&p);
	check_links(&p);
	check_port(&p);
	check_proxies(&p);
	check_maps(&p);
	check_neighbours(&p);
}

void checkup_root_cgroup(json_t *findings, const json_t *all)
{
	if (!check_foreign(findings, "root cgroup", ".", all))
		finding(findings, PROBE_OK, "root cgroup", NULL, "no other programs on our hooks");
}
