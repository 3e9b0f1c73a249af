# SPDX-License-Identifier: BSD-2-Clause
"""
Programs that measure or check themselves: their clients and servers both in the world's cgroup.
Each suite returns {check: (outcome, detail)}.
"""

import contextlib
import hashlib
import os
import pathlib
import re

from .world import require

HOST = "10.77.0.1"


class Checks(dict):
    """Results of commands."""

    def __init__(self, world):
        super().__init__()
        self._world = world

    def run(self, name, command, accept=lambda output: True, **options):
        """A check: the command succeeds, and accept(its output)."""
        status, output = self._world.run(command, **options)
        good = status == 0 and accept(output)
        self[name] = ("ok", "") if good else ("failed", f"exit status {status}:\n{output[-4000:]}")
        return output

    def transcript(self, name, command, **options):
        """A check whose outcome is all that the command says, whatever it is, but for times."""
        status, output = self._world.run(command, **options)
        output = re.sub(r"\b(after|in) \d+(\.\d+)? m?s\b", r"\1 a time", output)
        output = output.replace(str(self._world.directory), "DIR")
        lines = "\n".join(sorted(output.splitlines()))  # what runs in parallel ends in any order
        self[name] = (f"exit status {status}, {lines[-2000:]}", "")

    def that(self, name, good, detail=""):
        self[name] = ("ok", "") if good else ("failed", detail)


