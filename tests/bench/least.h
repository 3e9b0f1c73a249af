/* SPDX-License-Identifier: BSD-2-Clause */
/* What the relay and the hooks that hold for it agree on. */
#ifndef TPROXY_BENCH_LEAST_H
#define TPROXY_BENCH_LEAST_H

#define LEAST_GRANT   0x6c656173 /* SO_MARK of what the relay sends again */
#define LEAST_OPTIONS 20	 /* of a Linux client's SYN, in bytes */
#define LEAST_ADDRESS 0x0a4d0001 /* where the relay is dialled, ADDRESS of worlds.py */

#endif
