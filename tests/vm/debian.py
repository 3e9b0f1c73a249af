# SPDX-License-Identifier: BSD-2-Clause
"""
A Debian 12 root file system with systemd, made from its packages once, and the archive that a kernel
unpacks into memory: that root, and what `make install` puts into it.
"""

import pathlib
import re
import shutil
import stat
import subprocess
import tarfile
import zlib

import image
from kernels import MIRROR

RELEASE = "bookworm"
PACKAGES = ("systemd-sysv", "dbus", "libpam-systemd", "python3", "iproute2", "procps", "bpftool",
            # what our programs are linked with
            "libbpf1", "libelf1", "libinih1", "libjansson4", "libmnl0", "libsystemd0", "libcap2",
            "libseccomp2", "zlib1g")
# One who logs in.
HOOKS = ('chroot "$1" useradd --create-home --shell /bin/sh tester',)

# What comes along and is never read here: most of the size.
WITHOUT = re.compile(r"^(usr/share/(doc|man|info|locale|perl|i18n|zoneinfo)|var/(cache|lib/apt|lib/dpkg)"
                     r"|usr/lib/x86_64-linux-gnu/(perl|gconv)|dev|usr/bin/perl[0-9.]*$)/?.*")

# So that it is not the first boot of this machine, on which systemd enables what it finds.
MACHINE_ID = "74707374707374707374707374707374\n"
UNWANTED = ("serial-getty@ttyS0.service", "getty@tty1.service", "systemd-timesyncd.service",
            "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
            "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer")


def root(directory):
    """The archive of the bare system, made unless it is there already."""
    words = ["--variant=minbase", f"--include={','.join(PACKAGES)}",
             *(f"--customize-hook={hook}" for hook in HOOKS), RELEASE]
    made = directory / f"debian-{zlib.crc32(' '.join(words).encode()):08x}.tar"
    if not made.exists():
        print(f"making a root file system of Debian {RELEASE}", flush=True)
        unfinished = made.with_suffix(".new.tar")
        subprocess.run(["mmdebstrap", "--quiet", *words, unfinished, f"{MIRROR}/debian"], check=True)
        unfinished.rename(made)
    return made


def _append_tree(cpio, tree):
    """What was installed below a directory. Debian has /lib for a link to /usr/lib, and so on."""
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        top = name.partition("/")[0]
        if top in ("bin", "lib", "sbin"):
            name = f"usr/{name}"
        if path.is_symlink():
            cpio.link(name, str(path.readlink()))
        elif path.is_file():
            cpio.file(name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))


def _append_tar(cpio, tar):
    for member in tar:
        name = member.name.removeprefix("./")
        if name in ("", ".") or WITHOUT.match(name):
            continue
        owner = (member.uid, member.gid)
        if member.isdir():
            cpio.directory(name, member.mode, owner)
        elif member.issym():
            cpio.link(name, member.linkname)
        elif member.isreg() or member.islnk():
            cpio.file(name, tar.extractfile(member).read(), member.mode, int(member.mtime), owner)


def _stage(path, source, output, units):
    """Installs, and enables, as an administrator does."""
    subprocess.run(["make", "-C", source, "--no-print-directory", f"O={output}", f"DESTDIR={path}",
                    "install"], stdout=subprocess.DEVNULL, check=True)
    there = path / "etc/systemd/system"
    there.mkdir(parents=True)
    for unit in units:
        shutil.copy(unit, there)
    (path / "etc/machine-id").write_text(MACHINE_ID)
    (path / "etc/hostname").write_text("boottest\n")
    systemctl = ["systemctl", "--quiet", f"--root={path}"]
    subprocess.run([*systemctl, "enable", "tproxy-load", "tproxyd",
                    *(unit.name for unit in units)], check=True)
    subprocess.run([*systemctl, "mask", *UNWANTED], check=True)


def write(out, directory, source, output, scratch):
    """Writes the archive of the machine, with the tests of the source tree in image.GUEST_ROOT."""
    stage, cpio = pathlib.Path(scratch, "stage"), image.Cpio(out)
    _stage(stage, source, output, sorted((source / "tests/vm/units").iterdir()))
    _append_tree(cpio, stage)
    with tarfile.open(root(directory)) as tar:
        _append_tar(cpio, tar)
    cpio.tree(source / "tests", f"{image.GUEST_ROOT}/tests")
    cpio.end()
