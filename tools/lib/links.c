// SPDX-License-Identifier: BSD-2-Clause
#include "links.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

int link_name_parse(const char *file, enum pin_prog *ret_prog, uint64_t *ret_cgroup)
{
	size_t len = strlen(PIN_LINK_PREFIX);
	char again[64];

	if (strncmp(file, PIN_LINK_PREFIX, len))
		return -EINVAL;
	file += len;
	for (int p = 0; p < PIN_HOOK_COUNT; p++) {
		const char *rest = file + strlen(pin_progs[p].name);
		uint64_t id;

		if (strncmp(file, pin_progs[p].name, rest - file) || *rest != '_')
			continue;
		id = strtoull(rest + 1, NULL, 10);
		/* Only the one way we write it, so that name and parts stay equivalent. */
		if (!id || strcmp(link_name_format(p, id, again) + len, file))
			return -EINVAL;
		*ret_prog = p;
		*ret_cgroup = id;
		return 0;
	}
	return -EINVAL;
}

const char *link_name_format(enum pin_prog prog, uint64_t cgroup, char buf[64])
{
	snprintf(buf, 64, PIN_LINK_PREFIX "%s_%" PRIu64, pin_progs[prog].name, cgroup);
	return buf;
}

int link_inspect(int fd, enum pin_prog prog, struct hook_link *ret)
{
	struct bpf_prog_info prog_info = {};
	struct bpf_link_info info = {};
	__u32 len = sizeof(info);
	int prog_fd _cleanup_fd_ = -1;

	if (bpf_obj_get_info_by_fd(fd, &info, &len))
		return -errno;
	if (info.type != BPF_LINK_TYPE_CGROUP ||
	    info.cgroup.attach_type != pin_progs[prog].attach_type)
		return -EINVAL;
	prog_fd = bpf_prog_get_fd_by_id(info.prog_id);
	if (prog_fd < 0)
		return -errno;
	len = sizeof(prog_info);
	if (bpf_obj_get_info_by_fd(prog_fd, &prog_info, &len))
		return -errno;
	if (strcmp(prog_info.name, pin_progs[prog].object))
		return -EINVAL;
	ret->prog = prog;
	ret->link_id = info.id;
	ret->prog_id = info.prog_id;
	ret->cgroup_id = info.cgroup.cgroup_id;
	return 0;
}

/* 1: read, 0: not a link of ours, or -errno. */
static int link_read(const char *name, const char *file, struct hook_link *ret, struct failure *f)
{
	struct hook_link link = {0};
	char path[PATH_MAX];
	int fd _cleanup_fd_ = -1;
	enum pin_prog prog;
	int err;

	if (link_name_parse(file, &prog, &link.pinned_cgroup))
		return 0;
	fd = bpf_obj_get(instance_pin(name, file, path));
	if (fd < 0 && (errno == EPERM || errno == EACCES))
		return fail(f, -errno, "cannot open %s: %m; run as root", path);
	if (fd < 0) /* unpinned since, or no BPF object */
		return 0;
	err = link_inspect(fd, prog, &link);
	if (err == -EINVAL)
		return 0;
	if (err)
		return fail(f, err, "cannot read %s: %s", path, strerror(-err));
	link_name_format(prog, link.pinned_cgroup, link.pin);
	*ret = link;
	return 1;
}

int links_read(const char *name, struct hook_link **ret, size_t *ret_count, struct failure *f)
{
	struct hook_link *links _cleanup_free_ = NULL;
	DIR *dir _cleanup_dir_ = NULL;
	char path[PATH_MAX];
	struct dirent *e;
	size_t count = 0;
	int r;

	dir = opendir(instance_dir(name, "", path));
	if (!dir)
		return fail(f, -errno, "cannot read %s: %m%s", path,
			    errno == ENOENT   ? "; there is no such instance"
			    : errno == EACCES ? "; run as root"
					      : "");
	while ((e = readdir(dir))) {
		struct hook_link *more = reallocarray(links, count + 1, sizeof(*links));

		if (!more)
			return fail(f, -ENOMEM, "out of memory");
		links = more;
		r = link_read(name, e->d_name, &links[count], f);
		if (r < 0)
			return r;
		count += r;
	}
	*ret_count = count;
	*ret = count ? TAKE_PTR(links) : NULL;
	return 0;
}
