// SPDX-License-Identifier: BSD-2-Clause
#include "undo.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "remedy.h"

enum undo_kind { UNDO_MKDIR, UNDO_PIN, UNDO_ATTACH, UNDO_SWAP, UNDO_RENAME, UNDO_REPLACE };

struct undo_step {
	enum undo_kind kind;
	char *from; /* owned, as `to` */
	char *to;
	int fd;	    /* ATTACH: link, owned; SWAP: link, REPLACE: old object; borrowed */
	int new_fd; /* SWAP: programs, borrowed */
	int old_fd;
};

static void step_free(struct undo_step *step)
{
	free(step->from);
	free(step->to);
	if (step->kind == UNDO_ATTACH)
		fd_close(step->fd);
}

/* Room for one more step, not yet counted: the change comes first. NULL: out of memory. */
static struct undo_step *step_prepare(struct undo *u, enum undo_kind kind, const char *from,
				      const char *to, struct failure *f)
{
	struct undo_step *step;

	if (u->count == u->size) {
		size_t size = u->size ? 2 * u->size : 32;
		struct undo_step *steps = reallocarray(u->steps, size, sizeof(*steps));

		if (!steps)
			goto no_memory;
		u->steps = steps;
		u->size = size;
	}
	step = &u->steps[u->count];
	*step = (struct undo_step){.kind = kind, .fd = -1, .new_fd = -1, .old_fd = -1};
	step->from = from ? strdup(from) : NULL;
	step->to = to ? strdup(to) : NULL;
	if ((from && !step->from) || (to && !step->to)) {
		step_free(step);
		goto no_memory;
	}
	return step;
no_memory:
	fail(f, -ENOMEM, "out of memory");
	return NULL;
}

/* Ends what step_prepare() began. `err` is the change's own result. */
static int step_finish(struct undo *u, struct undo_step *step, int err)
{
	if (err)
		step_free(step);
	else
		u->count++;
	return err;
}

int undo_mkdir(struct undo *u, const char *path, struct failure *f)
{
	struct undo_step *step = step_prepare(u, UNDO_MKDIR, path, NULL, f);
	int err = 0;

	if (!step)
		return -ENOMEM;
	if (mkdir(path, 0700))
		err = fail(f, -errno, "cannot make the directory %s: %m%s", path, remedy(errno));
	return step_finish(u, step, err);
}

int undo_pin(struct undo *u, int fd, const char *path, struct failure *f)
{
	struct undo_step *step = step_prepare(u, UNDO_PIN, path, NULL, f);
	int err = 0;

	if (!step)
		return -ENOMEM;
	if (bpf_obj_pin(fd, path))
		err = fail(f, -errno, "cannot pin %s: %m%s", path, remedy(errno));
	return step_finish(u, step, err);
}

int undo_attach(struct undo *u, int prog_fd, int cgroup_fd, enum bpf_attach_type type,
		const char *path, struct failure *f)
{
	struct undo_step *step = step_prepare(u, UNDO_ATTACH, path, NULL, f);
	int err = 0;

	if (!step)
		return -ENOMEM;
	step->fd = bpf_link_create(prog_fd, cgroup_fd, type, NULL);
	if (step->fd < 0)
		err = fail(f, -errno, "cannot attach the program of %s: %m%s", path,
			   errno == EPERM
				   ? "; a program attached without BPF_F_ALLOW_MULTI here or above "
				     "forbids others, see: bpftool cgroup tree"
				   : remedy(errno));
	else if (bpf_obj_pin(step->fd, path))
		err = fail(f, -errno, "cannot pin %s: %m%s", path, remedy(errno));
	return step_finish(u, step, err);
}

int undo_swap(struct undo *u, int link_fd, int new_prog_fd, int old_prog_fd, const char *path,
	      struct failure *f)
{
	LIBBPF_OPTS(bpf_link_update_opts, opts, .flags = BPF_F_REPLACE, .old_prog_fd = old_prog_fd);
	struct undo_step *step = step_prepare(u, UNDO_SWAP, NULL, NULL, f);
	int err = 0;

	if (!step)
		return -ENOMEM;
	step->fd = link_fd;
	step->new_fd = new_prog_fd;
	step->old_fd = old_prog_fd;
	if (bpf_link_update(link_fd, new_prog_fd, &opts))
		err = fail(f, -errno, "cannot update the program of %s: %m%s", path,
			   errno == EPERM ? "; somebody else changed it meanwhile, run it again"
					  : remedy(errno));
	return step_finish(u, step, err);
}

int undo_rename(struct undo *u, const char *from, const char *to, struct failure *f)
{
	struct undo_step *step = step_prepare(u, UNDO_RENAME, from, to, f);
	int err = 0;

	if (!step)
		return -ENOMEM;
	if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE))
		err = fail(f, -errno, "cannot rename %s to %s: %m%s", from, to, remedy(errno));
	return step_finish(u, step, err);
}

int undo_replace(struct undo *u, const char *from, const char *to, int old_fd, struct failure *f)
{
	struct undo_step *step = step_prepare(u, UNDO_REPLACE, from, to, f);
	int err = 0;

	if (!step)
		return -ENOMEM;
	step->fd = old_fd;
	if (rename(from, to))
		err = fail(f, -errno, "cannot rename %s to %s: %m%s", from, to, remedy(errno));
	return step_finish(u, step, err);
}

void undo_commit(struct undo *u)
{
	for (size_t i = 0; i < u->count; i++)
		step_free(&u->steps[i]);
	free(u->steps);
	*u = (struct undo){0};
}

static void step_undo(const struct undo_step *step)
{
	LIBBPF_OPTS(bpf_link_update_opts, opts, .flags = BPF_F_REPLACE,
		    .old_prog_fd = step->new_fd);

	switch (step->kind) {
	case UNDO_MKDIR:
		rmdir(step->from);
		break;
	case UNDO_PIN:
		unlink(step->from);
		break;
	case UNDO_ATTACH:
		/* A link that is only unlinked detaches some time later, after an RCU grace period.
		 */
		bpf_link_detach(step->fd);
		unlink(step->from);
		break;
	case UNDO_SWAP:
		bpf_link_update(step->fd, step->old_fd, &opts);
		break;
	case UNDO_RENAME:
		renameat2(AT_FDCWD, step->to, AT_FDCWD, step->from, RENAME_NOREPLACE);
		break;
	case UNDO_REPLACE:
		if (!rename(step->to, step->from) && step->fd >= 0)
			bpf_obj_pin(step->fd, step->to);
		break;
	}
}

void undo_rollback(struct undo *u)
{
	for (size_t i = u->count; i > 0; i--)
		step_undo(&u->steps[i - 1]);
	undo_commit(u);
}
