// SPDX-License-Identifier: BSD-2-Clause
/* tproxy doctor: the system, then each instance, then what nobody owns any more. */
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "checkup.h"
#include "command.h"
#include "describe.h"
#include "lib/probe.h"
#include "sandbox.h"

static const struct opt options[] = {OPT_INSTANCE, OPT_JSON, {0}};

static const struct opt_program program = {
	.name = "tproxy doctor",
	.usage = "[OPTION]...",
	.about = "Looks at the kernel, the mounts, the instances and what is left of old ones,\n"
		 "and says of everything that is wrong how to put it right. Changes nothing.",
	.opts = options,
	.epilogue =
		"Exit codes: 0 nothing is wrong (there may be warnings), 1 something is, 2 usage.",
};

static const char *const verdicts[] = {
	[PROBE_OK] = "ok", [PROBE_WARN] = "warning", [PROBE_FAIL] = "wrong"};

void finding(json_t *findings, enum probe_result result, const char *what, const char *fix,
	     const char *fmt, ...)
{
	json_t *one = tree_object();
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	tree_set(one, "what", tree_string(what));
	tree_set(one, "result", tree_string(verdicts[result]));
	tree_set(one, "found", tree_string(text));
	tree_set(one, "fix", fix && *fix ? tree_string(fix) : tree_null());
	tree_add(findings, one);
}

static void check_probes(json_t *findings)
{
	struct probe probes[PROBE_MAX];
	size_t count = probe_system(probes, PROBE_MAX);

	for (size_t i = 0; i < count; i++)
		finding(findings, probes[i].result, probes[i].what,
			probes[i].result == PROBE_OK ? NULL : probes[i].fix, "%s", probes[i].found);
}

/* A sysctl's number, -1 where there is none to read. */
static int sysctl_read(const char *path)
{
	FILE *file _cleanup_file_ = fopen(path, "re");
	int value = -1;

	if (!file || fscanf(file, "%d", &value) != 1)
		return -1;
	return value;
}

static void check_sysctls(json_t *findings)
{
	int jit = sysctl_read("/proc/sys/net/core/bpf_jit_enable");
	int unprivileged = sysctl_read("/proc/sys/kernel/unprivileged_bpf_disabled");

	if (jit == 0)
		finding(findings, PROBE_WARN, "BPF JIT", "sysctl net.core.bpf_jit_enable=1",
			"off: the hooks are interpreted, several times slower");
	else
		finding(findings, PROBE_OK, "BPF JIT", NULL,
			jit > 0 ? "on" : "cannot be seen from here");
	if (unprivileged == 0)
		finding(findings, PROBE_WARN, "unprivileged BPF",
			"sysctl kernel.unprivileged_bpf_disabled=1",
			"every user may load BPF programs");
	else
		finding(findings, PROBE_OK, "unprivileged BPF", NULL, "disabled");
	if (geteuid())
		finding(findings, PROBE_WARN, "privileges", "run tproxy doctor as root",
			"run by user %u: pins, programs and other users' processes cannot be "
			"looked at",
			geteuid());
}

/* A second bpffs over the first hides its pins from us, while their hooks go on working. */
static void check_bpffs_mounts(json_t *findings)
{
	FILE *file _cleanup_file_ = fopen("/proc/self/mountinfo", "re");
	char *line _cleanup_free_ = NULL;
	char point[PATH_MAX];
	size_t size = 0;
	int count = 0;

	while (file && getline(&line, &size, file) > 0)
		if (sscanf(line, "%*s %*s %*s %*s %4095s", point) == 1 &&
		    !strcmp(point, BPFFS_ROOT))
			count++;
	if (count > 1)
		finding(findings, PROBE_FAIL, "bpffs mounts", "umount " BPFFS_ROOT,
			"%d file systems are mounted over each other at " BPFFS_ROOT
			": pins below the topmost are hidden",
			count);
}

static int stale_sandbox(struct sandbox *box, void *user)
{
	finding(user, PROBE_FAIL, box->name,
		"the next tproxy run removes it, for example: tproxy run -- true",
		"left by a tproxy run that was killed (instance, cgroup %s or lock)", box->cgroup);
	return 0;
}

static int unknown_sandbox(struct sandbox *box, void *user)
{
	char fix[PATH_MAX + 64];

	snprintf(fix, sizeof(fix), "see who is in it: cat %s/*/cgroup.procs", box->cgroup);
	finding(user, PROBE_WARN, box->name, fix,
		"cannot tell whether this tproxy run lives: there is no lock file of it here, nor "
		"is its process to be seen; it may run in a container, or its /run was lost");
	return 0;
}

static json_t *instance_of(const json_t *all, const char *name)
{
	json_t *in;
	size_t i;

	json_array_foreach (all, i, in) {
		if (!strcmp(tree_text(in, "name"), name))
			return in;
	}
	return NULL;
}

