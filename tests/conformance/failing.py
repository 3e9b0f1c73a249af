# SPDX-License-Identifier: BSD-2-Clause
"""connect() that fails: every errno, and those that come at once."""

import os
import select
import socket
import struct
import threading

from harness import run

from . import reflector
from .registry import scenario, scenario_for
from .stage import connecting_to, name_of, raw_connect, sockaddr
from .worlds import REJECT_TCP, REJECTS4, REJECTS6

ROUTES = {"no route": ("10.99.0.1", "fd99::1"), "blackhole": ("10.80.1.1", "fd80:1::1"),
          "unreachable": ("10.80.2.1", "fd80:2::1"), "prohibit": ("10.80.3.1", "fd80:3::1"),
          "throw": ("10.80.4.1", "fd80:4::1")}


@scenario_for(ROUTES)
def a_route_that_is_an_error(stage, v4, v6):
    client = stage.socket()
    stage.timed_connect(client, (stage.pick(v4, v6), 80))
    stage.poll("after", client)
    stage.state("after", client)
    stage.peername("after", client)
    stage.connect(client, stage.address(stage.listener()), "then a good one")


@scenario()
def a_better_route_within_a_bad_one(stage):
    """No error is to be foretold for what has a route of its own."""
    client = stage.socket()
    stage.timed_connect(client, (stage.pick("10.80.2.200", "fd80:2::1:0:0:1"), reflector.REFUSE))


@scenario(modes=("blocking",))
def a_route_that_changes(stage):
    """What tproxyd knows of routes must follow, either way."""
    number = {"v4": 1, "v6": 2, "mapped": 3}[stage.kind]
    prefix = f"fd85:{number}::/64" if stage.kind == "v6" else f"10.85.{number}.0/24"
    address = stage.pick(f"10.85.{number}.1", f"fd85:{number}::1"), reflector.REFUSE

    def meets(wanted):
        stage.until(wanted, lambda: name_of(stage.socket().connect_ex(address)) == wanted)

    for kind, wanted in (("blackhole", "EINVAL"), ("prohibit", "EACCES"),
                         ("unreachable", "EHOSTUNREACH")):
        run(["ip", "route", "add", kind, prefix])
        meets(wanted)
        run(["ip", "route", "del", kind, prefix])
        meets("ENETUNREACH")
    run(["ip", "route", "add", prefix, "dev", reflector.DEVICE])
    meets("ECONNREFUSED")
    run(["ip", "route", "del", prefix, "dev", reflector.DEVICE])
    meets("ENETUNREACH")


@scenario_for({f"code {code}": (code,) for code in range(16)}, families=("v4", "mapped"))
def a_far_icmp_unreachable(stage, code):
    far_error(stage, reflector.UNREACHABLE + code)


@scenario_for({f"code {code}": (code,) for code in range(8)}, families=("v6",))
def a_far_icmpv6_unreachable(stage, code):
    far_error(stage, reflector.UNREACHABLE + code)


@scenario_for({str(port): (port,) for port in reflector.OTHER_ICMP}, modes=("blocking",))
def another_far_icmp_error(stage, port):
    far_error(stage, port)


@scenario()
def a_far_reset(stage):
    far_error(stage, reflector.REFUSE)


@scenario(modes=("non-blocking",))
def a_far_reset_of_the_second_SYN(stage):
    far_error(stage, reflector.ONLY_SECOND_SYN)


def far_error(stage, port):
    """Some of these are no errors to TCP, and nothing more comes; two SYNs then suffice."""
    client = stage.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    stage.timed_connect(client, (reflector.host(stage), port))
    stage.poll("after", client)
    stage.state("after", client)
    stage.peername("after", client)
    stage.so_error("after", client)
    stage.connect(client, stage.address(stage.listener()), "then a good one")


@scenario_for({"unreachable": (reflector.UNREACHABLE + 1,), "prohibited":
               (reflector.UNREACHABLE + 13,), "reset": (reflector.REFUSE,)}, families=("v4",))
def a_far_error_with_IP_RECVERR(stage, port):
    client = stage.socket()
    client.setsockopt(socket.IPPROTO_IP, 11, 1)
    stage.timed_connect(client, (reflector.host(stage), port))
    stage.state("after", client)


