// SPDX-License-Identifier: BSD-2-Clause
#include "opts.h"

#include <getopt.h>
#include <ini.h>
#include <stdbool.h>
#include <string.h>

#include "../../bpf/pins.h"
#include "instance.h"
#include "version.h"

#define MAX_OPTS    40
#define HELP_COLUMN 34

static void *value_of(const struct opt *opt, void *settings)
{
	return (char *)settings + opt->offset;
}

static void list_free(struct opt_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		free(list->items[i]);
	free(list->items);
	*list = (struct opt_list){0};
}

static int list_add(struct opt_list *list, const char *text)
{
	char **items = reallocarray(list->items, list->count + 1, sizeof(*items));

	if (!items)
		return -ENOMEM;
	list->items = items;
	items[list->count] = strdup(text);
	if (!items[list->count])
		return -ENOMEM;
	list->count++;
	return 0;
}

static int parse_flag(const char *text, bool *ret)
{
	static const char *const yes[] = {"yes", "on", "true", "1"};
	static const char *const no[] = {"no", "off", "false", "0"};

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
		if (!strcmp(text, yes[i]))
			return *ret = true, 0;
		if (!strcmp(text, no[i]))
			return *ret = false, 0;
	}
	return -EINVAL;
}

/* Digits only, then one of the units; `units` pairs a suffix with its factor, ends with NULL. */
struct unit {
	const char *suffix;
	uint64_t factor;
};

static int parse_number(const char *text, const struct unit *units, uint64_t *ret)
{
	uint64_t value = 0;
	const char *p = text;

	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
			return -ERANGE;
	if (p == text)
		return -EINVAL;
	for (; units->suffix; units++)
		if (!strcmp(p, units->suffix))
			return __builtin_mul_overflow(value, units->factor, ret) ? -ERANGE : 0;
	return -EINVAL;
}

static int set_number(const struct opt *opt, uint64_t *value, const char *text, struct failure *f)
{
	static const struct unit plain[] = {{"", 1}, {NULL, 0}};
	static const struct unit times[] = {{"", 1000},	  {"ms", 1},	  {"s", 1000},
					    {"m", 60000}, {"h", 3600000}, {NULL, 0}};
	int duration = opt->type == OPT_DURATION;
	uint64_t v;
	int err;

	err = parse_number(text, duration ? times : plain, &v);
	if (err == -EINVAL)
		return fail(f, err, "%s: '%s' is not %s", opt->name, text,
			    duration ? "a duration; write for example 500ms, 5s or 2m"
				     : "a number");
	if (err || v < opt->min || v > opt->max)
		return fail(f, -ERANGE, "%s: %s is out of range; allowed are %llu to %llu%s",
			    opt->name, text, (unsigned long long)opt->min,
			    (unsigned long long)opt->max, duration ? " ms" : "");
	*value = v;
	return 0;
}

static int set_choice(const struct opt *opt, int *value, const char *text, struct failure *f)
{
	char all[128] = "";

	for (int i = 0; opt->choices[i]; i++) {
		size_t used = strlen(all);

		if (!strcmp(text, opt->choices[i])) {
			*value = i;
			return 0;
		}
		snprintf(all + used, sizeof(all) - used, "%s%s", used ? ", " : "", opt->choices[i]);
	}
	return fail(f, -EINVAL, "%s: '%s' is not known; allowed are: %s", opt->name, text, all);
}

static int set_share(const struct opt *opt, uint64_t *value, const char *text, struct failure *f)
{
	static const struct unit percent[] = {{"%", 1}, {NULL, 0}};
	uint64_t v;

	if (parse_number(text, percent, &v))
		return set_number(opt, value, text, f);
	if (v < 1 || v > 100)
		return fail(f, -ERANGE, "%s: %s is out of range; allowed are 1%% to 100%%",
			    opt->name, text);
	*value = OPT_PERCENT | v;
	return 0;
}

