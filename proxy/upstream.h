/* SPDX-License-Identifier: BSD-2-Clause */
/* The connection to the server: made as the client would have made it. */
#ifndef TPROXY_UPSTREAM_H
#define TPROXY_UPSTREAM_H

#include "proxy.h"

/*
 * 1: connected; 0: under way; or -errno. The session has the socket at once, whatever becomes of
 * it, and knows the source that the server sees.
 */
int upstream_connect(struct proxy *p, struct session *s);

/* What a client's first message does not need and the next ones do, TCP_NODELAY: many sessions are
 * one request and one response. */
void upstream_tune(struct session *s);

/* Notes the source that the server sees; for a successor, that may find a connection without. */
void upstream_learn_source(struct session *s);

/*
 * What has become of a connect() under way: 1: connected; 0: nothing yet; or -errno. One that has
 * been reset had been connected, and what it said before is still to be read: it is noted as
 * broken.
 */
int upstream_result(struct session *s);

/*
 * Whether the handshake's last packet goes out now. While a client is held it does not, so that the
 * server's accept() returns after the client's connect() as it would directly, and never if the
 * client gives up.
 */
void upstream_ack(struct session *s, int now);

/*
 * The server's first bytes were taken. To put off the end of a handshake has a second effect: once
 * the client has sent something the kernel puts off the acknowledgement of what is answered, too,
 * and a server that writes its answer in pieces, without TCP_NODELAY, would wait 40 ms before the
 * second. This acknowledges the first and ends that.
 */
void upstream_spoke(struct session *s);

#endif
