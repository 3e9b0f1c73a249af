// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 *	a worker ends by itself	-> it was told to stop: so do we
 *	a worker dies		-> another is started, which goes on where it was
 *	workers die at once	-> the next one is started after a pause
 *	none serves for `grace`	-> the listeners lose their marks: failure policy
 *	SIGHUP			-> a child asks the binary, another by now perhaps,
 *				   whether it can take over; then the worker is
 *				   killed, and we become that binary
 *	we die			-> the worker becomes a master, and starts a worker
 *
 * The master opens nothing while it runs and works on no session.
 */
#include "master.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "listener.h"
#include "log.h"
#include "loop.h"
#include "notify.h"
#include "recover.h"
#include "worker.h"

#define QUICK_MS     50	 /* a worker that lived shorter died at once */
#define QUICK_MAX    5	 /* so many may, one after the other */
#define PAUSE_MS     100 /* then this long, and twice as long each time, */
#define PAUSE_MAX_MS 2000
#define TELL_MS	     100 /* between two tries to tell the service manager something */

struct master {
	struct proxy *p;
	char **argv;
	char path[PATH_MAX]; /* what to become on SIGHUP */
	pid_t worker;	     /* 0: none */
	pid_t asked;	     /* the child that asks the binary; 0: none */
	uint64_t started_ms;
	uint64_t restart_ms; /* when to start a worker; 0: there is one */
	uint64_t idle_ms;    /* since when nobody serves; 0: somebody does */
	unsigned int quick;
	const char *untold; /* what the service manager was too busy to be told; NULL: nothing */
	char ready[48];	    /* READY=1, and who says so */
	int distrusted;	    /* we took the marks off the listeners */
	int status;	    /* to exit with; -1: not yet */
};

static void wanted_signals(sigset_t *ret_set)
{
	static const int signals[] = {SIGTERM, SIGINT,	       SIGHUP,
				      SIGCHLD, SIGNAL_SERVING, SIGNAL_ORPHANED};

	sigemptyset(ret_set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(ret_set, signals[i]);
}

void master_set_cloexec(uint64_t fd_limit, int on)
{
	uint32_t size = recover_fd_table_size(fd_limit);

	for (uint32_t fd = STDERR_FILENO + 1; fd < size; fd++)
		fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0);
}

/* The path by which the present binary was started, so that one put in its place is found. */
static int own_path(const char *argv0, char ret_path[PATH_MAX])
{
	char dir[PATH_MAX];
	ssize_t len;

	if (argv0[0] == '/')
		return snprintf(ret_path, PATH_MAX, "%s", argv0) < PATH_MAX ? 0 : -ENAMETOOLONG;
	if (strchr(argv0, '/') && getcwd(dir, sizeof(dir)))
		return snprintf(ret_path, PATH_MAX, "%s/%s", dir, argv0) < PATH_MAX ? 0
										    : -ENAMETOOLONG;
	len = readlink("/proc/self/exe", ret_path, PATH_MAX - 1);
	if (len < 0)
		return -errno;
	ret_path[len] = 0;
	return 0;
}

/* To the service manager the main process is the one it started, until another says it is. */
static const char *ready_state(struct master *m)
{
	snprintf(m->ready, sizeof(m->ready), "READY=1\nMAINPID=%d", getpid());
	return m->ready;
}

/* A child with our memory as it is now and, for good, our descriptors. As fork() returns. */
static pid_t clone_sharing_files(void)
{
	return syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
}

/* Becomes the binary at our path, with all descriptors. Returns only where that failed. */
static void become_new(struct master *m)
{
	char memfd[16];

	snprintf(memfd, sizeof(memfd), "%d", m->p->shared->memfd);
	setenv(MASTER_ENV_MEMORY, memfd, 1);
	master_set_cloexec(m->p->fd_limit, 0);
	execv(m->path, m->argv);
	log_error("cannot become %s: %m; the present binary goes on", m->path);
	master_set_cloexec(m->p->fd_limit, 1);
	unsetenv(MASTER_ENV_MEMORY);
}

/* In a child of its own the binary reads its settings and looks at the pins; it says itself what is
 * wrong. */
