/* SPDX-License-Identifier: BSD-2-Clause */
/* sd_notify(3) that does not wait: a service manager that is busy must not keep workers from being
 * started. */
#ifndef TPROXY_NOTIFY_H
#define TPROXY_NOTIFY_H

/* 0 where it was sent or nobody wants to know, -EAGAIN where it would have to wait, or -errno. */
int notify_send(const char *state);

#endif
