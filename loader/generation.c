// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 * Two sets with connections of their own can run side by side: each knows only its own. A
 * connection that the old one has redirected goes to the loopback address by the time the new one
 * sees it, which leaves it alone. So the new set is attached in addition, completely; then the old
 * one's connect hooks go, one call a cgroup; from that instant connections are the new one's. The
 * other old hooks serve those they know until the new set knows them too.
 *
 * A record that is copied between a program's two looks at it, or freed while it is copied, is put
 * right by copying again after all programs that ran have ended: transfer.h.
 */
#include "generation.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>

#include "access.h"
#include "load.h"
#include "log.h"
#include "remedy.h"
#include "transfer.h"
#include "unload.h"

#define HELD_MS	     2000 /* for clients in mid-handshake with a proxy of the old version */
#define QUIET_MS     60	  /* and this long without any */
#define LOOK_MS	     20
#define FINISH_TRIES 10

/* What connections have; everything else is a tproxyd's, which enters it anew. */
static const struct {
	enum pin_map map, live;
} carried[] = {
	{PIN_MAP_socks, PIN_MAP_live_socks},
	{PIN_MAP_ports, PIN_MAP_live_ports},
};

struct handover {
	struct transfer transfer[ARRAY_SIZE(carried)]; /* one that was not opened does nothing */
	bool ours; /* the records that it makes are of our version */
	struct failure *f;
};

static void handover_close(struct handover *h)
{
	for (size_t i = 0; i < ARRAY_SIZE(carried); i++)
		transfer_free(&h->transfer[i]);
}

#define _cleanup_handover_ _cleanup_(handover_close)

static bool is_copy(const void *value, const void *context)
{
	const struct tp_record *rec = value;

	(void)context;
	return rec->flags & TP_RECORD_COPIED;
}

/* Of a port: its record is, or has gone. */
static bool has_copy(const void *value, const void *context)
{
	const int *records = context;
	struct tp_record rec;
	int err = entry_read(*records, value, &rec);

	return err ? err == -ENOENT : is_copy(&rec, NULL);
}

/* What programs of the old set saw and the copy lacks. The rest the doorman writes, at least into
 * the newer one. */
static bool copy_refresh(void *there, const void *now)
{
	struct tp_record copy, rec;

	memcpy(&copy, there, sizeof(copy));
	memcpy(&rec, now, sizeof(rec));
	if (!(copy.flags & TP_RECORD_COPIED) || copy.start_ns != rec.start_ns ||
	    (!(rec.reached & ~copy.reached) && (copy.src.family || !rec.src.family)))
		return false;
	copy.reached |= rec.reached;
	copy.flags = rec.flags;
	if (!copy.src.family)
		copy.src = rec.src;
	memcpy(there, &copy, sizeof(copy));
	return true;
}

/*
 * `to`: the maps that inherit, in the order of `carried`; -1: none. Borrowed, as those of `from`. A
 * set without map_socks has handed over what it had.
 */
static int handover_open(struct handover *h, const struct set *from,
			 const int to[ARRAY_SIZE(carried)])
{
	struct transfer *records = &h->transfer[0];

	if (!set_find(from, PIN_MAP, PIN_MAP_socks, false)) {
		h->ours = false;
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(carried); i++) {
		const struct pin *old = set_find(from, PIN_MAP, carried[i].map, false);
		int err = 0;

		if (old && to[i] >= 0)
			err = transfer_open(old->fd, to[i], &h->transfer[i], h->f);
		if (err)
			return err;
	}
	h->ours = h->ours && records->value.size;
	records->id_size = 0;
	if (h->ours) { /* a socket may connect again: that is another connection, and no copy */
		records->id_at = offsetof(struct tp_record, start_ns);
		records->id_size = sizeof(__u64);
		records->flag_at = offsetof(struct tp_record, flags);
		records->flag = TP_RECORD_COPIED;
		records->refresh = copy_refresh;
	}
	return 0;
}

/*
 * Back to an older set: only what the newer one has of its own. It may have missed the end of what
 * it had copied.
 */
static void handover_back(struct handover *h)
{
	h->transfer[0].stays = is_copy;
	h->transfer[1].stays = has_copy;
	h->transfer[1].stays_context = &h->transfer[0].from;
}

