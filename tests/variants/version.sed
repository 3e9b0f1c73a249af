# Another version: other layouts, a counter, a map and a hook that this one does not know.
s/^#define ABI_VERSION .*/#define ABI_VERSION 77/
/^_Static_assert.*;$/d
/^_Static_assert/,/;$/d
s/^struct tp_record {/&\n\t__u64 odd;/
s/^\t__u32 abi;/&\n\t__u64 odd;/
s/^\tX(redirected, /\tX(odd, "odd ones") &/
s/X(failed)/X(odd) X(failed)/
s/^\tX(connect4, BPF_CGROUP_INET4_CONNECT)/\tX(sendmsg4, BPF_CGROUP_UDP4_SENDMSG) &/
s/^\(.*\)PIN_PROG_connect4,/\1PIN_PROG_sendmsg4, PIN_PROG_connect4,/
s/^#define routes_KEY.*/&\n#define odd_KEY sizeof(__u32)\n#define odd_VALUE sizeof(__u64)\n#define odd_TYPE BPF_MAP_TYPE_HASH/
s/^} map_routes SEC.*/&\nstruct {\n\t__uint(type, BPF_MAP_TYPE_HASH);\n\t__uint(max_entries, 16);\n\t__type(key, __u32);\n\t__type(value, __u64);\n} map_odd SEC(".maps");/
s/^SEC("cgroup\/connect4")/SEC("cgroup\/sendmsg4")\nint tp_sendmsg4(struct bpf_sock_addr *ctx)\n{\n\t(void)ctx;\n\treturn 1;\n}\n\n&/
