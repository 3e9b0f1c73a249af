# SPDX-License-Identifier: BSD-2-Clause
"""Real programs through the hooks and tproxyd."""

import contextlib
import filecmp
import functools
import http.server
import json
import os
import pathlib
import subprocess
import threading

from harness import Failed, Sandbox, case, case_for, main, run, tmpdir, wait_for
from harness.system import WITH_TEST

ORIGIN = "10.77.0.1"


@contextlib.contextmanager
def running(command, ready):
    """A server for the length of the block, outside of the cgroup unless `command` joins it."""
    process = subprocess.Popen([*WITH_TEST, *map(str, command)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)

    def is_ready():
        if process.poll() is not None:
            raise Failed(f"{command[0]} ended with {process.returncode}")
        return ready()
    try:
        wait_for(is_ready, f"{command[0]} to be ready")
        yield process
    finally:
        process.terminate()
        process.wait()


def listens(port):
    return lambda: run(["ss", "-Htln", f"sport = :{port}"]).stdout.strip()


def random_file(path, megabytes):
    path.write_bytes(os.urandom(1 << 20) * megabytes)
    return path


def same(one, other):
    return filecmp.cmp(one, other, shallow=False)


# --- curl and nginx -------------------------------------------------------------------------------

def nginx_command(directory, listen, location):
    """An nginx of one process with all its files in the directory."""
    directory.mkdir()
    (directory / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;
        events {{ }}
        http {{
            access_log off;
            client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
            fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
            scgi_temp_path {directory}/scgi;
            client_max_body_size 1g;
            server {{ listen {listen}; location / {{ {location} }} }}
        }}""")
    return ["nginx", "-c", directory / "nginx.conf", "-e", directory / "error.log"]


@contextlib.contextmanager
def nginx_origin(directory):
    """Serves directory/www at ORIGIN:8080."""
    (directory / "www").mkdir()
    command = nginx_command(directory / "origin", f"{ORIGIN}:8080", f"root {directory}/www;")
    with running(command, listens(8080)):
        yield f"http://{ORIGIN}:8080"


@case
def curl_downloads_from_nginx():
    with Sandbox() as box, tmpdir() as directory, nginx_origin(directory) as url:
        sent = random_file(directory / "www" / "file", 50)
        box.run(["curl", "-sSf", "-o", directory / "got", f"{url}/file"])
        assert same(sent, directory / "got")
        assert 'comm="curl"' in box.proxy.wait_log(f"dst={ORIGIN}:8080")


@case
def curl_reuses_one_connection_for_many_requests():
    with Sandbox() as box, tmpdir() as directory, nginx_origin(directory) as url:
        for number in range(20):
            (directory / "www" / str(number)).write_text(f"page {number}\n")
        got = box.run(["curl", "-sSf", f"{url}/[0-19]"]).stdout
        assert got == "".join(f"page {number}\n" for number in range(20)), got
        box.wait_no_records()
        assert box.proxy.log().count(f"dst={ORIGIN}:8080") == 1


@case
def nginx_reaches_its_upstream_nginx():
    """A reverse proxy in the cgroup: what is intercepted is its own connection to its upstream."""
    with Sandbox() as box, tmpdir() as directory, nginx_origin(directory) as url:
        sent = random_file(directory / "www" / "file", 20)
        command = nginx_command(directory / "front", "10.77.0.2:8081", f"proxy_pass {url};")
        launcher = ["sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', box.clients]
        with running([*launcher, *command], listens(8081)):
            run(["curl", "-sSf", "-o", directory / "got", "http://10.77.0.2:8081/file"])
        assert same(sent, directory / "got")
        assert 'comm="nginx"' in box.proxy.wait_log(f"dst={ORIGIN}:8080")


# --- iperf3 ---------------------------------------------------------------------------------------

@case_for({"upload": (), "download": ("-R",), "both ways": ("--bidir",), "8 streams": ("-P", "8")})
def iperf3(*words):
    with Sandbox() as box, running(["iperf3", "-s", "-B", ORIGIN], listens(5201)):
        done = box.run(["iperf3", "-c", ORIGIN, "-n", "200M", "--json", *words])
        end = json.loads(done.stdout)["end"]
        # The one that is first to have sent all ends the test, for both.
        assert max(end[way]["bytes"] for way in end if way.startswith("sum_sent")) >= 200 << 20, end
        box.wait_no_records()
        streams = 1 + {"--bidir": 2, "-P": 8}.get((words or [""])[0], 1)
        assert box.proxy.log().count(f"dst={ORIGIN}:5201") == streams, box.proxy.log()


# --- git ------------------------------------------------------------------------------------------

def git(*words, **options):
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org",
                "-c", "init.defaultBranch=main", "-c", "safe.directory=*"]
    return run(["git", *settings, *words], **options)


def make_repository(directory):
    """A bare repository with some history in directory/repo.git; returns its head."""
    work = directory / "work"
    git("init", "-q", work)
    for number in range(10):
        random_file(work / f"file{number}", 1)
        git("-C", work, "add", ".")
        git("-C", work, "commit", "-q", "-m", f"commit {number}")
    git("clone", "-q", "--bare", work, directory / "repo.git")
    git("-C", directory / "repo.git", "update-server-info")
    return git("-C", work, "rev-parse", "HEAD").stdout


@contextlib.contextmanager
def web_server(directory):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=directory)
    with http.server.ThreadingHTTPServer((ORIGIN, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{ORIGIN}:{server.server_port}"
        server.shutdown()


@case
def git_clones_over_http():
    with Sandbox() as box, tmpdir() as directory, web_server(directory) as url:
        head = make_repository(directory)
        box.run(["git", "clone", "-q", f"{url}/repo.git", directory / "clone"])
        assert git("-C", directory / "clone", "rev-parse", "HEAD").stdout == head
        git("-C", directory / "clone", "fsck", "--strict")
        box.proxy.wait_log('comm="git-remote-http"')


# --- ssh ------------------------------------------------------------------------------------------

@contextlib.contextmanager
def sshd(directory):
    """An sshd at ORIGIN:2222 with keys of its own; gives the options that a client needs."""
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # of the tests' own /run
    for key in ("host", "user"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key])
    (directory / "config").write_text(f"""
        ListenAddress {ORIGIN}:2222
        HostKey {directory}/host
        AuthorizedKeysFile {directory}/user.pub
        PidFile none
        StrictModes no
        UsePAM no
        PermitRootLogin yes
        Subsystem sftp internal-sftp
        """)
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", directory / "config"]
    with running(command, listens(2222)):
        yield ["-F", "none", "-i", directory / "user", "-o", "StrictHostKeyChecking=no",
               "-o", f"UserKnownHostsFile={directory}/known", "-o", "LogLevel=ERROR",
               "-o", "BatchMode=yes"]


@case
def ssh_runs_a_command_and_passes_its_exit_code():
    with Sandbox() as box, tmpdir() as directory, sshd(directory) as options:
        done = box.run(["ssh", *options, "-p", "2222", f"root@{ORIGIN}", "cat; exit 5"],
                       check=False, input="through the shell")
        assert (done.returncode, done.stdout) == (5, "through the shell"), done
        assert 'comm="ssh"' in box.proxy.wait_log(f"dst={ORIGIN}:2222")


@case
def scp_copies_there_and_back():
    with Sandbox() as box, tmpdir() as directory, sshd(directory) as options:
        sent = random_file(directory / "sent", 30)
        there, back = directory / "there", directory / "back"
        box.run(["scp", *options, "-P", "2222", sent, f"root@{ORIGIN}:{there}"])
        box.run(["scp", *options, "-P", "2222", f"root@{ORIGIN}:{there}", back])
        assert same(sent, there) and same(sent, back)
        box.wait_no_records()


@case
def git_clones_over_ssh():
    with Sandbox() as box, tmpdir() as directory, sshd(directory) as options:
        head = make_repository(directory)
        command = " ".join(["ssh", *map(str, options)])
        box.run(["git", "-c", f"core.sshCommand={command}", "clone", "-q",
                 f"ssh://root@{ORIGIN}:2222{directory}/repo.git", directory / "clone"])
        assert git("-C", directory / "clone", "rev-parse", "HEAD").stdout == head


main()
