/* SPDX-License-Identifier: BSD-2-Clause */
/* Which loopback port a proxy could listen on. */
#ifndef TPROXY_PORT_H
#define TPROXY_PORT_H

#include <stdint.h>

#include "lib/failure.h"

/* Whether one could listen on 127.0.0.1 and ::1 (where there is IPv6): 1 or 0. */
int port_is_free(uint16_t port);

/* A free one, searched from a place of this process's own so that several find different ones. */
int port_pick(uint16_t *ret_port, struct failure *f);

#endif
