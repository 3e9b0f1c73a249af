// SPDX-License-Identifier: BSD-2-Clause
#include "shared.h"

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define SHARED_MAGIC 0x74707368 /* "tpsh" */
#define ALIGNMENT    4096

static size_t align(size_t size)
{
	return (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

static size_t sessions_at(void)
{
	return align(sizeof(struct shared));
}

static size_t pipes_at(const struct shared *sh)
{
	return sessions_at() + align((size_t)sh->slots * sizeof(struct session));
}

static size_t total(const struct shared *sh)
{
	return pipes_at(sh) + align((size_t)sh->pipes * sizeof(struct pipe));
}

static struct shared header(uint32_t slots, uint32_t pipes)
{
	struct shared sh = {
		.magic = SHARED_MAGIC,
		.layout = SHARED_LAYOUT,
		.size = {sizeof(struct shared), sizeof(struct session), sizeof(struct pipe)},
		.slots = slots,
		.pipes = pipes,
		.epoll = -1,
		.raw = {-1, -1},
		.ring = -1,
		.signals = -1,
		.control = -1,
		.peer = -1,
		.slot = TP_NO_SLOT,
	};

	for (int i = 0; i < LISTENER_COUNT; i++)
		sh.listener[i] = -1;
	return sh;
}

int shared_create(uint64_t fd_limit, struct shared **ret, struct failure *f)
{
	uint32_t count = fd_limit / 2 < TABLE_MAX_SLOTS ? fd_limit / 2 : TABLE_MAX_SLOTS;
	int fd _cleanup_fd_ = memfd_create("tproxyd", MFD_CLOEXEC);
	struct shared head = header(count, count);
	struct shared *sh;

	if (fd < 0 || ftruncate(fd, total(&head)))
		return fail(f, -errno, "cannot make a table of %u sessions: %m", count);
	sh = mmap(NULL, total(&head), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (sh == MAP_FAILED)
		return fail(f, -errno,
			    "cannot map a table of %u sessions: %m; lower the limit on open "
			    "files (ulimit -n, LimitNOFILE)",
			    count);
	*sh = head;
	sh->memfd = TAKE_FD(fd);
	*ret = sh;
	return 0;
}

int shared_attach(int memfd, struct shared **ret, struct failure *f)
{
	struct shared head, expected;
	struct shared *sh;
	struct stat st;

	if (pread(memfd, &head, sizeof(head), 0) != sizeof(head))
		return fail(f, -EPROTO,
			    "the table of sessions that was handed over cannot be read");
	expected = header(head.slots, head.pipes);
	if (memcmp(&head, &expected, offsetof(struct shared, slots_used)) || fstat(memfd, &st) ||
	    (size_t)st.st_size != total(&head))
		return fail(f, -EPROTO,
			    "the table of sessions that was handed over is that of another "
			    "version");
	sh = mmap(NULL, total(&head), PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (sh == MAP_FAILED)
		return fail(f, -errno, "cannot map the table of sessions that was handed over: %m");
	*ret = sh;
	return 0;
}

int shared_check(struct shared *sh, struct failure *f)
{
	struct shared expected = header(sh->slots, sh->pipes);
	struct stat st;

	if (memcmp(sh, &expected, offsetof(struct shared, slots_used)) || fstat(sh->memfd, &st) ||
	    (size_t)st.st_size != total(sh))
		return fail(f, -EPROTO, "the table of sessions is damaged; restart tproxyd");
	if (sh->slots_used > sh->slots)
		sh->slots_used = sh->slots;
	if (sh->pipes_used > sh->pipes)
		sh->pipes_used = sh->pipes;
	if (sh->ports > TP_MAX_PORTS)
		sh->ports = TP_MAX_PORTS;
	return 0;
}

const char *shared_layout(char buf[SHARED_LAYOUT_LEN])
{
	snprintf(buf, SHARED_LAYOUT_LEN, "%u.%zu.%zu.%zu", SHARED_LAYOUT, sizeof(struct shared),
		 sizeof(struct session), sizeof(struct pipe));
	return buf;
}

/* In the two lowest bits of shared.offer; its number is above them. */
enum { OFFERED, CLAIMED, WITHDRAWN, OUTCOME_BITS = 2 };

uint32_t shared_offers(const struct shared *sh)
{
	return sh->offer >> OUTCOME_BITS;
}

uint32_t shared_offer(struct shared *sh)
{
	uint32_t number = shared_offers(sh) + 1;

	__atomic_store_n(&sh->offer, number << OUTCOME_BITS | OFFERED, __ATOMIC_SEQ_CST);
	return number;
}

/* Whether that is what has become of it, by this call or before. */
static int decide(struct shared *sh, uint32_t offer, uint32_t outcome)
{
	uint32_t open = offer << OUTCOME_BITS | OFFERED, decided = offer << OUTCOME_BITS | outcome;

	return __atomic_compare_exchange_n(&sh->offer, &open, decided, 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST) ||
	       open == decided;
}

int shared_claim(struct shared *sh, uint32_t offer)
{
	return decide(sh, offer, CLAIMED);
}

int shared_withdraw(struct shared *sh, uint32_t offer)
{
	return decide(sh, offer, WITHDRAWN);
}

int shared_inherit(struct shared *sh)
{
	uint32_t nobody = 0, us = getpid();

	return __atomic_compare_exchange_n(&sh->heir, &nobody, us, 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST) ||
	       nobody == us;
}

struct session *shared_sessions(struct shared *sh)
{
	return (struct session *)((char *)sh + sessions_at());
}

struct pipe *shared_pipes(struct shared *sh)
{
	return (struct pipe *)((char *)sh + pipes_at(sh));
}
