# SPDX-License-Identifier: BSD-2-Clause
"""The machine: what it is, and where its CPU time goes."""

import ctypes
import os
import pathlib
import platform
import re
import subprocess

from harness import system

TICK = 1 / os.sysconf("SC_CLK_TCK")
STAT_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
KERNEL_THREADS = re.compile(r"kworker|ksoftirqd")
BPF_STATS_RUN_TIME = 0

# Of the host: in the bench's own PID namespace the kernel's threads cannot be seen.
_host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)


def _read_host(path):
    with open(path, encoding="ascii", errors="replace",
              opener=lambda name, flags: os.open(name, flags, dir_fd=_host_proc)) as file:
        return file.read()


def _find_kernel_threads():
    found = []
    for entry in os.listdir(_host_proc):
        try:
            if entry.isdigit() and KERNEL_THREADS.match(_read_host(f"{entry}/comm")):
                found.append(entry)
        except OSError:
            continue  # it ended meanwhile
    return found


def _kernel_thread_seconds():
    total = 0
    for pid in _find_kernel_threads():
        try:
            fields = _read_host(f"{pid}/stat").rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total * TICK


def machine_times():
    """Seconds since boot by kind, of all CPUs."""
    fields = _read_host("stat").split("\n", 1)[0].split()[1:]
    times = {name: int(value) * TICK for name, value in zip(STAT_FIELDS, fields)}
    times["kthreads"] = _kernel_thread_seconds()
    return times


def cgroup_times(cgroup):
    """CPU seconds of everything that ran in a cgroup2."""
    lines = dict(line.split() for line in (cgroup / "cpu.stat").read_text().splitlines())
    return {"user": int(lines["user_usec"]) / 1e6, "system": int(lines["system_usec"]) / 1e6}


def _difference(before, after):
    return {name: round(after[name] - before[name], 6) for name in before}


class Meter:
    """CPU time spent in a block: .machine by kind, .proxy in a cgroup."""

    def __init__(self, cgroup):
        self.cgroup = cgroup

    def __enter__(self):
        self._machine = machine_times()
        self._proxy = cgroup_times(self.cgroup)
        return self

    def __exit__(self, *_):
        self.proxy = _difference(self._proxy, cgroup_times(self.cgroup))
        self.machine = _difference(self._machine, machine_times())


def steal_percent(before, after):
    spent = {name: after[name] - before[name] for name in STAT_FIELDS}
    return 100 * spent["steal"] / max(sum(spent.values()), TICK)


def resident_bytes(cgroup):
    """RSS of all processes in a cgroup."""
    total = 0
    for pid in (cgroup / "cgroup.procs").read_text().split():
        match = re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
        total += int(match[1]) * 1024 if match else 0
    return total


class HookStatistics:
    """
    In the block the kernel times the BPF programs; .programs() is what those of a set of pins took.
    A descriptor keeps the statistics on, so that they are off again however the bench ends.
    """

    def __init__(self, pins):
        self.pins = pins

    def __enter__(self):
        self._fd = ctypes.CDLL("libbpf.so.1", use_errno=True).bpf_enable_stats(BPF_STATS_RUN_TIME)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "bpf_enable_stats")
        self._before = self._read()
        return self

    def __exit__(self, *_):
        os.close(self._fd)

    def _read(self):
        found = {}
        for pin in sorted(self.pins.glob("prog_*")):
            shown = system.bpftool("prog", "show", "pinned", pin)
            found[pin.name[len("prog_"):]] = (shown.get("run_time_ns", 0), shown.get("run_cnt", 0))
        return found

    def programs(self):
        """Name -> {ns, runs} since the block began."""
        return {name: {"ns": ns - self._before[name][0], "runs": runs - self._before[name][1]}
                for name, (ns, runs) in self._read().items()}


def _first(pattern, path):
    match = re.search(pattern, pathlib.Path(path).read_text(), re.M)
    return match[1].strip() if match else "unknown"


def _output(*command):
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    return done.stdout.strip()


def describe(packages):
    """What a reader needs to place the numbers."""
    versions = _output("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *packages)
    control = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    clock = pathlib.Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    return {
        "kernel": platform.release(),
        "cpu": _first(r"^model name\s*:(.*)$", "/proc/cpuinfo"),
        "cpus": os.cpu_count(),
        "memory_gb": round(int(_first(r"^MemTotal:\s+(\d+)", "/proc/meminfo")) / 1e6, 1),
        "virtualisation": _output("systemd-detect-virt", "--vm") or "none",
        "congestion_control": control,
        "clocksource": clock.read_text().strip(),
        "descriptor_limit": int(pathlib.Path("/proc/sys/fs/nr_open").read_text()),
        "packages": versions.splitlines(),
        "tproxyd": _output(system.TPROXYD, "--version"),
    }
