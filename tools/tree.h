/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a command has found, as one tree of JSON values: built once, then printed either as JSON or
 * as text, so that the two cannot disagree.
 *
 * A one-shot command without memory has no answer to give: these functions end the program then,
 * with a message, and never return NULL.
 */
#ifndef TPROXY_TREE_H
#define TPROXY_TREE_H

#include <jansson.h>
#include <stdint.h>

json_t *tree_object(void);
json_t *tree_array(void);

/* Strings go in with everything but printable ASCII escaped: processes choose their own names, and
 * terminals obey what is printed to them. */
json_t *tree_string(const char *text);
json_t *tree_number(uint64_t value);
json_t *tree_bool(int value);
json_t *tree_null(void);

/* Both take over `value`. */
void tree_set(json_t *object, const char *key, json_t *value);
void tree_add(json_t *array, json_t *value);

/* Reading. A missing key is "", 0, false or NULL. */
const char *tree_text(const json_t *object, const char *key);
uint64_t tree_value(const json_t *object, const char *key);
int tree_true(const json_t *object, const char *key);

/* Prints the tree and a newline. */
void tree_print(const json_t *tree, FILE *out, size_t flags);

static inline void cleanup_tree(json_t **tree)
{
	json_decref(*tree);
}

#define _cleanup_tree_ _cleanup_(cleanup_tree)

#endif
