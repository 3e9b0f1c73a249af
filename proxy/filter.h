/* SPDX-License-Identifier: BSD-2-Clause */
/* The system calls that a worker which serves may make. */
#ifndef TPROXY_FILTER_H
#define TPROXY_FILTER_H

#include "failure.h"

/* For this process and its children, for good. Needs no_new_privs or CAP_SYS_ADMIN. */
int filter_install(struct failure *f);

#endif
