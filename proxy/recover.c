// SPDX-License-Identifier: BSD-2-Clause
/*
 * Theory of operation
 *
 * One poll() over every possible descriptor number tells which are open and what each is ready for.
 * Its answer replaces the edges that the predecessor has taken from the epoll set, which lives on
 * with all sockets in it: a session with nothing to do costs no system call at all.
 */
#include "recover.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "endpoint.h"
#include "limits.h"
#include "listener.h"
#include "session.h"

/* The file is closed again before anybody looks. */
uint32_t recover_fd_table_size(uint64_t fd_limit)
{
	FILE *status _cleanup_file_ = fopen("/proc/self/status", "re");
	unsigned int size;
	char line[256];

	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "FDSize: %u", &size) == 1)
			return size < fd_limit ? size : fd_limit;
	return fd_limit;
}

static int is_open(const struct recovery *r, int fd)
{
	return fd >= 0 && (uint32_t)fd < r->count && !(r->polls[fd].revents & POLLNVAL);
}

/*
 * What is asked of a descriptor is no longer needed after the poll: 0 says that it is in the books.
 * It is there once, or a worker that went wrong has written it the second time.
 */
static int check(struct recovery *r, int fd)
{
	if (!is_open(r, fd) || !r->polls[fd].events)
		return -1;
	r->polls[fd].events = 0;
	return fd;
}

static void check_pair(struct recovery *r, int32_t fd[2])
{
	fd[0] = check(r, fd[0]);
	fd[1] = check(r, fd[1]);
}

static void check_books(struct proxy *p, struct recovery *r)
{
	struct session *sessions = shared_sessions(p->shared);
	struct pipe *pipes = shared_pipes(p->shared);
	struct shared *sh = p->shared;

	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		check(r, fd);
	for (int i = 0; i < PIN_MAP_COUNT; i++)
		check(r, p->instance.map[i]);
	check(r, p->notify);
	check(r, sh->memfd);
	sh->epoll = check(r, sh->epoll);
	sh->ring = check(r, sh->ring);
	for (int i = 0; i < LISTENER_COUNT; i++)
		sh->listener[i] = check(r, sh->listener[i]);
	check_pair(r, sh->raw);
	sh->signals = check(r, sh->signals);
	/* Of the master's, who may close them just now. */
	check(r, sh->control);
	check(r, sh->peer);
	for (uint32_t i = 0; i < sh->pipes_used; i++)
		check_pair(r, pipes[i].fd);
	for (uint32_t i = 0; i < sh->slots_used; i++)
		if (sessions[i].list != LIST_FREE && sessions[i].start_ms)
			check_pair(r, sessions[i].fd);
}

/* Asked without our maps: they may not be opened yet. */
static int was_accepted(const struct proxy *p, int fd)
{
	struct sockaddr_storage addr = {0};
	socklen_t len = sizeof(addr);
	struct tp_endpoint ep;

	return !getsockname(fd, (struct sockaddr *)&addr, &len) &&
	       !endpoint_from_sockaddr((struct sockaddr *)&addr, &ep) && listener_is(p, &ep);
}

/* Descriptors in nobody's books: clients are kept, the rest was half made or is of the process that
 * died. */
static int sort_strangers(const struct proxy *p, struct recovery *r)
{
	uint32_t strangers = 0;

	for (uint32_t fd = 0; fd < r->count; fd++)
		strangers += is_open(r, fd) && r->polls[fd].events;
	r->clients = calloc(strangers + 1, sizeof(*r->clients));
	if (!r->clients)
		return -ENOMEM;
	for (uint32_t fd = 0; fd < r->count; fd++) {
		if (!is_open(r, fd) || !r->polls[fd].events)
			continue;
		if (was_accepted(p, fd))
			r->clients[r->client_count++] = fd;
		else
			close(fd);
	}
	return 0;
}

/* poll() takes no more at a time than the limit on descriptors, which may have shrunk since they
 * were opened. */
