/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The listeners and what makes them trusted: binding, registration in map_config, the marks that
 * let the hooks send clients here, and the self-test that proves it all before anybody is told
 * READY.
 */
#ifndef TPROXY_LISTENER_H
#define TPROXY_LISTENER_H

#include "proxy.h"

/* Binds and listens on 127.0.0.1 and ::1 at the instance's ports, those of our part; not marked
 * yet. IPv6 may be absent, and all ports but the first of these be taken. */
int listener_open(struct proxy *p, struct failure *f);

/* The one on IPv4 at the first of our ports, which a proxy cannot do without. */
int listener_first(const struct proxy *p);

uint16_t listener_port(const struct proxy *p, int listener);

/* Whether we have them: not before listener_open() and after listener_close(). */
int listener_is_open(const struct proxy *p);

/* Learns from the hooks which tgid and namespace the kernel sees. */
int listener_identify(struct proxy *p, struct failure *f);

/* The same, and enters them in map_config. */
int listener_register(struct proxy *p, struct failure *f);

/* Marks the listeners: from here on clients are redirected. */
int listener_trust(struct proxy *p, struct failure *f);

/* Connects through the hooks to ourselves, as a client would, and reads the answer back. Clients
 * that are met on the way are served. */
int listener_selftest(struct proxy *p, struct failure *f);

/* The worker has died: its pid, which anybody may be given now, exempts nobody. The slot stays. */
void listener_disown(struct proxy *p);

/* No further client is sent here; those on their way can still come in. 0 or -errno. */
int listener_distrust(struct proxy *p);

/* Closes the listeners and frees the slot in map_config. */
void listener_close(struct proxy *p);

/* Where the listener of a family (AF_INET, AF_INET6) and port is. */
struct tp_endpoint listener_address(int family, uint16_t port);

/* Its number among p->shared->listener, or -1. */
int listener_index(const struct proxy *p, int family, uint16_t port);

/* Whether an endpoint is one of our listeners. */
int listener_is(const struct proxy *p, const struct tp_endpoint *ep);

/* Accepts a client. fd, or -errno. The tag is TP_NO_TAG where the hooks have not given one. */
int listener_accept(int listener, __u64 *ret_tag);

/* What the hooks have noted of an accepted connection, whether they are still there or not. 0, or
 * -ENOENT: nothing, so it is no client of ours. */
int listener_record(const struct proxy *p, int fd, struct tp_record *ret_record);

#endif
