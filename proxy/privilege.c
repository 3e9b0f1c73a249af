// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 *	0  whoever starts us: at best a user of its own, and no more than `wanted`
 *	1  privilege_begin(): nothing but `wanted` in any set, no_new_privs
 *	   listeners, raw sockets and the ring are opened
 *	2  privilege_master(): in effect is what a master uses; the rest stays
 *	   permitted, for workers and for the binary that it becomes
 *	3  privilege_worker(): what only a start needs is gone for good
 *	   pins, netlink, epoll, signals are opened
 *	4  filter_install(): system calls are those of a worker that serves
 *
 * Nothing is taken back: a successor of a worker begins at stage 3 again, as a child of the master,
 * and a new binary at stage 1. A master gets no filter, since the binary that it becomes would
 * inherit it, and may need what this one does not know of. It never looks at anything that a client
 * sends. A worker whose master has died takes its place without executing anything (master.c): all
 * that is needed then is open.
 *
 * What a kernel asks for is tried, not concluded from its version.
 */
#include "privilege.h"

#include <bpf/bpf.h>
#include <stdint.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/prctl.h>

#include "util.h"

#define BIT(cap) ((uint64_t)1 << (cap))

/*
 * CAP_DAC_READ_SEARCH is for tproxyd as root only: its binary and settings may be below a directory
 * of somebody else's, who let root in only by this.
 */
static const uint64_t wanted = BIT(CAP_BPF) | BIT(CAP_NET_ADMIN) | BIT(CAP_NET_RAW) |
			       BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_SYS_RESOURCE) |
			       BIT(CAP_DAC_READ_SEARCH);
static const uint64_t of_master = BIT(CAP_BPF) | BIT(CAP_DAC_READ_SEARCH);
static const uint64_t of_worker = BIT(CAP_NET_ADMIN) | BIT(CAP_NET_BIND_SERVICE) |
				  BIT(CAP_SYS_RESOURCE);

struct sets {
	uint64_t effective, permitted, inheritable;
};

static int sets_get(struct sets *ret)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (capget(&head, data))
		return -errno;
	*ret = (struct sets){
		.effective = data[0].effective | (uint64_t)data[1].effective << 32,
		.permitted = data[0].permitted | (uint64_t)data[1].permitted << 32,
		.inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32,
	};
	return 0;
}

static int sets_put(const struct sets *sets)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	for (int i = 0; i < 2; i++)
		data[i] = (struct __user_cap_data_struct){
			.effective = sets->effective >> 32 * i,
			.permitted = sets->permitted >> 32 * i,
			.inheritable = sets->inheritable >> 32 * i,
		};
	return capset(&head, data) ? -errno : 0;
}

/* Nothing beyond `keep` in any set, all of it in effect; the ambient set follows the others. */
static int sets_reduce(uint64_t keep)
{
	struct sets sets;
	int err = sets_get(&sets);

	if (err)
		return err;
	sets.permitted &= keep;
	sets.effective = sets.inheritable = sets.permitted;
	return sets_put(&sets);
}

static int in_effect(uint64_t which)
{
	struct sets sets;
	int err = sets_get(&sets);

	if (err)
		return err;
	sets.effective = sets.permitted & which;
	return sets_put(&sets);
}

int privilege_begin(struct failure *f)
{
	struct sets sets;
	int err = 0;

	/* Takes CAP_SETPCAP; who does not have that was given a bounding set by whoever took it. */
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
		if (!(wanted & BIT(cap)))
			prctl(PR_CAPBSET_DROP, cap);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		err = -errno;
	if (!err)
		err = sets_reduce(wanted);
	if (!err)
		err = sets_get(&sets);
	/* A user other than root keeps them through execve() in this way alone. */
	for (int cap = 0; !err && cap <= CAP_LAST_CAP; cap++)
		if (sets.permitted & BIT(cap) &&
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0))
			err = -errno;
	return err ? fail(f, err, "cannot give up privileges: %s", strerror(-err)) : 0;
}

int privilege_master(struct failure *f)
{
	int err = in_effect(of_master);

	return err ? fail(f, err, "cannot give up privileges: %s", strerror(-err)) : 0;
}

/*
 * From Linux 5.19 on, who has a descriptor of a map may use it, and
 * kernel.unprivileged_bpf_disabled is about making maps only. Where that setting lets everybody do
 * everything it may still be changed while we run, and nothing can be told.
 */
static int bpf_takes_capability(int map)
{
	struct bpf_map_info info = {};
	__u32 len = sizeof(info);
	int made _cleanup_fd_ = -1;

	if (bpf_obj_get_info_by_fd(map, &info, &len))
		return 1;
	made = bpf_map_create(BPF_MAP_TYPE_ARRAY, "tproxyd_try", sizeof(__u32), sizeof(__u32), 1,
			      NULL);
	return made >= 0;
}

int privilege_worker(int map, struct failure *f)
{
	uint64_t keep = of_worker;
	int err = in_effect(0);

	if (!err && bpf_takes_capability(map))
		keep |= BIT(CAP_BPF);
	if (!err)
		err = sets_reduce(keep);
	return err ? fail(f, err, "cannot give up privileges: %s", strerror(-err)) : 0;
}
