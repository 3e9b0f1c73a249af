# SPDX-License-Identifier: BSD-2-Clause
"""Congestion control of the legs of a session, where the namespace's default is one that paces."""

import contextlib
import ctypes
import pathlib
import re
import socket
import subprocess

from harness import (Sandbox, Server, Skip, case, case_for, echo, in_netns, main, new_netns, run,
                     tmpdir, wait_for)
from harness.steps import Traced

SYSCTL = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control")
DEFAULT = "bbr"


@contextlib.contextmanager
def paced():
    """The namespace's default is bbr, for sockets made in the block."""
    before = SYSCTL.read_text()
    try:
        SYSCTL.write_text(DEFAULT)
    except OSError as error:
        raise Skip(f"this kernel has no {DEFAULT}: {error}") from None
    try:
        yield
    finally:
        SYSCTL.write_text(before)


def chosen(made):
    """What getsockopt says."""
    return made.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def legs():
    """(local, remote) -> congestion control of each connection of the namespace."""
    lines = run(["ss", "-Htin", "state", "established"]).stdout.splitlines()
    found = {}
    for ends, info in zip(lines[::2], lines[1::2]):
        match = re.search(r"\b(bbr|reno|cubic)\b", info)
        found[tuple(ends.split()[2:4])] = match[1] if match else info
    return found


def leg(local="", remote=""):
    """The one connection whose ends begin with these words."""
    found = {value for (here, there), value in legs().items()
             if here.startswith(local) and there.startswith(remote)}
    assert len(found) == 1, (local, remote, legs())
    return found.pop()


def exchange(client):
    client.sendall(b"ping")
    assert client.recv(4) == b"ping"


@case_for({"a client that leaves it at the default": (None, "reno", "reno"),
           "a client that chose another": ("cubic", "cubic", "cubic")})
def on_this_host(choice, client_leg, upstream_leg):
    with paced(), Sandbox() as box, Server("10.77.0.2", echo) as server, box.socket() as client:
        if choice:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, choice.encode())
        before = chosen(client)
        assert before == (choice or DEFAULT)
        client.connect(server.address)
        assert chosen(client) == before
        exchange(client)
        wait_for(lambda: server.peers, "the server's side")
        assert leg("127.0.0.1:", "127.0.0.1:18") == client_leg
        assert leg("127.0.0.1:18") == "reno"
        assert leg(remote=f"10.77.0.2:{server.port}") == upstream_leg


@case
def it_is_there_before_the_connection():
    """What has begun to pace goes on to, with whatever it is replaced by."""
    with paced(), Sandbox() as box, Server("10.77.0.2", echo) as server, tmpdir() as directory:
        with box.connect(server.address) as client:  # shows that it is this host
            exchange(client)
        with (Traced(box.proxy.worker, "-o", directory / "strace", "-e", "connect,setsockopt"),
              box.connect(server.address) as client):
            exchange(client)
        calls = (directory / "strace").read_text()
        assert 0 <= calls.find("TCP_CONGESTION") < calls.find("connect("), calls


@contextlib.contextmanager
def another_host():
    """A network namespace with the address 10.77.9.2, which there is a way to from this one."""
    with new_netns() as other:
        with in_netns(other):
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # names the namespace to ip
        with child:
            run(["ip", "link", "add", "tp0", "type", "veth", "peer", "name", "tp1", "netns",
                 child.pid])
            child.stdin.close()
        run(["ip", "address", "add", "10.77.9.1/24", "dev", "tp0"])
        run(["ip", "link", "set", "tp0", "up"])
        with in_netns(other):
            run(["ip", "address", "add", "10.77.9.2/24", "dev", "tp1"])
            run(["ip", "link", "set", "tp1", "up"])
        try:
            yield other
        finally:
            run(["ip", "link", "del", "tp0"])  # the namespace takes its time to go


@case
def a_leg_that_leaves_the_host_is_left_to_it():
    with paced(), another_host() as other:
        with in_netns(other):
            server = Server("10.77.9.2", echo)
        with server, Sandbox() as box, box.connect(server.address) as client:
            exchange(client)
            exchange(client)
            assert leg(remote=f"10.77.9.2:{server.port}") == DEFAULT
            assert leg("127.0.0.1:", "127.0.0.1:18") == "reno"


@case
def an_address_may_move_to_another_host_and_back():
    def upstream(server):
        with server, box.connect(server.address) as client:
            exchange(client)
            return leg(remote=f"10.77.9.2:{server.port}")

    with paced(), another_host() as other, Sandbox() as box:
        for _ in range(2):
            run(["ip", "address", "add", "10.77.9.2/32", "dev", "lo"])
            for _ in range(2):
                assert upstream(Server("10.77.9.2", echo)) == "reno"
            run(["ip", "address", "del", "10.77.9.2/32", "dev", "lo"])
            for _ in range(2):
                with in_netns(other):
                    server = Server("10.77.9.2", echo)
                assert upstream(server) == DEFAULT


def disconnect(client):
    """connect(AF_UNSPEC), which Python has no address for."""
    assert not ctypes.CDLL(None).connect(client.fileno(), bytes(16), 16)


@case
def a_socket_that_connects_again_has_its_own():
    with paced(), Sandbox() as box, Server("10.77.0.2", echo) as server, box.socket() as client:
        client.connect(server.address)
        assert leg("127.0.0.1:", "127.0.0.1:18") == "reno"
        disconnect(client)
        assert chosen(client) == DEFAULT
        box.proxy.stop()
        client.connect(server.address)  # direct
        assert leg(remote=f"10.77.0.2:{server.port}") == DEFAULT


main()
