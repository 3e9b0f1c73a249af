// SPDX-License-Identifier: BSD-2-Clause
/* tproxyd: reads its settings, opens an instance's pins, listens; the rest is the master's and its
 * worker's. */
#include <stddef.h>
#include <string.h>
#include <sys/resource.h>

#include "hold.h"
#include "binary.h"
#include "listener.h"
#include "log.h"
#include "master.h"
#include "opts.h"
#include "privilege.h"
#include "recover.h"
#include "stats.h"
#include "takeover.h"
#include "worker.h"

enum { EXIT_OK, EXIT_FAILED, EXIT_USAGE };

static const char *const log_levels[] = {"err", "warning", "notice", "info", "debug", NULL};

static const struct opt options[] = {
	OPT_COMMON,
	{.name = "connect-timeout",
	 .type = OPT_DURATION,
	 .arg = "TIME",
	 .offset = offsetof(struct settings, connect_timeout),
	 .min = 1,
	 .max = 3600000,
	 .help = "give an upstream up to TIME (default: 5s; held clients: as long as they wait)"},
	{.name = "drain-timeout",
	 .type = OPT_DURATION,
	 .arg = "TIME",
	 .offset = offsetof(struct settings, drain_timeout),
	 .min = 0,
	 .max = 86400000,
	 .help = "on SIGTERM let sessions go on for up to TIME (default: 30s)"},
	{.name = "grace",
	 .type = OPT_DURATION,
	 .arg = "TIME",
	 .offset = offsetof(struct settings, grace),
	 .min = 100,
	 .max = 3600000,
	 .help = "after TIME without a worker the failure policy applies (default: 10s)"},
	{.name = "max-sessions",
	 .type = OPT_UINT,
	 .arg = "N",
	 .offset = offsetof(struct settings, max_sessions),
	 .min = 1,
	 .max = TABLE_MAX_SLOTS,
	 .help = "sessions at once; more wait in the backlog (default: 65536)"},
	{.name = "max-sessions-per-uid",
	 .type = OPT_SHARE,
	 .arg = "N|N%",
	 .offset = offsetof(struct settings, uid_share),
	 .min = 1,
	 .max = TABLE_MAX_SLOTS,
	 .help = "of them of one user; more of its clients wait (default: 90%)"},
	{.name = "max-sessions-per-cgroup",
	 .type = OPT_SHARE,
	 .arg = "N|N%",
	 .offset = offsetof(struct settings, cgroup_share),
	 .min = 1,
	 .max = TABLE_MAX_SLOTS,
	 .help = "of them of one cgroup; more of its clients wait (default: 90%)"},
	{.name = "idle-timeout",
	 .type = OPT_DURATION,
	 .arg = "TIME",
	 .offset = offsetof(struct settings, idle_timeout),
	 .min = 0,
	 .max = 604800000,
	 .help = "reset a session that relays nothing for TIME (default: 0, never)"},
	{.name = "half-closed-timeout",
	 .type = OPT_DURATION,
	 .arg = "TIME",
	 .offset = offsetof(struct settings, half_closed_timeout),
	 .min = 0,
	 .max = 604800000,
	 .help = "the same of one that has one direction left (default: 0, never)"},
	{.name = "keepalive",
	 .type = OPT_DURATION,
	 .arg = "TIME",
	 .offset = offsetof(struct settings, keepalive),
	 .min = 0,
	 .max = 32767000,
	 .help = "ask a server that is silent for TIME if it is there (default: 0, never)"},
	{.name = "hold",
	 .type = OPT_CHOICE,
	 .arg = "on|off",
	 .choices = (const char *const[]){"off", "on", NULL},
	 .offset = offsetof(struct settings, hold),
	 .help = "a client's connect() waits for its upstream and gets its errno (default: on)"},
	{.name = "native-retry",
	 .type = OPT_DURATION,
	 .arg = "TIME",
	 .offset = offsetof(struct settings, native_retry),
	 .min = 0,
	 .max = 60000,
	 .help = "without hold, leave a failed destination alone for TIME (default: 3s; 0: never)"},
	{.name = "log-level",
	 .letter = 'l',
	 .type = OPT_CHOICE,
	 .arg = "LEVEL",
	 .choices = log_levels,
	 .offset = offsetof(struct settings, log_level),
	 .help = "err, warning, notice, info or debug (default: info)"},
	{.name = "log-sessions",
	 .type = OPT_CHOICE,
	 .arg = "yes|no",
	 .choices = (const char *const[]){"no", "yes", NULL},
	 .offset = offsetof(struct settings, log_sessions),
	 .help = "one line a session, when it ends (default: yes)"},
	{.name = "part",
	 .type = OPT_STRING,
	 .arg = "K/N",
	 .offset = offsetof(struct settings, part),
	 .help = "serve the K-th of N parts of the ports, beside N - 1 others (default: 1/1)",
	 .command_line_only = 1},
	{.name = "check",
	 .type = OPT_FLAG,
	 .offset = offsetof(struct settings, check),
	 .help = "say whether settings and hooks allow to serve, and end",
	 .command_line_only = 1},
	{.name = "takeover",
	 .type = OPT_FLAG,
	 .offset = offsetof(struct settings, takeover),
	 .help = "go on in place of the tproxyd that serves the instance, if one does",
	 .command_line_only = 1},
	{0},
};

