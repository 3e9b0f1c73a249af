/* SPDX-License-Identifier: BSD-2-Clause */
/* Which loopback port a proxy could listen on. */
#ifndef TPROXY_PORT_H
#define TPROXY_PORT_H

#include <stdint.h>

#include "lib/failure.h"

/* One that is free on 127.0.0.1 and ::1, searched from a place of this process's own so that
 * several find different ones. */
int port_pick(uint16_t *ret_port, struct failure *f);

#endif