static bool is_staging(const char *file)
{
	size_t len = strlen(file), suffix = strlen(PIN_NEW_SUFFIX);

	return len > suffix && (!strcmp(file + len - suffix, PIN_NEW_SUFFIX) ||
				!strcmp(file + len - suffix, PIN_OLD_SUFFIX));
}

/*
 * What is in force is not to be unloaded for what is left. Before Linux 6.1 that may be NAME~old,
 * where a loader was killed between two renames; the next one takes the first back. To be freed.
 */
static char *staging_fix(const json_t *all, const char *name)
{
	json_t *stranded _cleanup_tree_ = NULL, *in = instance_of(all, name);
	char path[PATH_MAX], old[NAME_MAX + sizeof(PIN_OLD_SUFFIX)], *fix;

	if (in)
		return checkup_load_command(in, 0);
	if (access(instance_dir(name, PIN_OLD_SUFFIX, path), F_OK))
		return asprintf(&fix, "tproxy-load --name %s --unload", name) < 0 ? NULL : fix;
	snprintf(old, sizeof(old), "%s%s", name, PIN_OLD_SUFFIX);
	stranded = describe_instances(old);
	in = json_array_get(stranded, 0);
	tree_set(in, "name", tree_string(name));
	return checkup_load_command(in, 0);
}

/* Where a load prepares an instance, or retires one; nobody but a running loader needs it. */
static void check_staging(json_t *findings, const json_t *all)
{
	size_t suffix = strlen(PIN_NEW_SUFFIX);
	DIR *dir _cleanup_dir_ = opendir(BPFFS_ROOT);
	struct failure ignored;
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		char *fix _cleanup_free_ = NULL, name[NAME_MAX + 1];
		struct stat st;

		if (!is_staging(e->d_name))
			continue;
		snprintf(name, sizeof(name), "%.*s", (int)(strlen(e->d_name) - suffix), e->d_name);
		if (instance_name_check(name, &ignored))
			continue;
		if (!fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) && st.st_uid) {
			finding(findings, PROBE_WARN, name, "remove it",
				"%s/%s is of user %u and not of any load", BPFFS_ROOT, e->d_name,
				st.st_uid);
			continue;
		}
		fix = staging_fix(all, name);
		finding(findings, PROBE_WARN, name, fix,
			"%s/%s is left from a load that was interrupted (or one that runs now)",
			BPFFS_ROOT, e->d_name);
	}
}

static void check_instances(json_t *findings, const json_t *all, const char *only)
{
	json_t *in;
	int found = 0;
	size_t i;

	json_array_foreach (all, i, in) {
		if (only && strcmp(only, tree_text(in, "name")))
			continue;
		checkup_instance(findings, in, all);
		found++;
	}
	if (found)
		return;
	checkup_root_cgroup(findings, all);
	finding(findings, only ? PROBE_FAIL : PROBE_WARN, only ? only : "instances",
		"tproxy-load, or for one command: tproxy run -- COMMAND", "not loaded");
}

static void print_text(const json_t *tree)
{
	static const char *const labels[] = {"ok", "WARNING", "WRONG"};
	size_t count[ARRAY_SIZE(verdicts)] = {0}, i;
	json_t *one;

	json_array_foreach (json_object_get(tree, "findings"), i, one) {
		const char *fix = tree_text(one, "fix");
		size_t v = 0;

		while (strcmp(verdicts[v], tree_text(one, "result")))
			v++;
		count[v]++;
		printf("%-8s %s: %s\n", labels[v], tree_text(one, "what"), tree_text(one, "found"));
		if (*fix)
			printf("         fix: %s\n", fix);
	}
	printf("\n%zu wrong, %zu warnings, %zu well\n", count[PROBE_FAIL], count[PROBE_WARN],
	       count[PROBE_OK]);
}

static int examine(const struct command_settings *settings)
{
	json_t *tree _cleanup_tree_ = tree_object();
	json_t *all _cleanup_tree_ = describe_instances(NULL);
	json_t *findings = tree_array(), *one;
	bool wrong = false;
	size_t i;

	tree_set(tree, "findings", findings);
	check_probes(findings);
	check_sysctls(findings);
	check_bpffs_mounts(findings);
	check_instances(findings, all, settings->instance);
	check_staging(findings, all);
	sandbox_each_stale(stale_sandbox, findings);
	sandbox_each_unknown(unknown_sandbox, findings);
	json_array_foreach (findings, i, one) {
		wrong |= !strcmp(tree_text(one, "result"), verdicts[PROBE_FAIL]);
	}
	tree_set(tree, "well", tree_bool(!wrong));
	return tree_show(tree, settings->json, print_text) || wrong ? EXIT_WRONG : 0;
}

int cmd_doctor(int argc, char **argv)
{
	struct command_settings settings = {0};
	int r = command_parse(&program, argc, argv, &settings, NULL), code = 0;

	if (r == OPTS_RUN)
		code = examine(&settings);
	else if (r < 0)
		code = EXIT_USAGE;
	command_free(&program, &settings);
	return code;
}