/* A port's record is older than the port: none is carried over without. */
static int handover_sync(struct handover *h)
{
	int err = 0;

	for (size_t i = ARRAY_SIZE(carried); !err && i > 0; i--)
		if (h->transfer[i - 1].value.size)
			err = transfer_look(&h->transfer[i - 1], h->f);
	if (err)
		return err;
	for (size_t i = 0; i < ARRAY_SIZE(carried); i++) { /* one that is full stops no other */
		int one = h->transfer[i].value.size ? transfer_apply(&h->transfer[i], h->f) : 0;

		err = err ?: one;
	}
	if (err == -E2BIG)
		return fail(h->f, err,
			    "there are more connections now than --max-connections would hold; "
			    "choose more");
	return err;
}

/* Once the new set is in force there is no way back: what does not fit is forgotten, and a moment's
 * want of memory is waited for. */
static int handover_finish(struct handover *h)
{
	int err = handover_sync(h);

	for (int try = 1; err && err != -E2BIG && try < FINISH_TRIES; try++) {
		poll(NULL, 0, LOOK_MS);
		err = handover_sync(h);
	}
	if (err != -E2BIG)
		return err;
	log_warning("some connections lose their names for themselves: %s", h->f->text);
	return 0;
}

/* Until all programs that run now have ended. A kernel that refuses has to do without. */
static void programs_wait(void)
{
	syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
}

/* In mid-handshake: the proxy's end of the connection has no copy of the record yet. */
static bool any_held(const struct transfer *t)
{
	for (size_t i = 0; i < t->last.count; i++) {
		struct tp_record rec;

		memcpy(&rec, transfer_value(t, i), sizeof(rec));
		if (rec.src.family && !(rec.reached & (TP_REACHED_ACCEPTED | TP_REACHED_CLOSED)))
			return true;
	}
	return false;
}

/* A proxy of the old version knows whom it accepts only with the old hooks in place. */
static int held_wait(struct handover *h)
{
	int left = HELD_MS, quiet = 0, err = 0;

	if (!h->ours)
		return 0;
	while (!err && left > 0 && quiet < QUIET_MS) {
		poll(NULL, 0, LOOK_MS);
		left -= LOOK_MS;
		err = handover_finish(h);
		quiet = any_held(&h->transfer[0]) ? 0 : quiet + LOOK_MS;
	}
	return err;
}

/* Enters a set's maps for the doorman of `to`. Which each array refers to is the same for all. */
static int live_enter(const struct set *to, const struct set *set, __u32 index, struct failure *f)
{
	for (size_t i = 0; i < ARRAY_SIZE(carried); i++) {
		const struct pin *live = set_find(to, PIN_MAP, carried[i].live, false);
		const struct pin *map = set_find(set, PIN_MAP, carried[i].map, false);

		if (live && map && bpf_map_update_elem(live->fd, &index, &map->fd, BPF_ANY))
			return fail(f, -errno, "cannot show the doorman a map of %s: %m%s",
				    set->dir, remedy(errno));
	}
	return 0;
}

static void live_leave(const struct set *to, __u32 index)
{
	for (size_t i = 0; i < ARRAY_SIZE(carried); i++) {
		const struct pin *live = set_find(to, PIN_MAP, carried[i].live, false);

		if (live)
			entry_delete(live->fd, &index);
	}
}

/* `same`: of our version, which share the doorman that tproxyd has on its listeners. */
static int retire(struct handover *h, const struct set *from, const struct set *to)
{
	bool same = !from->other_abi && !to->other_abi;
	int err = 0;

	if (same)
		err = live_enter(to, from, TP_LIVE_PREVIOUS, h->f)
			      ?: live_enter(to, to, TP_LIVE_PRESENT, h->f);
	if (!err)
		err = handover_finish(h);
	if (!err && to->config)
		__atomic_store_n(&to->config->enabled, 1, __ATOMIC_RELEASE);
	if (!err)
		err = unload_redirecting(from, h->f);
	programs_wait();
	if (!err && !same)
		err = held_wait(h);
	if (!err)
		err = handover_finish(h);
	programs_wait();
	if (!err)
		err = handover_finish(h);
	if (err)
		return err;
	live_leave(to, TP_LIVE_NEXT);
	live_leave(to, TP_LIVE_PREVIOUS);
	/* From here on its hooks go, and with them the knowledge of which of its records are over.
	 */
	return unload_map(from, PIN_MAP_socks, h->f) ?: unload_retired(from, h->f);
}

