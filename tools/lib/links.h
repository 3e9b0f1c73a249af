/* SPDX-License-Identifier: BSD-2-Clause */
/* The pinned links of an instance: which program is attached to which cgroup. */
#ifndef TPROXY_LINKS_H
#define TPROXY_LINKS_H

#include <stdint.h>

#include "instance.h"

struct hook_link {
	enum pin_prog prog;
	__u32 link_id, prog_id;
	uint64_t cgroup_id;	/* what the link is attached to; 0: dead, the cgroup has gone */
	uint64_t pinned_cgroup; /* the id in the pin's name */
	char pin[64];		/* file name in the instance's directory */
};

/*
 * "link_connect4_4711" to its parts; side names (link_connect4_4711~new) are none of these. Whether
 * the object behind the name is such a link is another question.
 */
int link_name_parse(const char *file, enum pin_prog *ret_prog, uint64_t *ret_cgroup);

/* The reverse. Returns buf. */
const char *link_name_format(enum pin_prog prog, uint64_t cgroup, char buf[64]);

/*
 * All link pins of an instance, malloced (NULL if there are none). A pin under such a name that is
 * not a link of one of our programs is skipped. 0 or -errno; -ENOENT: no such instance.
 */
int links_read(const char *name, struct hook_link **ret, size_t *ret_count, struct failure *f);

/*
 * Fills all but `pin` and `pinned_cgroup` from a link's descriptor. -EINVAL: not a link that
 * attaches program `prog` to a cgroup.
 */
int link_inspect(int fd, enum pin_prog prog, struct hook_link *ret);

#endif