@scenario_for({name: (port,) for port, name in REJECTS4.items()}, families=("v4", "mapped"),
              modes=("blocking",))
def rejected_with_icmp(stage, port):
    rejected_at_home(stage, port)


@scenario_for({name: (port,) for port, name in REJECTS6.items()}, families=("v6",),
              modes=("blocking",))
def rejected_with_icmpv6(stage, port):
    rejected_at_home(stage, port)


def rejected_at_home(stage, port):
    """
    By a firewall of this host. Only the errno is compared: the direct connection meets the ICMP
    error while connect() has the socket locked, and so tells it a second later, at the next SYN;
    the proxied one tells it at once. Where an error comes from afar there is no difference.
    """
    stage.note("connect", name_of(stage.socket().connect_ex((stage.dialled(stage.host(8)), port))))


@scenario()
def rejected_with_a_reset(stage):
    client = stage.socket()
    stage.timed_connect(client, (stage.dialled(stage.host(8)), REJECT_TCP))
    stage.poll("after", client)
    stage.state("after", client)


@scenario(modes=("non-blocking",))
def a_far_server_that_takes_its_time(stage):
    client, address = stage.socket(), (reflector.host(stage), reflector.ACCEPT_LATE)
    stage.note("first", name_of(client.connect_ex(address)))
    stage.note("second", name_of(client.connect_ex(address)))
    stage.poll("waiting", client)
    stage.state("waiting", client)
    stage.peername("waiting", client)
    stage.poll("then", client, select.POLLOUT)
    stage.peername("then", client, address)
    stage.note("source", client.getsockname()[0])
    stage.note("third", name_of(client.connect_ex(address)))
    stage.note("fourth", name_of(client.connect_ex(address)))
    stage.attempt("shutdown", client.shutdown, socket.SHUT_WR)
    stage.receive("client", client)  # the reflector answers a FIN with a reset


@scenario(modes=("non-blocking",))
def closed_before_a_far_server_answers(stage):
    client, address = stage.socket(), (reflector.host(stage), reflector.ACCEPT_LATE)
    stage.note("connect", name_of(client.connect_ex(address)))
    client.close()
    stage.until("no upstream", lambda: not connecting_to(address[0], address[1]))


@scenario()
def a_neighbour_that_is_not_there(stage):
    client = stage.socket()
    stage.timed_connect(client, (stage.pick("10.79.0.99", "fd79::99"), 80), limit=5)
    stage.state("after", client)


@scenario()
def a_far_server_refuses(stage):
    """Without anything on loopback."""
    client = stage.socket()
    stage.timed_connect(client, (stage.pick("10.79.0.2", "fd79::2"), 9))


ODD = {"0.0.0.0": ("0.0.0.0", "::"), "broadcast": ("255.255.255.255", "ff02::1"),
       "subnet broadcast": ("10.79.0.255", "ff05::2"), "multicast": ("224.0.0.1", "ff0e::1"),
       "class E": ("240.0.0.1", "2001:db8::1"), "zero network": ("0.0.0.5", "::5"),
       "loopback": ("127.0.0.1", "::1"), "other loopback": ("127.9.9.9", "::1"),
       "documentation": ("192.0.2.1", "100::1"), "site local": ("169.254.1.1", "fec0::1")}


@scenario_for(ODD)
def an_odd_destination(stage, v4, v6):
    client = stage.socket()
    port = stage.closed_port()[1]
    stage.timed_connect(client, (stage.pick(v4, v6), port))
    stage.state("after", client)


@scenario()
def the_unspecified_address_reaches_a_local_server(stage):
    listener = stage.keep(socket.socket(stage.served))
    listener.bind((stage.host() if stage.kind == "v6" else "0.0.0.0", 0)
                  if stage.kind != "v6" else ("::", 0))
    listener.listen(5)
    client = stage.socket()
    address = stage.pick("0.0.0.0", "::"), listener.getsockname()[1]
    stage.connect(client, address)
    server = stage.accept(listener)
    stage.names("client", client, server)


@scenario()
def port_zero(stage):
    client = stage.socket()
    stage.timed_connect(client, (stage.dialled(stage.host()), 0))


@scenario(families=("v6",))
def link_local_without_a_scope(stage):
    client = stage.socket()
    stage.note("connect", name_of(raw_connect(client, sockaddr(socket.AF_INET6, "fe80::1", 80))))
    stage.note("wrong scope", name_of(raw_connect(client, sockaddr(socket.AF_INET6, "fe80::1", 80,
                                                                   9999))))


