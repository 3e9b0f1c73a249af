# SPDX-License-Identifier: BSD-2-Clause
"""
A network behind a TUN device, whose hosts answer a SYN after a moment, as far ones do: on loopback
an answer comes while connect() still holds the socket's lock, and an ICMP error is then only noted.
The port says what the answer is.
"""

import fcntl
import heapq
import os
import select
import struct
import time

DEVICE = "far1"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
DELAY = 0.03
SYN, RST, ACK, FIN = 0x02, 0x04, 0x10, 0x01

# Hosts of these networks answer.
V4, V6 = "10.82.0.0/24", "fd82::/64"

# ports: what they answer
UNREACHABLE = 1000  # + code: ICMP destination unreachable
OTHER_ICMP = {1101: (11, 0), 1102: (11, 1), 1103: (12, 0), 1104: (4, 0)}
OTHER_ICMPV6 = {1101: (3, 0), 1102: (3, 1), 1103: (4, 0), 1104: (4, 1)}
REFUSE, ACCEPT, ACCEPT_LATE, ONLY_SECOND_SYN = 1200, 1201, 1202, 1203


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def ip_header(source, target, protocol, length):
    if len(source) == 16:
        return struct.pack(">IHBB", 6 << 28, length, protocol, 60) + source + target
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 60, protocol, 0) + source + target
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:]


def pseudo(source, target, protocol, length):
    return source + target + struct.pack(">HH" if len(source) == 4 else ">II",
                                         *((protocol, length) if len(source) == 4 else
                                           (length, protocol)))


def icmp(source, target, kind, code, original):
    """An ICMP message with the original packet, from source to target."""
    body = struct.pack(">BBHI", kind, code, 0, 0) + original
    v6 = len(source) == 16
    sums = (pseudo(source, target, 58, len(body)) if v6 else b"") + body
    body = body[:2] + struct.pack(">H", checksum(sums)) + body[4:]
    return ip_header(source, target, 58 if v6 else 1, len(body)) + body


def segment(source, target, ports, seq, ack, flags):
    body = struct.pack(">HHIIBBHHH", *ports, seq, ack, 5 << 4, flags, 65000, 0, 0)
    total = checksum(pseudo(source, target, 6, len(body)) + body)
    body = body[:16] + struct.pack(">H", total) + body[18:]
    return ip_header(source, target, 6, len(body)) + body


class Reflector:
    """Runs in a process of its own, until its end of a pipe is closed."""

    def __init__(self):
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        self.due = []  # (time, number, packet)
        self.seen, self.count = set(), 0

    def later(self, packet, delay=DELAY):
        self.count += 1
        heapq.heappush(self.due, (time.monotonic() + delay, self.count, packet))

    def packet(self, data):
        v6 = data[0] >> 4 == 6
        head = 40 if v6 else (data[0] & 15) * 4
        if (data[6] if v6 else data[9]) != 6:
            return
        source, target = (data[8:24], data[24:40]) if v6 else (data[12:16], data[16:20])
        sport, dport, seq, ack, _, flags = struct.unpack(">HHIIBB", data[head:head + 14])
        back = (target, source, (dport, sport))
        if flags & RST:
            return
        if not flags & SYN:
            if flags & FIN:  # what it says does not matter
                self.later(segment(*back, ack, 0, RST))
            return
        if dport in (REFUSE, ONLY_SECOND_SYN):
            key = source, target, sport, dport
            if dport == REFUSE or key in self.seen:
                self.later(segment(*back, 0, seq + 1 & 0xffffffff, RST | ACK))
            self.seen.add(key)
        elif dport in (ACCEPT, ACCEPT_LATE):
            self.later(segment(*back, 1000, seq + 1 & 0xffffffff, SYN | ACK),
                       DELAY if dport == ACCEPT else 10 * DELAY)
        elif UNREACHABLE <= dport < UNREACHABLE + 100:
            self.later(icmp(target, source, 1 if v6 else 3, dport - UNREACHABLE, data))
        elif dport in OTHER_ICMP:
            self.later(icmp(target, source, *(OTHER_ICMPV6 if v6 else OTHER_ICMP)[dport], data))

    def serve(self, end):
        while True:
            wait = max(0, self.due[0][0] - time.monotonic()) if self.due else None
            ready = select.select([self.fd, end], [], [], wait)[0]
            if end in ready:
                return
            if ready:
                self.packet(os.read(self.fd, 65536))
            while self.due and self.due[0][0] <= time.monotonic():
                os.write(self.fd, heapq.heappop(self.due)[2])


def host(stage):
    return stage.pick("10.82.0.1", "fd82::1")
