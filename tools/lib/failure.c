// SPDX-License-Identifier: BSD-2-Clause
#include "failure.h"

#include <stdarg.h>

int fail(struct failure *f, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
	va_end(ap);
	return err;
}
