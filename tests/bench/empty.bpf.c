// SPDX-License-Identifier: BSD-2-Clause
/* Hooks that do nothing: what being called costs, by the statistics that time ours. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("cgroup/connect4")
int prog_connect4(struct bpf_sock_addr *ctx)
{
	(void)ctx;
	return 1;
}

SEC("sockops")
int prog_sockops(struct bpf_sock_ops *ctx)
{
	(void)ctx;
	return 1;
}

SEC("cgroup/sock_release")
int prog_sock_release(struct bpf_sock *sk)
{
	(void)sk;
	return 1;
}

SEC("cgroup/getsockopt")
int prog_getsockopt(struct bpf_sockopt *ctx)
{
	(void)ctx;
	return 1;
}

SEC("cgroup/getsockname4")
int prog_getsockname4(struct bpf_sock_addr *ctx)
{
	(void)ctx;
	return 1;
}

char _license[] SEC("license") = "BSD"; /* none of what it does takes the GPL */
