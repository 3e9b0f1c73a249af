// SPDX-License-Identifier: BSD-2-Clause
#include "object.h"

#include <bpf/bpf.h>
#include <string.h>

#include "bpf/tproxy.skel.h"
#include "log.h"
#include "probe.h"

#define VERIFIER_LINES 40 /* of the end of its log: the reason is there */

__u64 object_build(void)
{
	const unsigned char *bytes;
	__u64 hash =
		0xcbf29ce484222325; /* FNV-1a, 64 bits: not against forgers, only to tell apart */
	size_t size;

	bytes = tproxy_bpf__elf_bytes(&size);
	for (size_t i = 0; i < size; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3;
	return hash;
}

static int print_nothing(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	(void)level;
	(void)fmt;
	(void)ap;
	return 0;
}

/* Line by line through the log; of a message with very many lines, only the last. */
static int print_log(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	char *text _cleanup_free_ = NULL;
	char *line, *rest;
	int lines = 0;

	if (level == LIBBPF_DEBUG)
		return 0;
	if (vasprintf(&text, fmt, ap) < 0)
		return text = NULL, 0;
	for (const char *p = text; (p = strchr(p, '\n')); p++)
		lines++;
	rest = text;
	while ((line = strsep(&rest, "\n")))
		if (lines-- < VERIFIER_LINES && *line)
			log_debug("%s", line);
	return 0;
}

void object_verbose(bool verbose)
{
	libbpf_set_print(verbose ? print_log : print_nothing);
}

bool object_map_sized(enum pin_map map)
{
	return map == PIN_MAP_socks || map == PIN_MAP_ports;
}

int object_open(__u64 max_connections, struct object *ret, struct failure *f)
{
	struct tproxy_bpf *skel = tproxy_bpf__open();
	int err;

	if (!skel)
		return fail(f, -errno, "cannot open the embedded BPF object: %m");
	*ret = (struct object){.skel = skel};
#define X(n) ret->map[PIN_MAP_##n] = skel->maps.map_##n;
	PIN_MAPS(X)
#undef X
#define X(n, type) ret->prog[PIN_PROG_##n] = skel->progs.tp_##n;
	PIN_HOOKS(X)
#undef X
#define X(n) ret->prog[PIN_PROG_##n] = skel->progs.tp_##n;
	PIN_FILTERS(X)
#undef X
	for (int m = 0; m < PIN_MAP_COUNT; m++) {
		if (!object_map_sized(m))
			continue;
		err = bpf_map__set_max_entries(ret->map[m], max_connections);
		if (err) {
			object_close(ret);
			return fail(f, err, "cannot size %s: %s", pin_maps[m].name, strerror(-err));
		}
	}
	return 0;
}

/* Why the kernel may have refused: what it lacks is the likeliest, and says most. */
static int load_failure(int err, struct failure *f)
{
	struct probe probes[PROBE_MAX];
	size_t count = probe_system(probes, PROBE_MAX);

	for (size_t i = 0; i < count; i++)
		if (probes[i].result == PROBE_FAIL)
			return fail(f, err,
				    "the kernel does not load the BPF programs: %s; %s: %s; %s",
				    strerror(-err), probes[i].what, probes[i].found, probes[i].fix);
	if (err == -ENOMEM || err == -E2BIG)
		return fail(f, err,
			    "cannot load the BPF programs and maps: %s; free memory or lower "
			    "--max-connections",
			    strerror(-err));
	return fail(
		f, err,
		"the kernel does not load the BPF programs: %s; --verbose shows what its verifier "
		"objects to, if it does",
		strerror(-err));
}

/*
 * Pinned objects are told from foreign ones by their names, and the fields in a dump of a map have
 * theirs from its BTF. libbpf leaves either out if it believes that the kernel does not know such,
 * and it believes so too when its probe fails for want of memory.
 */
static int names_check(const struct object *obj, struct failure *f)
{
	for (int m = 0; m < PIN_MAP_COUNT; m++) {
		struct bpf_map_info info = {};
		__u32 len = sizeof(info);

		if (bpf_obj_get_info_by_fd(object_map_fd(obj, m), &info, &len) ||
		    strcmp(info.name, pin_maps[m].name) ||
		    (!info.btf_id && info.type != BPF_MAP_TYPE_ARRAY_OF_MAPS)) /* has none, ever */
			return fail(f, -EAGAIN,
				    "the kernel did not take name and types of %s; try again",
				    pin_maps[m].name);
	}
	for (int p = 0; p < PIN_PROG_COUNT; p++) {
		struct bpf_prog_info info = {};
		__u32 len = sizeof(info);

		if (bpf_obj_get_info_by_fd(object_prog_fd(obj, p), &info, &len) ||
		    strcmp(info.name, pin_progs[p].object))
			return fail(f, -EAGAIN, "the kernel did not take the name of %s; try again",
				    pin_progs[p].object);
	}
	return 0;
}

/*
 * libbpf (1.0 and later) raises RLIMIT_MEMLOCK by itself, and only where the kernel still charges
 * BPF memory to it: it looks whether BPF memory goes to the memory cgroup (Linux 5.11).
 */
int object_load(struct object *obj, struct failure *f)
{
	int err = tproxy_bpf__load(obj->skel);

	return err ? load_failure(err, f) : names_check(obj, f);
}

void object_close(struct object *obj)
{
	tproxy_bpf__destroy(obj->skel);
	obj->skel = NULL;
}

int object_map_fd(const struct object *obj, enum pin_map map)
{
	return bpf_map__fd(obj->map[map]);
}

int object_prog_fd(const struct object *obj, enum pin_prog prog)
{
	return bpf_program__fd(obj->prog[prog]);
}
