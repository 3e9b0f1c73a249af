// SPDX-License-Identifier: BSD-2-Clause
/*
 * tproxy run: hooks and a proxy for one command (sandbox.h says what that is made of).
 *
 * Theory of operation
 *
 * Signals are blocked and read from a descriptor, so that everything that can happen is an event of
 * one poll(): the command ended, the proxy ended, the proxy is ready, somebody wants us to stop.
 * The children get the mask back that we were started with. The command shares our process group,
 * so a terminal is its own and what is typed there reaches it directly; signals sent to us alone
 * are passed on. The proxy has a session of its own: ^C ends the command, then the proxy drains.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/signalfd.h>

#include "cgroup.h"
#include "command.h"
#include "lib/instance.h"
#include "lib/log.h"
#include "notify.h"
#include "port.h"
#include "sandbox.h"
#include "spawn.h"
#include "tree.h"

#define READY_TIMEOUT_MS      15000
#define BACKGROUND_TIMEOUT_MS 2000
#define STOP_TIMEOUT_MS	      45000 /* longer than tproxyd's drain-timeout */

/* We failed ourselves. 126 and 127: the command cannot be executed, as env(1) has it. */
#define EXIT_RUN 125

struct run_settings {
	struct command_settings common;
	uint64_t port;
	int policy;
	char *log;
	bool quiet;
};

static const char *const policies[] = {
	[TP_POLICY_DIRECT] = "direct", [TP_POLICY_REFUSE] = "refuse", NULL};

static const struct opt options[] = {
	{.name = "port",
	 .letter = 'p',
	 .type = OPT_UINT,
	 .arg = "PORT",
	 .min = 1,
	 .max = 65535,
	 .offset = offsetof(struct run_settings, port),
	 .help = "port of the proxy on loopback (default: a free one)"},
	{.name = "on-proxy-down",
	 .type = OPT_CHOICE,
	 .arg = "WHAT",
	 .choices = policies,
	 .offset = offsetof(struct run_settings, policy),
	 .help = "connections without a proxy: direct or refuse (default: direct)"},
	{.name = "log",
	 .letter = 'l',
	 .type = OPT_STRING,
	 .arg = "FILE",
	 .offset = offsetof(struct run_settings, log),
	 .help = "append the proxy's log to FILE (default: stderr)"},
	{.name = "quiet",
	 .letter = 'q',
	 .type = OPT_FLAG,
	 .offset = offsetof(struct run_settings, quiet),
	 .help = "on stderr only what went wrong"},
	{.name = "json",
	 .letter = 'j',
	 .type = OPT_FLAG,
	 .offset = offsetof(struct command_settings, json),
	 .help = "report the end as JSON on stderr, and nothing else but what went wrong"},
	{0},
};

static const struct opt_program program = {
	.name = "tproxy run",
	.usage = "[OPTION]... [--] COMMAND [ARG]...",
	.about = "Runs COMMAND with its TCP connections going through a proxy of its own, then\n"
		 "takes all away again. Processes that COMMAND leaves behind are ended with it.",
	.opts = options,
	.epilogue = "Exit codes: COMMAND's own, 128 + N if signal N ended it; 125 the proxy\n"
		    "could not be set up, 126 COMMAND cannot be executed, 127 it is not found.",
};

struct run {
	const struct run_settings *settings;
	char *const *argv;
	struct sandbox box;
	struct child proxy, command;
	sigset_t old_mask;
	struct caller caller;
	int notify, log;
	uint16_t port;
	int stopped_by; /* signal that came before the command was started */
	bool ready, proxy_died;
	__u64 before[COUNTER_COUNT]; /* what the proxy's test of itself has counted */
};

