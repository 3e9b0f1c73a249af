// SPDX-License-Identifier: BSD-2-Clause
#include "process.h"

#include <string.h>
#include <sys/stat.h>

#include "lib/util.h"

uint64_t process_start_time(pid_t pid)
{
	unsigned long long start = 0;
	char state, path[64], line[1024], *p;
	FILE *file _cleanup_file_ = NULL;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (!file || !fgets(line, sizeof(line), file))
		return 0;
	p = strrchr(line, ')'); /* the name before it may hold anything */
	if (!p ||
	    sscanf(p + 1,
		   " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
		   "%*s %*s %*s %llu",
		   &state, &start) != 2 ||
	    state == 'Z' || state == 'X') /* ended, and only not yet waited for */
		return 0;
	return start;
}

const char *process_comm(pid_t pid, char buf[PROCESS_COMM_LEN])
{
	FILE *file _cleanup_file_ = NULL;
	char path[64];
	size_t n;

	buf[0] = 0;
	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	file = fopen(path, "re");
	if (!file)
		return buf;
	n = fread(buf, 1, PROCESS_COMM_LEN - 1, file);
	if (n && buf[n - 1] == '\n')
		n--;
	buf[n] = 0;
	return buf;
}

/* The number of the descriptor, or -ENOENT. */
static int find_in(pid_t pid, const char *wanted)
{
	DIR *dir _cleanup_dir_ = NULL;
	char path[64], target[64];
	struct dirent *e;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), e->d_name, target, sizeof(target) - 1);

		if (n < 0)
			continue;
		target[n] = 0;
		if (!strcmp(target, wanted))
			return atoi(e->d_name);
	}
	return -ENOENT;
}

int process_find_socket(uint32_t inode, pid_t *ret_pid)
{
	DIR *dir _cleanup_dir_ = opendir("/proc");
	char wanted[32];
	struct dirent *e;

	snprintf(wanted, sizeof(wanted), "socket:[%u]", inode);
	while (dir && (e = readdir(dir))) {
		pid_t pid = atoi(e->d_name);
		int fd = pid > 0 ? find_in(pid, wanted) : -ENOENT;

		if (fd >= 0) {
			*ret_pid = pid;
			return fd;
		}
	}
	return -ENOENT;
}

int process_pids_are_global(void)
{
	struct stat st;

	/* The inode number of the initial pid namespace is fixed (PROC_PID_INIT_INO, Linux 3.8). */
	return !stat("/proc/self/ns/pid", &st) && st.st_ino == 0xEFFFFFFC;
}

uint64_t process_netns(pid_t pid)
{
	char path[64] = "/proc/self/ns/net";
	struct stat st;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
	return stat(path, &st) ? 0 : st.st_ino;
}
