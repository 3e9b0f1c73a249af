# SPDX-License-Identifier: BSD-2-Clause
"""
What a scenario acts on: sockets of the family and mode it is run for, and the transcript.

Only what the contract makes equal goes into a transcript: no ephemeral port, no time. An address
is written down, a port only as what it is related to. Everything waits for a condition, for
DEADLINE at most; when that passes, "nothing" is what was seen.
"""

import contextlib
import ctypes
import errno
import hashlib
import select
import socket
import struct
import time

DEADLINE = 12
STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
          "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING")
POLL = {"IN": select.POLLIN, "PRI": select.POLLPRI, "OUT": select.POLLOUT, "ERR": select.POLLERR,
        "HUP": select.POLLHUP, "RDHUP": select.POLLRDHUP}
RESET = select.POLLERR | select.POLLHUP  # both, for they do not come at the same instant
ALL = select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP = 4, 20, 0x301

libc = ctypes.CDLL(None, use_errno=True)


def name_of(error):
    """An errno, or an OSError, by its name."""
    number = error.errno if isinstance(error, OSError) else error
    if number is None:
        return type(error).__name__
    return errno.errorcode.get(number, str(number)) if number else "ok"


def bits(mask):
    return "+".join(name for name, bit in POLL.items() if mask & bit) or "none"


def digest(data):
    """Short data as it is, longer data by length and hash."""
    if len(data) <= 24:
        return repr(bytes(data))
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:12]}"


