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
#include <poll.h>
#include <string.h>

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
#define ROUNDS	     10
#define PORT_TRIES   5

/* What connections have; everything else is a tproxyd's, which enters it anew. */
static const struct {
	enum pin_map map, live;
} carried[] = {
	{PIN_MAP_socks, PIN_MAP_live_socks},
	{PIN_MAP_ports, PIN_MAP_live_ports},
};

struct handover {
	struct transfer transfer[ARRAY_SIZE(carried)]; /* one that was not opened does nothing */
	int to[ARRAY_SIZE(carried)];		       /* fds, borrowed; -1: none */
	bool ours; /* the records that it makes are of our version */
	bool warned;
	struct failure *f;
};

static void handover_close(struct handover *h)
{
	for (size_t i = 0; i < ARRAY_SIZE(carried); i++)
		transfer_free(&h->transfer[i]);
}

#define _cleanup_handover_ _cleanup_(handover_close)

static bool is_copy(const void *value)
{
	struct tp_record rec;

	memcpy(&rec, value, sizeof(rec));
	return rec.flags & TP_RECORD_COPIED;
}

/*
 * Programs of both sets hear of a client, and the doorman writes into both maps; but what came
 * before the copy was made, or as it was written, only the old record has. A client whose
 * connection is over may be at its next one by now, with a record that only the new set has: that
 * is not written over.
 */
static bool copy_merge(void *there, const void *now)
{
	struct tp_record copy, rec;

	memcpy(&copy, there, sizeof(copy));
	memcpy(&rec, now, sizeof(rec));
	if (rec.reached & TP_REACHED_CLOSED)
		return false;
	if (copy.start_ns == rec.start_ns) {
		rec.reached |= copy.reached;
		rec.flags |= copy.flags & TP_RECORD_TIMEOUT_LENT;
		if (!rec.src.family)
			rec.src = copy.src;
		if (!rec.local.family)
			rec.local = copy.local;
		if (!rec.seq) {
			rec.seq = copy.seq;
			rec.slot = copy.slot;
		}
	}
	if (!memcmp(&copy, &rec, sizeof(rec)))
		return false;
	memcpy(there, &rec, sizeof(rec));
	return true;
}

/*
 * Whether a port belongs to the record of that cookie, which it gets: programs enter it after the
 * record, and free it before the record is closed. 1, 0 or -errno.
 */
static int has_port(int records, const __u64 *cookie, const struct tp_port_key *port,
		    struct tp_record *ret)
{
	struct tp_port_key key;
	int err = entry_read(records, cookie, ret);

	if (err)
		return err == -ENOENT ? 0 : err;
	tp_port_key_set(&key, ret->netns, &ret->src, ret->proxy_port);
	return ret->src.family && !(ret->reached & TP_REACHED_CLOSED) &&
	       !memcmp(&key, port, sizeof(key));
}

/* Of a port in the new map: nobody would free it. */
static bool is_stray(const void *key, const void *value, void *context)
{
	struct tp_port_key port;
	struct tp_record rec;
	__u64 cookie;

	memcpy(&port, key, sizeof(port));
	memcpy(&cookie, value, sizeof(cookie));
	return !has_port(*(int *)context, &cookie, &port, &rec);
}

/*
 * Enters or removes the port of a record, as the new one demands, until that is so: programs may do
 * the same meanwhile.
 */
static int port_follow(struct transfer *records, const void *key, const void *value)
{
	const int *ports = records->context;
	struct tp_record old, rec;
	struct tp_port_key port;
	__u64 cookie, owner;

	memcpy(&cookie, key, sizeof(cookie));
	memcpy(&old, value, sizeof(old));
	if (!old.src.family)
		return 0;
	tp_port_key_set(&port, old.netns, &old.src, old.proxy_port);
	for (int try = 0; try < PORT_TRIES; try++) {
		int err = entry_read(*ports, &port, &owner);
		bool taken = !err, ours = taken && owner == cookie;
		int has = has_port(records->to, &cookie, &port, &rec);

		if ((err && err != -ENOENT) || has < 0)
			return has < 0 ? has : err;
		if (has && rec.start_ns == old.start_ns && old.reached & TP_REACHED_CLOSED)
			has = 0;
		if (has == ours)
			return 0;
		if (has && taken) { /* by a copy whose client has gone, or a later one */
			has = has_port(records->to, &owner, &port, &rec);
			if (has < 0 || (has && !(rec.flags & TP_RECORD_COPIED)))
				return has < 0 ? has : 0;
		}
		err = 0;
		if (ours)
			err = entry_delete(*ports, &port);
		else if (bpf_map_update_elem(*ports, &port, &cookie,
					     taken ? BPF_EXIST : BPF_NOEXIST))
			err = -errno;
		if (err && err != -EEXIST && err != -ENOENT)
			return err;
		records->written += !err;
	}
	return -EAGAIN;
}

