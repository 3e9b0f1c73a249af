// SPDX-License-Identifier: BSD-2-Clause
/* tproxy: what the operator types. */
#include <bpf/libbpf.h>
#include <string.h>

#include "command.h"
#include "lib/instance.h"
#include "lib/log.h"
#include "version.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} commands[] = {
	{"status", cmd_status, "show the instances: hooks, proxies, counters, maps"},
	{"conns", cmd_conns, "show the connections that are going through the proxy"},
	{"run", cmd_run, "run one command with its connections going through a proxy of its own"},
	{"doctor", cmd_doctor, "look for what is wrong and say how to put it right"},
};

static void usage(FILE *out)
{
	fputs("Usage: tproxy COMMAND [OPTION]...\n\n"
	      "Look at and try the transparent proxy that tproxy-load and tproxyd make up.\n\n"
	      "Commands:\n",
	      out);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
	fputs("\nOptions:\n"
	      "  -h, --help     show this; after a command, that command's options\n"
	      "  -V, --version  show the version\n",
	      out);
}

int command_parse(const struct opt_program *prog, int argc, char **argv, void *settings,
		  int *ret_next)
{
	struct command_settings *common = settings;
	struct failure f;
	int next, err;

	err = opts_parse(prog, argc, argv, settings, &next, &f);
	if (!err && !ret_next && next < argc)
		err = fail(&f, -EINVAL, "unexpected argument '%s'; see %s --help", argv[next],
			   prog->name);
	if (!err && common->instance)
		err = instance_name_check(common->instance, &f);
	if (err < 0)
		log_error("%s", f.text);
	else if (!err && ret_next)
		*ret_next = next;
	return err;
}

void command_free(const struct opt_program *prog, void *settings)
{
	struct command_settings *common = settings;

	opts_free(prog, settings);
	free(common->common.name);
}

/* What libbpf has to say is in the errors it returns: one voice, ours. */
static int libbpf_silent(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	(void)level;
	(void)fmt;
	(void)ap;
	return 0;
}

int main(int argc, char **argv)
{
	const char *word = argc > 1 ? argv[1] : "";

	log_init("tproxy");
	libbpf_set_print(libbpf_silent);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(word, commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	if (!strcmp(word, "-V") || !strcmp(word, "--version")) {
		printf("tproxy %s\n", TPROXY_VERSION);
		return 0;
	}
	if (!strcmp(word, "-h") || !strcmp(word, "--help") || !strcmp(word, "help")) {
		usage(stdout);
		return 0;
	}
	if (*word)
		log_error("'%s' is not a command", word);
	usage(stderr);
	return EXIT_USAGE;
}
