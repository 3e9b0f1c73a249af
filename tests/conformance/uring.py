# SPDX-License-Identifier: BSD-2-Clause
"""As much of io_uring as one connect() at a time takes, through raw system calls."""

import ctypes
import mmap
import os
import select
import struct

from .stage import libc

SETUP, ENTER = 425, 426  # the same numbers on every architecture
OFF_SQ_RING, OFF_CQ_RING, OFF_SQES = 0, 0x8000000, 0x10000000
OP_CONNECT, SQE_SIZE = 16, 64


class Ring:
    def __init__(self):
        params = ctypes.create_string_buffer(120)
        self.fd = libc.syscall(SETUP, 4, params)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        fields = struct.unpack("=30I", params.raw)
        self.sq, self.cq = fields[10:20], fields[20:30]  # struct io_[sc]qring_offsets
        entries, completions = fields[0], fields[1]
        self.submissions = mmap.mmap(self.fd, self.sq[6] + entries * 4, offset=OFF_SQ_RING)
        self.completions = mmap.mmap(self.fd, self.cq[5] + completions * 16, offset=OFF_CQ_RING)
        self.sqes = mmap.mmap(self.fd, entries * SQE_SIZE, offset=OFF_SQES)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for mapping in (self.submissions, self.completions, self.sqes):
            mapping.close()
        os.close(self.fd)

    @staticmethod
    def _read(mapping, offset):
        return struct.unpack_from("=I", mapping, offset)[0]

    def connect(self, sock, address, timeout=10):
        """Returns 0 or -errno, None if the answer does not come in time."""
        buffer = ctypes.create_string_buffer(address, len(address))
        _, tail, mask, _, _, _, array = self.sq[:7]
        at = self._read(self.submissions, tail)
        index = at & self._read(self.submissions, mask)
        entry = struct.pack("=BBHiQQIIQ", OP_CONNECT, 0, 0, sock.fileno(), len(address),
                            ctypes.addressof(buffer), 0, 0, 1)
        self.sqes[index * SQE_SIZE:(index + 1) * SQE_SIZE] = entry.ljust(SQE_SIZE, b"\0")
        struct.pack_into("=I", self.submissions, array + 4 * index, index)
        struct.pack_into("=I", self.submissions, tail, at + 1)
        if libc.syscall(ENTER, self.fd, 1, 0, 0, None, 0) != 1:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            return None
        head, _, mask, _, _, cqes = self.cq[:6]
        at = self._read(self.completions, head)
        offset = cqes + 16 * (at & self._read(self.completions, mask))
        result = struct.unpack_from("=i", self.completions, offset + 8)[0]
        struct.pack_into("=I", self.completions, head, at + 1)
        return result
