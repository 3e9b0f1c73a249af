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
 *	another tproxyd asks	-> a standby is started, which goes on in our place if we die;
 *				   the worker is killed, all is offered, and then either
 *				   taken, and we end, or not, and a worker is started
 *
 * The master works on no session. What it opens it enters in the books, and never while a worker
 * sorts out what is in nobody's.
 */
#include "master.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "binary.h"
#include "handover.h"
#include "listener.h"
#include "log.h"
#include "loop.h"
#include "notify.h"
#include "recover.h"
#include "takeover.h"
#include "worker.h"

#define QUICK_MS      50  /* a worker that lived shorter died at once */
#define QUICK_MAX     5	  /* so many may, one after the other */
#define PAUSE_MS      100 /* then this long, and twice as long each time, */
#define PAUSE_MAX_MS  2000
#define WORKER_END_MS 100 /* for one that was killed to end */
#define TELL_MS	      100 /* between two tries to tell the service manager something */

struct master {
	struct proxy *p;
	char **argv;
	char path[PATH_MAX]; /* what to become on SIGHUP */
	pid_t worker;	     /* 0: none */
	pid_t asked;	     /* the child that asks the binary; 0: none */
	pid_t standby;	     /* goes on in our place, if we die while nobody works; 0: none */
	struct handover handover;
	uint64_t started_ms;
	uint64_t restart_ms; /* when to start a worker; 0: there is one */
	uint64_t idle_ms;    /* since when nobody serves; 0: somebody does */
	unsigned int quick;
	const char *untold; /* what the service manager was too busy to be told; NULL: nothing */
	char ready[48];	    /* READY=1, and who says so */
	int reload_due;	    /* asked for while all was offered, by us or to us */
	int left;	    /* all was handed over: nothing is ours */
	int claimed;	    /* what was another's offer is ours */
	int distrusted;	    /* we took the marks off the listeners */
	int inherited;	    /* a master that has died may have */
	int status;	    /* to exit with; -1: not yet */
};

