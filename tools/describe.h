/* SPDX-License-Identifier: BSD-2-Clause */
/* An instance, as a tree (tree.h): what `tproxy status` shows and `tproxy doctor` judges. */
#ifndef TPROXY_DESCRIBE_H
#define TPROXY_DESCRIBE_H

#include "tree.h"

/*
 * {"name", "directory", and either "error" or
 *  "abi", "build", "loaded", "enabled", "port", "policy",
 *  "cgroups": [{"id", "path" or null}], the path being null once the cgroup is gone,
 *  "hooks": [{"hook", "link", "program", "cgroup", "pin"}], cgroup null for a dead link,
 *  "missing_pins": [name], "proxies": [{"pid", "comm", "netns", "here", "alive"}],
 *  "serving": true, false or null for not known,
 *  "counters": {name: value}, "maps": {name: {"id", "used", "max"}}}
 * Never fails: what cannot be read is said in "error".
 */
json_t *describe_instance(const char *name);

/* An array of them: the one named, or all where name is NULL. */
json_t *describe_instances(const char *name);

#endif
