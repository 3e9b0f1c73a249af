// SPDX-License-Identifier: BSD-2-Clause
#include "mapread.h"

#include <bpf/bpf.h>
#include <string.h>

#define BATCH 4096

static int grow(struct map_contents *c, const struct pin_map_def *def, size_t room)
{
	void *keys = reallocarray(c->keys, room, def->key_size), *values;

	if (!keys)
		return -ENOMEM;
	c->keys = keys;
	values = reallocarray(c->values, room, def->value_size);
	if (!values)
		return -ENOMEM;
	c->values = values;
	return 0;
}

static int read_all(int fd, const struct pin_map_def *def, struct map_contents *c)
{
	__u32 position = 0, count;
	void *from = NULL;
	size_t batch = BATCH, room = 0;
	int err;

	do {
		if (room < c->count + batch) {
			room = 2 * (c->count + batch);
			if (grow(c, def, room))
				return -ENOMEM;
		}
		count = batch;
		err = bpf_map_lookup_batch(
			fd, from, &position, (char *)c->keys + c->count * def->key_size,
			(char *)c->values + c->count * def->value_size, &count, NULL);
		if (err == -ENOSPC) { /* a bucket longer than the batch: none of it was read */
			batch *= 2;
			continue;
		}
		if (err && err != -ENOENT)
			return err;
		c->count += count;
		from = &position;
	} while (err != -ENOENT); /* which says that this was the last one */
	return 0;
}

int mapread(const struct instance *inst, enum pin_map map, struct map_contents *ret,
	    struct failure *f)
{
	struct map_contents c _cleanup_(map_contents_free) = {};
	struct bpf_map_info info = {};
	__u32 len = sizeof(info);
	int err;

	err = bpf_obj_get_info_by_fd(inst->map[map], &info, &len);
	if (!err)
		err = read_all(inst->map[map], &pin_maps[map], &c);
	if (err)
		return fail(f, err, "cannot read %s of instance %s: %s", pin_maps[map].name,
			    inst->name, strerror(-err));
	c.max = info.max_entries;
	c.id = info.id;
	*ret = c;
	memset(&c, 0, sizeof(c));
	return 0;
}

void map_contents_free(struct map_contents *contents)
{
	free(contents->keys);
	free(contents->values);
}
