/* SPDX-License-Identifier: BSD-2-Clause */
/* cmocka, with the headers that its manual asks for before it. */
#ifndef TPROXY_UNIT_H
#define TPROXY_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* cmocka's fail() would hide ours (failure.h), and its fail_msg() is made of it. */
#undef fail
#undef fail_msg
#define fail_msg(...)                      \
	do {                               \
		print_error(__VA_ARGS__);  \
		print_error("\n");         \
		_fail(__FILE__, __LINE__); \
	} while (0)

#include "util.h"

#endif
