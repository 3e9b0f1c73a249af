// SPDX-License-Identifier: BSD-2-Clause
/*
 * tproxy conns: the records of live connections, each with what the kernel says of the client's
 * socket. Records are found by the socket cookie, which is unique over all network namespaces; the
 * namespaces to look into are those of the processes that made the records.
 */
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "lib/endpoint.h"
#include "lib/instance.h"
#include "lib/log.h"
#include "lib/sockdiag.h"
#include "mapread.h"
#include "process.h"
#include "tree.h"

struct conns_settings {
	struct command_settings common;
	uint64_t pid;
	char *dst;
};

static const struct opt options[] = {
	OPT_INSTANCE,
	OPT_JSON,
	{.name = "pid",
	 .letter = 'p',
	 .type = OPT_UINT,
	 .arg = "PID",
	 .min = 1,
	 .max = INT32_MAX,
	 .offset = offsetof(struct conns_settings, pid),
	 .help = "only connections of this process (default: all)"},
	{.name = "dst",
	 .letter = 'd',
	 .type = OPT_STRING,
	 .arg = "TEXT",
	 .offset = offsetof(struct conns_settings, dst),
	 .help = "only destinations that contain TEXT, as printed (default: all)"},
	{0},
};

static const struct opt_program program = {
	.name = "tproxy conns",
	.usage = "[OPTION]...",
	.about = "Shows each connection that the hooks sent to a proxy and that is still open:\n"
		 "the process, where it really wanted to go, since when, bytes each way as the\n"
		 "client's socket has them, and the state of that socket.",
	.opts = options,
	.epilogue = "Exit codes: 0 shown, 1 the instance is not there or cannot be read, 2 usage.",
};

/* The sockets of one network namespace. */
struct namespace
{
	uint64_t id;
	struct sockdiag_socket *sockets;
	size_t count;
};

struct namespaces {
	struct namespace *all;
	size_t count;
};

static void namespaces_free(struct namespaces *ns)
{
	for (size_t i = 0; i < ns->count; i++)
		free(ns->all[i].sockets);
	free(ns->all);
}

/* Adds the namespace of a process (0: our own) if it is a new one. It may be gone or closed to us:
 * the connections are then shown without a state. */
static void namespaces_add(struct namespaces *ns, pid_t pid)
{
	struct sockdiag_query query = {.netns_of = pid};
	struct namespace one = {.id = process_netns(pid)};
	struct namespace *more;
	struct failure ignored;

	for (size_t i = 0; i < ns->count; i++)
		if (ns->all[i].id == one.id)
			return;
	if (!one.id || sockdiag_tcp(&query, &one.sockets, &one.count, &ignored))
		return;
	more = reallocarray(ns->all, ns->count + 1, sizeof(*more));
	if (!more) {
		free(one.sockets);
		return;
	}
	ns->all = more;
	more[ns->count++] = one;
}

static const struct sockdiag_socket *namespaces_find(const struct namespaces *ns, uint64_t cookie)
{
	for (size_t i = 0; i < ns->count; i++) {
		const struct sockdiag_socket *s = sockdiag_find(ns->all[i].sockets,
								ns->all[i].count, cookie);

		if (s)
			return s;
	}
	return NULL;
}

static json_t *describe_endpoint(const struct tp_endpoint *ep)
{
	char text[ENDPOINT_STRLEN];

	return ep->family ? tree_string(endpoint_format(ep, text)) : tree_null();
}