/* Ids of maps only grow. A newer one beside the one in force never came to be in force itself. */
static bool is_newer(const struct set *set, const struct set *than)
{
	const struct pin *a = set_find(set, PIN_MAP, PIN_MAP_socks, false);
	const struct pin *b = set_find(than, PIN_MAP, PIN_MAP_socks, false);

	return a && b && a->id > b->id;
}

/*
 * An earlier run may have copied entries and not lived to hear of their end. What the successor has
 * from the old set, and that has no more, has ended. Not on the way back: there may be copies of
 * earlier generations.
 */
static int sweep(struct handover *h)
{
	int err;

	if (!h->ours)
		return 0;
	err = transfer_sweep(&h->transfer[0], is_copy, NULL, h->f);
	if (!err && h->transfer[1].value.size)
		err = transfer_sweep(&h->transfer[1], has_copy, &h->transfer[0].to, h->f);
	return err;
}

int generation_retire(const struct set *from, const struct set *to, struct failure *f)
{
	struct handover h _cleanup_handover_ = {.f = f, .ours = !to->other_abi};
	bool back = is_newer(from, to);
	int fds[ARRAY_SIZE(carried)];
	int err;

	for (size_t i = 0; i < ARRAY_SIZE(carried); i++) {
		const struct pin *pin = set_find(to, PIN_MAP, carried[i].map, false);

		fds[i] = pin ? pin->fd : -1;
	}
	/* Of another version than the one in force: not enabled, so it has nothing of its own. */
	if (back && from->other_abi != to->other_abi)
		return retire(&h, from, to);
	err = handover_open(&h, from, fds);
	if (!err && back && h.ours)
		handover_back(&h);
	else if (!err && !back)
		err = sweep(&h);
	return err ?: retire(&h, from, to);
}

/*
 * What is known of the instance and of the proxies in it. The old settings are those of the old
 * hooks, beside which the new ones will run for a moment.
 */
static int config_carry(const struct set *set, const struct object *obj, struct failure *f)
{
	int to = object_map_fd(obj, PIN_MAP_config);
	struct tp_config config;
	__u32 zero = 0;
	int err = transfer_array(set_find(set, PIN_MAP, PIN_MAP_config, false)->fd, to, f);

	if (err)
		return err;
	if (bpf_map_lookup_elem(to, &zero, &config))
		return fail(f, -errno, "cannot read map_config: %m");
	config.magic = ABI_MAGIC;
	config.abi = ABI_VERSION;
	config.enabled = 0;
	config.grant = config.grant ?: load_grant();
	if (!config.grant)
		return fail(f, -errno, "cannot get a random number: %m");
	config.ports = config.ports ?: 1; /* a version that knew of no more than one */
	config.build = object_build();
	config.loaded_ns = load_time();
	snprintf(config.name, sizeof(config.name), "%s", set->name);
	if (bpf_map_update_elem(to, &zero, &config, BPF_ANY))
		return fail(f, -errno, "cannot write map_config: %m");
	return 0;
}

static int maps_load(const struct set *set, struct object *obj, const struct plan *plan,
		     struct failure *f)
{
	const struct pin *stats = set_find(set, PIN_MAP, PIN_MAP_stats, false);
	int err;

	if (plan->keep_maps)
		return load_against(set, obj, false, f);
	err = object_load(obj, f);
	if (!err)
		err = config_carry(set, obj, f);
	if (!err && stats)
		err = transfer_array(stats->fd, object_map_fd(obj, PIN_MAP_stats), f);
	return err;
}

static void dir_names(const char *name, char dir[PATH_MAX], char new[PATH_MAX], char old[PATH_MAX])
{
	instance_dir(name, "", dir);
	instance_dir(name, PIN_NEW_SUFFIX, new);
	instance_dir(name, PIN_OLD_SUFFIX, old);
}

