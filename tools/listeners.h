/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who listens on an instance's ports in our network namespace, and whether the hooks trust it.
 * Trust is a mark in map_listeners, which is read through a descriptor of the very socket, borrowed
 * from the process that has it.
 */
#ifndef TPROXY_LISTENERS_H
#define TPROXY_LISTENERS_H

#include <stdint.h>

#include "tree.h"

/*
 * An array of {"address", "pid", "comm", "uid", "trusted"}; pid is null where the process cannot be
 * seen, trusted is null where that keeps us from knowing. Null instead of the array where
 * sockets cannot be listed.
 */
json_t *listeners_describe(const char *instance, uint16_t port, uint16_t ports);

/* Whether a connect() would find a trusted one: true, false, or null for not known. */
json_t *listeners_serving(const json_t *listeners);

#endif
