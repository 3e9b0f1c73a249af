/* SPDX-License-Identifier: BSD-2-Clause */
/* What `tproxy doctor` looks for in one instance. */
#ifndef TPROXY_CHECKUP_H
#define TPROXY_CHECKUP_H

#include "lib/probe.h"
#include "lib/util.h"
#include "tree.h"

/* Adds {"what", "result", "found", "fix"}; fix may be NULL. */
void finding(json_t *findings, enum probe_result result, const char *what, const char *fix,
	     const char *fmt, ...) _printf_(5, 6);

/* `in` is of describe_instances(), `all` its whole array, to tell our programs from others'. */
void checkup_instance(json_t *findings, const json_t *in, const json_t *all);

/* Programs that a first instance on the root cgroup would share its hooks with. */
void checkup_root_cgroup(json_t *findings, const json_t *all);

/*
 * The command that loads an instance as it is, with `max` connections where that is not 0; and in
 * words what of it cannot be known. To be freed.
 */
char *checkup_load_command(const json_t *in, uint64_t max);

#endif
