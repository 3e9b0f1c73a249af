# SPDX-License-Identifier: BSD-2-Clause
"""The tree itself: documentation against programs, units, installation, README, house rules."""

import os
import pathlib
import re
import shlex

from harness import LOAD, O, ROOT, TPROXY, TPROXYD, Failed, case, case_for, main, run, tmpdir

COMMANDS = ("status", "conns", "run", "doctor")
PROGRAMS = {"tproxy-load": [[LOAD]], "tproxyd": [[TPROXYD]],
            "tproxy": [[TPROXY, command] for command in COMMANDS]}
COMMAND_LINE_ONLY = {"part", "help", "version", "name", "config", "unload", "check", "quiet", "verbose", "takeover"}
LONG_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")


def help_options(program):
    """Long options that the program's --help lists."""
    found = set()
    for command in PROGRAMS[program]:
        for text in run([*command, "--help"]).stdout.splitlines():
            if text.startswith("  ") and (match := LONG_OPTION.search(text[:34])):
                found.add(match[1])
    return found


def page(name):
    """A manual page as text, without overstrikes."""
    text = run(["mandoc", "-Tascii", "-Owidth=200", ROOT / "docs" / name]).stdout
    return re.sub(".\b", "", text)


def page_options(name):
    """Long options that a page explains: what a tagged paragraph begins with."""
    tags = [text for text in page(name).splitlines() if re.match(r"\s+-", text)]
    return {option for text in tags for option in LONG_OPTION.findall(text)}


@case_for({name: (name,) for name in PROGRAMS})
def the_manual_and_help_name_the_same_options_of(program):
    in_help, in_page = help_options(program), page_options(f"{program}.8")
    assert in_help, "no option in --help"
    assert in_help == in_page, f"only in --help: {in_help - in_page}; only in the page: " \
                               f"{in_page - in_help}"


@case
def the_manual_and_help_name_the_same_commands():
    in_help = run([TPROXY, "--help"]).stdout
    text = page("tproxy.8")
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\b", in_help, re.M), (command, in_help)
        assert re.search(rf"\b{command}\b", text), command


@case_for({name: (name,) for name in PROGRAMS})
def version(program):
    wanted = re.search(r"^VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.M)[1]
    done = run([O / program, "--version"])
    assert done.stdout == f"{program} {wanted}\n", done.stdout


@case
def every_key_of_the_configuration_file_is_explained():
    text = page("tproxy.conf.5")
    for program in ("tproxy-load", "tproxyd"):
        for option in help_options(program) - COMMAND_LINE_ONLY:
            assert re.search(rf"^\s+{option}\b", text, re.M), f"{option} is not in tproxy.conf(5)"


@case
def the_shipped_configuration_is_understood_with_every_key_set():
    with tmpdir() as directory:
        text = (ROOT / "systemd/tproxy.conf").read_text()
        # "#key = value": what is there as a comment is a default to be uncommented.
        path = directory / "all.conf"
        path.write_text(re.sub(r"^[#;]\s?([a-z-]+ *=)", r"\1", text, flags=re.M))
        for program in (LOAD, TPROXYD):
            done = run([program, "--config", path, "--name", "not-there", "no-such-argument"],
                       check=False)
            assert done.returncode == 2 and "no-such-argument" in done.stderr, done.stderr


@case_for({path.name: (path,) for path in sorted((ROOT / "docs").glob("*.[58]"))})
def mandoc_finds_nothing_in(path):
    done = run(["mandoc", "-Tlint", "-Wwarning", path], check=False)
    assert not done.stdout + done.stderr, done.stdout + done.stderr


def make(*words):
    return run(["make", "-C", ROOT, "--no-print-directory", f"O={O}", *words])


def files_below(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@case
def install_and_uninstall():
    with tmpdir() as directory:
        make("install", f"DESTDIR={directory}", "PREFIX=/usr")
        files = files_below(directory)
        for wanted in ("usr/sbin/tproxy-load", "usr/sbin/tproxyd", "usr/sbin/tproxy",
                       "usr/share/man/man8/tproxy.8", "usr/share/man/man5/tproxy.conf.5",
                       "lib/systemd/system/tproxyd.service", "usr/lib/sysusers.d/tproxy.conf",
                       "lib/systemd/system/tproxyd@.service",
                       "etc/tproxy/tproxy.conf"):
            assert wanted in files, (wanted, files)
        units = (directory / "lib/systemd/system").glob("*.service")
        assert not [unit for unit in units if "@SBINDIR@" in unit.read_text()]
        (directory / "etc/tproxy/tproxy.conf").write_text("# mine\n")
        make("install", f"DESTDIR={directory}", "PREFIX=/usr")
        assert (directory / "etc/tproxy/tproxy.conf").read_text() == "# mine\n", "overwritten"
        make("uninstall", f"DESTDIR={directory}", "PREFIX=/usr")
        assert files_below(directory) == {"etc/tproxy/tproxy.conf"}, files_below(directory)


@case
def systemd_finds_nothing_in_the_units():
    """Installed for the verifier to see: in this test's own mount namespace."""
    with tmpdir() as directory:
        make("install", f"DESTDIR={directory}")
        for place in ("usr/local/sbin", "usr/local/share/man"):
            pathlib.Path("/", place).mkdir(parents=True, exist_ok=True)
            run(["mount", "-n", "--bind", directory / place, f"/{place}"])
        try:
            units = sorted((directory / "lib/systemd/system").glob("*.service"))
            assert len(units) >= 3, units
            done = run(["systemd-analyze", "verify", *units], check=False)
            assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
        finally:
            for place in ("usr/local/sbin", "usr/local/share/man"):
                run(["umount", "-n", f"/{place}"])


@case_for({"tproxyd": ("tproxyd", 2.0), "tproxy-load": ("tproxy-load", 4.0)})
def systemd_finds_the_exposure_small_of(unit, most):
    with tmpdir() as directory:
        make("install", f"DESTDIR={directory}")
        path = directory / f"lib/systemd/system/{unit}.service"
        text = run(["systemd-analyze", "security", "--offline=true", "--no-pager", path],
                   check=False).stdout
        found = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)[1])
        assert 0 < found <= most, text


