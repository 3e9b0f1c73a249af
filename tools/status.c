// SPDX-License-Identifier: BSD-2-Clause
/* tproxy status: what is loaded, where, who serves, what has been counted. */
#include <inttypes.h>
#include <string.h>

#include "command.h"
#include "describe.h"
#include "lib/instance.h"
#include "lib/mounts.h"

static const struct opt options[] = {OPT_INSTANCE, OPT_JSON, {0}};

static const struct opt_program program = {
	.name = "tproxy status",
	.usage = "[OPTION]...",
	.about = "Shows each instance: its settings, hooks and where they are attached, the\n"
		 "proxies that have registered, what its hooks have counted, and how full its\n"
		 "maps are.",
	.opts = options,
	.epilogue = "Exit codes: 0 shown, 1 the instance is not there or not whole, 2 usage.",
};

static void print_state(const json_t *in)
{
	const json_t *serving = json_object_get(in, "serving");

	if (json_array_size(json_object_get(in, "missing_pins")))
		printf("BROKEN, pins are missing; what is to be done: tproxy doctor\n");
	else if (!tree_true(in, "enabled"))
		printf("not enabled: its hooks let everything pass\n");
	else if (json_is_true(serving))
		printf("serving\n");
	else if (json_is_null(serving))
		printf("not known whether who listens on the port is trusted\n");
	else if (!strcmp(tree_text(in, "policy"), "refuse"))
		printf("no proxy in this network namespace: connections are refused\n");
	else
		printf("no proxy in this network namespace: connections go direct\n");
}

static void print_settings(const json_t *in)
{
	uint64_t port = tree_value(in, "port"), ports = tree_value(in, "ports");

	if (ports > 1)
		printf("  ports       %" PRIu64 " to %" PRIu64 " on 127.0.0.1 and ::1\n", port,
		       port + ports - 1);
	else
		printf("  port        %" PRIu64 " on 127.0.0.1 and ::1\n", port);
	printf("  policy      %s while no proxy serves\n", tree_text(in, "policy"));
	printf("  loaded      %s, build %s, ABI %" PRIu64 "\n", tree_text(in, "loaded"),
	       tree_text(in, "build"), tree_value(in, "abi"));
}

static void print_counters(const json_t *all, const struct counter_def *defs, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint64_t value = tree_value(all, defs[i].name);

		if (value)
			printf("  %10" PRIu64 "  %s (%s)\n", value, defs[i].text, defs[i].name);
	}
}

static void print_proxies(const json_t *in)
{
	json_t *proxy;
	size_t i;

	json_array_foreach (json_object_get(in, "proxies"), i, proxy) {
		const char *comm = tree_text(proxy, "comm");
		uint64_t port = tree_value(proxy, "port");

		printf("  proxy       pid %" PRIu64 " (%s), ", tree_value(proxy, "pid"),
		       json_is_false(json_object_get(proxy, "alive")) ? "dead"
		       : *comm					      ? comm
			       : "in the initial pid namespace");
		if (port != tree_value(in, "port")) /* of a part of the ports */
			printf("port %" PRIu64 ", ", port);
		if (tree_true(proxy, "here"))
			printf("this network namespace\n");
		else
			printf("network namespace %" PRIu64 "\n", tree_value(proxy, "netns"));
		print_counters(json_object_get(proxy, "counters"), proxy_counters,
			       PROXY_COUNTER_COUNT);
	}
	json_array_foreach (json_object_get(in, "listeners"), i, proxy) {
		if (json_is_false(json_object_get(proxy, "trusted")))
			printf("  stranger    on %s: pid %" PRIu64 " (%s), uid %" PRIu64 "\n",
			       tree_text(proxy, "address"), tree_value(proxy, "pid"),
			       tree_text(proxy, "comm"), tree_value(proxy, "uid"));
	}
}

static void print_hooks(const json_t *in)
{
	json_t *cgroup, *hook, *pin;
	size_t i, j;

	json_array_foreach (json_object_get(in, "cgroups"), i, cgroup) {
		uint64_t id = tree_value(cgroup, "id");
		const char *path = tree_text(cgroup, "path");

		printf("  cgroup      %s (id %" PRIu64 ")\n",
		       *path ? path : "gone: its hooks are dead, load again", id);
		json_array_foreach (json_object_get(in, "hooks"), j, hook) {
			if (tree_value(hook, "pinned_cgroup") != id)
				continue;
			printf("    %-12s link %" PRIu64 ", program %" PRIu64 "%s\n",
			       tree_text(hook, "hook"), tree_value(hook, "link"),
			       tree_value(hook, "program"),
			       json_is_null(json_object_get(hook, "cgroup")) ? ", dead" : "");
		}
	}
	json_array_foreach (json_object_get(in, "missing_pins"), i, pin)
		printf("  missing     %s\n", json_string_value(pin));
}

static void print_maps(json_t *in)
{
	const char *name;
	json_t *map;

	json_object_foreach (json_object_get(in, "maps"), name, map)
		printf("  %-10s  %" PRIu64 " of %" PRIu64 " entries\n", name,
		       tree_value(map, "used"), tree_value(map, "max"));
}

static void print_instance(json_t *in)
{
	const char *error = tree_text(in, "error");

	printf("%s: ", tree_text(in, "name"));
	if (!json_object_get(in, "abi")) { /* no map_config of ours, pinned or not */
		printf("%s\n", error);
		print_hooks(in);
		return;
	}
	print_state(in);
	print_settings(in);
	print_proxies(in);
	print_hooks(in);
	print_maps(in);
	print_counters(json_object_get(in, "counters"), counters, COUNTER_COUNT);
	if (*error)
		printf("  error       %s\n", error);
}

static void print_text(const json_t *tree)
{
	json_t *instances = json_object_get(tree, "instances"), *in;
	size_t i;

	json_array_foreach (instances, i, in) {
		if (i)
			putchar('\n');
		print_instance(in);
	}
	if (json_array_size(instances))
		return;
	if (!bpffs_mounted())
		printf("no bpffs is at " BPFFS_ROOT
		       " as seen from here, so no pins can be seen; tproxy-load "
		       "mounts one,\nand where \"ip netns exec\" hides it \"nsenter --net=\" does "
		       "not\n");
	else
		printf("no instance is loaded%s; load one with: tproxy-load\n",
		       geteuid() ? " that this user may see (root sees all)" : "");
}

int cmd_status(int argc, char **argv)
{
	struct command_settings settings = {0};
	json_t *tree _cleanup_tree_ = tree_object();
	json_t *instances, *in;
	int code = 0, r;
	size_t i;

	r = command_parse(&program, argc, argv, &settings, NULL);
	if (r == OPTS_RUN) {
		instances = describe_instances(settings.instance);
		json_array_foreach (instances, i, in) {
			if (json_object_get(in, "error"))
				code = EXIT_WRONG;
		}
		tree_set(tree, "instances", instances);
		if (tree_show(tree, settings.json, print_text))
			code = EXIT_WRONG;
	} else if (r < 0) {
		code = EXIT_USAGE;
	}
	command_free(&program, &settings);
	return code;
}