/* SIGNAL_ORPHANED is for our children, in whom it is blocked from the beginning. */
static int take_signals(struct master *m)
{
	static const int signals[] = {SIGTERM, SIGINT,	       SIGHUP,
				      SIGCHLD, SIGNAL_SERVING, SIGNAL_ORPHANED};
	struct shared *sh = m->p->shared;
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&set, signals[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* One that a predecessor made reads the signals of whoever reads. */
	sh->signals = signalfd(sh->signals, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	return sh->signals < 0 ? -errno : 0;
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

/* In a child of its own the binary at our path reads its settings and looks at the pins; it says
 * itself what is wrong. */
static pid_t ask_binary(struct master *m)
{
	pid_t pid = clone_sharing_files();

	if (!pid)
		binary_check(m->path, m->argv);
	return pid;
}

static void reload(struct master *m);
static int replace_master(struct master *m);
static int guard(struct master *m);

/* At once: a service without a main process can be neither reloaded nor stopped gently. */
static void tell_main_pid(const struct proxy *p, pid_t pid)
{
	char state[32];

	snprintf(state, sizeof(state), "MAINPID=%d", pid);
	notify_send(p->notify, state);
}

/* What a worker does, from its beginning to its end. Returns its exit status. */
static int be_worker(struct master *m)
{
	struct proxy *p = m->p;
	struct failure f;
	int err;

	err = worker_start(p, &f);
	if (err && p->offer)
		takeover_abandon(p, f.text);
	else if (err && !p->shared->serving)
		worker_clean_up(p);
	if (!err)
		err = worker_serve(p, &f);
	if (err == LOOP_ORPHANED) /* else a standby does */
		return shared_inherit(p->shared) ? replace_master(m) : EXIT_FAILURE;
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

	if (!m->p->offer)
		m->p->shared->heir = 0;
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

/* All is kept for whoever goes on with it, and nobody works. Otherwise this is the master once
 * more. */
static int be_standby(struct master *m, pid_t master, uint32_t number)
{
	struct shared *sh = m->p->shared;
	sigset_t set;

	shared_inherit(sh); /* the worker is there still, but will not be for long */
	sigemptyset(&set);
	sigaddset(&set, SIGNAL_ORPHANED);
	prctl(PR_SET_PDEATHSIG, m->p->no_heir ? SIGKILL : SIGNAL_ORPHANED);
	while (getppid() == master)
		sigwaitinfo(&set, NULL);
	if (m->p->no_heir || (shared_offers(sh) == number && !shared_withdraw(sh, number)) ||
	    !shared_inherit(sh))
		return EXIT_FAILURE;
	prctl(PR_SET_PDEATHSIG, 0);
	tell_main_pid(m->p, getpid());
	log_warning("the master (pid %d) has died while all was offered to another tproxyd; this "
		    "process takes its place",
		    master);
	/* It may have died before it ended the worker. */
	for (int i = 0; m->worker && !kill(m->worker, SIGKILL) && i < WORKER_END_MS; i++)
		poll(NULL, 0, 1);
	m->worker = m->standby = 0;
	handover_forget(m->p, &m->handover);
	start_worker(m);
	return guard(m);
}

static void start_standby(struct master *m)
{
	uint32_t number = shared_offers(m->p->shared) + 1; /* the one that comes next */
	pid_t master = getpid();

	m->standby = clone_sharing_files();
	if (!m->standby)
		exit(be_standby(m, master, number));
	if (m->standby < 0)
		m->standby = 0;
}

static void end_child(pid_t *pid)
{
	if (*pid) {
		kill(*pid, SIGKILL);
		waitpid(*pid, NULL, 0);
	}
	*pid = 0;
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
	if (m->p->offer && takeover_abandon(m->p, "its worker could not start")) {
		log_error("the worker %s; the tproxyd before us serves on", how);
		m->status = EXIT_FAILURE;
		return;
	}
	m->claimed = m->p->offer != 0;
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
	m->p->offer = 0;
	/* A predecessor may have taken the marks off, or marked them in maps that have gone. */
	if ((m->distrusted || m->inherited || m->p->fresh) && !m->p->shared->stops) {
		if (listener_trust(m->p, &f))
			log_error("%s", f.text);
		else if (m->distrusted)
			log_notice("a worker serves again: new connections are taken");
		m->distrusted = m->inherited = 0;
	}
	/* Who dies with his own parent is not worth being taken over. */
	if (m->p->fresh && !m->p->no_heir && !m->p->shared->stops && handover_listen(m->p, &f))
		log_warning("no other tproxyd can take over from this one: %s", f.text);
	if (m->p->fresh)
		tell(m, ready_state(m));
	m->p->fresh = 0;
	if (m->reload_due)
		reload(m);
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
	end_child(&m->worker);
	binary_become(m->p, m->path, m->argv);
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
		else if (pid == m->standby)
			m->standby = 0;
	}
}

static void reload(struct master *m)
{
	char state[64];

	if (m->asked || m->p->shared->stops)
		return;
	m->reload_due = m->p->offer || handover_stands(&m->handover);
	if (m->reload_due)
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

/* Whether its cgroup is ours: then one service manager looks after both. -1: it cannot be seen. */
static int is_same_unit(pid_t pid)
{
	char path[64], ours[PATH_MAX] = "", theirs[PATH_MAX] = "";
	FILE *a _cleanup_file_ = fopen("/proc/self/cgroup", "re");
	FILE *b _cleanup_file_ = NULL;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
	b = fopen(path, "re");
	if (!a || !b || !fread(ours, 1, sizeof(ours) - 1, a) ||
	    !fread(theirs, 1, sizeof(theirs) - 1, b))
		return -1;
	return !strcmp(ours, theirs);
}

/* All is another's now. */
static void leave(struct master *m)
{
	pid_t heir = m->handover.pid;
	int same = is_same_unit(heir);

	end_child(&m->standby);
	log_notice("handed over %u sessions and %u descriptors to pid %d", m->handover.sessions,
		   m->handover.count, heir);
	if (same > 0)
		tell_main_pid(m->p, heir);
	else if (!same) /* else it may be the end of the heir, too: the heir speaks for itself */
		notify_send(m->p->notify, "STOPPING=1");
	handover_leave(&m->handover);
	m->status = EXIT_SUCCESS;
	m->left = 1;
}

static void work_on(struct master *m)
{
	end_child(&m->standby);
	start_worker(m);
	if (m->reload_due)
		reload(m);
}

static void hand_over(struct master *m)
{
	struct failure f;

	log_notice("pid %d takes over", m->handover.pid);
	if (!m->idle_ms)
		m->idle_ms = monotonic_ms();
	m->restart_ms = 0;
	start_standby(m);
	end_child(&m->worker);
	listener_disown(m->p);
	if (handover_offer(m->p, &m->handover, &f)) {
		log_error("%s", f.text);
		work_on(m);
	}
}

/* What a handover has to wait for; NULL: nothing. */
static const char *busy(const struct master *m)
{
	if (m->p->shared->stops)
		return "is being stopped";
	if (m->asked)
		return "is being reloaded: try again";
	return NULL;
}

static void follow(struct master *m, enum handover_step step)
{
	if (step == HANDOVER_BEGIN)
		hand_over(m);
	else if (step == HANDOVER_BACK)
		work_on(m);
	else if (step == HANDOVER_TAKEN)
		leave(m);
}

static void stop(struct master *m, int signo)
{
	if (m->p->offer && takeover_abandon(m->p, "it was told to stop")) {
		end_child(&m->worker);
		m->status = EXIT_FAILURE;
		return;
	}
	follow(m, handover_cancel(m->p, &m->handover));
	if (m->left)
		return;
	handover_unlisten(m->p);
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
	if (m->distrusted || (m->p->offer && !m->claimed) || !m->idle_ms ||
	    monotonic_ms() < m->idle_ms + m->p->settings.grace)
		return;
	if (listener_distrust(m->p)) {
		m->idle_ms += PAUSE_MAX_MS; /* then it is tried again */
		return;
	}
	m->distrusted = 1;
	log_error("no worker has come to serve for %llu ms: the failure policy decides about new "
		  "connections until one does",
		  (unsigned long long)m->p->settings.grace);
}

/* Descriptors of ours must not be met by a worker that sorts out what its predecessor left. */
static int may_talk(const struct master *m)
{
	return !m->p->offer && (m->handover.state != HANDOVER_IDLE || !m->worker ||
				m->p->shared->serving == (uint32_t)m->worker);
}

static void sooner(uint64_t *until, uint64_t ms)
{
	if (ms && (!*until || ms < *until))
		*until = ms;
}

/* Milliseconds until something is to be done though nothing comes; -1: never. */
static int patience(const struct master *m)
{
	uint64_t now = monotonic_ms(), until = m->restart_ms;

	sooner(&until, handover_deadline(&m->handover));
	if (m->untold)
		sooner(&until, now + TELL_MS);
	if (m->idle_ms && !m->distrusted && (!m->p->offer || m->claimed))
		sooner(&until, m->idle_ms + m->p->settings.grace);
	if (!until)
		return -1;
	return until > now ? until - now : 0;
}

static void obey(struct master *m)
{
	struct signalfd_siginfo info;

	while (m->status < 0 && read(m->p->shared->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD)
			children_ended(m);
		else if (info.ssi_signo == SIGNAL_SERVING)
			serving(m);
		else if (info.ssi_signo == SIGHUP)
			reload(m);
		else if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
			stop(m, info.ssi_signo);
	}
}

/* Waits for the next thing that is to be done, and does it. */
static void turn(struct master *m)
{
	struct pollfd polls[] = {{.fd = m->p->shared->signals, .events = POLLIN}, {.fd = -1}};
	uint64_t due = handover_deadline(&m->handover);

	if (may_talk(m))
		polls[1].fd = handover_fd(m->p, &m->handover, &polls[1].events);
	poll(polls, ARRAY_SIZE(polls), patience(m));
	if (polls[0].revents)
		obey(m);
	if (m->status < 0 && may_talk(m) && (polls[1].revents || (due && due <= monotonic_ms())))
		follow(m, handover_step(m->p, &m->handover, busy(m)));
	if (m->status >= 0)
		return;
	if (m->restart_ms && m->restart_ms <= monotonic_ms())
		start_worker(m);
	check_grace(m);
	if (m->untold)
		tell(m, m->untold);
}

/* Until there is something to exit with. */
static int guard(struct master *m)
{
	while (m->status < 0)
		turn(m);
	if (!m->p->offer && !m->left)
		handover_unlisten(m->p);
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

	prctl(PR_SET_PDEATHSIG, 0);
	tell_main_pid(p, getpid());
	log_warning("the master (pid %d) has died; this worker takes its place", p->master);
	p->orphaned = p->fresh = 0;
	p->heir = 1;
	if (worker_retire(p, &f)) {
		log_error("%s", f.text);
		return EXIT_FAILURE;
	}
	if (m->handover.state != HANDOVER_IDLE)
		handover_forget(p, &m->handover);
	*m = (struct master){
		.p = p, .argv = m->argv, .status = -1, .idle_ms = monotonic_ms(), .inherited = 1};
	start_worker(m);
	return guard(m);
}

int master_run(struct proxy *p, char **argv)
{
	struct master m = {.p = p, .argv = argv, .status = -1};
	int signo;

	p->fresh = 1;
	p->notify = notify_open();
	/* Who is to die with his own parent leaves nothing behind. */
	if (!prctl(PR_GET_PDEATHSIG, &signo))
		p->no_heir = signo != 0;
	if (take_signals(&m)) {
		log_error("cannot wait for signals: %m");
		return EXIT_FAILURE;
	}
	if (binary_path(argv[0], m.path))
		log_warning("cannot tell the path of this program: it will not reload");
	if (p->shared->serving)
		m.idle_ms = monotonic_ms();
	start_worker(&m);
	return guard(&m);
}
