/* SPDX-License-Identifier: BSD-2-Clause */
/* sd_notify(3) that does not wait: a service manager that is busy must not keep workers from being
 * started. */
#ifndef TPROXY_NOTIFY_H
#define TPROXY_NOTIFY_H

/* The socket for it, opened before there is a worker: the two share their descriptors, and one that
 * came to be while a worker looks through what it was left would be closed as a stranger, and its
 * number become a session's. -1 where nobody wants to know. */
int notify_open(void);

/* 0 where it was sent or nobody wants to know, -EAGAIN where it would have to wait, or -errno. */
int notify_send(int fd, const char *state);

#endif
