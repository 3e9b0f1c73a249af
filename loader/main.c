// SPDX-License-Identifier: BSD-2-Clause
/*
 * tproxy-load: puts the hooks in place and is gone; nothing of it is needed between two calls. What
 * it does, in which order, and why every state in between is safe, is docs/pins.md.
 */
#include <string.h>

#include "access.h"
#include "cgroups.h"
#include "check.h"
#include "forget.h"
#include "generation.h"
#include "load.h"
#include "lock.h"
#include "log.h"
#include "mounts.h"
#include "plan.h"
#include "repair.h"
#include "set.h"
#include "settings.h"
#include "unclaimed.h"
#include "unload.h"
#include "upgrade.h"

enum exit_code {
	EXIT_DONE = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_CHECK = 3,
};

#define OPT(field) offsetof(struct settings, field)

static const char *const policies[] = {
	[TP_POLICY_DIRECT] = "direct", [TP_POLICY_REFUSE] = "refuse", NULL};

static const struct opt options[] = {
	OPT_COMMON,
	{.name = "cgroup",
	 .letter = 'g',
	 .type = OPT_LIST,
	 .offset = OPT(cgroups),
	 .arg = "PATH",
	 .help = "attach to this cgroup; may be repeated (default: the root cgroup)"},
	{.name = "port",
	 .letter = 'p',
	 .type = OPT_UINT,
	 .offset = OPT(port),
	 .arg = "PORT",
	 .min = 1,
	 .max = 65535,
	 .help = "tproxyd's first port on 127.0.0.1 and ::1 (default: 18000)"},
	{.name = "ports",
	 .type = OPT_UINT,
	 .offset = OPT(ports),
	 .arg = "N",
	 .min = 1,
	 .max = TP_MAX_PORTS,
	 .help = "ports in a row, for some 28,000 connections each (default: 4)"},
	{.name = "on-proxy-down",
	 .type = OPT_CHOICE,
	 .offset = OPT(policy),
	 .arg = "WHAT",
	 .choices = policies,
	 .help = "connections without a proxy: direct or refuse (default: direct)"},
	{.name = "max-connections",
	 .type = OPT_UINT,
	 .offset = OPT(max_connections),
	 .arg = "N",
	 .min = 1,
	 .max = TP_MAX_RECORDS,
	 .help = "intercepted connections at a time (default: 262144)"},
	{.name = "group",
	 .type = OPT_STRING,
	 .offset = OPT(group_name),
	 .arg = "GROUP",
	 .help = "whose members may open the pins, for a tproxyd without root (default: none)"},
	{.name = "unload",
	 .letter = 'u',
	 .type = OPT_FLAG,
	 .offset = OPT(unload),
	 .command_line_only = 1,
	 .no_file = 1, /* what is wrong with it must not keep the hooks in force */
	 .help = "detach and unpin everything of the instance"},
	{.name = "check",
	 .type = OPT_FLAG,
	 .offset = OPT(check),
	 .command_line_only = 1,
	 .help = "change nothing; say what would be done, or why it could not"},
	{.name = "quiet",
	 .letter = 'q',
	 .type = OPT_FLAG,
	 .offset = OPT(quiet),
	 .command_line_only = 1,
	 .help = "say only what went wrong"},
	{.name = "verbose",
	 .letter = 'v',
	 .type = OPT_FLAG,
	 .offset = OPT(verbose),
	 .command_line_only = 1,
	 .help = "say more, also what the kernel's verifier objects to"},
	{0},
};

const struct opt_program program = {
	.name = "tproxy-load",
	.usage = "[OPTION...]",
	.about = "Loads, attaches and pins the hooks that send TCP connections to tproxyd; "
		 "upgrades or\n"
		 "changes them in place; removes them. They stay when this program has ended.",
	.section = "loader",
	.opts = options,
	.epilogue = "Exit codes:\n"
		    "  0  done, or nothing to do\n"
		    "  1  failed; a load that fails leaves everything as it was\n"
		    "  2  wrong option or configuration file\n"
		    "  3  --check: it could not be done",
};

/* The same line for each result, so that one sees at once what is in force. */
static void report(const struct settings *set, const struct cgroups *cgs, const char *done)
{
	char where[512] = "", last[16] = "";

	for (size_t i = 0; i < cgs->count; i++) {
		size_t used = strlen(where);

		snprintf(where + used, sizeof(where) - used, "%s%.500s", used ? ", " : "",
			 cgs->items[i].path);
	}
	if (set->ports > 1)
		snprintf(last, sizeof(last), "-%u", (unsigned int)(set->port + set->ports - 1));
	log_info("instance %s: %s; %d programs on %zu cgroup%s (%s), port %u%s, %s",
		 set->common.name, done, PIN_HOOK_COUNT, cgs->count, cgs->count == 1 ? "" : "s",
		 where, (unsigned int)set->port, last, policy_text(set->policy));
}

