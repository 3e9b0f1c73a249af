/* SPDX-License-Identifier: BSD-2-Clause */
/* An instance, as a tree (tree.h): what `tproxy status` shows and `tproxy doctor` judges. */
#ifndef TPROXY_DESCRIBE_H
#define TPROXY_DESCRIBE_H

#include "tree.h"

/*
 * An array of the one named, or of all where name is NULL. Of each:
 *
 *	name, directory
 *	error		what could not be read; nothing else is there without "abi"
 *	abi, build, loaded, enabled, port, policy
 *	cgroups		[{id, path}]; path is null once the cgroup is gone
 *	hooks		[{hook, link, program, cgroup, pin}]; cgroup is null if dead
 *	missing_pins	[name]
 *	proxies		[{pid, comm, netns, here, alive}]; pid as the kernel sees it;
 *			here and alive are null where that cannot be known
 *	listeners	see listeners.h
 *	serving		true, false, or null for not known
 *	counters	{name: value}
 *	maps		{name: {id, used, max}}
 */
json_t *describe_instances(const char *name);

#endif