static pid_t ask_binary(struct master *m)
{
	char layout[SHARED_LAYOUT_LEN], **argv;
	sigset_t none;
	size_t argc = 0;
	pid_t pid;

	pid = clone_sharing_files();
	if (pid)
		return pid;
	/* Nothing of ours may be held open by it: a connection would not end while it runs. */
	if (close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_UNSHARE))
		_exit(1);
	while (m->argv[argc])
		argc++;
	argv = calloc(argc + 2, sizeof(*argv));
	if (!argv)
		_exit(1);
	argv[0] = m->argv[0];
	argv[1] = "--check";
	memcpy(argv + 2, m->argv + 1, argc * sizeof(*argv));
	setenv(MASTER_ENV_LAYOUT, shared_layout(layout), 1);
	unsetenv("NOTIFY_SOCKET");
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execv(m->path, argv);
	log_error("cannot run %s: %m", m->path);
	_exit(1);
}

static int replace_master(struct master *m);

/* What a worker does, from its beginning to its end. Returns its exit status. */
static int be_worker(struct master *m)
{
	struct proxy *p = m->p;
	struct failure f;
	int err;

	err = worker_start(p, &f);
	if (err && !p->shared->serving)
		worker_clean_up(p);
	if (!err)
		err = worker_serve(p, &f);
	if (err == LOOP_ORPHANED)
		return replace_master(m);
	if (err) { /* whatever is open is for the next one */
		log_error("%s", f.text);
		return EXIT_FAILURE;
	}
	worker_clean_up(p);
	return EXIT_SUCCESS;
}

static void start_worker(struct master *m)
{
	pid_t master = getpid(), pid;

	m->p->shared->workers++;
	m->started_ms = monotonic_ms();
	m->restart_ms = 0;
	pid = clone_sharing_files();
	if (!pid) {
		m->p->master = master;
		exit(be_worker(m));
	}
	if (pid < 0) {
		log_error("cannot start a worker: %m; trying again");
		m->restart_ms = m->started_ms + PAUSE_MS;
		return;
	}
	m->worker = pid;
}

static void tell(struct master *m, const char *state)
{
	m->untold = notify_send(m->p->notify, state) == -EAGAIN ? state : NULL;
}

static void describe_end(int status, char *buf, size_t size)
{
	if (WIFSIGNALED(status))
		snprintf(buf, size, "was killed by SIG%s", sigabbrev_np(WTERMSIG(status)) ?: "?");
	else
		snprintf(buf, size, "ended with status %d", WEXITSTATUS(status));
}

static void worker_ended(struct master *m, int status)
{
	uint64_t now = monotonic_ms(), pause = 0;
	char how[64];

	describe_end(status, how, sizeof(how));
	m->worker = 0;
	listener_disown(m->p);
	if (WIFEXITED(status) && (!WEXITSTATUS(status) || !m->p->shared->serving)) {
		m->status = WEXITSTATUS(status);
		return;
	}
	if (!m->p->shared->serving || m->p->shared->stops > 1) {
		log_error("the worker %s", how);
		m->status = EXIT_FAILURE;
		return;
	}
	m->quick = now - m->started_ms < QUICK_MS ? m->quick + 1 : 0;
	if (m->quick > QUICK_MAX)
		pause = PAUSE_MS << (m->quick - QUICK_MAX - 1 < 8 ? m->quick - QUICK_MAX - 1 : 8);
	if (pause > PAUSE_MAX_MS)
		pause = PAUSE_MAX_MS;
	log_error("the worker %s; the next one goes on with its sessions%s", how,
		  pause ? " after a pause, as they die one after the other" : "");
	m->restart_ms = now + pause;
	if (!m->idle_ms)
		m->idle_ms = now;
}

static void serving(struct master *m)
{
	struct failure f;

	if (m->p->shared->serving != (uint32_t)m->worker)
		return; /* from one that has died since */
	m->idle_ms = 0;
	if (m->distrusted && !m->p->shared->stops) {
		if (listener_trust(m->p, &f))
			log_error("%s", f.text);
		else
			log_notice("a worker serves again: new connections are taken");
		m->distrusted = 0;
	}
	if (m->p->fresh)
		tell(m, ready_state(m));
	m->p->fresh = 0;
}

static void answered(struct master *m, int status)
{
	m->asked = 0;
	if (status) {
		log_error("not reloaded: %s cannot take over, see above; the present one serves on",
			  m->path);
		tell(m, ready_state(m));
		return;
	}
	log_notice("reloading: becoming %s", m->path);
	if (m->worker) {
		kill(m->worker, SIGKILL);
		waitpid(m->worker, NULL, 0);
	}
	become_new(m);
	m->worker = 0;
	tell(m, ready_state(m));
	start_worker(m);
}

static void children_ended(struct master *m)
{
	int status;
	pid_t pid;

	while (m->status < 0 && (pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == m->worker)
			worker_ended(m, status);
		else if (pid == m->asked)
			answered(m, status);
	}
}