@case
def the_user_of_the_unit_is_made_and_is_the_pins_group():
    with tmpdir() as directory:
        make("install", f"DESTDIR={directory}")
        units = directory / "lib/systemd/system"
        user = re.search(r"^User=(.*)$", (units / "tproxyd.service").read_text(), re.M)[1]
        for command in ("ExecStart", "ExecReload"):
            assert re.search(rf"^{command}=.* --group {user}$",
                             (units / "tproxy-load.service").read_text(), re.M), command
        run(["systemd-sysusers", f"--root={directory}", directory / "usr/lib/sysusers.d/tproxy.conf"])
        assert f"{user}:" in (directory / "etc/passwd").read_text()
        assert f"{user}:" in (directory / "etc/group").read_text()


# --- README ---------------------------------------------------------------------------------------

@case
def the_readme_has_its_two_commands():
    text = (ROOT / "README.md").read_text()
    for command in ("sudo make run", "sudo make check"):
        assert command in text, command
    for target in ("run", "check"):
        make("-n", target)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), f"README links to {link}, which does not exist"


@case
def the_demo_shows_a_session():
    done = run([ROOT / "tests/demo"], env=dict(os.environ, O=str(O)))
    assert "hello from the origin" in done.stdout, done.stdout
    assert 'comm="curl"' in done.stderr + done.stdout and "serving" in done.stdout, done


@case
def the_demo_runs_any_command():
    """Through make, as README says, so that its quoting is part of the test."""
    command = "echo it's \"$HOME\" `tty` $(id)"
    shown = make("-n", "run", f"CMD={command}").stdout.splitlines()[-1]
    assert shlex.split(shown)[-2:] == ["tests/demo", command], shown
    done = run([ROOT / "tests/demo", "echo \"it's $0\"; exit 3"], check=False,
               env=dict(os.environ, O=str(O)))
    assert done.returncode == 3 and "it's sh" in done.stdout, done


# --- house rules ----------------------------------------------------------------------------------

SOURCE = {".c", ".h", ".py", ".sh"}


def sources():
    """Every file of code that is ours, however it is called."""
    skipped = {".git", "build"}
    for directory, directories, files in os.walk(ROOT):
        directories[:] = [name for name in directories if name not in skipped]
        for name in files:
            path = pathlib.Path(directory, name)
            if path.suffix in SOURCE or name in ("Makefile", "boot", "demo", "init", "run"):
                yield path


@case
def every_file_says_its_licence_first():
    for path in sources():
        lines = path.read_text().splitlines()
        first = lines[1] if lines[0].startswith("#!") else lines[0]
        assert "SPDX-License-Identifier: " in first, path
        dual = "GPL-2.0-only OR BSD-2-Clause" in first
        assert dual == (path.parent == ROOT / "bpf"), f"{path}: {first}"


@case
def no_file_is_too_long():
    for path in sources():
        assert len(path.read_text().splitlines()) <= 600, path


@case
def bpffs_paths_are_in_one_header():
    for path in sources():
        if path.suffix in (".c", ".h") and path != ROOT / "bpf/pins.h":
            code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)
            allowed = path.parent == ROOT / "tests/unit"
            assert "/sys/fs/bpf" not in code or allowed, path


@case
def nothing_is_left_to_be_done():
    marks = re.compile(r"\b(TO" "DO|FIX" "ME|X" r"XX)\b")
    for path in sources():
        found = marks.search(path.read_text())
        if found:
            raise Failed(f"{path} says {found[0]}")


@case
def clang_format_agrees():
    code = [path for path in sources() if path.suffix in (".c", ".h")]
    done = run(["clang-format", "--dry-run", "--Werror", *code], check=False)
    bad = sorted(set(re.findall(r"^(\S+?):\d+:\d+: ", done.stderr, re.M)))
    assert not bad, f"{len(bad)} files are not formatted; run: make format: {' '.join(bad)}"


main()
