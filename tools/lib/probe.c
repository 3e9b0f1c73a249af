// SPDX-License-Identifier: BSD-2-Clause
#include "probe.h"

#include <bpf/libbpf.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include "../../bpf/pins.h"
#include "mounts.h"

#define KERNEL(major, minor) ((major)*1000 + (minor))
#define BTF_FILE	     "/sys/kernel/btf/vmlinux"

struct prober {
	struct probe *probes;
	size_t count;
	size_t max;
	int kernel;	/* KERNEL(major, minor) */
	int privileged; /* enough to ask the kernel for program types */
};

static void result(struct prober *p, const char *what, enum probe_result result, const char *fix,
		   const char *fmt, ...) _printf_(5, 6);

static void result(struct prober *p, const char *what, enum probe_result result, const char *fix,
		   const char *fmt, ...)
{
	struct probe *probe = &p->probes[p->count];
	va_list ap;

	if (p->count == p->max)
		return;
	*probe = (struct probe){.what = what, .result = result};
	snprintf(probe->fix, sizeof(probe->fix), "%s", result == PROBE_OK ? "" : fix);
	va_start(ap, fmt);
	vsnprintf(probe->found, sizeof(probe->found), fmt, ap);
	va_end(ap);
	p->count++;
}

static void probe_kernel(struct prober *p)
{
	int major = 0, minor = 0;
	struct utsname uts;

	uname(&uts);
	sscanf(uts.release, "%d.%d", &major, &minor);
	p->kernel = KERNEL(major, minor);
	result(p, "kernel", p->kernel >= KERNEL(5, 10) ? PROBE_OK : PROBE_FAIL,
	       "boot Linux 5.10 or later", "Linux %s", uts.release);
}

static void probe_btf(struct prober *p)
{
	int found = !access(BTF_FILE, R_OK);

	result(p, "BTF", found ? PROBE_OK : PROBE_FAIL,
	       "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as the kernels of Debian are",
	       found ? "%s" : "no %s", BTF_FILE);
}

static void probe_cgroup2(struct prober *p)
{
	char root[PATH_MAX];
	struct failure f;

	if (cgroup2_root(root, &f))
		result(p, "cgroup2", PROBE_FAIL, "mount -t cgroup2 none /sys/fs/cgroup",
		       "not mounted");
	else
		result(p, "cgroup2", PROBE_OK, "", "mounted at %.200s", root);
}

static void probe_bpffs(struct prober *p)
{
	struct stat st;

	if (!bpffs_mounted())
		result(p, "bpffs", PROBE_WARN,
		       "tproxy-load mounts it; or: mount -t bpf bpf " BPFFS_ROOT,
		       "not mounted at %s", BPFFS_ROOT);
	else if (!stat(BPFFS_ROOT, &st) && (st.st_mode & S_IWOTH) && !(st.st_mode & S_ISVTX))
		result(p, "bpffs", PROBE_FAIL, "chmod 0700 " BPFFS_ROOT,
		       "%s has mode %04o: anybody may exchange what is pinned there", BPFFS_ROOT,
		       st.st_mode & 07777);
	else
		result(p, "bpffs", PROBE_OK, "", "mounted at %s", BPFFS_ROOT);
}

static uint64_t capabilities(void)
{
	FILE *file _cleanup_file_ = fopen("/proc/self/status", "re");
	char line[256];
	uint64_t caps;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "CapEff: %" SCNx64, &caps) == 1)
			return caps;
	return 0;
}

static void probe_capabilities(struct prober *p)
{
	static const struct {
		const char *name;
		int cap;
		int with_admin; /* CAP_SYS_ADMIN includes it */
	} needed[] = {{"CAP_BPF", CAP_BPF, 1},
		      {"CAP_NET_ADMIN", CAP_NET_ADMIN, 0},
		      {"CAP_PERFMON", CAP_PERFMON, 1}};
	uint64_t caps = capabilities();
	char missing[128] = "";

	for (size_t i = 0; i < ARRAY_SIZE(needed); i++) {
		size_t used = strlen(missing);

		if (caps & 1ULL << needed[i].cap ||
		    (needed[i].with_admin && caps & 1ULL << CAP_SYS_ADMIN))
			continue;
		snprintf(missing + used, sizeof(missing) - used, " %s", needed[i].name);
	}
	p->privileged = !*missing;
	result(p, "privileges", p->privileged ? PROBE_OK : PROBE_FAIL,
	       "run as root; in a container, give it these capabilities",
	       *missing ? "missing:%s" : "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON", missing);
}

static void probe_program_types(struct prober *p)
{
	static const struct {
		const char *name;
		enum bpf_prog_type type;
	} types[] = {{"cgroup_sock_addr", BPF_PROG_TYPE_CGROUP_SOCK_ADDR},
		     {"sock_ops", BPF_PROG_TYPE_SOCK_OPS},
		     {"cgroup_sockopt", BPF_PROG_TYPE_CGROUP_SOCKOPT},
		     {"cgroup_sock", BPF_PROG_TYPE_CGROUP_SOCK}};
	char missing[128] = "";

	if (!p->privileged) {
		result(p, "program types", PROBE_WARN, "run as root",
		       "cannot be tried without privileges");
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		size_t used = strlen(missing);

		if (libbpf_probe_bpf_prog_type(types[i].type, NULL) != 1)
			snprintf(missing + used, sizeof(missing) - used, " %s", types[i].name);
	}
	result(p, "program types", *missing ? PROBE_FAIL : PROBE_OK,
	       "boot a kernel built with CONFIG_BPF_SYSCALL=y, CONFIG_CGROUP_BPF=y and "
	       "CONFIG_INET=y",
	       *missing ? "the kernel does not load:%s" : "all load", missing);
	if (p->kernel < KERNEL(5, 18))
		result(p, "refusals", PROBE_WARN, "boot Linux 5.18 or later to have ECONNREFUSED",
		       "on-proxy-down = refuse gives EPERM");
}

static void probe_memory(struct prober *p)
{
	struct rlimit limit = {0};

	/* Linux 5.11 charges BPF memory to the memory cgroup instead; before, libbpf raises the
	 * limit. */
	if (p->kernel >= KERNEL(5, 11)) {
		result(p, "memlock", PROBE_OK, "",
		       "not used: BPF memory belongs to the memory cgroup");
		return;
	}
	getrlimit(RLIMIT_MEMLOCK, &limit);
	if (limit.rlim_cur == RLIM_INFINITY)
		result(p, "memlock", PROBE_OK, "", "unlimited");
	else if (p->privileged)
		result(p, "memlock", PROBE_OK, "", "%llu bytes, raised by tproxy-load",
		       (unsigned long long)limit.rlim_cur);
	else
		result(p, "memlock", PROBE_WARN, "ulimit -l unlimited", "%llu bytes",
		       (unsigned long long)limit.rlim_cur);
}

static int print_nothing(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	(void)level;
	(void)fmt;
	(void)ap;
	return 0;
}

size_t probe_system(struct probe *ret, size_t max)
{
	struct prober p = {.probes = ret, .max = max};
	libbpf_print_fn_t printer = libbpf_set_print(print_nothing); /* a failed probe is no news */

	probe_kernel(&p);
	probe_btf(&p);
	probe_cgroup2(&p);
	probe_bpffs(&p);
	probe_capabilities(&p);
	probe_program_types(&p);
	probe_memory(&p);
	libbpf_set_print(printer);
	return p.count;
}
