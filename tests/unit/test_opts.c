// SPDX-License-Identifier: BSD-2-Clause
/* One table of options: values, the file, the command line over the file, the sentences. */
#include <stdbool.h>
#include <string.h>

#include "unit.h"

#include "opts.h"

struct settings {
	struct opt_common common;
	bool fast;
	char *host;
	struct opt_list paths;
	uint64_t port;
	uint64_t wait;
	uint64_t share;
	int mode;
	bool away;
};

static const char *const modes[] = {"direct", "refuse", NULL};

static const struct opt table[] = {
	OPT_COMMON,
	{.name = "fast",
	 .letter = 'f',
	 .type = OPT_FLAG,
	 .offset = offsetof(struct settings, fast),
	 .help = "go fast"},
	{.name = "host",
	 .type = OPT_STRING,
	 .offset = offsetof(struct settings, host),
	 .arg = "HOST",
	 .help = "the host"},
	{.name = "path",
	 .type = OPT_LIST,
	 .offset = offsetof(struct settings, paths),
	 .arg = "PATH",
	 .help = "a path"},
	{.name = "port",
	 .letter = 'p',
	 .type = OPT_UINT,
	 .offset = offsetof(struct settings, port),
	 .arg = "PORT",
	 .help = "the port",
	 .min = 1,
	 .max = 65535},
	{.name = "wait",
	 .type = OPT_DURATION,
	 .offset = offsetof(struct settings, wait),
	 .arg = "TIME",
	 .help = "how long",
	 .min = 10,
	 .max = 3600000},
	{.name = "share",
	 .type = OPT_SHARE,
	 .offset = offsetof(struct settings, share),
	 .arg = "N|N%",
	 .help = "how many",
	 .min = 1,
	 .max = 1000},
	{.name = "mode",
	 .type = OPT_CHOICE,
	 .offset = offsetof(struct settings, mode),
	 .arg = "MODE",
	 .help = "which way",
	 .choices = modes},
	{.name = "away",
	 .letter = 'a',
	 .type = OPT_FLAG,
	 .offset = offsetof(struct settings, away),
	 .help = "take it away",
	 .command_line_only = 1,
	 .no_file = 1},
	{0},
};

static const struct opt_program prog = {
	.name = "prog",
	.usage = "[OPTION...]",
	.about = "About it.",
	.section = "loader",
	.opts = table,
	.epilogue = "The end.",
};

static const struct opt *find(const char *name)
{
	for (const struct opt *o = table; o->name; o++)
		if (!strcmp(o->name, name))
			return o;
	fail_msg("no option %s", name);
	return NULL;
}

/* Asserts that setting the option to `text` gives `want`; where it fails, that the sentence says
 * which value of which option. */
static void assert_set(struct settings *s, const char *name, const char *text, int want)
{
	struct failure f = {{0}};
	int got = opt_set(find(name), s, text, &f);

	if (got != want)
		fail_msg("%s = '%s': %d (%s), expected %d", name, text, got, f.text, want);
	if (want) {
		assert_non_null(strstr(f.text, name));
		assert_non_null(strstr(f.text, text));
	}
}

static void test_flag(void **state)
{
	static const char *const on[] = {"yes", "on", "true", "1"};
	static const char *const off[] = {"no", "off", "false", "0"};
	struct settings s = {0};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(on); i++) {
		s.fast = false;
		assert_set(&s, "fast", on[i], 0);
		assert_true(s.fast);
		assert_set(&s, "fast", off[i], 0);
		assert_false(s.fast);
	}
	assert_set(&s, "fast", "maybe", -EINVAL);
	assert_set(&s, "fast", "", -EINVAL);
	assert_set(&s, "fast", "YES", -EINVAL);
}

static void test_uint(void **state)
{
	struct settings s = {.port = 7};

	(void)state;
	assert_set(&s, "port", "1", 0);
	assert_int_equal(s.port, 1);
	assert_set(&s, "port", "65535", 0);
	assert_int_equal(s.port, 65535);
	assert_set(&s, "port", "0", -ERANGE);
	assert_set(&s, "port", "65536", -ERANGE);
	assert_set(&s, "port", "18446744073709551616", -ERANGE);
	assert_set(&s, "port", "99999999999999999999999999", -ERANGE);
	assert_set(&s, "port", "", -EINVAL);
	assert_set(&s, "port", "-1", -EINVAL);
	assert_set(&s, "port", "+1", -EINVAL);
	assert_set(&s, "port", " 1", -EINVAL);
	assert_set(&s, "port", "1 ", -EINVAL);
	assert_set(&s, "port", "0x10", -EINVAL);
	assert_set(&s, "port", "1s", -EINVAL);
	assert_int_equal(s.port, 65535); /* a bad value changes nothing */
}

