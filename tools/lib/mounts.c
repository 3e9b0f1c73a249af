// SPDX-License-Identifier: BSD-2-Clause
#include "mounts.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "../../bpf/pins.h"

/* mountinfo writes space, tab, newline and backslash as \ooo (proc(5)). In place. */
static void unescape(char *s)
{
	char *out = s;

	for (; *s; s++) {
		if (s[0] == '\\' && s[1] && s[2] && s[3]) {
			*out++ = (s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0');
			s += 3;
		} else {
			*out++ = *s;
		}
	}
	*out = 0;
}

int cgroup2_root(char ret_path[PATH_MAX], struct failure *f)
{
	FILE *file _cleanup_file_ = fopen("/proc/self/mountinfo", "re");
	char *line _cleanup_free_ = NULL;
	size_t size = 0;

	if (!file)
		return fail(f, -errno, "cannot read /proc/self/mountinfo: %m; mount /proc");
	while (getline(&line, &size, file) > 0) {
		char root[PATH_MAX], point[PATH_MAX], *type = strstr(line, " - ");

		if (!type || strncmp(type, " - cgroup2 ", 11))
			continue;
		if (sscanf(line, "%*s %*s %*s %4095s %4095s", root, point) != 2)
			continue;
		unescape(point);
		snprintf(ret_path, PATH_MAX, "%s", point);
		return 0;
	}
	return fail(f, -ENOENT,
		    "no cgroup2 hierarchy is mounted; mount it with: mount -t cgroup2 none "
		    "/sys/fs/cgroup (or at another place, it will be found)");
}

int cgroup_open(const char *path, uint64_t *ret_id, struct failure *f)
{
	char root[PATH_MAX], full[2 * PATH_MAX];
	int fd _cleanup_fd_ = -1;
	struct statfs fs;
	struct stat st;
	int err;

	if (path[0] == '/') {
		snprintf(full, sizeof(full), "%s", path);
	} else {
		err = cgroup2_root(root, f);
		if (err)
			return err;
		snprintf(full, sizeof(full), "%s/%s", root, path);
	}
	fd = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? fail(f, -errno,
					      "cannot open cgroup %s: %m; make it with: mkdir %s",
					      full, full)
				       : fail(f, -errno, "cannot open cgroup %s: %m", full);
	if (fstatfs(fd, &fs) || fs.f_type != CGROUP2_SUPER_MAGIC || fstat(fd, &st))
		return fail(f, -EINVAL, "%s is not a cgroup of the cgroup2 hierarchy", full);
	*ret_id = st.st_ino; /* kernfs: the inode number is the id, on 64 bits */
	return TAKE_FD(fd);
}

int cgroup_path_of(int fd, char ret_path[PATH_MAX])
{
	char root[PATH_MAX], link[64], path[PATH_MAX];
	struct failure ignored;
	ssize_t n;

	if (cgroup2_root(root, &ignored))
		return -ENOENT;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 0)
		return -errno;
	path[n] = 0;
	if (strncmp(path, root, strlen(root)) ||
	    (path[strlen(root)] != '/' && path[strlen(root)] && strcmp(root, "/")))
		return -ENOENT;
	snprintf(ret_path, PATH_MAX, "%s", path[strlen(root)] ? path + strlen(root) : "/");
	return 0;
}

int cgroup_path(uint64_t id, char ret_path[PATH_MAX])
{
	struct {
		struct file_handle head;
		uint64_t id;
	} handle = {.head = {.handle_bytes = 8, .handle_type = 0xfe /* FILEID_KERNFS */}, .id = id};
	int mount_fd _cleanup_fd_ = -1, fd _cleanup_fd_ = -1;
	struct failure ignored;
	char root[PATH_MAX];

	if (cgroup2_root(root, &ignored))
		return -ENOENT;
	mount_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (mount_fd < 0)
		return -errno;
	fd = open_by_handle_at(mount_fd, &handle.head, O_RDONLY | O_CLOEXEC | O_PATH);
	if (fd < 0)
		return errno == ESTALE ? -ENOENT : -errno;
	return cgroup_path_of(fd, ret_path);
}

int bpffs_mounted(void)
{
	struct statfs fs;

	return !statfs(BPFFS_ROOT, &fs) && fs.f_type == BPF_FS_MAGIC;
}

int bpffs_ensure(int *ret_mounted, struct failure *f)
{
	*ret_mounted = 0;
	if (bpffs_mounted())
		return 0;
	if (mount("bpf", BPFFS_ROOT, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700"))
		return fail(
			f, -errno,
			"%s is not a bpffs and cannot be mounted: %m; mount it with: mount -t bpf "
			"bpf %s",
			BPFFS_ROOT, BPFFS_ROOT);
	*ret_mounted = 1;
	return 0;
}

/* By mountinfo, which is open to all: to compare namespaces takes CAP_SYS_PTRACE, and a mount may
 * be shared with another one. */
int bpffs_private(void)
{
	FILE *file _cleanup_file_ = fopen("/proc/1/mountinfo", "re");
	char *line _cleanup_free_ = NULL;
	unsigned int dev[2];
	struct stat ours;
	size_t size = 0;

	if (!file || stat(BPFFS_ROOT, &ours))
		return 0;
	while (getline(&line, &size, file) > 0)
		if (sscanf(line, "%*s %*s %u:%u", &dev[0], &dev[1]) == 2 &&
		    makedev(dev[0], dev[1]) == ours.st_dev)
			return 0;
	return 1;
}