static int signals_take(struct run *r, struct failure *f)
{
	/* SIGPIPE is only kept away: a closed stderr must not stop the cleaning up. */
	static const int passed_on[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
	sigset_t blocked, wanted;

	/* Some that start us ignore SIGCHLD, and children would leave no exit code then. */
	signal(SIGCHLD, SIG_DFL);
	sigemptyset(&wanted);
	for (size_t i = 0; i < ARRAY_SIZE(passed_on); i++)
		sigaddset(&wanted, passed_on[i]);
	blocked = wanted;
	sigaddset(&blocked, SIGPIPE);
	sigprocmask(SIG_BLOCK, &blocked, &r->old_mask);
	r->caller.mask = &r->old_mask;
	r->caller.quiet = r->settings->quiet || r->settings->common.json;
	r->caller.signals = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
	return r->caller.signals < 0 ? fail(f, -errno, "cannot receive signals: %m") : 0;
}

/* The next signal that has come, or 0. *ret_typed: from the terminal, so the command has it too. */
static int signal_next(const struct run *r, int *ret_typed)
{
	struct signalfd_siginfo info;

	if (read(r->caller.signals, &info, sizeof(info)) != sizeof(info))
		return 0;
	*ret_typed = info.ssi_code == SI_KERNEL;
	return info.ssi_signo;
}

/* Before the command runs, each signal means: do not start it. -EINTR or 0. */
static int signals_check(struct run *r, struct failure *f)
{
	int typed, signal = signal_next(r, &typed);

	if (!signal)
		return 0;
	r->stopped_by = signal;
	return fail(f, -EINTR, "stopped by %s before %s was started", strsignal(signal),
		    r->argv[0]);
}

static int sweep(struct sandbox *box, void *user)
{
	struct run *r = user;
	char name[TP_NAME_LEN];
	struct failure f;

	memcpy(name, box->name, sizeof(name));
	if (sandbox_destroy(box, &r->caller, &f))
		log_warning("%s was left by a run that was killed: %s", name, f.text);
	else if (!r->caller.quiet)
		log_notice("removed %s, left by a run that was killed", name);
	return 0;
}

static int load(struct run *r, struct failure *f)
{
	char program_path[PATH_MAX], port[16], output[sizeof(f->text)];
	char *argv[] = {program_find("tproxy-load", program_path),
			"--name",
			r->box.name,
			"--cgroup",
			r->box.cgroup,
			"--port",
			port,
			"--ports",
			"1",
			"--on-proxy-down",
			(char *)policies[r->settings->policy],
			"--quiet",
			NULL};
	const char *sentence = output;
	int code;

	snprintf(port, sizeof(port), "%u", r->port);
	code = command_run(argv, &r->caller, output, sizeof(output), f);
	if (code == -EINTR)
		return signals_check(r, f) ?: code;
	if (code <= 0)
		return code;
	if (!strncmp(sentence, "tproxy-load: ", strlen("tproxy-load: ")))
		sentence += strlen("tproxy-load: ");
	return fail(f, -EIO, "the hooks for %s cannot be loaded: %s", r->argv[0],
		    *sentence ? sentence : "tproxy-load does not say why");
}

static int proxy_wait_ready(struct run *r, struct failure *f)
{
	struct pollfd fds[] = {{.fd = r->notify, .events = POLLIN},
			       {.fd = r->proxy.pidfd, .events = POLLIN},
			       {.fd = r->caller.signals, .events = POLLIN}};

	for (;;) {
		int n = poll(fds, ARRAY_SIZE(fds), READY_TIMEOUT_MS), err;

		if (n < 0 && errno != EINTR)
			return fail(f, -errno, "cannot wait for tproxyd: %m");
		if (!n)
			return fail(f, -ETIMEDOUT, "tproxyd was not ready within %d s; see its log",
				    READY_TIMEOUT_MS / 1000);
		if (notify_ready(r->notify)) {
			r->ready = true;
			return 0;
		}
		err = signals_check(r, f);
		if (err)
			return err;
		if (n > 0 && fds[1].revents) {
			int code = child_wait(&r->proxy);

			return fail(f, -EIO, "tproxyd ended with code %d before it was ready; %s%s",
				    code, r->settings->log ? "its log is in " : "it says why above",
				    r->settings->log ? r->settings->log : "");
		}
	}
}

static int proxy_start(struct run *r, struct failure *f)
{
	char program_path[PATH_MAX], address[NOTIFY_ADDRESS_LEN];
	char *argv[] = {program_find("tproxyd", program_path),
			"--name",
			r->box.name,
			"--log-level",
			"info",
			"--log-sessions",
			"yes",
			NULL};
	struct spawn how = {.argv = argv,
			    .cgroup = r->box.proxy,
			    .notify = address,
			    .mask = &r->old_mask,
			    .stderr_fd = -1,
			    .detached = 1,
			    .dies_with_us = 1};
	int err;

	if (r->settings->log) {
		r->log = open(r->settings->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (r->log < 0)
			return fail(f, -errno, "cannot write the log %s: %m", r->settings->log);
		how.stderr_fd = r->log;
	} else if (r->settings->quiet) {
		argv[4] = "warning";
		argv[6] = "no";
	}
	r->notify = notify_listen(address, f);
	if (r->notify < 0)
		return r->notify;
	err = child_start(&how, &r->proxy, f);
	return err ? err : proxy_wait_ready(r, f);
}

static void proxy_report_death(struct run *r)
{
	int code = child_wait(&r->proxy);

	r->proxy_died = true;
	log_error("tproxyd ended with code %d while %s runs: its connections are cut, new ones %s",
		  code, r->argv[0],
		  r->settings->policy ? "are refused" : "go direct, without the proxy");
}

/* Until the command has ended. Returns its exit code. */
static int command_watch(struct run *r)
{
	struct pollfd fds[] = {{.fd = r->command.pidfd, .events = POLLIN},
			       {.fd = r->caller.signals, .events = POLLIN},
			       {.fd = r->proxy.pidfd, .events = POLLIN}};
	int signal, typed;

	for (;;) {
		if (poll(fds, ARRAY_SIZE(fds), -1) < 0)
			continue;
		while ((signal = signal_next(r, &typed)))
			if (!typed)
				kill(r->command.pid, signal);
		if (fds[2].revents) {
			proxy_report_death(r);
			fds[2] = (struct pollfd){.fd = -1};
		}
		if (fds[0].revents)
			return child_wait(&r->command);
	}
}

/* What the command left running would lose its proxy: it ends as well, asked first. */
static void background_end(struct run *r)
{
	unsigned int count = cgroup_signal(r->box.command, SIGTERM);
	struct failure f;

	if (!count)
		return;
	if (!r->caller.quiet)
		log_notice("%s left %u process%s running: ended, as the proxy goes", r->argv[0],
			   count, count == 1 ? "" : "es");
	if (cgroup_wait_empty(r->box.command, BACKGROUND_TIMEOUT_MS) &&
	    cgroup_kill(r->box.command, &f))
		log_error("%s", f.text);
}

/* It drains; whoever does not want to wait for that sends us a signal. */
static void proxy_stop(struct run *r)
{
	struct pollfd fds[] = {{.fd = r->proxy.pidfd, .events = POLLIN},
			       {.fd = r->caller.signals, .events = POLLIN}};
	int typed;

	if (!r->proxy.pid)
		return;
	kill(r->proxy.pid, r->ready ? SIGTERM : SIGKILL);
	for (;;) {
		int n = poll(fds, ARRAY_SIZE(fds), STOP_TIMEOUT_MS);

		if (n > 0 && fds[0].revents)
			break;
		if (n < 0 || (n > 0 && !signal_next(r, &typed)))
			continue;
		log_notice(n ? "not waiting for the open connections any longer"
			     : "tproxyd does not end: killing it");
		kill(r->proxy.pid, SIGKILL);
	}
	child_wait(&r->proxy);
}

static int counters_read(const struct run *r, __u64 ret_values[COUNTER_COUNT], struct failure *f)
{
	struct instance inst _cleanup_(instance_close) = INSTANCE_INIT;
	int err = instance_open(r->box.name, 1U << PIN_MAP_stats, &inst, f);

	return err ? err : instance_stats(&inst, ret_values, f);
}

static json_t *describe_end(const struct run *r, int code)
{
	json_t *tree = tree_object(), *argv = tree_array(), *all = tree_object();
	__u64 values[COUNTER_COUNT];
	struct failure ignored;

	for (char *const *arg = r->argv; *arg; arg++)
		tree_add(argv, tree_string(*arg));
	tree_set(tree, "command", argv);
	tree_set(tree, "instance", tree_string(r->box.name));
	tree_set(tree, "port", tree_number(r->port));
	tree_set(tree, "exit_code", tree_number(code));
	tree_set(tree, "proxy_died", tree_bool(r->proxy_died));
	if (!counters_read(r, values, &ignored))
		for (size_t i = 0; i < COUNTER_COUNT; i++)
			tree_set(all, counters[i].name, tree_number(values[i] - r->before[i]));
	tree_set(tree, "counters", all);
	return tree;
}

static void report_end(const struct run *r, const json_t *tree)
{
	const json_t *all = json_object_get(tree, "counters");

	if (r->settings->common.json) {
		tree_print(tree, stderr, JSON_COMPACT);
		return;
	}
	if (r->caller.quiet)
		return;
	log_notice("%s ended with code %" PRIu64 "; connections: %" PRIu64
		   " through the proxy, %" PRIu64 " direct, %" PRIu64 " refused",
		   r->argv[0], tree_value(tree, "exit_code"), tree_value(all, "redirected"),
		   tree_value(all, "passed_by_policy"), tree_value(all, "refused_by_policy"));
}

/* Everything up to a serving proxy. */
static int set_up(struct run *r, struct failure *f)
{
	int err;

	if (geteuid())
		return fail(f, -EPERM,
			    "loading hooks and making cgroups needs root; run it with sudo");
	err = signals_take(r, f);
	if (err)
		return err;
	sandbox_each_stale(sweep, r);
	err = signals_check(r, f);
	if (err)
		return err;
	err = r->settings->port ? (r->port = r->settings->port, 0) : port_pick(&r->port, f);
	if (!err)
		err = sandbox_create(&r->box, f);
	if (!err)
		err = load(r, f);
	if (!err)
		err = signals_check(r, f);
	if (!err)
		err = proxy_start(r, f);
	return err ? err : counters_read(r, r->before, f);
}

static int run_command(struct run *r)
{
	struct spawn how = {.argv = r->argv,
			    .cgroup = r->box.command,
			    .mask = &r->old_mask,
			    .stderr_fd = -1,
			    .dies_with_us = 1};
	json_t *tree _cleanup_tree_ = NULL;
	int code = EXIT_RUN, typed, err;
	struct failure f;

	err = set_up(r, &f);
	if (!err)
		err = child_start(&how, &r->command, &f);
	if (err) {
		log_error("%s", f.text);
		if (r->stopped_by)
			code = 128 + r->stopped_by;
	} else {
		code = command_watch(r);
		background_end(r);
	}
	proxy_stop(r);
	if (!err) {
		tree = describe_end(r, code);
		report_end(r, tree);
	}
	while (signal_next(r, &typed)) /* those were for what has ended by now */
		;
	if (sandbox_destroy(&r->box, &r->caller, &f))
		log_error("%s", f.text);
	return code;
}

int cmd_run(int argc, char **argv)
{
	struct run_settings settings = {0};
	struct run r = {.settings = &settings,
			.box = SANDBOX_INIT,
			.proxy = CHILD_INIT,
			.command = CHILD_INIT,
			.caller = {.signals = -1},
			.notify = -1,
			.log = -1};
	int next, code = 0, err;

	err = command_parse(&program, argc, argv, &settings, &next);
	if (err < 0) {
		code = EXIT_RUN;
	} else if (err == OPTS_RUN && next == argc) {
		log_error("which command? For example: tproxy run -- curl http://example.com/");
		code = EXIT_RUN;
	} else if (err == OPTS_RUN) {
		r.argv = argv + next;
		code = run_command(&r);
	}
	fd_close(r.caller.signals);
	fd_close(r.notify);
	fd_close(r.log);
	command_free(&program, &settings);
	return code;
}
