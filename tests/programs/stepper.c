// SPDX-License-Identifier: BSD-2-Clause
/*
 * stepper COMMAND...
 *
 * Runs a command that stops after each of its calls to bpf() and renameat2(): says "bpf CMD" or
 * "renameat2 FLAGS", in numbers, and waits for a line on stdin to go on. Ends as the command does,
 * which ends with it.
 */
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int die(const char *what)
{
	perror(what);
	return 125;
}

/* After a call: waits, if it is one to stop after. -1: nobody tells to go on. */
static int call_over(const struct __ptrace_syscall_info *call)
{
	char line[16];

	if (call->entry.nr == SYS_bpf)
		printf("bpf %llu\n", (unsigned long long)call->entry.args[0]);
	else if (call->entry.nr == SYS_renameat2)
		printf("renameat2 %llu\n", (unsigned long long)call->entry.args[4]);
	else
		return 0;
	return fgets(line, sizeof(line), stdin) ? 0 : -1;
}

int main(int argc, char **argv)
{
	struct __ptrace_syscall_info call = {0}, info;
	int status, deliver = 0;
	pid_t pid;

	setlinebuf(stdout);
	if (argc < 2)
		return 2;
	pid = fork();
	if (!pid) {
		if (!ptrace(PTRACE_TRACEME, 0, 0, 0) && !raise(SIGSTOP))
			execvp(argv[1], argv + 1);
		_exit(die(argv[1]));
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status) ||
	    ptrace(PTRACE_SETOPTIONS, pid, 0,
		   PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC))
		return die("cannot trace");
	for (;;) {
		if (ptrace(PTRACE_SYSCALL, pid, 0, deliver) || waitpid(pid, &status, 0) != pid)
			return die("cannot go on");
		if (WIFEXITED(status))
			return WEXITSTATUS(status);
		if (WIFSIGNALED(status))
			return 128 + WTERMSIG(status);
		deliver = 0;
		if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
			deliver = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
			continue;
		}
		if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info) < 0)
			return die("cannot look at a call");
		if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
			call = info;
		else if (info.op == PTRACE_SYSCALL_INFO_EXIT && call_over(&call))
			return 0;
	}
}