static void test_share(void **state)
{
	struct settings s = {0};

	(void)state;
	assert_set(&s, "share", "1000", 0);
	assert_int_equal(s.share, 1000);
	assert_set(&s, "share", "90%", 0);
	assert_true(s.share == (OPT_PERCENT | 90));
	assert_set(&s, "share", "100%", 0);
	assert_set(&s, "share", "1%", 0);
	assert_set(&s, "share", "0%", -ERANGE);
	assert_set(&s, "share", "101%", -ERANGE);
	assert_set(&s, "share", "1001", -ERANGE);
	assert_set(&s, "share", "%", -EINVAL);
	assert_set(&s, "share", "5 %", -EINVAL);
	assert_set(&s, "share", "5%%", -EINVAL);
	assert_true(s.share == (OPT_PERCENT | 1)); /* a bad value changes nothing */
}

static void test_duration(void **state)
{
	struct settings s = {0};

	(void)state;
	assert_set(&s, "wait", "500ms", 0);
	assert_int_equal(s.wait, 500);
	assert_set(&s, "wait", "5s", 0);
	assert_int_equal(s.wait, 5000);
	assert_set(&s, "wait", "5", 0);
	assert_int_equal(s.wait, 5000);
	assert_set(&s, "wait", "2m", 0);
	assert_int_equal(s.wait, 120000);
	assert_set(&s, "wait", "1h", 0);
	assert_int_equal(s.wait, 3600000);
	assert_set(&s, "wait", "9ms", -ERANGE);
	assert_set(&s, "wait", "2h", -ERANGE);
	assert_set(&s, "wait", "18446744073709551615h", -ERANGE);
	assert_set(&s, "wait", "5 s", -EINVAL);
	assert_set(&s, "wait", "5d", -EINVAL);
	assert_set(&s, "wait", "s", -EINVAL);
	assert_set(&s, "wait", "1.5s", -EINVAL);
	assert_int_equal(s.wait, 3600000);
}

static void test_choice(void **state)
{
	struct settings s = {.mode = 9};
	struct failure f = {{0}};

	(void)state;
	assert_set(&s, "mode", "refuse", 0);
	assert_int_equal(s.mode, 1);
	assert_set(&s, "mode", "direct", 0);
	assert_int_equal(s.mode, 0);
	assert_set(&s, "mode", "Direct", -EINVAL);
	assert_set(&s, "mode", "", -EINVAL);
	opt_set(find("mode"), &s, "x", &f);
	assert_non_null(strstr(f.text, "direct, refuse")); /* says what is allowed */
	assert_int_equal(s.mode, 0);
}

static void test_string_and_list(void **state)
{
	struct settings s = {0};

	(void)state;
	assert_set(&s, "host", "one", 0);
	assert_set(&s, "host", "two", 0);
	assert_string_equal(s.host, "two");
	assert_set(&s, "path", "/a", 0);
	assert_set(&s, "path", "/b", 0);
	assert_set(&s, "path", "", -EINVAL);
	assert_int_equal(s.paths.count, 2);
	assert_string_equal(s.paths.items[0], "/a");
	assert_string_equal(s.paths.items[1], "/b");
	opts_free(&prog, &s);
	assert_null(s.host);
	assert_int_equal(s.paths.count, 0);
}

/* Parses `argv` (after the program's name, NULL-terminated) over a file with that content. */
static int parse(struct settings *s, const char *content, const char *const *argv, int *ret_next,
		 struct failure *f)
{
	char path[] = "/tmp/tptest-opts-XXXXXX", *args[16] = {"prog", "--config", path};
	int argc = 3, fd = mkstemp(path), r;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, content, strlen(content)), strlen(content));
	close(fd);
	while (argv && *argv)
		args[argc++] = (char *)*argv++;
	r = opts_parse(&prog, argc, args, s, ret_next, f);
	unlink(path);
	return r;
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void assert_parses(struct settings *s, const char *content, const char *const *argv)
{
	struct failure f = {{0}};
	int next;

	if (parse(s, content, argv, &next, &f))
		fail_msg("%s", f.text);
}

