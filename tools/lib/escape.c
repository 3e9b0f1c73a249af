// SPDX-License-Identifier: BSD-2-Clause
#include "escape.h"

#include <stdio.h>
#include <string.h>

const char *escape(const char *text, size_t len, const char *also, char *out)
{
	char *o = out;

	for (size_t i = 0; i < len && text[i]; i++) {
		unsigned char c = text[i];

		if (c < 0x20 || c >= 0x7f || strchr(also, c))
			o += sprintf(o, "\\x%02x", c);
		else
			*o++ = c;
	}
	*o = 0;
	return out;
}