static int look(struct recovery *r)
{
	struct rlimit limit = {.rlim_cur = 1024};
	uint32_t chunk;

	getrlimit(RLIMIT_NOFILE, &limit);
	for (uint32_t at = 0; at < r->count; at += chunk) {
		chunk = r->count - at < limit.rlim_cur ? r->count - at : limit.rlim_cur;
		if (!chunk || poll(r->polls + at, chunk, 0) < 0)
			return -EINVAL;
	}
	return 0;
}

int recover_descriptors(struct proxy *p, struct recovery *ret, struct failure *f)
{
	struct recovery r _cleanup_(recover_free) = {.count = recover_fd_table_size(p->fd_limit)};

	int err = shared_check(p->shared, f);

	if (err)
		return err;
	r.polls = calloc(r.count, sizeof(*r.polls));
	if (!r.polls)
		return fail(f, -ENOMEM, "out of memory");
	for (uint32_t fd = 0; fd < r.count; fd++)
		r.polls[fd] = (struct pollfd){.fd = fd,
					      .events = POLLIN | POLLPRI | POLLOUT | POLLRDHUP};
	if (look(&r))
		return fail(f, -EINVAL, "cannot look at the descriptors that were left");
	check_books(p, &r);
	if (sort_strangers(p, &r))
		return fail(f, -ENOMEM, "out of memory");
	*ret = r;
	r = (struct recovery){0};
	return 0;
}

static enum pipe_state state_of(const struct recovery *r, const struct pipe *pipe, int lent)
{
	if (pipe->fd[0] < 0 || pipe->fd[1] < 0)
		return PIPE_CLOSED;
	if (lent)
		return PIPE_LENT;
	return r->polls[pipe->fd[0]].revents & POLLIN ? PIPE_ABANDONED : PIPE_EMPTY;
}

static void mark_lent(struct proxy *p, struct session *s, uint8_t *lent)
{
	for (enum side from = CLIENT; from <= UPSTREAM; from++) {
		struct direction *d = &s->dir[from];

		/* A session that was being closed, and had got so far; or not its own. */
		if (d->pipe >= p->shared->pipes_used || p->pipes.all[d->pipe].fd[0] < 0 ||
		    p->pipes.all[d->pipe].fd[1] < 0 || lent[d->pipe])
			d->pipe = NO_PIPE;
		if (d->pipe == NO_PIPE)
			d->bytes = d->taken; /* nothing is in flight */
		else
			lent[d->pipe] = 1;
	}
}

int recover_lists(struct proxy *p, const struct recovery *r, struct failure *f)
{
	uint8_t *lent _cleanup_free_ = calloc(p->shared->pipes_used + 1, 1);

	if (!lent || table_rebuild(&p->table) || limits_recover(p))
		return fail(f, -ENOMEM, "out of memory");
	for (uint32_t i = 0; i < p->shared->slots_used; i++)
		if (table_at(&p->table, i)->list != LIST_FREE &&
		    !list_is_hold(table_at(&p->table, i)->list))
			mark_lent(p, table_at(&p->table, i), lent);
	for (uint32_t i = 0; i < p->shared->pipes_used; i++)
		pipes_restore(&p->pipes, i, state_of(r, &p->pipes.all[i], lent[i]));
	return 0;
}

void recover_sessions(struct proxy *p, const struct recovery *r)
{
	for (uint32_t i = 0; i < p->shared->slots_used; i++) {
		struct session *s = table_at(&p->table, i);
		uint32_t ready[2] = {0};

		if (s->list == LIST_FREE)
			continue;
		for (enum side side = CLIENT; side <= UPSTREAM; side++)
			if (s->fd[side] >= 0)
				ready[side] = r->polls[s->fd[side]].revents;
		session_recover(p, s, ready);
	}
	for (uint32_t i = 0; i < r->client_count; i++)
		session_accepted(p, r->clients[i], TP_NO_TAG);
	session_reap(p);
}

void recover_free(struct recovery *r)
{
	free(r->polls);
	free(r->clients);
	*r = (struct recovery){0};
}
