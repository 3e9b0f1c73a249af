// SPDX-License-Identifier: BSD-2-Clause
/* tproxyd: opens an instance's pins, registers, listens, proves that it works, serves. */
#include <stddef.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "hold.h"
#include "listener.h"
#include "log.h"
#include "loop.h"
#include "opts.h"
#include "routes.h"
#include "session.h"

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
	{.name = "max-sessions",
	 .type = OPT_UINT,
	 .arg = "N",
	 .offset = offsetof(struct settings, max_sessions),
	 .min = 1,
	 .max = TABLE_MAX_SLOTS,
	 .help = "sessions at once; more wait in the backlog (default: 65536)"},
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
	{0},
};

static const struct opt_program program = {
	.name = "tproxyd",
	.usage = "[OPTION]...",
	.about = "Serves the connections that the hooks of an instance redirect: connects to where "
		 "each was\n"
		 "going and relays. The hooks must be loaded (tproxy-load) and cover this process.",
	.section = "proxy",
	.opts = options,
	.epilogue = "SIGTERM and SIGINT stop accepting and let open sessions end; a second one "
		    "ends them.\n"
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

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Everything up to READY. Nothing is redirected to us before the listeners are marked. */
static int start(struct proxy *p, struct failure *f)
{
	int err;

	p->fd_limit = raise_fd_limit();
	p->now_ms = now_ms();
	err = instance_open(p->settings.common.name,
			    1U << PIN_MAP_listeners | 1U << PIN_MAP_doors | 1U << PIN_MAP_rings |
				    1U << PIN_MAP_routes | 1U << PIN_MAP_failed,
			    &p->instance, f);
	if (!err)
		err = table_init(&p->table, p->settings.max_sessions, f);
	if (!err)
		err = listener_open(p, f);
	if (!err)
		err = listener_register(p, f);
	if (!err)
		err = loop_init(p, f);
	if (!err)
		err = p->settings.hold ? hold_open(p, f) : 0;
	if (!err)
		err = p->settings.hold ? routes_open(p, f) : 0;
	if (!err)
		err = listener_trust(p, f);
	if (!err)
		err = listener_selftest(p, session_accepted, f);
	if (err)
		return err;
	log_notice("serving instance %s on port %u%s as pid %u", p->instance.name, p->port,
		   p->listener[LISTENER_V6] < 0 ? " (IPv4 only: there is no ::1 here)" : "",
		   p->tgid);
	sd_notify(0, "READY=1");
	return 0;
}

int main(int argc, char **argv)
{
	static struct proxy p = {
		.settings = {.drain_timeout = 30000,
			     .max_sessions = 65536,
			     .hold = 1,
			     .native_retry = 3000,
			     .log_level = 3,
			     .log_sessions = 1},
		.instance = INSTANCE_INIT,
		.table.memfd = -1,
		.epoll = -1,
		.signals = -1,
		.listener = {-1, -1},
		.raw = {-1, -1},
		.ring_fd = -1,
	};
	struct failure f = {{0}};
	int next, err;

	log_init("tproxyd");
	err = opts_parse(&program, argc, argv, &p.settings, &next, &f);
	if (err == OPTS_DONE)
		return EXIT_OK;
	if (!err && next < argc)
		err = fail(&f, -EINVAL, "%s: no argument is expected; see tproxyd --help",
			   argv[next]);
	if (err) {
		log_error("%s", f.text);
		return EXIT_USAGE;
	}
	log_set_level(LOG_ERR + p.settings.log_level);
	pipes_init(&p.pipes);
	err = start(&p, &f);
	if (!err)
		err = loop_run(&p, &f);
	if (err)
		log_error("%s", f.text);
	listener_close(&p);
	session_end_all(&p);
	routes_close(&p);
	hold_close(&p);
	pipes_free(&p.pipes);
	loop_free(&p);
	table_free(&p.table);
	instance_close(&p.instance);
	opts_free(&program, &p.settings);
	return err ? EXIT_FAILED : EXIT_OK;
}
