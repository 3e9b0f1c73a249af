// SPDX-License-Identifier: BSD-2-Clause
#include "headroom.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util.h"

#define LOOK_MS	   100 /* what was found is believed for so long, */
#define LOOK_ASKED 32  /* and for so many sessions, some 10 KB each */
#define RESERVE	   10  /* of the limit, one part in: for what open sessions need */

/* The mount point of the hierarchy that has memory: in version 1 its options name it. */
static int mount_point(int v1, char ret[PATH_MAX])
{
	FILE *file _cleanup_file_ = fopen("/proc/self/mountinfo", "re");
	char *line _cleanup_free_ = NULL;
	size_t size = 0;

	while (file && getline(&line, &size, file) > 0) {
		char *type = strstr(line, v1 ? " - cgroup " : " - cgroup2 ");

		if (type && (!v1 || strstr(type, "memory")) &&
		    sscanf(line, "%*s %*s %*s %*s %4095s", ret) == 1)
			return 0;
	}
	return -ENOENT;
}

/* Our own cgroup, below the mount point. */
static int own_path(int v1, char ret[PATH_MAX])
{
	FILE *file _cleanup_file_ = fopen("/proc/self/cgroup", "re");
	char *line _cleanup_free_ = NULL;
	size_t size = 0;

	while (file && getline(&line, &size, file) > 0) {
		char *controllers = strchr(line, ':'), *path;

		line[strcspn(line, "\n")] = 0;
		path = controllers ? strchr(controllers + 1, ':') : NULL;
		if (!path)
			continue;
		*path++ = 0;
		if (v1 ? !strcmp(controllers + 1, "memory") : !controllers[1]) {
			snprintf(ret, PATH_MAX, "%s", path);
			return 0;
		}
	}
	return -ENOENT;
}

static int open_file(const char *mount, const char *cgroup, const char *name)
{
	char path[2 * PATH_MAX + 64];

	snprintf(path, sizeof(path), "%s%s/%s", mount, cgroup, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static int open_version(struct headroom *h, int v1)
{
	char mount[PATH_MAX], cgroup[PATH_MAX];

	if (mount_point(v1, mount) || own_path(v1, cgroup))
		return -ENOENT;
	h->limit = open_file(mount, cgroup, v1 ? "memory.limit_in_bytes" : "memory.max");
	h->usage = open_file(mount, cgroup, v1 ? "memory.usage_in_bytes" : "memory.current");
	h->stat = open_file(mount, cgroup, "memory.stat");
	h->v1 = v1;
	if (h->limit >= 0 && h->usage >= 0 && h->stat >= 0)
		return 0;
	headroom_close(h);
	return -ENOENT;
}

void headroom_open(struct headroom *h)
{
	*h = (struct headroom)HEADROOM_INIT;
	if (open_version(h, 0))
		open_version(h, 1);
}

void headroom_close(struct headroom *h)
{
	h->limit = fd_close(h->limit);
	h->usage = fd_close(h->usage);
	h->stat = fd_close(h->stat);
}

/* Whole text of a file. Returns its length. */
static size_t read_text(int fd, char *buf, size_t size)
{
	ssize_t n = pread(fd, buf, size - 1, 0);

	buf[n > 0 ? n : 0] = 0;
	return n > 0 ? n : 0;
}

uint64_t headroom_reclaimable(const char *stat, int v1)
{
	static const char *const names[][3] = {
		{"inactive_file ", "active_file ", "slab_reclaimable "},
		{"total_inactive_file ", "total_active_file ", NULL}};
	uint64_t sum = 0;

	for (size_t i = 0; i < 3 && names[v1][i]; i++) {
		const char *at = stat;

		while ((at = strstr(at, names[v1][i]))) {
			const char *value = at + strlen(names[v1][i]);

			if (at == stat || at[-1] == '\n')
				sum += strtoull(value, NULL, 10);
			at = value;
		}
	}
	return sum;
}

static int look(const struct headroom *h)
{
	uint64_t limit, usage, most;
	char text[32], stat[8192];

	if (!read_text(h->limit, text, sizeof(text)) || text[0] == 'm') /* "max" */
		return 1;
	limit = strtoull(text, NULL, 10);
	if (!limit || !read_text(h->usage, text, sizeof(text)))
		return 1;
	usage = strtoull(text, NULL, 10);
	most = limit - limit / RESERVE;
	if (usage < most)
		return 1;
	read_text(h->stat, stat, sizeof(stat));
	return usage < most + headroom_reclaimable(stat, h->v1);
}

int headroom_left(struct headroom *h, uint64_t now_ms)
{
	if (h->limit < 0)
		return 1;
	if (now_ms >= h->looked_ms + LOOK_MS || (!h->none && ++h->asked >= LOOK_ASKED)) {
		h->none = !look(h);
		h->looked_ms = now_ms;
		h->asked = 0;
	}
	return !h->none;
}