const struct opt_program program = {
	.name = "tproxyd",
	.usage = "[OPTION]...",
	.about = "Serves the connections that the hooks of an instance redirect: connects to where "
		 "each was\n"
		 "going and relays. The hooks must be loaded (tproxy-load) and cover this process.",
	.section = "proxy",
	.opts = options,
	.epilogue = "SIGTERM and SIGINT stop accepting and let open sessions end; a second one "
		    "ends them.\n"
		    "SIGHUP reads the settings anew, and the program, where another is in its "
		    "place;\n"
		    "sessions go on.\n"
		    "Exit status: 0 stopped as told, 1 could not start or go on, 2 wrong usage or "
		    "settings.",
};

/* As many descriptors as we may have: a session takes two, a blocked direction two more. */
static uint64_t raise_fd_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return 1024;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) && getrlimit(RLIMIT_NOFILE, &limit))
		return 1024;
	return limit.rlim_cur;
}

#define WANTED_MAPS                                                            \
	(1U << PIN_MAP_listeners | 1U << PIN_MAP_doors | 1U << PIN_MAP_rings | \
	 1U << PIN_MAP_routes | 1U << PIN_MAP_failed | 1U << PIN_MAP_proxies)

static int open_instance(struct proxy *p, struct failure *f)
{
	return instance_open(p->settings.common.name, WANTED_MAPS, &p->instance, f);
}

/* What the binary that runs now wants to know before it becomes us. */
static int check(struct proxy *p, struct failure *f)
{
	const char *theirs = getenv(BINARY_ENV_LAYOUT);
	char ours[SHARED_LAYOUT_LEN];
	int err;

	if (theirs && strcmp(theirs, shared_layout(ours)))
		return fail(f, -EPROTO,
			    "%s keeps its sessions in another way than the tproxyd that runs "
			    "(%s, not %s): restart that instead",
			    program.name, ours, theirs);
	err = open_instance(p, f);
	return err || !p->settings.hold ? err : hold_try(p, f);
}

static int begin(struct proxy *p, struct failure *f)
{
	int err = open_instance(p, f);

	if (!err && p->conn >= 0 && p->settings.hold)
		err = hold_try(p, f);
	if (!err && p->conn >= 0)
		return takeover_receive(p, f) ?: open_instance(p, f);
	if (!err)
		err = shared_create(p->fd_limit, &p->shared, f);
	return err ? err : listener_open(p, f);
}