static uint64_t age_ms(uint64_t start_ns)
{
	struct timespec now;
	uint64_t ns;

	clock_gettime(CLOCK_BOOTTIME, &now);
	ns = (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
	return ns > start_ns ? (ns - start_ns) / 1000000 : 0;
}

static json_t *describe_connection(const char *instance, const struct tp_record *rec,
				   const struct sockdiag_socket *s)
{
	char comm[TP_COMM_LEN + 1];
	json_t *conn = tree_object();

	snprintf(comm, sizeof(comm), "%.*s", TP_COMM_LEN, rec->comm);
	tree_set(conn, "instance", tree_string(instance));
	tree_set(conn, "cookie", tree_number(rec->cookie));
	tree_set(conn, "pid", tree_number(rec->pid));
	tree_set(conn, "comm", tree_string(comm));
	tree_set(conn, "uid", tree_number(rec->uid));
	tree_set(conn, "gid", tree_number(rec->gid));
	tree_set(conn, "src", describe_endpoint(&rec->src));
	tree_set(conn, "local", describe_endpoint(&rec->local)); /* the source the server sees */
	tree_set(conn, "dst", describe_endpoint(&rec->dst));
	tree_set(conn, "netns", tree_number(rec->netns));
	tree_set(conn, "cgroup", tree_number(rec->cgroup_id));
	tree_set(conn, "age_ms", tree_number(age_ms(rec->start_ns)));
	tree_set(conn, "up", s ? tree_number(s->sent) : tree_null());
	tree_set(conn, "down", s ? tree_number(s->received) : tree_null());
	tree_set(conn, "state", s ? tree_string(sockdiag_state(s->state)) : tree_null());
	return conn;
}

struct query {
	const struct conns_settings *settings;
	json_t *conns, *errors;
};

static int wanted(const struct conns_settings *settings, const struct tp_record *rec)
{
	char dst[ENDPOINT_STRLEN];

	if (rec->reached & TP_REACHED_CLOSED)
		return 0;
	if (settings->pid && rec->pid != settings->pid)
		return 0;
	return !settings->dst || strstr(endpoint_format(&rec->dst, dst), settings->dst);
}

static int by_start(const void *a, const void *b)
{
	uint64_t x = ((const struct tp_record *)a)->start_ns;
	uint64_t y = ((const struct tp_record *)b)->start_ns;

	return (x > y) - (x < y);
}

static int read_instance(const char *name, struct query *q, struct failure *f)
{
	struct instance inst _cleanup_(instance_close) = INSTANCE_INIT;
	struct map_contents c _cleanup_(map_contents_free) = {};
	struct namespaces ns _cleanup_(namespaces_free) = {};
	struct tp_record *records;
	size_t count = 0;
	int err;

	err = instance_open(name, 1U << PIN_MAP_socks, &inst, f);
	if (!err)
		err = mapread(&inst, PIN_MAP_socks, &c, f);
	if (err)
		return err;
	records = c.values;
	for (size_t i = 0; i < c.count; i++)
		if (wanted(q->settings, &records[i]))
			records[count++] = records[i];
	if (!count)
		return 0;
	qsort(records, count, sizeof(*records), by_start);
	namespaces_add(&ns, 0);
	for (size_t i = 0; i < count; i++)
		namespaces_add(&ns, records[i].pid);
	for (size_t i = 0; i < count; i++)
		tree_add(q->conns, describe_connection(name, &records[i],
						       namespaces_find(&ns, records[i].cookie)));
	return 0;
}

static int each_instance(const char *name, void *user)
{
	struct query *q = user;
	struct failure f;

	if (read_instance(name, q, &f))
		tree_add(q->errors, tree_string(f.text));
	return 0;
}

/* 950ms, 12.3s, 5m07s, 3h05m */
static const char *age_format(uint64_t ms, char buf[32])
{
	uint64_t s = ms / 1000;

	if (s < 1)
		snprintf(buf, 32, "%" PRIu64 "ms", ms);
	else if (s < 60)
		snprintf(buf, 32, "%" PRIu64 ".%" PRIu64 "s", s, ms % 1000 / 100);
	else if (s < 3600)
		snprintf(buf, 32, "%" PRIu64 "m%02" PRIu64 "s", s / 60, s % 60);
	else
		snprintf(buf, 32, "%" PRIu64 "h%02" PRIu64 "m", s / 3600, s / 60 % 60);
	return buf;
}

static const char *number_format(const json_t *conn, const char *key, char buf[32])
{
	if (json_is_null(json_object_get(conn, key)))
		return "-";
	snprintf(buf, 32, "%" PRIu64, tree_value(conn, key));
	return buf;
}

static const char *text_or_dash(const json_t *conn, const char *key)
{
	const char *text = tree_text(conn, key);

	return *text ? text : "-";
}

static void print_text(const json_t *tree)
{
	json_t *conns = json_object_get(tree, "connections"), *conn, *error;
	char age[32], up[32], down[32], who[96];
	size_t i;

	json_array_foreach (json_object_get(tree, "errors"), i, error)
		log_error("%s", json_string_value(error));
	if (!json_array_size(conns))
		return;
	printf("%-24s %6s  %-24s %-24s %8s %12s %12s  %-11s %s\n", "PROCESS", "UID", "SOURCE",
	       "DESTINATION", "AGE", "UP", "DOWN", "STATE", "COOKIE");
	json_array_foreach (conns, i, conn) {
		snprintf(who, sizeof(who), "%" PRIu64 "/%s", tree_value(conn, "pid"),
			 tree_text(conn, "comm"));
		printf("%-24s %6" PRIu64 "  %-24s %-24s %8s %12s %12s  %-11s %" PRIu64 "\n", who,
		       tree_value(conn, "uid"), text_or_dash(conn, "src"),
		       text_or_dash(conn, "dst"), age_format(tree_value(conn, "age_ms"), age),
		       number_format(conn, "up", up), number_format(conn, "down", down),
		       text_or_dash(conn, "state"), tree_value(conn, "cookie"));
	}
}

int cmd_conns(int argc, char **argv)
{
	struct conns_settings settings = {0};
	json_t *tree _cleanup_tree_ = tree_object();
	struct query q = {&settings, tree_array(), tree_array()};
	int code = 0, r;

	tree_set(tree, "connections", q.conns);
	tree_set(tree, "errors", q.errors);
	r = command_parse(&program, argc, argv, &settings, NULL);
	if (r == OPTS_RUN) {
		if (settings.common.instance)
			each_instance(settings.common.instance, &q);
		else
			instance_each(each_instance, &q);
		if (tree_show(tree, settings.common.json, print_text) || json_array_size(q.errors))
			code = EXIT_WRONG;
	} else if (r < 0) {
		code = EXIT_USAGE;
	}
	command_free(&program, &settings);
	return code;
}
