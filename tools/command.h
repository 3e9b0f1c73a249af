/* SPDX-License-Identifier: BSD-2-Clause */
/* The subcommands of tproxy: one file each, listed in main.c. */
#ifndef TPROXY_COMMAND_H
#define TPROXY_COMMAND_H

#include <stdbool.h>

#include "lib/opts.h"

/* argv[0] is the subcommand's name. Return the exit code. */
int cmd_status(int argc, char **argv);
int cmd_conns(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_doctor(int argc, char **argv);

enum {
	EXIT_WRONG = 1, /* what was asked for is not there, or something is wrong with it */
	EXIT_USAGE = 2, /* the command line is not understood */
};

/*
 * First members of every subcommand's settings. Unlike the other programs' --name, ours may be left
 * out to mean every instance, hence a field of its own beside the common one.
 */
struct command_settings {
	struct opt_common common;
	char *instance; /* NULL: all */
	bool json;
};

#define OPT_INSTANCE                                                              \
	{                                                                         \
		.name = "name", .letter = 'n', .type = OPT_STRING, .arg = "NAME", \
		.offset = offsetof(struct command_settings, instance),            \
		.help = "only this instance (default: all)"                       \
	}

#define OPT_JSON                                                                        \
	{                                                                               \
		.name = "json", .letter = 'j', .type = OPT_FLAG,                        \
		.offset = offsetof(struct command_settings, json), .help = "print JSON" \
	}

/*
 * opts_parse() with the failure logged. OPTS_RUN, OPTS_DONE, or -errno. *ret_next is the first
 * argument that is no option; with ret_next NULL there must be none.
 */
int command_parse(const struct opt_program *prog, int argc, char **argv, void *settings,
		  int *ret_next);
void command_free(const struct opt_program *prog, void *settings);

#endif
