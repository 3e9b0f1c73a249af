# SPDX-License-Identifier: BSD-2-Clause
"""
Debian's cloud kernels: found with apt, downloaded, unpacked, never installed.

apt works on a configuration, lists and a cache of its own below the given directory, so that the
system's are neither read nor changed; only a proxy that is set for the system's apt is used here too.
A kernel that has been unpacked is used from then on without asking apt.
"""

import re
import shutil
import struct
import subprocess

MIRROR = "http://deb.debian.org"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BULLSEYE = (("debian", "bullseye"), ("debian-security", "bullseye-security"))
BOOKWORM = (("debian", "bookworm"), ("debian-security", "bookworm-security"))
TRIXIE = (("debian", "trixie"), ("debian-security", "trixie-security"))
BACKPORTS = (("debian", "trixie-backports"),)

# Where the kernels of a series are.
SERIES = {"5.10": BULLSEYE, "6.1": BOOKWORM, "6.12": TRIXIE, "6.18": BACKPORTS,
          "newest": TRIXIE + BACKPORTS}

# Between versions the files have moved from one package to several.
PARTS = ("image", "base", "binary", "modules")
NAME = re.compile(r"linux-image-(?P<release>(?P<version>\d+\.\d+\.\d+)\S*-cloud-amd64)")

# Subsystems of which a test may want a module; the rest of the hundreds is left out.
MODULES = ("kernel/net", "kernel/lib", "kernel/crypto", "kernel/drivers/net/dummy",
           "kernel/drivers/net/tun", "kernel/drivers/net/veth")

# The compressed kernel in a bzImage (Documentation/arch/x86/boot.rst) and what opens it. Started
# from the ELF file, a kernel is spared unpacking itself, which takes seconds under emulation.
SETUP_SECTORS, PAYLOAD_OFFSET = 0x1f1, 0x248
UNPACKERS = {
    b"\x02\x21\x4c\x18": ["lz4", "-dc"], b"\x28\xb5\x2f\xfd": ["zstd", "-dcq"],
    b"\xfd7zX": ["xz", "-dcq"], b"\x1f\x8b": ["gzip", "-dcq"],
}


class Kernel:
    """An unpacked kernel: .release as uname -r has it, .image to boot, .modules for its initramfs."""

    def __init__(self, directory):
        self.directory = directory
        self.image = directory / "vmlinux"
        self.modules = directory / "modules"

    @property
    def release(self):
        return (self.directory / "release").read_text().strip()

    @property
    def complete(self):
        return (self.directory / "release").exists()


class Archive:
    """apt, with everything it reads and writes below one directory."""

    def __init__(self, directory, sources):
        self.directory = directory.resolve()
        for name in ("parts", "preferences", "state/lists/partial", "cache/archives/partial"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        (self.directory / "sources.list").write_text("".join(
            f"deb [signed-by={KEYRING} arch=amd64] {MIRROR}/{archive} {suite} main\n"
            for archive, suite in sources))
        (self.directory / "apt.conf").write_text(self._settings() + self._proxies())

    def _settings(self):
        return f"""
Dir "{self.directory}";
Dir::Etc "{self.directory}";
Dir::Etc::parts "parts";
Dir::Etc::preferencesparts "preferences";
Dir::Etc::sourcelist "sources.list";
Dir::Etc::sourceparts "-";
Dir::State "{self.directory}/state";
Dir::State::status "{self.directory}/status";
Dir::Cache "{self.directory}/cache";
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::Languages "none";
"""

    @staticmethod
    def _proxies():
        settings = subprocess.run(["apt-config", "dump"], text=True, capture_output=True, check=True)
        return "".join(f"{line}\n" for line in settings.stdout.splitlines()
                       if re.match(r"Acquire::\w+::Proxy", line))

    def run(self, *command, **options):
        return subprocess.run(["env", f"APT_CONFIG={self.directory / 'apt.conf'}", *command],
                              text=True, stdout=subprocess.PIPE, check=True, **options).stdout

    def update(self):
        self.run("apt-get", "update", "-qq")

    def packages(self):
        """Names of all packages of the kinds in PARTS."""
        names = self.run("apt-cache", "pkgnames", "linux-").split()
        return {name for name in names
                if name.startswith(tuple(f"linux-{part}-" for part in PARTS))}

    def download(self, packages, directory):
        directory.mkdir(parents=True, exist_ok=True)
        self.run("apt-get", "download", "-qq", *packages, cwd=directory)
        return sorted(directory.glob("*.deb"))


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def _newest(packages, series):
    """The release of the newest kernel of a series, or of all."""
    releases = [match["release"] for match in map(NAME.fullmatch, packages)
                if match and (series == "newest" or match["version"].startswith(f"{series}."))]
    if not releases:
        raise SystemExit(f"tests/vm/run: the Debian archive has no cloud kernel {series}")
    return max(releases, key=_numbers)


def _unpack_image(bzimage, to):
    """Writes the ELF kernel that is inside of a bzImage."""
    data = bzimage.read_bytes()
    offset, length = struct.unpack_from("<II", data, PAYLOAD_OFFSET)
    start = ((data[SETUP_SECTORS] or 4) + 1) * 512 + offset
    # The unpacked size follows, which is no part of the stream. Some complain; the result counts.
    payload = data[start:start + length]
    command = next((words for magic, words in UNPACKERS.items() if payload.startswith(magic)), None)
    if not command:
        raise SystemExit(f"tests/vm/run: {bzimage}: unknown compression {payload[:4].hex()}")
    with open(to, "wb") as out:
        subprocess.run(command, input=payload, stdout=out, stderr=subprocess.DEVNULL, check=False)
    if to.read_bytes()[:4] != b"\x7fELF":
        raise SystemExit(f"tests/vm/run: {' '.join(command)} does not unpack {bzimage}")


def _unpack(packages, release, kernel):
    """Fills kernel.directory from downloaded packages; `release` is written last and completes it."""
    root = kernel.directory / "root"
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    bzimage = next(path for path in root.rglob("vmlinuz*") if not path.is_symlink())
    _unpack_image(bzimage, kernel.image)
    tree = next(path for path in root.rglob(f"modules/{release}") if path.is_dir())
    to = kernel.modules / "lib/modules" / release
    for path in MODULES:
        for found in tree.glob(f"{path}*"):
            target = to / found.relative_to(tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if found.is_dir() else shutil.copy)(found, target)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (tree / name).exists():
            shutil.copy(tree / name, to / name)
    subprocess.run(["depmod", "-b", kernel.modules, release], check=True)
    shutil.rmtree(root)
    (kernel.directory / "release").write_text(f"{release}\n")


def fetch(directory, wanted, update=False):
    """
    Makes the kernels of the wanted series ready below `directory` and returns series -> Kernel.
    With update=True looks for newer ones first.
    """
    kernels = {series: Kernel(directory / series) for series in wanted}
    missing = [series for series in wanted if update or not kernels[series].complete]
    if not missing:
        return kernels
    archive = Archive(directory / "apt", sorted({source for name in missing for source in SERIES[name]}))
    archive.update()
    packages = archive.packages()
    for series in missing:
        kernel, release = kernels[series], _newest(packages, series)
        if kernel.complete and kernel.release == release:
            continue
        print(f"downloading kernel {release}", flush=True)
        shutil.rmtree(kernel.directory, ignore_errors=True)
        names = [f"linux-{part}-{release}" for part in PARTS]
        debs = archive.download([name for name in names if name in packages],
                                kernel.directory / "deb")
        _unpack(debs, release, kernel)
        shutil.rmtree(kernel.directory / "deb")
    shutil.rmtree(archive.directory)
    return kernels