static void reload(struct master *m)
{
	char state[64];

	if (m->asked || m->p->shared->stops)
		return;
	if (m->p->heir) {
		log_error("not reloaded: this process was a worker before its master died, and "
			  "has no right to run a program; restart tproxyd instead");
		return;
	}
	snprintf(state, sizeof(state), "RELOADING=1\nMONOTONIC_USEC=%llu",
		 (unsigned long long)monotonic_ms() * 1000);
	notify_send(m->p->notify, state);
	m->asked = ask_binary(m);
	if (m->asked < 0) {
		log_error("cannot reload: %m");
		m->asked = 0;
	}
}

static void stop(struct master *m, int signo)
{
	m->p->shared->stop_signal = signo;
	m->p->shared->stops++;
	listener_distrust(m->p); /* before anybody is told */
	tell(m, "STOPPING=1");
	if (m->worker)
		kill(m->worker, signo);
	else
		m->restart_ms = monotonic_ms(); /* there are sessions to be ended */
}

static void check_grace(struct master *m)
{
	if (m->distrusted || !m->idle_ms || monotonic_ms() < m->idle_ms + m->p->settings.grace)
		return;
	listener_distrust(m->p);
	m->distrusted = 1;
	log_error("no worker has come to serve for %llu ms: the failure policy decides about new "
		  "connections until one does",
		  (unsigned long long)m->p->settings.grace);
}

/* Waits for a signal, or for the next thing that is to be done. 0: none came. */
static int wait_signal(struct master *m, const sigset_t *set)
{
	uint64_t now = monotonic_ms(), until = m->restart_ms;
	struct timespec wait;
	siginfo_t info;
	int r;

	if (m->untold && (!until || now + TELL_MS < until))
		until = now + TELL_MS;
	if (m->idle_ms && !m->distrusted && (!until || m->idle_ms + m->p->settings.grace < until))
		until = m->idle_ms + m->p->settings.grace;
	if (!until) {
		r = sigwaitinfo(set, &info);
	} else {
		until = until > now ? until - now : 0;
		wait = (struct timespec){until / 1000, until % 1000 * 1000000};
		r = sigtimedwait(set, &info, &wait);
	}
	return r > 0 ? r : 0;
}

/* Until there is something to exit with. */
static int guard(struct master *m)
{
	sigset_t set;
	int signo;

	wanted_signals(&set);
	while (m->status < 0) {
		signo = wait_signal(m, &set);
		if (signo == SIGCHLD)
			children_ended(m);
		else if (signo == SIGNAL_SERVING)
			serving(m);
		else if (signo == SIGHUP)
			reload(m);
		else if (signo == SIGTERM || signo == SIGINT)
			stop(m, signo);
		if (m->status < 0 && m->restart_ms && m->restart_ms <= monotonic_ms())
			start_worker(m);
		check_grace(m);
		if (m->untold)
			tell(m, m->untold);
	}
	return m->status;
}

/*
 * The master is gone, and the service with it unless somebody guards it: that will be us. Nothing
 * is executed for it, since a worker has given up the right to (filter.c). What it will not do is
 * to become another binary.
 */
static int replace_master(struct master *m)
{
	struct proxy *p = m->p;
	struct failure f;
	char state[32];

	prctl(PR_SET_PDEATHSIG, 0);
	/* At once: a service without a main process can be neither reloaded nor stopped gently. */
	snprintf(state, sizeof(state), "MAINPID=%d", getpid());
	notify_send(p->notify, state);
	log_warning("the master (pid %d) has died; this worker takes its place", p->master);
	p->orphaned = p->fresh = 0;
	p->heir = 1;
	if (worker_retire(p, &f)) {
		log_error("%s", f.text);
		return EXIT_FAILURE;
	}
	*m = (struct master){.p = p, .argv = m->argv, .status = -1, .idle_ms = monotonic_ms()};
	start_worker(m);
	return guard(m);
}

int master_run(struct proxy *p, char **argv)
{
	struct master m = {.p = p, .argv = argv, .status = -1};
	sigset_t set;
	int signo;

	p->fresh = 1;
	p->notify = notify_open();
	/* Who is to die with his own parent leaves nothing behind. */
	if (!prctl(PR_GET_PDEATHSIG, &signo))
		p->no_heir = signo != 0;
	wanted_signals(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (own_path(argv[0], m.path))
		log_warning("cannot tell the path of this program: it will not reload");
	if (p->shared->serving)
		m.idle_ms = monotonic_ms();
	start_worker(&m);
	return guard(&m);
}
