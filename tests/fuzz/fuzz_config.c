// SPDX-License-Identifier: BSD-2-Clause
/*
 * Settings: the command line and the configuration file of the programs.
 *
 * Input: a byte that chooses the program; words of the command line, each ended by a newline, up to
 * a NUL; the file that is there for every path but one that says "missing".
 */
#include "fuzz.h"

/* The files are ours, whatever path the words name. */
static FILE *open_file(const char *path, const char *mode);

#define fopen open_file
#include "../../tools/lib/opts.c"
#undef fopen

/* tproxy run, whose table is static like those of all of its commands; the others' are smaller. */
#define program run_program
#include "../../tools/run.c"
#undef program

#define MAX_WORDS 40

extern const struct opt_program loader_program, proxy_program;

static struct input file;

static FILE *open_file(const char *path, const char *mode)
{
	insist(!strcmp(mode, "re"));
	if (strstr(path, "missing") || !file.size) {
		errno = ENOENT;
		return NULL;
	}
	return fmemopen((void *)file.data, file.size, "r");
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	stdout = fopen("/dev/null", "we"); /* for --help */
	return 0;
}

static void check_settings(const struct opt_program *prog, void *settings)
{
	for (const struct opt *o = prog->opts; o->name; o++) {
		const void *value = value_of(o, settings);
		int choices = 0;
		uint64_t number;

		switch (o->type) {
		case OPT_UINT:
		case OPT_DURATION:
			number = *(const uint64_t *)value;
			insist(!number || (number >= o->min && number <= o->max));
			break;
		case OPT_SHARE:
			number = *(const uint64_t *)value;
			if (number & OPT_PERCENT)
				insist((number & ~OPT_PERCENT) >= 1 &&
				       (number & ~OPT_PERCENT) <= 100);
			else
				insist(!number || (number >= o->min && number <= o->max));
			break;
		case OPT_CHOICE:
			while (o->choices[choices])
				choices++;
			insist(*(const int *)value >= 0 && *(const int *)value < choices);
			break;
		case OPT_LIST:
			for (size_t i = 0; i < ((const struct opt_list *)value)->count; i++)
				insist(((const struct opt_list *)value)->items[i]);
			break;
		case OPT_STRING:
		case OPT_FLAG:
			break;
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct opt_program *const programs[] = {&loader_program, &proxy_program,
							     &run_program};
	struct input in = {data, size}, line;
	const struct opt_program *prog = programs[take_byte(&in) % ARRAY_SIZE(programs)];
	char *text = take_text(&in, 0), *words[MAX_WORDS + 2] = {(char *)"program"};
	uint64_t settings[512] = {0}; /* more than any of them has, and its defaults */
	struct failure f = {{0}};
	int count = 1, next, r;

	line = (struct input){(uint8_t *)text, strlen(text)};
	while (line.size && count <= MAX_WORDS)
		words[count++] = take_text(&line, '\n');
	file = in;
	r = opts_parse(prog, count, words, settings, &next, &f);
	insist(r == OPTS_RUN || r == OPTS_DONE || (r < 0 && f.text[0]));
	if (r == OPTS_RUN) {
		insist(next >= 1 && next <= count);
		check_settings(prog, settings);
	}
	opts_free(prog, settings);
	free(((struct opt_common *)settings)->name); /* NULL where the table has it */
	for (int i = 1; words[i]; i++)		     /* getopt may have changed their order */
		free(words[i]);
	free(text);
	return 0;
}
