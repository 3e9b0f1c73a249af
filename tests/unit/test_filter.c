// SPDX-License-Identifier: BSD-2-Clause
/* The filter of system calls, each tried in a child of its own. */
#include <linux/bpf.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "../../proxy/filter.h"
#include "unit.h"

#define INSTALL_FAILED 250

#ifdef __SANITIZE_ADDRESS__
static const int filtered = 0; /* see filter_install() */
#else
static const int filtered = 1;
#endif

/* The child's exit status is the errno of the call, 0 for none; or -SIGNAL that killed it. */
static int try(long (*call)(void))
{
	struct failure f;
	int status = 0;
	pid_t pid = fork();

	if (!pid) {
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || filter_install(&f))
			_exit(INSTALL_FAILED);
		errno = 0;
		_exit(call() < 0 ? errno : 0);
	}
	assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static long make_pipe(void)
{
	int fd[2];

	return pipe2(fd, O_CLOEXEC);
}

static long dial(void)
{
	return socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
}

static long read_file(void)
{
	return open("/proc/self/status", O_RDONLY | O_CLOEXEC);
}

/* Shares the descriptors only, as the next worker of a worker that became a master. */
static long start_worker(void)
{
	long pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);

	if (!pid)
		_exit(0);
	return pid < 0 ? pid : waitpid(pid, NULL, 0);
}

static long sniff(void)
{
	return socket(AF_PACKET, SOCK_RAW, 0);
}

static long forge(void)
{
	return socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
}

static long write_file(void)
{
	return open("/dev/null", O_WRONLY | O_CLOEXEC);
}

static long make_code(void)
{
	return mmap(NULL, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
			       MAP_FAILED
		       ? -1
		       : 0;
}

static long load_program(void)
{
	return syscall(SYS_bpf, BPF_PROG_LOAD, NULL, 0);
}

static long start_thread(void)
{
	return syscall(SYS_clone, CLONE_VM | CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
}

static long call_the_unknown(void)
{
	return syscall(SYS_mkdirat, AT_FDCWD, "/nonexistent/x", 0700);
}

static long run_shell(void)
{
	return execl("/bin/sh", "sh", "-c", ":", NULL);
}

static long trace(void)
{
	return ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static long become_root(void)
{
	return syscall(SYS_setuid, 0);
}

static void what_a_worker_needs_is_allowed(void **state)
{
	(void)state;
	assert_int_equal(try(make_pipe), 0);
	assert_int_equal(try(dial), 0);
	assert_int_equal(try(read_file), 0);
	assert_int_equal(try(start_worker), 0);
}

static void what_it_does_not_need_fails(void **state)
{
	(void)state;
	if (!filtered)
		return;
	assert_int_equal(try(sniff), ENOSYS);
	assert_int_equal(try(forge), ENOSYS);
	assert_int_equal(try(write_file), ENOSYS);
	assert_int_equal(try(make_code), ENOSYS);
	assert_int_equal(try(load_program), ENOSYS);
	assert_int_equal(try(start_thread), ENOSYS);
	assert_int_equal(try(call_the_unknown), ENOSYS);
}

static void what_only_an_intruder_calls_kills(void **state)
{
	(void)state;
	if (!filtered)
		return;
	assert_int_equal(try(run_shell), -SIGSYS);
	assert_int_equal(try(trace), -SIGSYS);
	assert_int_equal(try(become_root), -SIGSYS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_a_worker_needs_is_allowed),
		cmocka_unit_test(what_it_does_not_need_fails),
		cmocka_unit_test(what_only_an_intruder_calls_kills),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
