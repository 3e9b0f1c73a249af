/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the fuzz targets share: an input is read from its front, and what lies behind its end reads
 * as zero, so that every input means something and a longer one goes on where a shorter one ended.
 */
#ifndef TPROXY_FUZZ_H
#define TPROXY_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *data;
	size_t size;
};

static inline void take(struct input *in, void *to, size_t len)
{
	size_t n = len < in->size ? len : in->size;

	memset(to, 0, len);
	if (n)
		memcpy(to, in->data, n);
	in->data += n;
	in->size -= n;
}

static inline uint8_t take_byte(struct input *in)
{
	uint8_t byte;

	take(in, &byte, sizeof(byte));
	return byte;
}

static inline uint16_t take_u16(struct input *in)
{
	uint16_t number;

	take(in, &number, sizeof(number));
	return number;
}

/* Up to and without a byte `end`, which is taken too. To be freed. */
static inline char *take_text(struct input *in, char end)
{
	const uint8_t *found = in->size ? memchr(in->data, end, in->size) : NULL;
	size_t len = found ? (size_t)(found - in->data) : in->size;
	char *text = malloc(len + 1);

	take(in, text, len);
	text[len] = 0;
	if (found)
		take_byte(in);
	return text;
}

/* What must be true of the program, whatever the input is. */
#define insist(condition)                                                                       \
	do {                                                                                    \
		if (!(condition)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                \
		}                                                                               \
	} while (0)

#endif