/* bpffs exchanges directories from Linux 6.1 on. */
static int dirs_exchange(const char *name, struct failure *f)
{
	char dir[PATH_MAX], new[PATH_MAX], old[PATH_MAX];

	dir_names(name, dir, new, old);
	if (!renameat2(AT_FDCWD, new, AT_FDCWD, dir, RENAME_EXCHANGE))
		return 0;
	if (errno == EINVAL && !rename(dir, old)) {
		if (!rename(new, dir))
			return rename(old, new) ? fail(f, -errno, "cannot rename %s: %m%s", old,
						       remedy(errno))
						: 0;
		fail(f, -errno, "cannot rename %s: %m%s", new, remedy(errno));
		rename(old, dir);
		return -EIO;
	}
	return fail(f, -errno, "cannot exchange %s and %s: %m%s", new, dir, remedy(errno));
}

int generation_rename_back(const char *name, struct failure *f)
{
	char dir[PATH_MAX], new[PATH_MAX], old[PATH_MAX];
	const char *to;

	dir_names(name, dir, new, old);
	to = access(dir, F_OK) ? dir : new;
	if (!renameat2(AT_FDCWD, old, AT_FDCWD, to, RENAME_NOREPLACE) || errno == ENOENT)
		return 0;
	return fail(f, -errno, "cannot rename %s to %s: %m%s", old, to, remedy(errno));
}

/* In the order in which each step finds what it needs; the last one decides. */
static int take_over(struct handover *h, const struct set *set, const struct object *obj,
		     const struct plan *plan, const struct cgroups *cgs, gid_t group)
{
	struct undo undo _cleanup_(undo_commit) = {0}; /* it is not undone, but retired */
	struct set side _cleanup_set_ = {0};
	int fds[ARRAY_SIZE(carried)];
	int err = set_read(set->name, PIN_NEW_SUFFIX, &side, h->f);

	for (size_t i = 0; i < ARRAY_SIZE(carried); i++)
		fds[i] = object_map_fd(obj, carried[i].map);
	if (!err && plan->keep_maps)
		err = live_enter(set, &side, TP_LIVE_NEXT, h->f);
	if (!err)
		err = load_attach(&undo, obj, cgs, set->name, false, h->f);
	if (!err)
		err = handover_open(h, set, fds);
	if (!err)
		err = handover_sync(h);
	/* Knowing which ports are taken: it may be asked for what the old set lets pass. */
	if (!err)
		err = load_attach(&undo, obj, cgs, set->name, true, h->f);
	if (!err)
		err = access_set_pins(side.dir, group, h->f);
	return err ?: dirs_exchange(set->name, h->f);
}

/* Where cgroups are inside one another it may have connections of its own. */
static void take_back(const struct set *set)
{
	struct set side _cleanup_set_ = {0};
	struct failure f;

	if (set_read(set->name, PIN_NEW_SUFFIX, &side, &f) || generation_retire(&side, set, &f))
		log_warning("instance %s: %s", set->name, f.text);
}

int generation_change(const struct cgroups *cgs, const struct set *set, struct object *obj,
		      const struct plan *plan, gid_t group, struct failure *f)
{
	struct handover h _cleanup_handover_ = {.f = f, .ours = true};
	struct set to _cleanup_set_ = {0}, from _cleanup_set_ = {0};
	struct undo undo _cleanup_undo_ = {0};
	int err;

	err = maps_load(set, obj, plan, f);
	if (!err)
		err = load_pin(&undo, obj, set->name, f);
	if (err)
		return err;
	undo_commit(&undo);
	err = take_over(&h, set, obj, plan, cgs, group);
	if (err) {
		take_back(set);
		return err;
	}
	err = set_read_both(set->name, &to, &from, f);
	if (!err && to.config) {
		__atomic_store_n(&to.config->build, object_build(), __ATOMIC_RELAXED);
		__atomic_store_n(&to.config->loaded_ns, load_time(), __ATOMIC_RELAXED);
	}
	if (!err)
		err = retire(&h, &from, &to);
	if (err)
		log_warning("instance %s: the new hooks are in force, but the old ones have not "
			    "gone yet; run it again",
			    set->name);
	return err;
}