int opt_set(const struct opt *opt, void *settings, const char *text, struct failure *f)
{
	void *value = value_of(opt, settings);
	char *copy;

	switch (opt->type) {
	case OPT_FLAG:
		if (parse_flag(text, value))
			return fail(f, -EINVAL, "%s: '%s' is neither yes nor no", opt->name, text);
		return 0;
	case OPT_STRING:
		copy = strdup(text);
		if (!copy)
			return fail(f, -ENOMEM, "out of memory");
		free(*(char **)value);
		*(char **)value = copy;
		return 0;
	case OPT_LIST:
		/* Often a shell variable that is not set: nobody asked for the default. */
		if (!*text)
			return fail(f, -EINVAL,
				    "%s: empty; give a %s, or leave it out for the default",
				    opt->name, opt->arg);
		return list_add(value, text) ? fail(f, -ENOMEM, "out of memory") : 0;
	case OPT_UINT:
	case OPT_DURATION:
		return set_number(opt, value, text, f);
	case OPT_SHARE:
		return set_share(opt, value, text, f);
	case OPT_CHOICE:
		return set_choice(opt, value, text, f);
	}
	return -EINVAL;
}

struct file_state {
	const struct opt_program *prog;
	void *settings;
	FILE *file;
	struct failure *f;
	int line; /* the last one that was read */
	int err;
};

/* Sections of the other programs are theirs to check. */
static int known_section(const char *section)
{
	return !strcmp(section, "loader") || !strcmp(section, "proxy");
}

static int file_entry(void *user, const char *section, const char *key, const char *value)
{
	struct file_state *st = user;
	const struct opt *opt;

	if (strcmp(section, st->prog->section)) {
		if (known_section(section))
			return 1;
		st->err = fail(st->f, -EINVAL,
			       "%s: no such section [%s]; there are [loader] and [proxy]", key,
			       section);
		return 0;
	}
	for (opt = st->prog->opts; opt->name; opt++)
		if (!strcmp(opt->name, key) && !opt->command_line_only) {
			st->err = opt_set(opt, st->settings, value, st->f);
			return !st->err;
		}
	st->err = fail(st->f, -EINVAL, "%s: no such key in [%s]; see %s --help", key, section,
		       st->prog->name);
	return 0;
}

/*
 * In the place of fgets(), of which inih cannot tell a file that cannot be read from one that has
 * ended, nor the rest of a long line from another line.
 */
static char *read_line(char *buf, int size, void *user)
{
	struct file_state *st = user;
	char *text _cleanup_free_ = NULL;
	size_t allocated = 0;
	ssize_t len;

	if (st->err)
		return NULL;
	st->line++;
	len = getline(&text, &allocated, st->file);
	if (len < 0) {
		if (!feof(st->file))
			st->err = fail(st->f, -errno, "cannot be read: %m");
		return NULL;
	}
	if (strlen(text) < (size_t)len)
		st->err = fail(st->f, -EINVAL, "no text, it has a NUL byte; write it anew");
	else if (len - (text[len - 1] == '\n') > size - 2) /* its end has to fit in, too */
		st->err = fail(st->f, -EINVAL,
			       "longer than %d bytes; shorten it, or say it on the command line",
			       size - 2);
	return st->err ? NULL : memcpy(buf, text, len + 1);
}

const char *opts_config_path(const char *name, char buf[CONFIG_PATH_MAX])
{
	snprintf(buf, CONFIG_PATH_MAX, "/etc/tproxy/%s.conf", name);
	return buf;
}

static int read_file(const struct opt_program *prog, void *settings, struct failure *f)
{
	struct opt_common *common = settings;
	struct failure why = {{0}};
	struct file_state st = {.prog = prog, .settings = settings, .f = &why};
	char usual[CONFIG_PATH_MAX];
	const char *path = common->config ?: opts_config_path(common->name, usual);
	FILE *file _cleanup_file_ = NULL;
	int line;

	file = fopen(path, "re");
	if (!file) {
		if (!common->config && errno == ENOENT)
			return 0;
		return fail(f, -errno, "cannot read %s: %m", path);
	}
	st.file = file;
	line = ini_parse_stream(read_line, &st, file_entry, &st);
	if (st.err)
		return fail(f, st.err, "%s, line %d: %s", path, st.line, why.text);
	if (line)
		return fail(f, -EINVAL, "%s, line %d: neither [section], key = value nor a comment",
			    path, line > 0 ? line : 0);
	return 0;
}

/* getopt_long's tables; val is 256 + index so that letters and long names meet. */
static void build_getopt(const struct opt_program *prog, struct option *longs, char *shorts)
{
	size_t n = 0;

	*shorts++ = '+';
	*shorts++ = ':';
	for (const struct opt *o = prog->opts; o->name; o++, n++) {
		int has_arg = o->type != OPT_FLAG;

		longs[n] = (struct option){o->name, has_arg, NULL, 256 + (int)n};
		if (o->letter) {
			*shorts++ = o->letter;
			if (has_arg)
				*shorts++ = ':';
		}
	}
	longs[n++] = (struct option){"help", 0, NULL, 'h'};
	longs[n++] = (struct option){"version", 0, NULL, 'V'};
	longs[n] = (struct option){0};
	*shorts++ = 'h';
	*shorts++ = 'V';
	*shorts = 0;
}