/* We were another binary a moment ago. Its books are put in order before anything is opened. */
static int go_on(struct proxy *p, int memfd, struct failure *f)
{
	struct recovery r _cleanup_(recover_free) = {0};
	int err = shared_attach(memfd, &p->shared, f);

	unsetenv(BINARY_ENV_MEMORY);
	binary_cloexec(p->fd_limit, 1);
	if (!err)
		err = recover_descriptors(p, &r, f);
	if (!err)
		err = open_instance(p, f);
	if (err)
		return err;
	p->shared->peer = fd_close(p->shared->peer);
	if (p->instance.config->port != p->shared->port ||
	    p->instance.config->ports != p->shared->ports)
		log_warning(
			"instance %s has moved from port %u (%u) to %u (%u): restart tproxyd to "
			"follow it",
			p->instance.name, p->shared->port, p->shared->ports,
			p->instance.config->port, p->instance.config->ports);
	return 0;
}

static int prepare(struct proxy *p, struct failure *f)
{
	const char *memfd = getenv(BINARY_ENV_MEMORY);
	struct shared *sh;
	int err;

	p->fd_limit = raise_fd_limit();
	err = memfd ? go_on(p, atoi(memfd), f) : begin(p, f);
	sh = p->shared;
	if (!err)
		err = p->offer ? hold_prepare(p, p->spare.raw, &p->spare.ring, f)
			       : hold_prepare(p, sh->raw, &sh->ring, f);
	if (!err)
		err = worker_books(p, f);
	return err ? err : privilege_master(f);
}

static int parse_part(struct settings *s, struct failure *f)
{
	unsigned int number = 0, count = 0;
	char exactly[32] = "";

	if (!s->part)
		return 0;
	if (sscanf(s->part, "%u/%u", &number, &count) == 2)
		snprintf(exactly, sizeof(exactly), "%u/%u", number, count);
	if (strcmp(exactly, s->part) || !number || number > count || count > TP_MAX_PORTS)
		return fail(f, -EINVAL,
			    "--part %s: it takes K/N, as 2/4 is the second of four parts, with N "
			    "at most %d",
			    s->part, TP_MAX_PORTS);
	s->part_index = number - 1;
	s->parts = count;
	return 0;
}

static int parse(int argc, char **argv, struct proxy *p, struct failure *f)
{
	int next, err;

	err = opts_parse(&program, argc, argv, &p->settings, &next, f);
	if (!err && next < argc)
		err = fail(f, -EINVAL, "%s: no argument is expected; see tproxyd --help",
			   argv[next]);
	return err ?: parse_part(&p->settings, f);
}

int main(int argc, char **argv)
{
	static struct proxy p = {
		.settings = {.drain_timeout = 30000,
			     .grace = 10000,
			     .max_sessions = 65536,
			     .uid_share = OPT_PERCENT | 90,
			     .cgroup_share = OPT_PERCENT | 90,
			     .hold = 1,
			     .native_retry = 3000,
			     .log_level = 3,
			     .log_sessions = 1,
			     .parts = 1},
		.instance = INSTANCE_INIT,
		.signals = -1,
		.notify = -1,
		.stats = &stats_nowhere,
		.headroom = HEADROOM_INIT,
		.conn = -1,
	};
	struct failure f = {{0}};
	int err, status;

	log_init("tproxyd");
	log_nonblocking();
	err = parse(argc, argv, &p, &f);
	if (err == OPTS_DONE)
		return EXIT_OK;
	if (err) {
		log_error("%s", f.text);
		return EXIT_USAGE;
	}
	log_set_level(LOG_ERR + p.settings.log_level);
	if (p.settings.takeover && !p.settings.check && !getenv(BINARY_ENV_MEMORY))
		err = takeover_connect(&p, &f);
	if (!err)
		err = privilege_begin(&f);
	if (!err)
		err = p.settings.check ? check(&p, &f) : prepare(&p, &f);
	if (err)
		log_error("%s", f.text);
	if (err && p.offer)
		takeover_abandon(&p, f.text);
	status = err ? EXIT_FAILED : p.settings.check ? EXIT_OK : master_run(&p, argv);
	table_free(&p.table);
	instance_close(&p.instance);
	opts_free(&program, &p.settings);
	return status;
}
