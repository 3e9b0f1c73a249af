# SPDX-License-Identifier: BSD-2-Clause
"""
The guest's file system: an uncompressed initramfs of the host's own tools with the libraries they
need, our programs and tests at the paths they have here, and the modules of one kernel.
"""

import glob
import os
import pathlib
import re
import stat
import subprocess

GUEST_ROOT = "tproxy"
PROGRAMS = ("tproxy-load", "tproxyd", "tproxy")
SOURCES = ("tests", "bpf", "docs", "systemd", "Makefile", "README.md")

BUSYBOX = "/bin/busybox"

# What the tests call; busybox stands in for the rest of coreutils. (Not for the shell: its own
# would take its applets for any command.) What is not installed here is not there either.
TOOLS = ("bash", "bpftool", "curl", "dash", "findmnt", "git", "ip", "iperf3", "kmod", "mount",
         "mountpoint", "nft", "nginx", "nsenter", "prlimit", "python3", "redsocks", "scp",
         "setpriv", "ss", "ssh", "ssh-keygen", "sshd", "strace", "timeout", "umount", "unshare")
TREES = ("/usr/lib/git-core", "/usr/share/git-core", "/usr/lib/openssh", "/usr/lib/nginx",
         "/etc/ssl/openssl.cnf", "/etc/protocols", "/etc/services")
DIRECTORIES = ("dev", "etc", "home", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin",
               "usr/sbin", "usr/lib64", "var/lib/nginx", "var/log/nginx")
LINKS = {
    "bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
    "usr/bin/sh": "dash", "usr/bin/git-upload-pack": "git", "usr/sbin/modprobe": "../bin/kmod",
    "etc/mtab": "../proc/self/mounts", "var/run": "../run", "init": f"{GUEST_ROOT}/tests/vm/init",
}
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/bin/false\n"
                  "www-data:x:33:33::/var/www:/bin/false\n"
                  "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

# Python's library, without what no test can want, which is most of its size.
PYTHON = f"/usr/lib/{os.path.basename(os.path.realpath('/usr/bin/python3'))}"
PYTHON_WITHOUT = re.compile(r"/(test|idlelib|lib2to3|pydoc_data|distutils|ensurepip|tkinter|turtledemo"
                            r"|config-3[^/]*)(/|$)|\.opt-\d\.pyc$")
NOT_SOURCE = re.compile(r"/(\.git|__pycache__)(/|$)")


