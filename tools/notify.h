/* SPDX-License-Identifier: BSD-2-Clause */
/* The receiving end of sd_notify(3): to know when a service we started is ready. */
#ifndef TPROXY_NOTIFY_H
#define TPROXY_NOTIFY_H

#include "lib/failure.h"

#define NOTIFY_ADDRESS_LEN 32

/* Opens an abstract socket, which leaves no file behind. `ret_address` is for NOTIFY_SOCKET.
 * Returns an fd, or -errno. */
int notify_listen(char ret_address[NOTIFY_ADDRESS_LEN], struct failure *f);

/* Reads what has come, without waiting: 1 if READY=1 was in it, sent by our own user. */
int notify_ready(int fd);

#endif