def pattern(size, seed=0):
    """Bytes in which a lost, doubled or moved piece shows."""
    words = b"".join(struct.pack(">I", (n * 2654435761 + seed) & 0xffffffff) for n in range(4096))
    words += bytes([seed & 0xff])  # no multiple of a page, so that pages differ
    return (words * (size // len(words) + 1))[:size]


def poll_now(sock, mask=ALL, timeout=0):
    """The poll bits of a socket, or what comes of them in `timeout` seconds."""
    poller = select.poll()
    poller.register(sock, mask)
    ready = poller.poll(timeout * 1000)
    return ready[0][1] if ready else 0


def poll_answered(sock):
    """The poll bits after a connect(). The kernel sets the error just before it closes the socket."""
    mask = poll_now(sock)
    if mask & select.POLLERR and not mask & select.POLLRDHUP:
        time.sleep(0.02)
        mask = poll_now(sock)
    return mask


def raw_connect(sock, data, length=None):
    """connect(2) with any bytes as the address. Returns the errno, 0 for success."""
    ctypes.set_errno(0)
    length = len(data) if length is None else length
    if libc.connect(sock.fileno(), data, length) == 0:
        return 0
    return ctypes.get_errno()


def sockaddr(family, host, port, scope=0):
    """The bytes of a sockaddr_in or sockaddr_in6."""
    head = struct.pack("=H", family) + struct.pack(">H", port)
    if family == socket.AF_INET:
        return head + socket.inet_aton(host) + bytes(8)
    return (head + bytes(4) + socket.inet_pton(socket.AF_INET6, host) + struct.pack("=I", scope))


class Stage:
    """One run of one scenario."""

    def __init__(self, kind, blocking, far=None):
        self.kind, self.blocking, self.far = kind, blocking, far
        self.family = socket.AF_INET if kind == "v4" else socket.AF_INET6
        self.served = socket.AF_INET6 if kind == "v6" else socket.AF_INET
        self.transcript, self.trouble = [], ""
        self._open = []

    def close(self):
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.close()

    # --- the transcript ---

    def note(self, what, value):
        self.transcript.append(f"{what}: {value}")
        return value

    def attempt(self, what, function, *args):
        """Notes what function returns or raises. Returns its value, None for an error."""
        try:
            value = function(*args)
        except OSError as error:
            self.note(what, name_of(error))
            return None
        self.note(what, digest(value) if isinstance(value, (bytes, bytearray)) else
                  "ok" if value is None else value)
        return value

    def until(self, what, condition, deadline=DEADLINE):
        """Waits for a condition; notes whether it came true."""
        return self.note(what, "yes" if self.wait(condition, deadline) else "never")

    @staticmethod
    def wait(condition, deadline=DEADLINE):
        end = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.003)
        return True

    # --- addresses and sockets ---

    def host(self, number=1):
        """The address on which a server of this family listens."""
        return f"fd77::{number}" if self.served == socket.AF_INET6 else f"10.77.0.{number}"

    def dialled(self, host):
        """The same as a client of this family writes it."""
        return f"::ffff:{host}" if self.kind == "mapped" and ":" not in host else host

    def pick(self, v4, v6):
        """What this family dials out of two addresses."""
        return v6 if self.kind == "v6" else self.dialled(v4)

    def keep(self, sock):
        self._open.append(sock)
        return sock

    def socket(self, kind=socket.SOCK_STREAM, protocol=0, family=None):
        """A client socket in the mode of this run."""
        sock = self.keep(socket.socket(family or self.family, kind, protocol))
        self.tune(sock)
        return sock

    def tune(self, sock):
        """Blocking calls end at the deadline as well, by the kernel's own timers."""
        if self.blocking:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", DEADLINE, 0))
        else:
            sock.setblocking(False)

    def listener(self, number=1, backlog=64, port=0, protocol=0):
        sock = self.keep(socket.socket(self.served, socket.SOCK_STREAM, protocol))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host(number), port))
        sock.listen(backlog)
        return sock

    def address(self, listener):
        """Where a client dials to reach a listener."""
        host, port = listener.getsockname()[:2]
        return self.dialled(host), port

    def closed_port(self, number=1):
        """An address with a port on which nobody listens: taken, but without listen()."""
        sock = self.keep(socket.socket(self.served))
        sock.bind((self.host(number), 0))
        return self.address(sock)

    def accept(self, listener):
        """Accepts within the deadline; None if nothing comes."""
        if not poll_now(listener, select.POLLIN, DEADLINE):
            return None
        sock = self.keep(listener.accept()[0])
        self.tune(sock)
        return sock

    def finish(self, sock):
        """Waits for a connect() under way. Returns its errno."""
        poll_now(sock, select.POLLOUT, DEADLINE)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def connect(self, sock, address, what="connect"):
        """Connects in the mode of this run, notes how it ended and returns the errno."""
        error = sock.connect_ex(address)
        if error == errno.EINPROGRESS and not self.blocking:
            if not poll_now(sock, select.POLLOUT, DEADLINE):
                self.note(what, "nothing")
                return error
            self.note(f"{what} poll", bits(poll_answered(sock)))
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not error:
                sock.connect_ex(address)  # leaves the state in which it would once more say "done"
        self.note(what, name_of(error))
        return error

    def timed_connect(self, sock, address, what="connect", limit=0.9):
        """The same, and notes whether the answer came at once: before any timer could fire."""
        started = time.monotonic()
        error = sock.connect_ex(address)
        self.note(f"{what} returned", name_of(error))
        if error == errno.EINPROGRESS:
            poll_now(sock, select.POLLOUT, DEADLINE)
            self.note(f"{what} poll", bits(poll_answered(sock)))
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.note(f"{what} SO_ERROR", name_of(error))
        self.note(f"{what} answered", "at once" if time.monotonic() - started < limit else "late")
        return error

    def pair(self, listener=None, sock=None):
        """(client, server) connected, without a note unless it fails."""
        listener = listener or self.listener()
        client = sock or self.socket()
        error = client.connect_ex(self.address(listener))
        if error == errno.EINPROGRESS:
            error = self.finish(client)
            if not error:
                client.connect_ex(self.address(listener))
        if error:
            self.note("pair", name_of(error))
            raise ConnectionError("the scenario's connection failed")
        server = self.accept(listener)
        if not server:
            self.note("pair", "not accepted")
            raise ConnectionError("the scenario's connection was not accepted")
        return client, server

    # --- what is seen of a socket ---

    def poll(self, what, sock, want=0):
        """Notes the poll bits, after all of `want` have come."""
        self.wait(lambda: not want or poll_now(sock) & want == want)
        return self.note(f"{what} poll", bits(poll_now(sock)))

    def state(self, what, sock, want=None):
        """Notes the TCP state; with `want` after that state has come."""
        def state():
            return STATES[sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]]
        if want:
            self.wait(lambda: state() == want)
        return self.note(f"{what} state", state())

    def so_error(self, what, sock):
        return self.note(f"{what} SO_ERROR", name_of(sock.getsockopt(socket.SOL_SOCKET,
                                                                     socket.SO_ERROR)))

    def peername(self, what, sock, address=None):
        """Notes getpeername; against the address dialled, if given, for a port cannot be noted."""
        try:
            name = sock.getpeername()
        except OSError as error:
            return self.note(f"{what} getpeername", name_of(error))
        return self.note(f"{what} getpeername",
                         name[0] if address is None else
                         "as dialled" if name[:2] == address[:2] and not any(name[2:]) else
                         f"{name} instead of {address}")

    def names(self, what, client, server):
        """Both sides' names: each must be what the other side calls its peer."""
        mine, theirs = client.getsockname(), server.getpeername()
        self.note(f"{what} getsockname", mine[0])
        self.note(f"{what} is the server's peer",
                  mine[:2] == (self.dialled(theirs[0]), theirs[1]) and not any(mine[2:]))
        host, port = server.getsockname()[:2]
        self.peername(what, client, (self.dialled(host), port))

    # --- bytes ---

    def send(self, sock, data, flags=0):
        """Sends all, waiting where the socket is full. Raises what send() raises."""
        view = memoryview(data)
        while view:
            try:
                view = view[sock.send(view, flags | socket.MSG_NOSIGNAL):]
            except BlockingIOError:
                if not poll_now(sock, select.POLLOUT, DEADLINE):
                    raise

    def read(self, sock, size=1 << 62):
        """Up to `size` bytes. Returns (bytes, how it ended: "more", "EOF", "nothing", an errno)."""
        parts, got = [], 0
        while got < size:
            if not self.blocking and not poll_now(sock, select.POLLIN, DEADLINE):
                return b"".join(parts), "nothing"
            try:
                data = sock.recv(min(size - got, 1 << 20))
            except BlockingIOError:
                return b"".join(parts), "nothing"
            except OSError as error:
                return b"".join(parts), name_of(error)
            if not data:
                return b"".join(parts), "EOF"
            parts.append(data)
            got += len(data)
        return b"".join(parts), "more"

    def receive(self, what, sock, size=1 << 62):
        """Reads and notes what came and how it ended."""
        data, end = self.read(sock, size)
        self.note(f"{what} received", f"{digest(data)}, {end}")
        return end

    def arrived(self, sock, count):
        """Waits until `count` bytes are in the socket's queue."""
        return self.wait(lambda: queued(sock) >= count)

    def acknowledged(self, sock):
        """Waits until everything sent has been acknowledged."""
        return self.wait(lambda: unsent(sock) == 0)