class Cpio:
    """Writes a "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self, out):
        self.out, self.seen, self.inodes, self.count = out, set(), {}, 0

    def _entry(self, name, mode, data, modified=0, owner=(0, 0)):
        self.count += 1
        encoded = name.encode() + b"\0"
        fields = (self.count, mode, *owner, 1, modified, len(data), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        for part in (head, data):
            self.out.write(part + bytes(-len(part) % 4))

    def _parents(self, name):
        for parent in reversed(pathlib.PurePath(name).parents[:-1]):
            self.directory(str(parent))

    def directory(self, name, mode=0o755, owner=(0, 0)):
        if name not in self.seen:
            self.seen.add(name)
            self._parents(name)
            self._entry(name, stat.S_IFDIR | mode, b"", owner=owner)

    def link(self, name, target):
        if name not in self.seen:
            self.seen.add(name)
            self._parents(name)
            self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def file(self, name, data, mode=0o644, modified=0, owner=(0, 0)):
        if name not in self.seen:
            self.seen.add(name)
            self._parents(name)
            self._entry(name, stat.S_IFREG | mode, data, modified, owner)

    def copy(self, path, name=None):
        """A file of this machine, by default at the path it has here less symlinks of directories."""
        directory = os.path.realpath(os.path.dirname(path))
        name = name or os.path.join(directory, os.path.basename(path)).lstrip("/")
        if os.path.islink(path):
            self.link(name, os.readlink(path))
            self.copy(os.path.join(directory, os.readlink(path)))
            return
        found = os.stat(path)
        first = self.inodes.setdefault((found.st_dev, found.st_ino), name)
        if first != name:  # git has a hundred names for one file
            self.link(name, f"/{first}")
        elif name not in self.seen:
            # Python believes its compiled files only next to sources of the time that is noted in them.
            data = pathlib.Path(path).read_bytes()
            self.file(name, data, stat.S_IMODE(found.st_mode), int(found.st_mtime))

    def tree(self, root, name):
        """The files below a directory of this machine."""
        for path in _files(str(root), NOT_SOURCE):
            self.copy(path, f"{name}/{os.path.relpath(path, root)}")

    def end(self):
        self._entry("TRAILER!!!", 0, b"")
        self.out.write(bytes(-self.out.tell() % 512))


def _files(root, without):
    """Files at or below root, whose path does not match `without`."""
    if os.path.isfile(root):
        yield root
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            if not without.search(path) and os.path.isfile(path):
                yield path


def _tool(name):
    """Where a tool of the distribution is; one of the same name in /usr/local is not meant."""
    candidates = (f"{directory}/{name}" for directory in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"))
    return next((path for path in candidates if os.path.exists(path)), None)


def _libraries(paths):
    """Shared libraries of ELF files, and the loader."""
    elf = [path for path in map(os.path.realpath, paths)
           if pathlib.Path(path).read_bytes().startswith(b"\x7fELF")]
    said = subprocess.run(["ldd", *elf], text=True, capture_output=True, check=False).stdout
    return sorted(set(re.findall(r"^\t(?:\S+ => )?(/\S+) \(", said, re.MULTILINE)))


def _is_program(path):
    return path.is_file() and os.access(path, os.X_OK)


def write_userland(out, root, output):
    """The part that all kernels share: tools, and in GUEST_ROOT the build and the tests of a tree."""
    cpio = Cpio(out)
    for name in DIRECTORIES:
        cpio.directory(name, 0o1777 if name == "tmp" else 0o755)
    for name, target in LINKS.items():
        cpio.link(name, target)
    for name, text in ACCOUNTS.items():
        cpio.file(name, text.encode())
    tools = [path for path in map(_tool, TOOLS) if path]
    trees = [path for tree in TREES for path in _files(tree, NOT_SOURCE)]
    trees += _files(PYTHON, PYTHON_WITHOUT)
    trees += glob.glob("/lib/*/libgcc_s.so.1")  # glibc opens it when a thread is made to end
    ours = [output / name for name in PROGRAMS]
    ours += filter(_is_program, sorted((output / "tests").glob("*")))
    ours += [path for name in PROGRAMS for path in (output / "tests/variants").glob(f"*/{name}")]
    loadable = [path for path in trees if os.access(path, os.X_OK) or path.endswith(".so")]
    for path in [BUSYBOX, *tools, *trees, *_libraries([*tools, *ours, *loadable])]:
        cpio.copy(path)
    for path in ours:
        cpio.copy(path, f"{GUEST_ROOT}/build/{path.relative_to(output)}")
    for tree in SOURCES:
        for path in _files(str(root / tree), NOT_SOURCE):
            cpio.copy(path, f"{GUEST_ROOT}/{os.path.relpath(path, root)}")
    applets = subprocess.run([BUSYBOX, "--list"], text=True, capture_output=True, check=True).stdout
    have = {os.path.basename(path) for path in tools}
    for applet in set(applets.split()) - have:
        cpio.link(f"usr/bin/{applet}", "busybox")
    cpio.end()


def write_modules(out, kernel):
    """
    The part of one kernel. (The kernel unpacks one archive after the other.) Without the list of
    device nodes to make before their modules are loaded: the Debian system has no kmod to make them.
    """
    cpio = Cpio(out)
    for path in _files(str(kernel.modules), NOT_SOURCE):
        if os.path.basename(path) == "modules.devname":
            continue
        name = os.path.relpath(path, kernel.modules)
        cpio.file(f"usr/{name}", pathlib.Path(path).read_bytes())
    cpio.end()
