// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 *	listed			allowed, some only with the arguments that we use
 *	hostile			nobody here ever calls it, an intruder would: the worker is killed,
 *its successor goes on with the sessions, and the master logs SIGSYS
 *	anything else		fails with ENOSYS, and the kernel logs it (audit, type 1326)
 *
 * Killing for everything would take the service down, worker after worker, where a new libc calls
 * something that this list does not know; with ENOSYS it falls back on what it called before.
 *Failing for everything would give an intruder one try after the other.
 */
#include "filter.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/netlink.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "util.h"

#define S(name) SCMP_SYS(name)
#define EQ(n, value)                     \
	{                                \
		n, SCMP_CMP_EQ, value, 0 \
	}
#define MASKED(n, mask, value)                     \
	{                                          \
		n, SCMP_CMP_MASKED_EQ, mask, value \
	}
#define KIND 0xf /* of a socket, without its flags */

/* clang-format off */
static const int allowed[] = {
	/* sessions */
	S(accept4), S(bind), S(close), S(connect), S(epoll_ctl), S(epoll_pwait), S(epoll_wait),
	S(fcntl), S(getpeername), S(getsockname), S(getsockopt), S(ioctl), S(pipe2), S(poll),
	S(ppoll), S(recvfrom), S(recvmsg), S(sendmsg), S(sendto), S(setsockopt), S(shutdown),
	S(splice),
	/* a start in a predecessor's place, the log, what libraries read */
	S(epoll_create1), S(fstat), S(getrlimit), S(lseek), S(newfstatat), S(pread64), S(prlimit64),
	S(read), S(signalfd4), S(uname), S(write), S(writev),
	/* memory and time */
	S(brk), S(clock_gettime), S(clock_nanosleep), S(futex), S(gettimeofday), S(madvise),
	S(mremap), S(munmap), S(nanosleep), S(getrandom),
	/* signals, and to be a master once that has died */
	S(exit), S(exit_group), S(getpid), S(getppid), S(gettid), S(kill), S(restart_syscall),
	S(rseq), S(rt_sigaction), S(rt_sigprocmask), S(rt_sigreturn), S(rt_sigtimedwait),
	S(set_robust_list), S(tgkill), S(wait4),
};

static const int hostile[] = {
	S(execve), S(execveat), S(ptrace), S(process_vm_readv), S(process_vm_writev),
	S(pidfd_getfd), S(mount), S(umount2), S(pivot_root), S(chroot), S(setns), S(unshare),
	S(move_mount), S(open_tree), S(fsopen), S(init_module), S(finit_module), S(delete_module),
	S(kexec_load), S(kexec_file_load), S(reboot), S(perf_event_open), S(userfaultfd),
	S(io_uring_setup), S(add_key), S(request_key), S(keyctl), S(open_by_handle_at), S(setuid),
	S(setgid), S(setreuid), S(setregid), S(setresuid), S(setresgid), S(setgroups), S(setfsuid),
	S(setfsgid),
};

static const struct {
	int call;
	unsigned int count;
	struct scmp_arg_cmp arg[2];
} limited[] = {
	{S(socket), 2, {EQ(0, AF_INET), MASKED(1, KIND, SOCK_STREAM)}},
	{S(socket), 2, {EQ(0, AF_INET6), MASKED(1, KIND, SOCK_STREAM)}},
	{S(socket), 1, {EQ(0, AF_UNIX)}},
	{S(socket), 2, {EQ(0, AF_NETLINK), EQ(2, NETLINK_ROUTE)}},
	{S(openat), 1, {MASKED(2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY)}},
	{S(mmap), 1, {MASKED(2, PROT_EXEC, 0)}},
	{S(mprotect), 1, {MASKED(2, PROT_EXEC, 0)}},
	{S(clone), 1, {EQ(0, CLONE_FILES | SIGCHLD)}},
	{S(prctl), 1, {EQ(0, PR_SET_PDEATHSIG)}},
	{S(bpf), 1, {EQ(0, BPF_MAP_LOOKUP_ELEM)}},
	{S(bpf), 1, {EQ(0, BPF_MAP_UPDATE_ELEM)}},
	{S(bpf), 1, {EQ(0, BPF_MAP_DELETE_ELEM)}},
	{S(bpf), 1, {EQ(0, BPF_MAP_GET_NEXT_KEY)}},
	{S(bpf), 1, {EQ(0, BPF_OBJ_GET)}},
	{S(bpf), 1, {EQ(0, BPF_OBJ_GET_INFO_BY_FD)}},
};
/* clang-format on */

static int add_rules(scmp_filter_ctx ctx)
{
	int err = 0;

	for (size_t i = 0; !err && i < ARRAY_SIZE(allowed); i++)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
	for (size_t i = 0; !err && i < ARRAY_SIZE(limited); i++)
		err = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, limited[i].call, limited[i].count,
					     limited[i].arg);
	for (size_t i = 0; !err && i < ARRAY_SIZE(hostile); i++)
		err = seccomp_rule_add(ctx, SCMP_ACT_KILL_PROCESS, hostile[i], 0);
	return err;
}

/* Speculation is not restrained beyond what the system does anyway, as kernels before 5.16 would:
 * what runs here is our own, and it would cost every system call. */
static int set_attributes(scmp_filter_ctx ctx)
{
	int err = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_LOG, 1);

	if (!err)
		err = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_SSB, 1);
	if (!err)
		err = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	return err;
}

int filter_install(struct failure *f)
{
	scmp_filter_ctx ctx;
	int err;

#ifdef __SANITIZE_ADDRESS__
	return 0; /* its search for leaks traces the process */
#endif
	ctx = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
	if (!ctx)
		return fail(f, -ENOMEM, "out of memory");
	err = set_attributes(ctx);
	if (!err)
		err = add_rules(ctx);
	if (!err)
		err = seccomp_load(ctx);
	seccomp_release(ctx);
	return err ? fail(f, err, "cannot install the filter of system calls: %s", strerror(-err))
		   : 0;
}
