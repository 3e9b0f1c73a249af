// SPDX-License-Identifier: BSD-2-Clause
/*
 * What `tproxy` reads back from maps, links, sockets and processes, and prints: records, settings,
 * counters, names. Whatever is in them, the JSON must be valid and the text printable, as both are
 * shown to administrators and processes choose some of it.
 *
 * Input: a byte that says which command, as JSON or text; what is missing; the settings; then
 * whatever is asked for, in the order in which it is.
 */
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>

#include "fuzz.h"

/* What is not of the modules that are replaced here stays as it is shipped. */
#define instance_each other_instance_each
#define sockdiag_tcp  other_sockdiag_tcp
#include "../../tools/lib/instance.c"
#include "../../tools/lib/sockdiag.c"
#include "../../tools/sandbox.h"
#undef instance_each
#undef sockdiag_tcp

/* Neither /proc nor bpffs is read, and no sandbox of another process. */
static DIR *no_directory(const char *path)
{
	(void)path;
	return NULL;
}

static FILE *no_file(const char *path, const char *mode)
{
	(void)path;
	(void)mode;
	return NULL;
}

static int no_sandbox(int (*cb)(struct sandbox *box, void *user), void *user)
{
	(void)cb;
	(void)user;
	return 0;
}

#define opendir		     no_directory
#define fopen		     no_file
#define sandbox_each_stale   no_sandbox
#define sandbox_each_unknown no_sandbox
#include "../../tools/doctor.c"
#undef opendir
#undef fopen

#include "../../tools/lib/links.h"
#include "../../tools/lib/mounts.h"
#include "../../tools/process.h"
#include "log.h"

#define NAME	     "fuzz"
#define FD_MAX	     256
#define BATCH_MAX    16
#define LONG_BUCKETS 2
#define ITEMS_MAX    12

int instance_each(int (*cb)(const char *name, void *user), void *user);
int sockdiag_tcp(const struct sockdiag_query *query, struct sockdiag_socket **ret,
		 size_t *ret_count, struct failure *f);

static struct input *answers;
static uint16_t missing; /* bits 1 << enum pin_map */
static struct tp_config config;
static int config_memory;
static enum pin_map opened[FD_MAX]; /* by descriptor */
static unsigned int batches;

static int failed(int error)
{
	errno = error;
	return -error; /* as libbpf has it */
}

static int open_map(enum pin_map map)
{
	int fd = dup(config_memory);

	insist(fd >= 0 && fd < FD_MAX);
	opened[fd] = map;
	return fd;
}

/* --- the kernel's side: maps ----------------------------------------------------------------- */

int bpf_obj_get(const char *path)
{
	for (int m = 0; m < PIN_MAP_COUNT; m++)
		if (!strcmp(path + strlen(path) - strlen(pin_maps[m].name), pin_maps[m].name))
			return missing & 1 << m ? failed(ENOENT) : open_map(m);
	return failed(EACCES);
}

int bpf_map_get_fd_by_id(__u32 id)
{
	return id % 16 < PIN_MAP_COUNT ? open_map(id % 16) : failed(ENOENT);
}

int bpf_prog_get_fd_by_id(__u32 id)
{
	return id & 1 ? open_map(PIN_MAP_COUNT) : failed(ENOENT);
}

int bpf_prog_query(int target, enum bpf_attach_type type, __u32 flags, __u32 *attach_flags,
		   __u32 *ids, __u32 *count)
{
	__u32 n = take_byte(answers) % ITEMS_MAX;

	(void)target;
	(void)type;
	(void)flags;
	(void)attach_flags;
	insist(n <= *count);
	take(answers, ids, n * sizeof(*ids));
	*count = n;
	return 0;
}

