// SPDX-License-Identifier: BSD-2-Clause
#include "unclaimed.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#define MAX_PROGRAMS 128

/* A link whose pin went a moment ago is detached after an RCU grace period. */
#define GRACE_MS 2000
#define LOOK_MS	 50

struct search {
	const struct set *set, *side;
	__u32 id; /* what was found; 0: nothing */
	char name[BPF_OBJ_NAME_LEN];
	char path[PATH_MAX];
};

static bool set_has_program(const struct set *set, __u32 id)
{
	for (size_t i = 0; i < set->count; i++) {
		const struct pin *pin = &set->pins[i];

		if ((pin->kind == PIN_PROG && pin->id == id) ||
		    (pin->kind == PIN_LINK && pin->link.prog_id == id))
			return true;
	}
	return false;
}

/* Whether a program is a hook of tproxy's, by its name, but of none of the sets. */
static bool is_unclaimed(struct search *s, enum pin_prog prog, __u32 id)
{
	struct bpf_prog_info info = {};
	__u32 len = sizeof(info);
	int fd _cleanup_fd_ = -1;

	if (set_has_program(s->set, id) || set_has_program(s->side, id))
		return false;
	fd = bpf_prog_get_fd_by_id(id);
	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &len) ||
	    strncmp(info.name, pin_progs[prog].object, BPF_OBJ_NAME_LEN - 1))
		return false;
	s->id = id;
	snprintf(s->name, sizeof(s->name), "%s", info.name);
	return true;
}

/* flags: BPF_F_QUERY_EFFECTIVE for what ancestors have as well. */
static bool search_cgroup(struct search *s, int cgroup, __u32 flags, const char *path)
{
	for (int p = 0; p < PIN_HOOK_COUNT; p++) {
		__u32 ids[MAX_PROGRAMS], count = MAX_PROGRAMS;

		if (bpf_prog_query(cgroup, pin_progs[p].attach_type, flags, NULL, ids, &count))
			continue; /* more than can be attached, or gone */
		for (__u32 i = 0; i < count; i++)
			if (is_unclaimed(s, p, ids[i])) {
				snprintf(s->path, sizeof(s->path), "%s", path);
				return true;
			}
	}
	return false;
}

static bool search_below(struct search *s, int cgroup, const char *path)
{
	int fd = openat(cgroup, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir _cleanup_dir_ = fd < 0 ? NULL : fdopendir(fd);
	char child[PATH_MAX];
	struct dirent *e;

	if (!dir)
		fd_close(fd);
	while (dir && (e = readdir(dir))) {
		int below _cleanup_fd_ = -1;

		if (e->d_type != DT_DIR || !strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		below = openat(dirfd(dir), e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (below < 0 || snprintf(child, sizeof(child), "%s/%s", path[1] ? path : "",
					  e->d_name) >= (int)sizeof(child))
			continue;
		if (search_cgroup(s, below, 0, child) || search_below(s, below, child))
			return true;
	}
	return false;
}

static bool search_all(struct search *s, const struct cgroups *cgs)
{
	for (size_t c = 0; c < cgs->count; c++) {
		const struct cgroup *cg = &cgs->items[c];

		if (search_cgroup(s, cg->fd, BPF_F_QUERY_EFFECTIVE, cg->path) ||
		    search_below(s, cg->fd, cg->path))
			return true;
	}
	return false;
}

int unclaimed_check(const struct cgroups *cgs, const struct set *set, const struct set *side,
		    struct failure *f)
{
	struct search s = {.set = set, .side = side};
	struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};

	for (int waited = 0; search_all(&s, cgs); waited += LOOK_MS) {
		if (waited >= GRACE_MS)
			return fail(f, -EBUSY,
				    "hooks of tproxy (program %u, %s) run for cgroup %.300s "
				    "already, but no instance here has them, so connections would "
				    "run both; unload them where another bpffs is at " BPFFS_ROOT
				    ", or see which link it is: bpftool link show, and end it: "
				    "bpftool link detach id ID",
				    s.id, s.name, s.path);
		nanosleep(&pause, NULL);
	}
	return 0;
}