static int change(const struct settings *settings, const struct cgroups *cgs, struct set *set,
		  struct object *obj, struct plan *plan, struct failure *f)
{
	struct cgroups left_out _cleanup_cgroups_ = {0};
	struct object again _cleanup_object_ = {0};
	struct plan rest = *plan;
	int err = forget_find(set, cgs, &left_out, f);

	if (err)
		return err;
	if (plan->generation) { /* then there is another set, to which settings may be new */
		err = generation_change(cgs, set, obj, plan, f);
		set_free(set);
		if (!err)
			err = set_read(settings->common.name, "", set, f);
		if (!err)
			err = object_open(settings->max_connections, &again, f);
		if (!err)
			err = plan_make(settings, cgs, set, &again, &rest, f);
		if (err)
			return err;
		obj = &again;
	}
	err = plan_empty(&rest) ? 0 : upgrade_apply(settings, cgs, set, obj, &rest, f);
	if (!err)
		forget_connections(set, &left_out, cgs);
	return err;
}

/* Everything that is pinned is read and checked before the first change. */
static int load(const struct settings *settings, const struct cgroups *cgs, struct failure *f)
{
	struct set set _cleanup_set_ = {0}, side _cleanup_set_ = {0};
	struct object obj _cleanup_object_ = {0};
	struct plan plan;
	char done[256];
	int err;

	err = generation_rename_back(settings->common.name, f);
	if (!err)
		err = set_read_both(settings->common.name, &set, &side, f);
	if (!err)
		err = cgroups_check_overlap(cgs, settings->common.name, f);
	if (!err)
		err = unclaimed_check(cgs, &set, &side, f);
	if (!err)
		err = object_open(settings->max_connections, &obj, f);
	if (!err && repair_needed(&set, &side))
		err = repair_instance(&set, &side, f);
	if (!err)
		err = plan_make(settings, cgs, &set, &obj, &plan, f);
	if (!err && plan.fresh)
		err = load_first(settings, cgs, &obj, f);
	else if (!err && !plan_empty(&plan))
		err = change(settings, cgs, &set, &obj, &plan, f);
	if (!err)
		report(settings, cgs, plan_describe(&plan, settings, done));
	return err;
}

static int run(struct settings *set, struct failure *f)
{
	struct cgroups cgs _cleanup_cgroups_ = {0};
	int lock _cleanup_fd_ = -1;
	int err, mounted;

	if (geteuid())
		return fail(f, -EPERM, "loading BPF programs needs root; run it with sudo");
	lock = lock_take(f);
	if (lock < 0)
		return lock;
	if (set->unload)
		return generation_rename_back(set->common.name, f)
			       ?: unload_run(set->common.name, f);
	err = access_group(set->group_name, &set->group, f);
	if (err)
		return err;
	if (set->check)
		return check_run(set, f);
	err = cgroups_open(set, &cgs, f);
	if (!err)
		err = bpffs_ensure(&mounted, f);
	if (err)
		return err;
	if (mounted)
		log_notice("mounted a bpffs at %s", BPFFS_ROOT);
	err = load(set, &cgs, f);
	if (!err && mounted && bpffs_private())
		log_warning("the hooks last only as long as this mount namespace, whose " BPFFS_ROOT
			    " is its own; to keep them load from outside of it, as with \"nsenter "
			    "--net=\" in the place of \"ip netns exec\"");
	return err;
}

int main(int argc, char **argv)
{
	struct settings set = {
		.port = 18000, .ports = 4, .max_connections = 262144, .policy = TP_POLICY_DIRECT};
	struct failure f = {{0}};
	int next, err;

	log_init(program.name);
	err = opts_parse(&program, argc, argv, &set, &next, &f);
	if (err == OPTS_RUN && next < argc)
		err = fail(&f, -EINVAL, "%s: takes no arguments; see tproxy-load --help",
			   argv[next]);
	if (err == OPTS_RUN && set.port + set.ports - 1 > UINT16_MAX)
		err = fail(&f, -EINVAL,
			   "--port %u leaves no room for %u ports: lower it or --ports",
			   (unsigned int)set.port, (unsigned int)set.ports);
	if (err == OPTS_RUN && set.check && set.unload)
		err = fail(&f, -EINVAL, "--check and --unload do not go together");
	if (err) {
		if (err < 0)
			log_error("%s", f.text);
		opts_free(&program, &set);
		return err == OPTS_DONE ? EXIT_DONE : EXIT_USAGE;
	}
	log_set_level(set.verbose ? LOG_DEBUG : set.quiet ? LOG_WARNING : LOG_INFO);
	object_verbose(set.verbose);
	err = run(&set, &f);
	if (err)
		log_error("%s", f.text);
	opts_free(&program, &set);
	return !err ? EXIT_DONE : set.check ? EXIT_CHECK : EXIT_FAILED;
}