int bpf_obj_get_info_by_fd(int fd, void *info, __u32 *len)
{
	enum pin_map map = opened[fd];
	struct bpf_prog_info *prog = info;
	struct bpf_map_info *one = info;

	if (map == PIN_MAP_COUNT) { /* a program: its name, or the maps it uses */
		__u32 *ids = (__u32 *)(unsigned long)prog->map_ids;

		for (__u32 i = 0; ids && i < prog->nr_map_ids; i++)
			ids[i] = take_byte(answers);
		take(answers, prog->name, sizeof(prog->name));
		return 0;
	}
	insist(*len >= sizeof(*one));
	one->type = pin_maps[map].type;
	one->key_size = pin_maps[map].key_size;
	one->value_size = pin_maps[map].value_size;
	snprintf(one->name, sizeof(one->name), "%s", pin_maps[map].name);
	take(answers, &one->max_entries, sizeof(one->max_entries));
	take(answers, &one->id, sizeof(one->id));
	return 0;
}

int bpf_map_lookup_elem(int fd, const void *key, void *value)
{
	enum pin_map map = opened[fd];

	(void)key;
	if (map == PIN_MAP_config)
		memcpy(value, &config, sizeof(config));
	else if (map == PIN_MAP_stats)
		take(answers, value, libbpf_num_possible_cpus() * sizeof(struct tp_stats));
	else
		take(answers, value, pin_maps[map].value_size);
	return 0;
}

/* Some entries at a time, the last of them with ENOENT; or a bucket that is longer than asked. */
int bpf_map_lookup_batch(int fd, void *from, void *position, void *keys, void *values, __u32 *count,
			 const struct bpf_map_batch_opts *opts)
{
	const struct pin_map_def *def = &pin_maps[opened[fd]];
	uint8_t how = take_byte(answers);

	(void)from;
	(void)position;
	(void)opts;
	if (batches++ < LONG_BUCKETS && how == 0xff) {
		*count = 0;
		return failed(ENOSPC);
	}
	insist(*count >= ITEMS_MAX);
	*count = (how & 0x7f) % ITEMS_MAX;
	take(answers, keys, *count * def->key_size);
	take(answers, values, *count * def->value_size);
	return how & 0x80 && batches < BATCH_MAX ? 0 : failed(ENOENT);
}

/* --- the kernel's side: links, cgroups, sockets, processes --------------------------------------
 */

int links_read(const char *name, struct hook_link **ret, size_t *ret_count, struct failure *f)
{
	size_t count = take_byte(answers);

	if (count == 0xff)
		return fail(f, -ENOENT, "there is no instance %s", name);
	count %= ITEMS_MAX;
	*ret = calloc(count + 1, sizeof(**ret));
	for (size_t i = 0; i < count; i++) {
		struct hook_link *l = &(*ret)[i];

		l->prog = take_byte(answers) % PIN_HOOK_COUNT;
		l->link_id = take_u16(answers);
		l->prog_id = take_u16(answers);
		l->pinned_cgroup = take_byte(answers);
		l->cgroup_id = take_byte(answers) & 1 ? l->pinned_cgroup : 0;
		snprintf(l->pin, sizeof(l->pin), "link_%s_%llu", pin_progs[l->prog].name,
			 (unsigned long long)l->pinned_cgroup);
	}
	*ret_count = count;
	return 0;
}

int cgroup2_root(char ret_path[PATH_MAX], struct failure *f)
{
	(void)f;
	return snprintf(ret_path, PATH_MAX, "/sys/fs/cgroup") < 0;
}

int cgroup_open(const char *path, uint64_t *ret_id, struct failure *f)
{
	*ret_id = 1;
	return strstr(path, "closed") ? fail(f, -EACCES, "cannot open %s", path)
				      : open_map(PIN_MAP_COUNT);
}

/* Names of directories are anything but a slash. */
int cgroup_path(uint64_t id, char ret_path[PATH_MAX])
{
	char *name;

	if (!id)
		return -ENOENT;
	name = take_text(answers, 0);
	snprintf(ret_path, PATH_MAX, "/%.300s", name);
	free(name);
	return 0;
}

int bpffs_mounted(void)
{
	return take_byte(answers) & 1;
}

int sockdiag_tcp(const struct sockdiag_query *query, struct sockdiag_socket **ret,
		 size_t *ret_count, struct failure *f)
{
	size_t count = take_byte(answers);

	(void)query;
	if (count == 0xff)
		return fail(f, -EPERM, "no");
	count %= ITEMS_MAX;
	*ret = calloc(count + 1, sizeof(**ret));
	take(answers, *ret, count * sizeof(**ret));
	qsort(*ret, count, sizeof(**ret), by_cookie);
	*ret_count = count;
	return 0;
}

