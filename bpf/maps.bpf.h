/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps. Sizes of map_socks and map_ports are set by the loader (max-connections). */
#ifndef TPROXY_MAPS_BPF_H
#define TPROXY_MAPS_BPF_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tp_config);
} map_config SEC(".maps");

/*
 * Plain hashes on purpose: an LRU evicts entries of live connections under pressure, and a client
 * whose record has gone is misdirected. Not preallocated: memory follows the live connections.
 */
struct socks {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct tp_record);
} map_socks SEC(".maps");

struct ports {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct tp_port_key);
	__type(value, __u64);
} map_ports SEC(".maps");

/*
 * What the doorman, and now and then others, look in: the two above and, while the loader replaces
 * them by ones of another size, their successors too. It outlives such a change, as tproxyd has put
 * it on its listeners.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, TP_LIVE_MAPS);
	__type(key, __u32);
	__array(values, struct socks);
} map_live_socks SEC(".maps") = {.values = {&map_socks}};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, TP_LIVE_MAPS);
	__type(key, __u32);
	__array(values, struct ports);
} map_live_ports SEC(".maps") = {.values = {&map_ports}};

/* Freed with the socket it belongs to: a mark cannot outlive its listener. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct tp_mark);
} map_listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct tp_route_key);
	__type(value, __u32);
} map_routes SEC(".maps");

/* Losing an entry costs one native errno. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tp_port_key);
	__type(value, struct tp_failed);
} map_failed SEC(".maps");

/* Spares a client two look-ups; a destination that has lost its place to another is looked up. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TP_CHECKED);
	__type(key, __u32);
	__type(value, __u64);
} map_checked SEC(".maps");

/* A few entries a tproxyd; those of listeners that have gone are pushed out by new ones. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct tp_door);
} map_doors SEC(".maps");

/*
 * By slot of tp_config.proxies, the ring that this tproxyd reads: a ring has one reader, and there
 * may be several tproxyds, in each network namespace. No ring: that one does not hold handshakes.
 */
struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, TP_RING_SIZE);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, TP_MAX_PROXIES);
	__type(key, __u32);
	__array(values, struct ring);
} map_rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tp_stats);
} map_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, TP_MAX_PROXIES);
	__type(key, __u32);
	__type(value, struct tp_proxy_stats);
} map_proxies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TP_MAX_PROXIES *TP_WINDOWS);
	__type(key, __u32);
	__type(value, struct tp_window);
} map_windows SEC(".maps");

static __always_inline __u32 map_id(const void *map)
{
	return ((const struct bpf_map *)map)->id;
}

/* Per CPU, so it is never waited for; atomic, as an interrupt runs the same programs in between. */
#define COUNT(counter)                                                             \
	do {                                                                       \
		__u32 zero_ = 0;                                                   \
		struct tp_stats *stats_ = bpf_map_lookup_elem(&map_stats, &zero_); \
		if (stats_)                                                        \
			__sync_fetch_and_add(&stats_->counter, 1);                 \
	} while (0)

/* The configuration, or NULL where nothing must be done: not committed yet, or not ours to read. */
static __always_inline struct tp_config *config_get(void)
{
	__u32 zero = 0;
	struct tp_config *cfg = bpf_map_lookup_elem(&map_config, &zero);

	if (!cfg || cfg->magic != ABI_MAGIC || cfg->abi != ABI_VERSION || !cfg->enabled)
		return NULL;
	return cfg;
}

#endif
