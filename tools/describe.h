/* SPDX-License-Identifier: BSD-2-Clause */
/* An instance, as a tree (tree.h): what `tproxy status` shows and `tproxy doctor` judges. */
#ifndef TPROXY_DESCRIBE_H
#define TPROXY_DESCRIBE_H

#include "tree.h"

/*
 * An array of the one named, or of all where name is NULL. Of each:
 *
 *	name, directory
 *	error		what could not be read, or is not whole
 *	other_version	the pins are of another ABI
 *	max_connections	0: not known
 *	cgroups		[{id, path}]; path is null once the cgroup is gone
 *	hooks		[{hook, link, program, cgroup, pinned_cgroup, pin}]; cgroup is
 *			null if dead, pinned_cgroup is the id in the pin's name
 *	missing_pins	[name]
 *	abi, build, loaded, enabled, port, policy
 *			from map_config, which need not be pinned: hooks in force have it.
 *			None of these and of the following where there is none, or another ABI
 *	proxies		[{pid, comm, netns, here, alive}]; pid as the kernel sees it;
 *			here and alive are null where that cannot be known
 *	listeners	see listeners.h
 *	serving		true, false, or null for not known
 *	counters	{name: value}
 *	maps		{name: {id, used, max}}
 */
json_t *describe_instances(const char *name);

#endif
