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

/* The text as it is, so that it can be used as data; escaped only where it is no UTF-8. */
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

/* Prints the tree as JSON, in ASCII, and a newline. Logs the failure; 0 or -errno. */
int tree_print(const json_t *tree, FILE *out, size_t flags);

/* A command's result to stdout: as JSON, or by `text`, which gets a copy of the tree in which every
 * string is escaped to printable ASCII. Logs the failure; 0 or -errno. */
int tree_show(json_t *tree, int json, void (*text)(const json_t *tree));

static inline void cleanup_tree(json_t **tree)
{
	json_decref(*tree);
}

#define _cleanup_tree_ _cleanup_(cleanup_tree)

#endif
