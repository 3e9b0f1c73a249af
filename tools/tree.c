// SPDX-License-Identifier: BSD-2-Clause
#include "tree.h"

#include <string.h>

#include "lib/escape.h"
#include "lib/log.h"
#include "lib/util.h"

static json_t *checked(json_t *value)
{
	if (value)
		return value;
	log_error("out of memory");
	exit(1);
}

json_t *tree_object(void)
{
	return checked(json_object());
}

json_t *tree_array(void)
{
	return checked(json_array());
}

static json_t *escaped(const char *text, const char *also)
{
	size_t len = strlen(text);
	char *out _cleanup_free_ = malloc(4 * len + 1);

	return checked(out ? json_string(escape(text, len, also, out)) : NULL);
}

json_t *tree_string(const char *text)
{
	return json_string(text)
		       ?: escaped(text, "\\"); /* JSON has no way to hold other than UTF-8 */
}

json_t *tree_number(uint64_t value)
{
	return checked(json_integer((json_int_t)value));
}

json_t *tree_bool(int value)
{
	return json_boolean(value);
}

json_t *tree_null(void)
{
	return json_null();
}

void tree_set(json_t *object, const char *key, json_t *value)
{
	if (json_object_set_new(object, key, value))
		checked(NULL);
}

void tree_add(json_t *array, json_t *value)
{
	if (json_array_append_new(array, value))
		checked(NULL);
}

const char *tree_text(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

uint64_t tree_value(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

int tree_true(const json_t *object, const char *key)
{
	return json_is_true(json_object_get(object, key));
}

int tree_print(const json_t *tree, FILE *out, size_t flags)
{
	if (!json_dumpf(tree, out, flags | JSON_ENSURE_ASCII) && fputc('\n', out) != EOF &&
	    !fflush(out))
		return 0;
	log_error("cannot write the output: %m");
	return -EIO;
}

/* A copy for the terminal: processes choose their own names, and terminals obey what is printed to
 * them. A backslash stays, so that a command with one can be copied. */
static json_t *printable(json_t *tree)
{
	json_t *copy, *value;
	const char *key;
	size_t i;

	switch (json_typeof(tree)) {
	case JSON_STRING:
		return escaped(json_string_value(tree), "");
	case JSON_ARRAY:
		copy = tree_array();
		json_array_foreach (tree, i, value)
			tree_add(copy, printable(value));
		return copy;
	case JSON_OBJECT:
		copy = tree_object();
		json_object_foreach (tree, key, value)
			tree_set(copy, key, printable(value));
		return copy;
	default:
		return json_incref(tree);
	}
}

int tree_show(json_t *tree, int json, void (*text)(const json_t *tree))
{
	json_t *copy _cleanup_tree_ = NULL;

	if (json)
		return tree_print(tree, stdout, JSON_INDENT(2));
	copy = printable(tree);
	text(copy);
	if (!fflush(stdout) && !ferror(stdout))
		return 0;
	log_error("cannot write the output: %m");
	return -EIO;
}