/*
 * `to`: the maps that inherit, in the order of `carried`; -1: none. Borrowed, as those of `from`. A
 * set without map_socks has handed over what it had. Ports of our version follow their records.
 */
static int handover_open(struct handover *h, const struct set *from,
			 const int to[ARRAY_SIZE(carried)])
{
	struct transfer *records = &h->transfer[0];

	memcpy(h->to, to, sizeof(h->to));
	if (!set_find(from, PIN_MAP, PIN_MAP_socks, false)) {
		h->ours = false;
		return 0;
	}
	for (size_t i = 0; i < (h->ours ? 1 : ARRAY_SIZE(carried)); i++) {
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
		records->merge = copy_merge;
		records->copied = is_copy;
		records->follow = to[1] < 0 ? NULL : port_follow;
		records->context = &h->to[1]; /* the handover stays where it is */
	}
	return 0;
}

/* Of another version: a port's record is older than the port, and none is carried over without. */
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

		err = worse(err, one);
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
	if (!h->warned)
		log_warning("some connections lose their names for themselves: %s", h->f->text);
	h->warned = true;
	return 0;
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

/* A proxy of the old version knows whom it accepts only with the old hooks in place. */
static int held_wait(struct handover *h)
{
	int left = HELD_MS, quiet = 0, err = 0;

	if (!h->ours)
		return 0;
	err = programs_wait(h->f);
	while (!err && left > 0 && quiet < QUIET_MS) {
		poll(NULL, 0, LOOK_MS);
		left -= LOOK_MS;
		err = handover_finish(h);
		quiet = any_held(&h->transfer[0]) ? 0 : quiet + LOOK_MS;
	}
	return err;
}

static size_t written(const struct handover *h)
{
	size_t sum = 0;

	for (size_t i = 0; i < ARRAY_SIZE(carried); i++)
		sum += h->transfer[i].written;
	return sum;
}

/*
 * Once no program makes new entries in the old maps. A write may undo what a program did in the new
 * maps meanwhile. The old maps show it when that program has ended: so until nothing was written.
 */
static int handover_settle(struct handover *h)
{
	for (int round = 0; round < ROUNDS; round++) {
		size_t before = written(h);
		int err = programs_wait(h->f) ?: handover_finish(h);

		if (err || written(h) == before)
			return err;
	}
	return fail(h->f, -EAGAIN,
		    "connections come and go too fast for their records to be handed over");
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
	if (!err && !same)
		err = held_wait(h);
	if (!err)
		err = handover_settle(h);
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
 * An earlier run may have copied entries and not lived to hear of their end. On the way back those
 * of even earlier generations are not told from its own.
 */
static int resume(struct handover *h, bool back)
{
	int err = 0;

	if (!h->ours)
		return 0;
	if (!back)
		err = transfer_resume(&h->transfer[0], h->f);
	if (!err && h->to[1] >= 0)
		err = transfer_sweep(h->to[1], is_stray, &h->to[0], h->f);
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
	if (!err && back && h.ours) /* only what the newer one has of its own */
		h.transfer[0].stays = is_copy;
	return err ?: resume(&h, back) ?: retire(&h, from, to);
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
	if (access_is_strangers(old)) {
		log_warning("left alone: %s does not belong to root, so it is not ours; remove it",
			    old);
		return 0;
	}
	to = access(dir, F_OK) ? dir : new;
	if (!renameat2(AT_FDCWD, old, AT_FDCWD, to, RENAME_NOREPLACE) || errno == ENOENT)
		return 0;
	return fail(f, -errno, "cannot rename %s to %s: %m%s", old, to, remedy(errno));
}

/* In the order in which each step finds what it needs; the last one decides. */
static int take_over(struct handover *h, const struct set *set, const struct object *obj,
		     const struct plan *plan, const struct cgroups *cgs)
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
	if (!err) /* another group is let in afterwards, by who knows which one had been */
		err = access_set_pins(side.dir, access_holder(set->dir), h->f);
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
		      const struct plan *plan, struct failure *f)
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
	err = take_over(&h, set, obj, plan, cgs);
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
