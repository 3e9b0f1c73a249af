// SPDX-License-Identifier: BSD-2-Clause
#include "tree.h"

#include <string.h>

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

json_t *tree_string(const char *text)
{
	size_t len = strlen(text), used = 0;
	char *out _cleanup_free_ = malloc(4 * len + 1);

	if (!out)
		return checked(NULL);
	for (; *text; text++) {
		unsigned char c = *text;

		if (c < 0x20 || c >= 0x7f || c == '\\')
			used += sprintf(out + used, "\\x%02x", c);
		else
			out[used++] = c;
	}
	out[used] = 0;
	return checked(json_string(out));
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

void tree_print(const json_t *tree, FILE *out, size_t flags)
{
	if (json_dumpf(tree, out, flags) || fputc('\n', out) == EOF || fflush(out))
		log_error("cannot write the output: %m");
}
