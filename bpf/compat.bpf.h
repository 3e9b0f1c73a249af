/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is not the same on every kernel from 5.10 on. Each shim names the version it can go with. */
#ifndef TPROXY_COMPAT_BPF_H
#define TPROXY_COMPAT_BPF_H

/* Numbers of user-space headers that cannot be included here. They are part of the kernel's ABI. */
#define SOCK_STREAM  1
#define SOL_SOCKET   1
#define SO_REUSEADDR 2

/* The few kernel fields that are read, relocated at load time: no vmlinux.h of the build host. */
struct sock {
	unsigned char sk_gso_disabled : 1, sk_kern_sock : 1;
} __attribute__((preserve_access_index));

struct bpf_map {
	__u32 id;
} __attribute__((preserve_access_index));

struct inet_sock {
	unsigned long inet_flags; /* Linux 6.6 */
} __attribute__((preserve_access_index));

struct inet_sock___bits { /* before */
	unsigned char transparent : 1;
} __attribute__((preserve_access_index));

#define INET_FLAGS_TRANSPARENT 15

struct tcp_congestion_ops {
	char name[TP_CC_LEN];
} __attribute__((preserve_access_index));

struct inet_connection_sock {
	const struct tcp_congestion_ops *icsk_ca_ops;
	__u32 icsk_user_timeout;
} __attribute__((preserve_access_index));

/* A socket's congestion control, in words: bpf_getsockopt takes 0.15 us longer. */
static __always_inline void congestion_copy(const struct inet_connection_sock *full,
					    char to[TP_CC_LEN])
{
	const __u32 *from = (const __u32 *)full->icsk_ca_ops->name;

	for (int i = 0; i < TP_CC_LEN / 4; i++)
		((__u32 *)to)[i] = from[i];
}

/*
 * Whether a length is within bounds, in the one form that every verifier follows: a single
 * comparison of the very register that is then used. clang would compare a copy of it. Verifiers of
 * 5.10 to 6.18 refuse the plain comparison, as they do not conclude from len != 0 that len >= 1;
 * before 5.16 what had been learnt was forgotten in a spill, so that no call may come between this
 * and the use.
 */
static __always_inline int len_bound(__u32 *len, __u32 min, __u32 max)
{
	__u32 over = *len - min;

	barrier_var(over);
	if (over > max - min)
		return 0;
	*len = over + min;
	return 1;
}

/*
 * bpf_set_retval: 5.18. The branch is resolved at load time and the verifier drops the dead call.
 * Without it the kernel's own value stands: EPERM for a refused connect. The verifier of 7.3 wants
 * to see, in all 64 bits, that it is an errno.
 */
static __always_inline void retval_set(int err)
{
	long retval = -(long)(-err & 4095);

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval))
		bpf_set_retval(retval);
}

static __always_inline int retval_settable(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval);
}

#endif