/* The sentence must hold each of the words, separated by '|'. */
static void assert_refuses(const char *content, const char *const *argv, const char *words)
{
	char copy[256], *save = NULL;
	struct settings s = {0};
	struct failure f = {{0}};
	int next;

	assert_int_equal(parse(&s, content, argv, &next, &f), -EINVAL);
	snprintf(copy, sizeof(copy), "%s", words);
	for (char *word = strtok_r(copy, "|", &save); word; word = strtok_r(NULL, "|", &save))
		if (!strstr(f.text, word))
			fail_msg("'%s' does not say '%s'", f.text, word);
	opts_free(&prog, &s);
}

static void test_file(void **state)
{
	struct settings s = {.port = 18000};

	(void)state;
	assert_parses(&s,
		      "; a comment\n# another\n[loader]\nfast = yes\nhost=h\nport = 99\n"
		      "wait = 3s\nmode = refuse\npath = /a\npath = /b\n[proxy]\nunknown here = 1\n",
		      NULL);
	assert_true(s.fast);
	assert_string_equal(s.host, "h");
	assert_int_equal(s.port, 99);
	assert_int_equal(s.wait, 3000);
	assert_int_equal(s.mode, 1);
	assert_int_equal(s.paths.count, 2);
	assert_string_equal(s.common.name, "tproxy");
	opts_free(&prog, &s);
}

static void test_command_line_wins(void **state)
{
	struct settings s = {0};

	(void)state;
	assert_parses(&s, "[loader]\nport = 99\nhost = file\npath = /a\npath = /b\nwait = 3s\n",
		      ARGS("-p", "100", "--host=line", "--path", "/c", "--path=/d", "-f"));
	assert_int_equal(s.port, 100);
	assert_string_equal(s.host, "line");
	assert_int_equal(s.wait, 3000); /* not given: the file's */
	assert_true(s.fast);
	assert_int_equal(s.paths.count, 2); /* replaced, not appended */
	assert_string_equal(s.paths.items[0], "/c");
	assert_string_equal(s.paths.items[1], "/d");
	opts_free(&prog, &s);
}

static void test_options_end_at_the_first_argument(void **state)
{
	struct settings s = {0};
	struct failure f = {{0}};
	int next = 0;

	(void)state;
	assert_int_equal(parse(&s, "", ARGS("-f", "run", "-p", "5"), &next, &f), OPTS_RUN);
	assert_int_equal(next, 4); /* prog --config FILE -f run */
	assert_int_equal(s.port, 0);
	opts_free(&prog, &s);
}

static void test_bad_files(void **state)
{
	(void)state;
	assert_refuses("[loader]\nfast = yes\nspeed = 1\n", NULL, "line 3|speed|no such key");
	assert_refuses("[loaders]\nport = 1\n", NULL, "line 2|[loaders]|no such section");
	assert_refuses("port = 1\n", NULL, "line 1|no such section");
	assert_refuses("[loader]\n\nnonsense\n", NULL, "line 3|key = value");
	assert_refuses("[loader]\nport = many\n", NULL, "line 2|port|many|not a number");
	assert_refuses("[loader]\npath =\n", NULL, "line 2|path: empty|give a PATH");
	assert_refuses("[loader]\nname = other\n", NULL, "line 2|name|no such key");
	assert_refuses("[loader]\nfast = yes\n[proxy\n", NULL, "line 3");
}

static void test_long_lines(void **state)
{
	struct settings s = {0};
	char text[512];

	(void)state;
	snprintf(text, sizeof(text), "[loader]\nhost = %0191d\nport = 9", 1); /* 198 bytes */
	assert_parses(&s, text, NULL);
	assert_int_equal(strlen(s.host), 191);
	assert_int_equal(s.port, 9);
	opts_free(&prog, &s);
	snprintf(text, sizeof(text), "[loader]\nhost = %0191d\nport = many\n", 1);
	assert_refuses(text, NULL, "line 3|many");
	snprintf(text, sizeof(text), "[loader]\nhost = %0192d\n", 1);
	assert_refuses(text, NULL, "line 2: longer than 198 bytes|command line");
	snprintf(text, sizeof(text), "[loader]\n;%0197dport = 9\n", 1);
	assert_refuses(text, NULL, "line 2: longer than 198 bytes");
}

