// SPDX-License-Identifier: BSD-2-Clause
/* Any two layouts, as BTF may describe them, and any value. */
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <linux/btf.h>
#include <stdint.h>
#include <string.h>

#include "../../loader/convert.h"

#define MAX_SIZE 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int no_print(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	(void)level;
	(void)fmt;
	(void)ap;
	return 0;
}

/* The first bytes choose types and sizes; then the BTF; its tail is the value too. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct converter c = {0};
	struct layout from, to;
	struct btf_header hdr;
	uint16_t head[4];
	struct btf *btf;

	if (size < sizeof(head) + sizeof(hdr))
		return 0;
	/* What comes from the kernel is aligned; libbpf relies on it. */
	memcpy(&hdr, data + sizeof(head), sizeof(hdr));
	if (hdr.hdr_len % 4 || hdr.type_off % 4)
		return 0;
	libbpf_set_print(no_print);
	memcpy(head, data, sizeof(head));
	btf = btf__new(data + sizeof(head), size - sizeof(head));
	if (!btf)
		return 0;
	from = (struct layout){btf, head[0], head[2] % MAX_SIZE};
	to = (struct layout){btf, head[1], head[3] % MAX_SIZE};
	if (!converter_make(&from, &to, &c)) {
		uint8_t *in = calloc(1, from.size + 1), *out = calloc(1, to.size + 1);

		if (in && out) {
			memcpy(in, data, from.size < size ? from.size : size);
			convert(&c, in, out);
		}
		free(in);
		free(out);
	}
	converter_free(&c);
	btf__free(btf);
	return 0;
}