static const struct opt *opt_by_getopt(const struct opt_program *prog, int c)
{
	if (c >= 256)
		return &prog->opts[c - 256];
	for (const struct opt *o = prog->opts; o->name; o++)
		if (o->letter == c)
			return o;
	return NULL;
}

/* One walk over the command line: first for what decides on the file, then for the rest over it. */
static int walk(const struct opt_program *prog, int argc, char **argv, void *settings, int common,
		int *ret_next, struct failure *f)
{
	struct opt_common *first = settings;
	struct option longs[MAX_OPTS + 3];
	char shorts[2 * MAX_OPTS + 8];
	bool listed[MAX_OPTS] = {false};
	int c, err;

	build_getopt(prog, longs, shorts);
	optind = 0;
	opterr = 0;
	/* optind stays at a word until its last letter is reached. */
	for (int word = 1; (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;
	     word = optind) {
		const struct opt *opt;

		if (c == 'h' || c == 'V') {
			if (c == 'h')
				opts_usage(prog, stdout);
			else
				printf("%s %s\n", prog->name, TPROXY_VERSION);
			return OPTS_DONE;
		}
		if (c == '?' || c == ':')
			return fail(f, -EINVAL, "%s: %s; see %s --help", argv[word],
				    c == ':' ? "needs a value"
					     : "no such option, or it takes no value",
				    prog->name);
		opt = opt_by_getopt(prog, c);
		first->no_file |= opt->no_file;
		if ((opt->offset < sizeof(struct opt_common)) != common)
			continue;
		if (opt->type == OPT_LIST && !listed[opt - prog->opts]) {
			list_free(value_of(opt, settings));
			listed[opt - prog->opts] = true;
		}
		err = opt_set(opt, settings, opt->type == OPT_FLAG ? "yes" : optarg, f);
		if (err) {
			struct failure inner = *f;

			return fail(f, err, "--%.900s", inner.text);
		}
	}
	*ret_next = optind;
	return OPTS_RUN;
}

int opts_parse(const struct opt_program *prog, int argc, char **argv, void *settings, int *ret_next,
	       struct failure *f)
{
	struct opt_common *common = settings;
	int r;

	if (!common->name) {
		common->name = strdup(PIN_DEFAULT_INSTANCE);
		if (!common->name)
			return fail(f, -ENOMEM, "out of memory");
	}
	r = walk(prog, argc, argv, settings, 1, ret_next, f);
	if (r)
		return r;
	r = instance_name_check(common->name, f);
	if (r)
		return r;
	if (prog->section && !common->no_file) {
		r = read_file(prog, settings, f);
		if (r)
			return r;
	}
	return walk(prog, argc, argv, settings, 0, ret_next, f);
}

void opts_free(const struct opt_program *prog, void *settings)
{
	for (const struct opt *o = prog->opts; o->name; o++) {
		if (o->type == OPT_LIST)
			list_free(value_of(o, settings));
		if (o->type == OPT_STRING) {
			free(*(char **)value_of(o, settings));
			*(char **)value_of(o, settings) = NULL;
		}
	}
}

static void usage_line(FILE *out, char letter, const char *name, const char *arg, const char *help)
{
	char left[64];

	snprintf(left, sizeof(left), "  %c%c%s --%s%s%s", letter ? '-' : ' ', letter ? letter : ' ',
		 letter ? "," : " ", name, arg ? " " : "", arg ? arg : "");
	fprintf(out, "%-*s %s\n", HELP_COLUMN, left, help);
}

void opts_usage(const struct opt_program *prog, FILE *out)
{
	fprintf(out, "Usage: %s %s\n\n%s\n\nOptions:\n", prog->name, prog->usage, prog->about);
	for (const struct opt *o = prog->opts; o->name; o++)
		usage_line(out, o->letter, o->name, o->arg, o->help);
	usage_line(out, 'h', "help", NULL, "show this");
	usage_line(out, 'V', "version", NULL, "show the version");
	if (prog->epilogue)
		fprintf(out, "\n%s\n", prog->epilogue);
}