static void test_unreadable_files(void **state)
{
	static const struct {
		const char *path, *words;
		int err;
	} files[] = {{"/tmp", "/tmp, line 1: cannot be read: Is a directory", -EISDIR},
		     {"/proc/self/mem", "cannot be read: Input/output error", -EIO},
		     {"/proc/self/auxv", "NUL", -EINVAL}};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		char *argv[] = {"prog", "--config", (char *)files[i].path};
		struct settings s = {0};
		struct failure f = {{0}};
		int next;

		assert_int_equal(opts_parse(&prog, 3, argv, &s, &next, &f), files[i].err);
		assert_non_null(strstr(f.text, files[i].words));
		opts_free(&prog, &s);
	}
}

static void test_no_file(void **state)
{
	struct settings s = {0};

	(void)state;
	assert_parses(&s, "[loader]\nport = many\n", ARGS("-p", "100", "-a"));
	assert_true(s.away);
	assert_int_equal(s.port, 100);
	assert_parses(&s, "", ARGS("--config", "/nonexistent/file", "--away"));
	opts_free(&prog, &s);
	assert_refuses("", ARGS("--away", "--port", "many"), "--port|not a number");
}

static void test_bad_command_lines(void **state)
{
	(void)state;
	assert_refuses("", ARGS("--speed"), "--speed|no such option|prog --help");
	assert_refuses("", ARGS("-x"), "-x|no such option");
	assert_refuses("", ARGS("-xf"), "-xf: no such option");
	assert_refuses("", ARGS("-fx"), "-fx: no such option");
	assert_refuses("", ARGS("-fxf", "-f"), "-fxf: no such option");
	assert_refuses("", ARGS("-f", "-fp"), "-fp: needs a value");
	assert_refuses("", ARGS("--port"), "--port|needs a value");
	assert_refuses("", ARGS("-p"), "-p|needs a value");
	assert_refuses("", ARGS("--fast=yes"), "--fast|takes no value");
	assert_refuses("", ARGS("--mode", "x"), "--mode|'x'|direct, refuse");
	assert_refuses("", ARGS("--path", ""), "--path: empty|give a PATH");
	assert_refuses("", ARGS("--name", "A/B"), "--name|'A/B'");
}

static void test_missing_files(void **state)
{
	char *given[] = {"prog", "--config", "/nonexistent/file"};
	char *standard[] = {"prog", "--name", "no-such-instance-here"};
	struct settings s = {0};
	struct failure f = {{0}};
	int next;

	(void)state;
	assert_int_equal(opts_parse(&prog, 3, given, &s, &next, &f), -ENOENT);
	assert_non_null(strstr(f.text, "/nonexistent/file"));
	opts_free(&prog, &s);
	s = (struct settings){0};
	assert_int_equal(opts_parse(&prog, 3, standard, &s, &next, &f), OPTS_RUN);
	assert_string_equal(s.common.name, "no-such-instance-here");
	opts_free(&prog, &s);
}

static void test_usage_names_every_option(void **state)
{
	char *text = NULL, want[64];
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	(void)state;
	assert_non_null(out);
	opts_usage(&prog, out);
	fclose(out);
	for (const struct opt *o = table; o->name; o++) {
		snprintf(want, sizeof(want), "--%s%s%s", o->name, o->arg ? " " : "",
			 o->arg ? o->arg : "");
		assert_non_null(strstr(text, want));
		assert_non_null(strstr(text, o->help));
	}
	assert_non_null(strstr(text, "--help"));
	assert_non_null(strstr(text, "--version"));
	assert_non_null(strstr(text, "The end."));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flag),
		cmocka_unit_test(test_uint),
		cmocka_unit_test(test_share),
		cmocka_unit_test(test_duration),
		cmocka_unit_test(test_choice),
		cmocka_unit_test(test_string_and_list),
		cmocka_unit_test(test_file),
		cmocka_unit_test(test_command_line_wins),
		cmocka_unit_test(test_options_end_at_the_first_argument),
		cmocka_unit_test(test_bad_files),
		cmocka_unit_test(test_long_lines),
		cmocka_unit_test(test_unreadable_files),
		cmocka_unit_test(test_no_file),
		cmocka_unit_test(test_bad_command_lines),
		cmocka_unit_test(test_missing_files),
		cmocka_unit_test(test_usage_names_every_option),
	};

	return cmocka_run_group_tests_name("opts", tests, NULL, NULL);
}
