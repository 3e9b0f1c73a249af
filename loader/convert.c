// SPDX-License-Identifier: BSD-2-Clause
#include "convert.h"

#include <bpf/btf.h>
#include <string.h>

/* BTF that is not ours might go round in circles, or have members upon members. */
#define MAX_DEPTH 16
#define MAX_PARTS 65536

/* Bytes as they are where both lengths are the same, else a number of another width. */
struct convert_step {
	size_t from, from_len;
	size_t to, to_len;
	int is_signed;
};

/* A member or element, or the whole. */
struct part {
	const struct btf *btf;
	__u32 type;
	size_t at;
	size_t size;
};

struct walk {
	struct converter *c;
	size_t parts;
	int err;
};

static void part_convert(struct walk *w, const struct part *from, const struct part *to, int depth);

/* A part of a part; -1: not within it. */
static int part_within(const struct part *p, __u32 type, size_t offset, struct part *ret)
{
	__s64 size = btf__resolve_size(p->btf, type);

	if (size <= 0 || offset > p->size || (size_t)size > p->size - offset)
		return -1;
	*ret = (struct part){p->btf, type, p->at + offset, size};
	return 0;
}

static int step_add(struct converter *c, const struct convert_step *step)
{
	struct convert_step *last = c->count ? &c->steps[c->count - 1] : NULL;

	if (last && step->from_len == step->to_len && last->from_len == last->to_len &&
	    last->from + last->from_len == step->from && last->to + last->to_len == step->to) {
		last->from_len += step->from_len;
		last->to_len += step->to_len;
		return 0;
	}
	if (c->count == c->room) {
		size_t room = 2 * c->room + 16;
		struct convert_step *steps = reallocarray(c->steps, room, sizeof(*steps));

		if (!steps)
			return -ENOMEM;
		c->steps = steps;
		c->room = room;
	}
	c->steps[c->count++] = *step;
	return 0;
}

/* Its index, or -1: there is none of this name, or it is a bitfield. */
static int member_find(const struct btf *btf, const struct btf_type *t, const char *name)
{
	const struct btf_member *m = btf_members(t);

	for (int i = 0; i < btf_vlen(t); i++)
		if (!strcmp(btf__str_by_offset(btf, m[i].name_off) ?: "", name))
			return btf_member_bitfield_size(t, i) ? -1 : i;
	return -1;
}

static int member_part(const struct part *p, const struct btf_type *t, int i, struct part *ret)
{
	return part_within(p, btf_members(t)[i].type, btf_member_bit_offset(t, i) / 8, ret);
}

static void struct_convert(struct walk *w, const struct part *from, const struct btf_type *ft,
			   const struct part *to, const struct btf_type *tt, int depth)
{
	for (int i = 0; i < btf_vlen(tt); i++) {
		const char *name = btf__str_by_offset(to->btf, btf_members(tt)[i].name_off);
		struct part a, b;
		int member;

		if (!name || !*name || btf_member_bitfield_size(tt, i))
			continue;
		member = member_find(from->btf, ft, name);
		if (member >= 0 && !member_part(from, ft, member, &a) &&
		    !member_part(to, tt, i, &b))
			part_convert(w, &a, &b, depth + 1);
	}
}

static void array_convert(struct walk *w, const struct part *from, const struct btf_type *ft,
			  const struct part *to, const struct btf_type *tt, int depth)
{
	const struct btf_array *fa = btf_array(ft), *ta = btf_array(tt);
	__s64 fsize = btf__resolve_size(from->btf, fa->type);
	__s64 tsize = btf__resolve_size(to->btf, ta->type);
	struct part a, b;

	for (__u64 i = 0; i < fa->nelems && i < ta->nelems; i++) {
		if (part_within(from, fa->type, i * fsize, &a) ||
		    part_within(to, ta->type, i * tsize, &b) || w->err)
			return;
		part_convert(w, &a, &b, depth + 1);
	}
}

static int is_number(const struct btf_type *t, size_t size)
{
	return (btf_is_int(t) || btf_is_any_enum(t)) &&
	       (size == 1 || size == 2 || size == 4 || size == 8);
}

static void part_convert(struct walk *w, const struct part *from, const struct part *to, int depth)
{
	const struct btf_type *ft, *tt;
	int f = btf__resolve_type(from->btf, from->type), t = btf__resolve_type(to->btf, to->type);

	if (++w->parts > MAX_PARTS || depth > MAX_DEPTH)
		w->err = w->err ?: -E2BIG;
	if (w->err || f < 0 || t < 0)
		return;
	ft = btf__type_by_id(from->btf, f);
	tt = btf__type_by_id(to->btf, t);
	if (btf_is_struct(ft) && btf_is_struct(tt)) {
		struct_convert(w, from, ft, to, tt, depth);
	} else if (btf_is_array(ft) && btf_is_array(tt)) {
		array_convert(w, from, ft, to, tt, depth);
	} else if (is_number(ft, from->size) && is_number(tt, to->size)) {
		struct convert_step step = {from->at, from->size, to->at, to->size, 0};

		step.is_signed = btf_is_int(ft) ? btf_int_encoding(ft) & BTF_INT_SIGNED
						: btf_kflag(ft);
		w->err = step_add(w->c, &step);
	}
}

int converter_make(const struct layout *from, const struct layout *to, struct converter *ret)
{
	struct converter c = {.size = to->size};
	struct walk w = {.c = &c};
	struct part a = {from->btf, from->type, 0, from->size},
		    b = {to->btf, to->type, 0, to->size};

	if (!part_within(&a, a.type, 0, &a) && !part_within(&b, b.type, 0, &b))
		part_convert(&w, &a, &b, 0);
	if (w.err) {
		converter_free(&c);
		return w.err;
	}
	*ret = c;
	return 0;
}

void converter_free(struct converter *c)
{
	free(c->steps);
	*c = (struct converter){0};
}

static __u64 number_read(const unsigned char *at, size_t len, int is_signed)
{
	__s8 v1;
	__s16 v2;
	__s32 v4;
	__s64 v8 = 0;

	switch (len) {
	case 1:
		memcpy(&v1, at, len);
		return is_signed ? (__u64)v1 : (__u8)v1;
	case 2:
		memcpy(&v2, at, len);
		return is_signed ? (__u64)v2 : (__u16)v2;
	case 4:
		memcpy(&v4, at, len);
		return is_signed ? (__u64)v4 : (__u32)v4;
	}
	memcpy(&v8, at, sizeof(v8));
	return v8;
}

static void number_write(unsigned char *at, size_t len, __u64 value)
{
	__u8 v1 = value;
	__u16 v2 = value;
	__u32 v4 = value;

	switch (len) {
	case 1:
		memcpy(at, &v1, len);
		return;
	case 2:
		memcpy(at, &v2, len);
		return;
	case 4:
		memcpy(at, &v4, len);
		return;
	}
	memcpy(at, &value, sizeof(value));
}

void convert(const struct converter *c, const void *from, void *to)
{
	memset(to, 0, c->size);
	for (size_t i = 0; i < c->count; i++) {
		const struct convert_step *s = &c->steps[i];
		const unsigned char *at = (const unsigned char *)from + s->from;

		if (s->from_len == s->to_len)
			memcpy((unsigned char *)to + s->to, at, s->to_len);
		else
			number_write((unsigned char *)to + s->to, s->to_len,
				     number_read(at, s->from_len, s->is_signed));
	}
}