int process_find_socket(uint32_t inode, pid_t *ret_pid)
{
	*ret_pid = take_u16(answers);
	return inode & 1 ? 3 : -ENOENT;
}

const char *process_comm(pid_t pid, char buf[PROCESS_COMM_LEN])
{
	(void)pid;
	take(answers, buf, PROCESS_COMM_LEN - 1);
	buf[PROCESS_COMM_LEN - 1] = 0;
	return buf;
}

uint64_t process_start_time(pid_t pid)
{
	return pid & 1;
}

int process_pids_are_global(void)
{
	return take_byte(answers) & 1;
}

uint64_t process_netns(pid_t pid)
{
	return pid & 3;
}

int pidfd_open(pid_t pid, unsigned int flags)
{
	(void)flags;
	return pid & 1 ? open_map(PIN_MAP_COUNT) : failed(ESRCH);
}

int pidfd_getfd(int pidfd, int fd, unsigned int flags)
{
	(void)pidfd;
	(void)flags;
	return fd == 3 ? open_map(PIN_MAP_COUNT) : failed(EBADF);
}

/* --- what is not looked at ---------------------------------------------------------------------
 */

int instance_each(int (*cb)(const char *name, void *user), void *user)
{
	return cb(NAME, user);
}

size_t probe_system(struct probe *ret, size_t max)
{
	(void)ret;
	(void)max;
	return 0;
}

/* --- the commands ------------------------------------------------------------------------------
 */

/* Messages too are shown to somebody. */
ssize_t write(int fd, const void *data, size_t len)
{
	const char *text = data;

	if (fd != STDERR_FILENO)
		return syscall(SYS_write, fd, data, len);
	for (size_t i = 0; i < len; i++)
		insist(text[i] == '\n' || (text[i] >= 0x20 && text[i] < 0x7f));
	return len;
}

static void check_output(const char *text, size_t len, int json)
{
	json_error_t error;
	json_t *tree;

	for (size_t i = 0; i < len; i++)
		insist(text[i] == '\n' || (text[i] >= 0x20 && text[i] < (json ? 0x80 : 0x7f)));
	if (!json)
		return;
	tree = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	if (!tree)
		fprintf(stderr, "%s\n%s\n", error.text, text);
	insist(tree);
	json_decref(tree);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_init("fuzz");
	config_memory = memfd_create("config", MFD_CLOEXEC);
	insist(config_memory >= 0 && !ftruncate(config_memory, sizeof(config)));
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int (*const commands[])(int, char **) = {cmd_status, cmd_conns, cmd_doctor};
	static const struct tp_config usual = {.magic = ABI_MAGIC,
					       .abi = ABI_VERSION,
					       .enabled = 1,
					       .port = 18000,
					       .loaded_ns = 1,
					       .proxies = {{.netns = 1, .tgid = 1}}};
	struct input in = {data, size};
	uint8_t which = take_byte(&in);
	int json = which & 1, code;
	char *argv[] = {(char *)"command", (char *)(json ? "--json" : "--name=" NAME), NULL};
	FILE *terminal = stdout;
	char *text = NULL;
	size_t len;

	answers = &in;
	batches = 0;
	missing = which & 0x80 ? take_u16(&in) : 0;
	config = usual;
	if (which & 0x40)
		take(&in, &config, sizeof(config));
	if (which & 0x20) {
		config.magic = ABI_MAGIC;
		config.abi = ABI_VERSION;
	}
	insist(pwrite(config_memory, &config, sizeof(config), 0) == sizeof(config));
	stdout = open_memstream(&text, &len);
	code = commands[(which >> 1 & 0xf) % ARRAY_SIZE(commands)](2, argv);
	fclose(stdout);
	stdout = terminal;
	insist(code == 0 || code == EXIT_WRONG);
	check_output(text, len, json);
	free(text);
	return 0;
}
