# Another build: the same in everything but its bytes.
s/^char _license\[\].*/char _license[] SEC("license") = "GPL";/