@scenario(families=("v6",))
def link_local_with_a_scope(stage):
    scope = socket.if_nametoindex("lo")
    listener = stage.listener()
    address = stage.host(1), listener.getsockname()[1]
    client = stage.socket()
    stage.note("global with a scope", name_of(client.connect_ex((*address, 0, scope))))
    stage.note("finished", name_of(stage.finish(client)))


@scenario(modes=("blocking",))
def addresses_of_bad_length_or_family(stage):
    good = sockaddr(stage.family, stage.dialled(stage.host()), stage.listener().getsockname()[1])
    cases = {"empty": (good, 0), "one byte": (good, 1), "family only": (good, 2),
             "short": (good[:15], 15), "8 bytes": (good[:8], 8), "v4 size": (good[:16], 16),
             "without scope": (good[:24], 24), "negative": (good, -1), "huge": (good, 129),
             "enormous": (good + bytes(200), 200), "longer": (good + bytes(100), 128),
             "AF_UNIX": (struct.pack("=H", socket.AF_UNIX) + good[2:], None),
             "family 0": (struct.pack("=H", 0) + good[2:], None),
             "family 250": (struct.pack("=H", 250) + good[2:], None),
             "the other family": (sockaddr(socket.AF_INET, "10.77.0.1", 80)
                                  if stage.family == socket.AF_INET6
                                  else sockaddr(socket.AF_INET6, "fd77::1", 80), None)}
    for what, (data, length) in cases.items():
        stage.note(what, name_of(raw_connect(stage.socket(), data, length)))


@scenario(families=("mapped",), modes=("blocking",))
def a_mapped_address_on_a_socket_that_is_v6_only(stage):
    client = stage.socket()
    client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    stage.timed_connect(client, stage.address(stage.listener()))


@scenario(families=("mapped",))
def both_families_from_one_socket(stage):
    """A socket that fails with IPv6 and is then used with IPv4, as happy-eyeballs programs do."""
    client, refusing = stage.socket(), stage.keep(socket.socket(socket.AF_INET6))
    refusing.bind(("fd77::2", 0))
    stage.connect(client, refusing.getsockname()[:2], "IPv6")
    listener = stage.listener()
    if stage.connect(client, stage.address(listener), "IPv4"):  # not blocking: ECONNABORTED once
        stage.connect(client, stage.address(listener), "IPv4 again")
    stage.names("client", client, stage.accept(listener))


@scenario()
def a_source_that_has_no_route(stage):
    client = stage.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
    client.bind((stage.pick("127.0.0.1", "::1"), 0))
    stage.timed_connect(client, (stage.pick("10.79.0.2", "fd79::2"), 9))


@scenario(modes=("blocking",))
def a_broadcast_socket(stage):
    client = stage.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    stage.timed_connect(client, (stage.pick("255.255.255.255", "ff02::1"), 80))


@scenario(modes=("non-blocking",))
def refused_in_a_row_by_many_sockets(stage):
    """None may be taken for another's answer."""
    listener, bad = stage.listener(backlog=64), stage.closed_port()
    good = stage.address(listener)
    clients = [(number % 3 == 0, stage.socket()) for number in range(48)]
    for works, client in clients:
        client.connect_ex(good if works else bad)
    found = {}
    for works, client in clients:
        found.setdefault(works, set()).add(name_of(stage.finish(client)))
    stage.note("good", sorted(found[True]))
    stage.note("bad", sorted(found[False]))


@scenario(modes=("blocking",))
def refused_from_threads(stage):
    results, bad = set(), stage.closed_port()

    def worker():
        for _ in range(10):
            sock = stage.socket()
            results.add(name_of(sock.connect_ex(bad)))
            sock.close()

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stage.note("results", sorted(results))


@scenario(families=("v4", "v6"), modes=("blocking",))
def no_descriptor_is_lost_by_failures(stage):
    before = len(os.listdir("/proc/self/fd"))
    bad = stage.closed_port()
    for _ in range(50):
        with socket.socket(stage.family) as sock:
            sock.connect_ex(bad)
    stage.note("descriptors", len(os.listdir("/proc/self/fd")) - before)
