// SPDX-License-Identifier: BSD-2-Clause
#include "limits.h"

#include "log.h"
#include "stats.h"

#define FD_RESERVE 64 /* for pipes, logs and libraries: never spent on sessions */

/* Sessions at once, as far as settings and descriptors go. */
static uint64_t capacity(const struct proxy *p)
{
	uint64_t most = p->fd_limit > FD_RESERVE ? (p->fd_limit - FD_RESERVE) / 2 : 0;

	if (p->table.slots < most)
		most = p->table.slots;
	return p->settings.max_sessions < most ? p->settings.max_sessions : most;
}

/* Rounded up: of a few sessions, the last one too. */
static uint64_t share_of(const struct proxy *p, uint64_t setting)
{
	if (!(setting & OPT_PERCENT))
		return setting;
	return (capacity(p) * (setting & ~OPT_PERCENT) + 99) / 100;
}

int limits_room(struct proxy *p)
{
	uint64_t used = table_used(&p->table);
	uint64_t needed = 2 * (used + 1) + 2 * (p->pipes.open - p->pipes.idle) + FD_RESERVE;

	if (used == p->table.slots || used >= p->settings.max_sessions) {
		stats_count(p, table_full);
		return 0;
	}
	if (needed > p->fd_limit) {
		stats_count(p, no_descriptors);
		return 0;
	}
	if (!headroom_left(&p->headroom, p->now_ms)) {
		stats_count(p, no_memory);
		return 0;
	}
	if (needed + 2 * p->pipes.idle > p->fd_limit)
		pipes_trim(&p->pipes);
	return 1;
}

/* Says once in a while whose clients wait, which nobody would guess from the client's side. */
static void say_over(const struct tp_record *client, const char *who, uint64_t share)
{
	static struct log_limit limit = {.burst = 1, .interval_ms = 10000};
	unsigned int missed;

	if (log_allowed(&limit, &missed))
		log_warning("clients have to wait: their %s (uid %u, cgroup %llu) has its %llu "
			    "sessions; raise max-sessions-per-%s to allow more",
			    who, client->uid, (unsigned long long)client->cgroup_id,
			    (unsigned long long)share, who);
}

const char *limits_enter(struct proxy *p, const struct tp_record *client)
{
	uint64_t uid_share = share_of(p, p->settings.uid_share);
	uint64_t cgroup_share = share_of(p, p->settings.cgroup_share);

	if (!limits_room(p))
		return "there is no room for one session more";
	if (shares_count(&p->uids, client->uid) >= uid_share) {
		stats_count(p, over_uid_share);
		say_over(client, "uid", uid_share);
		return "its user has max-sessions-per-uid";
	}
	if (shares_count(&p->cgroups, client->cgroup_id) >= cgroup_share) {
		stats_count(p, over_cgroup_share);
		say_over(client, "cgroup", cgroup_share);
		return "its cgroup has max-sessions-per-cgroup";
	}
	if (!shares_add(&p->uids, client->uid)) {
		if (!shares_add(&p->cgroups, client->cgroup_id)) {
			stats_count(p, accepted);
			return NULL;
		}
		shares_remove(&p->uids, client->uid);
	}
	stats_count(p, no_memory);
	return "there is no memory for one session more";
}

void limits_leave(struct proxy *p, const struct session *s)
{
	shares_remove(&p->uids, s->client.uid);
	shares_remove(&p->cgroups, s->client.cgroup_id);
}

int limits_recover(struct proxy *p)
{
	int err = 0;

	for (uint32_t i = 0; !err && i < p->shared->slots_used; i++) {
		const struct session *s = table_at(&p->table, i);

		if (s->list == LIST_FREE)
			continue;
		err = shares_add(&p->uids, s->client.uid);
		if (!err)
			err = shares_add(&p->cgroups, s->client.cgroup_id);
	}
	return err;
}

void limits_count_errno(struct proxy *p, int err)
{
	if (err == EMFILE || err == ENFILE)
		stats_count(p, no_descriptors);
	else if (err == ENOMEM || err == ENOBUFS)
		stats_count(p, no_memory);
}

void limits_free(struct proxy *p)
{
	shares_free(&p->uids);
	shares_free(&p->cgroups);
}