def _ioctl_int(sock, request):
    value = ctypes.c_int(0)
    if libc.ioctl(sock.fileno(), ctypes.c_ulong(request), ctypes.byref(value)):
        raise OSError(ctypes.get_errno(), "ioctl")
    return value.value


def queued(sock):
    return _ioctl_int(sock, 0x541B)  # SIOCINQ


def unsent(sock):
    return _ioctl_int(sock, 0x5411)  # SIOCOUTQ


def at_mark(sock):
    return _ioctl_int(sock, 0x8905)  # SIOCATMARK


def reset(sock):
    """Closes with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def connecting_to(host, port):
    """
    How many sockets of this network namespace are in SYN_SENT to an address. Asked for with
    inet_diag: reading /proc/net/tcp takes the kernel several times as long.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    wanted = struct.pack(">H", port), socket.inet_pton(family, host).ljust(16, b"\0")
    count = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.send(struct.pack("=IHHII", 72, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 0, 0)
                     + struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, 1 << 2))
        while True:
            data = netlink.recv(1 << 17)
            while data:
                size, kind = struct.unpack_from("=IH", data)
                if kind != SOCK_DIAG_BY_FAMILY:  # the dump is over
                    return count
                count += (data[22:24], data[40:56]) == wanted  # of struct inet_diag_msg
                data = data[(size + 3) & ~3:]