def random_file(path, megabytes):
    """Returns the file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(megabytes):
            block = os.urandom(1 << 20)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def digest_of(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- nginx and wrk --------------------------------------------------------------------------------

@contextlib.contextmanager
def nginx(world, *locations, listen="", http=""):
    """An nginx on port 8080 that serves world.directory/www."""
    directory = world.directory / "nginx"
    directory.mkdir()
    (world.directory / "www").mkdir()
    (world.directory / "www" / "small").write_bytes(b"x" * 612)
    random_file(world.directory / "www" / "large", 1)
    temporary = "\n".join(f"{kind}_temp_path {directory}/{kind};" for kind in
                          ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (directory / "nginx.conf").write_text(f"""
        user root; daemon off; worker_processes 2; pid {directory}/pid;
        error_log {directory}/error.log;
        events {{ worker_connections 4096; }}
        http {{
            access_log off; {temporary} {http}
            server {{
                listen 8080 backlog=4096 reuseport; listen [::]:8080 backlog=4096; {listen}
                root {world.directory}/www;
                {" ".join(locations)}
            }}
        }}""")
    command = ["nginx", "-c", directory / "nginx.conf", "-e", directory / "error.log"]
    with world.serving(command, 8080):
        yield


def no_failed_request(output):
    return (re.search(r"^\s*[1-9]\d* requests in", output, re.M) and "Non-2xx" not in output
            and "Socket errors" not in output)


def wrk(world, only=None):
    require("nginx-light", "wrk")
    checks = Checks(world)
    with nginx(world):
        for name, host in (("IPv4", HOST), ("IPv6", "[fd77::1]")):
            for what, words in {
                    "keep-alive": ["-c64", f"http://{host}:8080/small"],
                    "a connection a request": ["-c32", "-H", "Connection: close",
                                               f"http://{host}:8080/small"],
                    "1 MB replies": ["-c16", f"http://{host}:8080/large"]}.items():
                checks.run(f"{what}, {name}", ["wrk", "-t2", "-d4s", "--timeout", "20s", *words],
                           no_failed_request)
    return checks


# --- OpenSSH --------------------------------------------------------------------------------------

@contextlib.contextmanager
def sshd(world):
    """An sshd on port 2222; gives the options that a client needs."""
    directory = world.directory
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # of our own /run
    for key in ("host", "user"):
        world.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key])
    (directory / "sshd_config").write_text(f"""
        ListenAddress {HOST}:2222
        ListenAddress [fd77::1]:2222
        HostKey {directory}/host
        AuthorizedKeysFile {directory}/user.pub
        PidFile none
        StrictModes no
        UsePAM no
        PermitRootLogin yes
        AllowTcpForwarding yes
        Subsystem sftp internal-sftp
        """)
    with world.serving(["/usr/sbin/sshd", "-D", "-e", "-f", directory / "sshd_config"], 2222):
        yield ["-F", "none", "-i", str(directory / "user"), "-o", "StrictHostKeyChecking=no",
               "-o", f"UserKnownHostsFile={directory}/known", "-o", "LogLevel=ERROR",
               "-o", "BatchMode=yes"]


def ssh(world, only=None):
    require("openssh-server", "openssh-client")
    checks = Checks(world)
    directory = world.directory
    sent = random_file(directory / "sent", 1024)
    with sshd(world) as options:
        def copied(name, *command):
            got = directory / "got"
            checks.run(name, command)
            checks.that(f"{name}: the same bytes", got.exists() and digest_of(got) == sent)
            got.unlink(missing_ok=True)
        copied("scp of 1 GB there", "scp", *options, "-P2222", directory / "sent",
               f"root@{HOST}:{directory}/got")
        copied("scp of 1 GB back", "scp", *options, "-P2222", f"root@[fd77::1]:{directory}/sent",
               directory / "got")
        (directory / "batch").write_text(f"get {directory}/sent {directory}/got\n")
        copied("sftp of 1 GB", "sftp", *options, "-P2222", "-b", directory / "batch",
               f"root@{HOST}")
        shell = ["ssh", *options, "-p2222", f"root@{HOST}"]
        checks.transcript("ssh passes output and exit code", [*shell, "cat; exit 5"],
                          text_in="text")
        checks.transcript("ssh to a port that refuses",
                          ["ssh", *options, "-p2223", f"root@{HOST}", "true"])
        checks.transcript("a forwarded port", [
            *shell, "-W", f"{HOST}:2222", "-o", "ExitOnForwardFailure=yes"],
            text_in="not an SSH greeting\n")
    return checks


# --- git ------------------------------------------------------------------------------------------

def make_repository(world):
    """A bare repository with some history; returns the environment and the path."""
    settings = {"init.defaultBranch": "main", "safe.directory": "*", "user.name": "t",
                "user.email": "t@example.org", "http.receivepack": "true"}
    environment = {"GIT_CONFIG_COUNT": str(len(settings)), "GIT_CONFIG_NOSYSTEM": "1",
                   "HOME": str(world.directory)}
    for number, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    work = world.directory / "work"
    git = Checks(world)
    git.run("init", ["git", "init", "-q", work], environment=environment)
    for number in range(20):
        random_file(work / f"file{number}", 1)
        git.run("add", ["git", "-C", work, "add", "."], environment=environment)
        git.run("commit", ["git", "-C", work, "commit", "-q", "-m", f"{number}"],
                environment=environment)
    bare = world.directory / "www" / "repo.git"
    git.run("bare", ["git", "clone", "-q", "--bare", work, bare], environment=environment)
    git.run("config", ["git", "-C", bare, "config", "http.receivepack", "true"],
            environment=environment)
    if any(outcome != "ok" for outcome, _ in git.values()):
        raise RuntimeError(f"no repository could be made: {git}")
    return environment, bare


def git_over(world, checks, name, url, environment):
    """Clones, checks what came, and pushes a commit."""
    clone = world.directory / f"clone-{name}"

    def git(what, *words):
        return checks.run(f"{name}: {what}", ["git", *words], environment=environment)
    git("clone", "clone", "-q", url, clone)
    git("fsck", "-C", clone, "fsck", "--strict")
    if clone.exists():
        random_file(clone / f"new-{name}", 5)
    git("add", "-C", clone, "add", ".")
    git("commit", "-C", clone, "commit", "-q", "-m", name)
    git("push", "-C", clone, "push", "-q", "origin", "HEAD")
    git("shallow clone", "clone", "-q", "--depth=1", url, f"{clone}-shallow")


def git_suite(world, only=None):
    require("git", "nginx-light", "fcgiwrap", "openssh-server", "openssh-client")
    checks = Checks(world)
    smart = f"""location ~ ^/git/ {{
        client_max_body_size 0; include /etc/nginx/fastcgi_params;
        fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend;
        fastcgi_param GIT_HTTP_EXPORT_ALL 1; fastcgi_param GIT_PROJECT_ROOT {world.directory}/www;
        fastcgi_param PATH_INFO $git_path; fastcgi_param REMOTE_USER t;
        fastcgi_pass {HOST}:9000; }}"""
    path = 'map $uri $git_path { "~^/git(?<rest>/.*)$" $rest; }'
    with nginx(world, smart, http=path), sshd(world) as options:
        environment, bare = make_repository(world)
        wrapper = ["fcgiwrap", "-c", "2", "-s", f"tcp:{HOST}:9000"]
        daemon = ["git", "daemon", "--export-all", "--enable=receive-pack", f"--listen={HOST}",
                  "--reuseaddr", f"--base-path={world.directory}/www"]
        environment["GIT_SSH_COMMAND"] = " ".join(["ssh", *options])
        with world.serving(wrapper, 9000, environment=environment), \
                world.serving(daemon, 9418, environment=environment):
            git_over(world, checks, "http", f"http://{HOST}:8080/git/repo.git", environment)
            git_over(world, checks, "ssh", f"ssh://root@{HOST}:2222{bare}", environment)
            git_over(world, checks, "daemon", f"git://{HOST}/repo.git", environment)
    return checks


# --- PostgreSQL -----------------------------------------------------------------------------------

def pgbench(world, only=None):
    require("postgresql", "postgresql-client-common")
    checks = Checks(world)
    bin_dir = next(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    data = world.directory / "data"
    data.mkdir()
    os.chmod(data, 0o700)
    world.run(["chown", "postgres", data])
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    checks.run("initdb", [*user, bin_dir / "initdb", "-D", data, "--auth=trust"])
    (data / "pg_hba.conf").write_text("host all all all trust\n")
    server = [*user, bin_dir / "postgres", "-D", data, "-c", f"listen_addresses={HOST},fd77::1",
              "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=200"]

    def none_failed(output):
        return ("number of failed transactions: 0 (0.000%)" in output
                and re.search(r"number of transactions actually processed: (\d+)/\1\b", output))
    with world.serving(server, 5432):
        where = ["-h", HOST, "-U", "postgres", "postgres"]
        checks.run("fill", [bin_dir / "pgbench", "-i", "-q", "-s", "5", *where])
        for name, words in {"simple": ["-c8", "-t500"], "prepared": ["-c8", "-t500", "-Mprepared"],
                            "a connection a transaction": ["-c8", "-t100", "-C"],
                            "100 clients": ["-c100", "-t20", "-S"],
                            "pipelined": ["-c4", "-t200", "-Mextended", "-f", "@"]}.items():
            script = world.directory / "pipeline.sql"
            script.write_text("\\startpipeline\nSELECT 1;\nSELECT 2;\nSELECT 3;\n\\endpipeline\n")
            words = [str(script) if word == "@" else word for word in words]
            checks.run(name, [bin_dir / "pgbench", "-n", "-j2", *words, *where], none_failed)
        where[1] = "fd77::1"
        sums = ("SELECT (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta), "
                "(SELECT sum(tbalance) FROM pgbench_tellers) = sum(delta), count(*) "
                "FROM pgbench_history")
        checks.run("the balances agree", [bin_dir / "psql", "-AtX", "-c", sums, *where],
                   lambda output: output.strip() == "t|t|8800")
        copy = "COPY (SELECT * FROM generate_series(1, 3000000)) TO STDOUT"
        checks.transcript("COPY of 3,000,000 rows", [
            "sh", "-c", f'"$0" -AtX -c "{copy}" "$@" | sha256sum', bin_dir / "psql", *where])
    return checks


# --- redis ----------------------------------------------------------------------------------------

def redis(world, only=None):
    require("redis-server", "redis-tools")
    checks = Checks(world)
    server = ["redis-server", "--port", "6379", "--bind", HOST, "fd77::1", "--protected-mode", "no",
              "--save", "", "--dir", world.directory]
    command = ["redis-benchmark", "-h", HOST, "--csv"]

    def all_rates(output):
        rows = [row for row in output.splitlines() if row.startswith('"') and "rps" not in row]
        return rows and "rror" not in output and all(
            float(row.split('","')[1].strip('"')) > 0 for row in rows)
    with world.serving(server, 6379):
        for name, words in {"all commands": ["-n", "5000", "-c", "50"],
                            "pipelined": ["-n", "200000", "-P", "32", "-t", "get,set"],
                            "a connection a request": ["-n", "5000", "-k", "0", "-t",
                                                       "ping,set,get"],
                            "64 kB values": ["-n", "5000", "-d", "65536", "-t", "get,set"],
                            "1000 clients": ["-n", "20000", "-c", "1000", "-t", "get"]}.items():
            checks.run(name, [*command, *words], all_rates)
        checks.run("no error reply", ["redis-cli", "-h", "fd77::1", "info", "stats"],
                   lambda output: "total_error_replies:0" in output
                   and "rejected_connections:0" in output)
    return checks


# --- curl -----------------------------------------------------------------------------------------

SAYS = ("%{exitcode} %{http_code} %{http_version} up %{size_upload} down %{size_download} "
        "to %{remote_ip}:%{remote_port} from %{local_ip} connects %{num_connects}\\n")

CURL = {
    "get": ["{url}/small"],
    "get over IPv6": ["http://[fd77::1]:8080/large"],
    "many on one connection": ["{url}/small?[1-30]"],
    "in parallel": ["--parallel", "--parallel-immediate", "{url}/large?[1-20]"],
    "ranges": ["-r", "100-199,300-310", "{url}/large"],
    "HTTP/1.0": ["--http1.0", "{url}/large"],
    "HTTP/2 from the start": ["--http2-prior-knowledge", "http://{host}:8081/large"],
    "TLS": ["-k", "https://{host}:8443/large"],
    "TLS, HTTP/2, in parallel": ["-k", "--http2", "--parallel", "https://{host}:8443/large?[1-10]"],
    "TLS to a server that speaks none": ["-k", "https://{host}:8080/"],
    "upload": ["-T", "{large}", "{url}/put/a"],
    "upload, chunked": ["-H", "Transfer-Encoding: chunked", "-T", "{large}", "{url}/put/b"],
    "upload, 100-continue": ["-H", "Expect: 100-continue", "-T", "{large}", "{url}/put/c"],
    "upload to where it is refused": ["-T", "{large}", "{url}/small"],
    "TCP fast open": ["--tcp-fastopen", "{url}/large"],
    "from an address": ["--interface", "10.77.0.5", "{url}/small"],
    "from ports": ["--local-port", "20000-20100", "{url}/small"],
    "by a name of two addresses": ["--resolve", "two.test:8080:[fd77::2],{host}",
                                   "http://two.test:8080/small"],
    "by a name whose first is closed": ["--resolve", "two.test:9999:[fd77::1],10.77.0.2,{host}",
                                        "http://two.test:9999/small"],
    "refused": ["http://{host}:9999/"],
    "refused over IPv6": ["http://[fd77::1]:9999/"],
    "refused, tried again": ["--retry", "2", "--retry-delay", "1", "--retry-connrefused",
                             "http://{host}:9999/"],
    "unroutable": ["http://198.51.100.1:9999/"],
    "unroutable over IPv6": ["http://[2001:db8::1]:9999/"],
    "closed without a reply": ["{url}/closed"],
    "slowly": ["--limit-rate", "2M", "{url}/large"],
    "in time": ["--max-time", "10", "{url}/large"],
    "through an HTTP proxy that refuses": ["-x", "{url}", "http://example.test/"],
    "telnet": ["--max-time", "2", "telnet://{host}:8080"],
    "FTP": ["ftp://{host}:2121/large"],
    "FTP, active": ["-P", "-", "ftp://{host}:2121/large"],
    "FTP over IPv6": ["ftp://[fd77::1]:2121/large"],
    "FTP, a file that is not there": ["ftp://{host}:2121/none"],
    "FTP, a part": ["-r", "1000-1999", "ftp://{host}:2121/large"],
}

VSFTPD = """listen=NO
listen_ipv6=YES
listen_port=2121
background=NO
anonymous_enable=YES
no_anon_password=YES
ftp_username=nobody
anon_root={root}
secure_chroot_dir={root}
connect_from_port_20=NO
seccomp_sandbox=NO
xferlog_enable=NO
"""


def curl(world, only=None):
    require("curl", "nginx-light", "vsftpd", "openssl")
    checks = Checks(world)
    directory = world.directory
    world.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
               "/CN=test", "-keyout", directory / "key", "-out", directory / "cert"])
    listen = f"""listen 8081 http2; listen 8443 ssl http2; ssl_certificate {directory}/cert;
                 ssl_certificate_key {directory}/key;"""
    locations = [f"location /put/ {{ dav_methods PUT; root {directory}; client_max_body_size 0; }}",
                 "location /closed { return 444; }"]
    (directory / "put").mkdir()
    (directory / "vsftpd.conf").write_text(VSFTPD.format(root=directory / "www"))
    with nginx(world, *locations, listen=listen), \
            world.serving(["vsftpd", directory / "vsftpd.conf"], 2121):
        large = directory / "www" / "large"
        large.write_bytes(b"0123456789abcdef" * (1 << 16))
        for name, words in CURL.items():
            words = [word.replace("{url}", f"http://{HOST}:8080").replace("{host}", HOST)
                     .replace("{large}", str(large)) for word in words]
            script = 'curl -sS -o "$0" -w "$@" 2>/dev/null; sha256sum < "$0"'
            checks.transcript(name, ["sh", "-c", script, directory / "got", SAYS, *words])
            (directory / "got").unlink(missing_ok=True)
        for file in sorted((directory / "put").iterdir()):
            checks.that(f"uploaded {file.name}", digest_of(file) == digest_of(large))
    return checks


SUITES = {"nginx and wrk": wrk, "openssh": ssh, "git": git_suite, "postgresql": pgbench,
          "redis": redis, "curl": curl}
