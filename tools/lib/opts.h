/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Options as data: one table a program makes its command line, its section of the configuration
 * file and its --help. A key of the file is the long option's name.
 */
#ifndef TPROXY_OPTS_H
#define TPROXY_OPTS_H

#include <stddef.h>
#include <stdint.h>

#include "../../bpf/abi.h"
#include "failure.h"

enum opt_type {
	OPT_FLAG,   /* bool; in the file: yes, no, on, off, true, false, 1, 0 */
	OPT_STRING, /* char *, owned by the settings */
	OPT_LIST,   /* struct opt_list; given several times; the command line replaces the file's */
	OPT_UINT,   /* uint64_t between min and max */
	OPT_DURATION, /* uint64_t milliseconds between min and max: 500ms, 5s, 2m, 1h; plain:
			 seconds */
	OPT_CHOICE,   /* int: index into choices */
	OPT_SHARE,    /* uint64_t: a number as with OPT_UINT, or of 1% to 100%: OPT_PERCENT | n */
};

#define OPT_PERCENT (1ULL << 63)

struct opt_list {
	char **items;
	size_t count;
};

struct opt {
	const char *name;
	char letter; /* 0: none */
	enum opt_type type;
	size_t offset;	  /* of the value in the program's settings */
	const char *arg;  /* what --help calls the argument */
	const char *help; /* one line, with the default in it */
	uint64_t min, max;
	const char *const *choices; /* NULL-terminated */
	int command_line_only;
	int no_file; /* where it is given the file is not read: nothing of it is needed */
};

struct opt_program {
	const char *name;
	const char *usage;   /* after the name in "Usage:" */
	const char *about;   /* a paragraph */
	const char *section; /* of the configuration file; NULL: the program reads none */
	const struct opt
		*opts;	      /* ends with a NULL name; its settings begin with struct opt_common */
	const char *epilogue; /* exit codes, examples */
};

/* What every program has, and what decides which file is read. First member of the settings. */
struct opt_common {
	char *name;   /* instance */
	char *config; /* file; NULL: /etc/tproxy/NAME.conf if there is one */
	int no_file;  /* an option that needs none was given */
};

#define OPT_COMMON                                                                               \
	{.name = "name",                                                                         \
	 .letter = 'n',                                                                          \
	 .type = OPT_STRING,                                                                     \
	 .arg = "NAME",                                                                          \
	 .offset = offsetof(struct opt_common, name),                                            \
	 .help = "instance to work on (default: tproxy)",                                        \
	 .command_line_only = 1},                                                                \
	{                                                                                        \
		.name = "config", .letter = 'c', .type = OPT_STRING, .arg = "FILE",              \
		.offset = offsetof(struct opt_common, config),                                   \
		.help = "read settings from FILE (default: /etc/tproxy/NAME.conf if it exists)", \
		.command_line_only = 1                                                           \
	}

/* opts_parse() results beside -errno (the failure then says why). */
enum { OPTS_RUN = 0, OPTS_DONE = 1 /* --help or --version was answered */ };

/*
 * Fills `settings` (preset with defaults) from the file, then from the command line.
 * *ret_next is the index of the first argument that is no option; parsing stops there.
 */
int opts_parse(const struct opt_program *prog, int argc, char **argv, void *settings, int *ret_next,
	       struct failure *f);

/* The file that is read where none is named; a missing one is no error. */
#define CONFIG_PATH_MAX (sizeof("/etc/tproxy/.conf") + TP_NAME_LEN)
const char *opts_config_path(const char *name, char buf[CONFIG_PATH_MAX]);

/* Sets one value from text. Exported for tests and fuzzers. */
int opt_set(const struct opt *opt, void *settings, const char *text, struct failure *f);

/* Frees what the table's strings and lists hold. */
void opts_free(const struct opt_program *prog, void *settings);

void opts_usage(const struct opt_program *prog, FILE *out);

#endif
