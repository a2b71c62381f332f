"""`eks-token doctor`: every check passes on a healthy machine, and each is shown to notice what it is there for."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import KeyringDaemon, Sandbox, as_root, invocation, kubectls, missing, need

import eks_token
from eks_token import Cache

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ARGS = ["--cluster-name", "demo", "--region", "eu-west-1", "--identity", "dev"]


class Report(NamedTuple):
    status: int
    checks: dict[str, "eks_token.Check"]
    text: str

    def but_ok(self) -> dict[str, str]:
        """The status of each check that did not pass."""
        return {name: check.status for name, check in self.checks.items() if check.status != "ok"}


def doctor(home: Sandbox, *options: str, **more: Any) -> Report:
    done = home.run("doctor", "-o", "json", *options, **more)
    rows = json.loads(done.stdout)
    checks = {row["check"]: eks_token.Check(row["check"], row["status"], row["found"], row["hint"]) for row in rows}
    return Report(done.returncode, checks, done.stdout + done.stderr)


def kubeconfig(*users: Mapping[str, Any]) -> str:
    """A kubeconfig, as JSON: a context, named as its user is, for each of these exec entries."""
    entries = [{"apiVersion": "client.authentication.k8s.io/v1beta1", **user} for user in users]
    names = [entry.pop("name", "demo") for entry in entries]
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "demo", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": name, "user": {"exec": each}} for name, each in zip(names, entries, strict=True)],
            "contexts": [{"name": name, "context": {"cluster": "demo", "user": name}} for name in names],
        }
    )


def put_on_path(home: Sandbox, *programs: str) -> None:
    """A PATH with eks-token and these programs on it, and nothing else."""
    directory = home.home / "bin"
    directory.mkdir(exist_ok=True)
    for program in ("cat", *programs):
        (directory / program).symlink_to(need(program)[0])
    (directory / "eks-token").symlink_to(home.executable)
    home.env["PATH"] = str(directory)


def write_program(home: Sandbox, name: str, text: str) -> Path:
    path = home.write(name, f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, executable: Path) -> Path:
    """A cache directory with the program unpacked, and compiled by one run: half a second less for each test."""
    home = Sandbox(tmp_path_factory.mktemp("doctor") / "sandbox", lambda: executable)
    doctor(home)
    return home.cache


@pytest.fixture
def laptop(home: Sandbox, extracted: Path, keyring_daemon: KeyringDaemon) -> Sandbox:
    """All is well here: one identity, and one context that uses it."""
    if not kubectls():
        missing("kubectl")
    shutil.copytree(extracted, home.cache)
    put_on_path(home, "kubectl", "sh", "bash", "python3")
    given = {"Version": 1, "AccessKeyId": KEY_ID, "SecretAccessKey": SECRET}
    done = home.run("login", "dev", "--stdin", "--no-verify", stdin=json.dumps(given))
    assert done.returncode == 0, done.stderr
    stored = home.data / "identities.json"  # written again, to be old: nothing is cached against what has just changed
    home.write(str(stored.relative_to(home.home)), stored.read_text())
    home.write(".kube/config", kubeconfig({"command": "eks-token", "args": ARGS}))
    return home


# --- the report ---------------------------------------------------------------------------------------------


def test_a_healthy_machine_passes_every_check(laptop: Sandbox) -> None:
    report = doctor(laptop)
    assert report.but_ok() == {}, report.text
    assert report.status == 0
    assert list(report.checks) == [
        *("python", "executable", "cache", "cache locks", "cache clock", "launcher", "keyring", "identities"),
        *("kubectl", "kubeconfig", "context demo"),
    ]
    assert str(laptop.cache) in report.checks["cache"].found
    assert "mode 0700" in report.checks["cache"].found
    assert "1 stored (default: dev)" in report.checks["identities"].found
    assert "a token until" in report.checks["context demo"].found


def test_the_text_has_a_line_a_check_and_its_hint_below(laptop: Sandbox) -> None:
    laptop.write(".kube/config", kubeconfig({"command": "aws", "args": ["eks", "get-token"]}))
    lines = laptop.run("doctor").stdout.splitlines()
    assert lines[0].startswith("ok    python: 3.")
    assert lines[-2:] == [
        "warn  context demo: still uses aws",
        "      hint: eks-token adopt --context demo",
    ]


def test_no_secret_and_no_token_is_shown(laptop: Sandbox) -> None:
    shown = doctor(laptop).text + laptop.run("doctor").stdout
    for secret in (SECRET, "k8s-aws-v1."):
        assert secret not in shown


def test_nothing_is_left_of_the_launchers_answer(laptop: Sandbox) -> None:
    assert doctor(laptop).status == 0
    assert not [path for path in laptop.cache.rglob("%answer") if "doctor" in str(path)]


@as_root
def test_a_read_only_home_is_named_as_that_and_nothing_else(laptop: Sandbox) -> None:
    mount = ["mount", "--bind", str(laptop.cache), str(laptop.cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        missing("mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(laptop.cache)], check=True)
        report = doctor(laptop)
    finally:
        subprocess.run(["umount", str(laptop.cache)], check=True)
    assert report.checks["cache"].found == f"{laptop.cache}: Read-only file system"
    assert report.checks["cache"].hint.endswith("; set XDG_CACHE_HOME to a directory on a local disk")
    assert report.but_ok().keys() == {"cache"}


# --- the program --------------------------------------------------------------------------------------------


def test_a_python_that_the_executable_cannot_start(laptop: Sandbox) -> None:
    command = [laptop.env["EKS_TOKEN_PYTHON"], laptop.executable]
    report = doctor(laptop, command=command, python="/nowhere/python")
    assert report.status == 1
    assert report.checks["python"].status == "fail"
    assert "EKS_TOKEN_PYTHON is not a program: /nowhere/python" in report.checks["python"].found


def test_a_damaged_executable(laptop: Sandbox) -> None:
    copy = laptop.home / "copy/eks-token"
    copy.parent.mkdir()
    shutil.copy(laptop.executable, copy)
    assert laptop.run("--version", command=[copy]).returncode == 0
    content = bytearray(copy.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 16] = bytes(16)
    copy.write_bytes(content)
    report = doctor(laptop, command=[copy])
    assert (report.status, report.checks["executable"].status) == (1, "fail")
    assert "is damaged" in report.checks["executable"].found
    assert report.checks["executable"].hint == "install it again"


def test_an_executable_that_cannot_be_executed(laptop: Sandbox) -> None:
    copy = laptop.home / "copy/eks-token"
    copy.parent.mkdir()
    shutil.copy(laptop.executable, copy)
    copy.chmod(0o600)
    report = doctor(laptop, command=["sh", copy])
    assert report.checks["executable"].status == "fail"
    assert report.checks["executable"].hint == f"chmod +x {copy}"


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        pytest.param(None, "is not on PATH as eks-token", id="none on PATH"),
        pytest.param("exit 0", "kubectl finds another one", id="another one on PATH"),
    ],
)
def test_an_executable_that_kubectl_would_not_find(instead: str | None, says: str, laptop: Sandbox) -> None:
    (laptop.home / "bin/eks-token").unlink()
    if instead:
        write_program(laptop, "bin/eks-token", instead)
    check = doctor(laptop).checks["executable"]
    assert check.status == "warn"
    assert says in check.found


# --- the cache ----------------------------------------------------------------------------------------------


def test_a_cache_directory_that_others_can_write(laptop: Sandbox) -> None:
    laptop.cache.chmod(0o777)
    report = doctor(laptop)
    assert (report.status, report.checks["cache"].status) == (1, "fail")
    assert report.checks["cache"].found == f"not used: others can write to {laptop.cache}"
    assert "launcher" not in report.checks


def test_a_cache_directory_that_is_a_link(laptop: Sandbox) -> None:
    shutil.rmtree(laptop.cache)
    (laptop.home / "elsewhere").mkdir()
    laptop.cache.symlink_to(laptop.home / "elsewhere")
    assert "is a symbolic link" in doctor(laptop).checks["cache"].found


def test_no_home(laptop: Sandbox) -> None:
    check = doctor(laptop, env={"HOME": None}).checks["cache"]
    assert check == eks_token.Check("cache", "fail", "there is none: HOME is not an absolute path", "set HOME")


def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    check = eks_token.check_cache(invocation(environ={"HOME": str(tmp_path)}, cache=str(tmp_path)))
    assert (check.status, check.hint) == ("warn", "free up space")
    assert "1 MB free" in check.found


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(eks_token, "write_file", full)
    check = eks_token.check_cache(invocation(environ={"HOME": str(tmp_path)}, cache=str(tmp_path)))
    assert check.status == "fail"
    assert "No space left on device" in check.found


def test_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path))
    assert eks_token.check_locks(cache).status == "ok"
    monkeypatch.setattr(eks_token, "lock_file", lambda _: True)
    assert "granted twice" in eks_token.check_locks(cache).found

    def none(_: int) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(eks_token, "lock_file", none)
    check = eks_token.check_locks(cache)
    assert (check.status, check.found) == ("fail", "they do not work there, so nothing is cached")


def test_a_file_system_with_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path))
    assert eks_token.check_file_times(cache).status == "ok"
    monkeypatch.setattr(Cache, "clock_agrees", lambda *_: False)
    assert eks_token.check_file_times(cache).status == "fail"


# --- the launcher -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "says"),
    [
        pytest.param({"AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEXAMPLE"}, "AWS_SESSION_TOKEN is set", id="a secret"),
        pytest.param({"AWS_PROFILE": "a profile"}, "AWS_PROFILE contains special characters", id="a space"),
        pytest.param({"AWS_CONFIG_FILE": "config"}, "AWS_CONFIG_FILE is not an absolute path", id="a relative path"),
        pytest.param({"EKS_TOKEN_DEBUG": "1"}, "EKS_TOKEN_DEBUG is set", id="debugging"),
    ],
)
def test_what_keeps_the_launcher_from_answering(env: dict[str, str], says: str, laptop: Sandbox) -> None:
    check = doctor(laptop, env=env).checks["launcher"]
    assert check.status == "warn"
    assert says in check.found


def test_an_answer_that_is_not_found_again(tmp_path: Path, executable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "lookup", lambda *_: None)
    started = invocation(environ={"HOME": str(tmp_path)}, file=str(executable), build="0123456789abcdef")
    (check,) = eks_token.check_launcher(started, Cache(str(tmp_path)))
    assert check.status == "fail"


# --- the keyring and identities -----------------------------------------------------------------------------


def test_a_locked_keyring(laptop: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    with keyring_daemon.locked():
        report = doctor(laptop)
    assert (report.status, report.checks["keyring"].status) == (1, "fail")
    assert "the keyring is locked" in report.checks["keyring"].found


def test_a_keyring_that_nobody_needs_may_be_missing(home: Sandbox) -> None:
    report = doctor(home)
    assert report.checks["keyring"].status == "warn"
    assert "the session bus cannot be reached" in report.checks["keyring"].found
    assert "AWS profiles work without a keyring" in report.checks["keyring"].hint


def test_a_damaged_identities_file(laptop: Sandbox) -> None:
    (laptop.data / "identities.json").write_text("{")
    report = doctor(laptop)
    assert (report.status, report.checks["identities"].status) == (1, "fail")
    assert "identities.json is damaged" in report.checks["identities"].found
    assert report.checks["keyring"].status == "ok"


def test_an_identity_whose_keys_are_gone(laptop: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    keyring_daemon.clear()
    check = doctor(laptop).checks["identities"]
    assert check.status == "fail"
    assert "the keyring has no keys for dev" in check.found
    assert check.hint == "store them again: eks-token login dev --new-keys"


def test_a_session_that_a_person_has_to_begin_anew(laptop: Sandbox) -> None:
    stored = json.loads((laptop.data / "identities.json").read_text())
    stored["identities"]["dev"]["mfa_serial"] = "arn:aws:iam::123456789012:mfa/dev"
    stored["identities"]["role"] = {"role_arn": "arn:aws:iam::123456789012:role/r", "source_profile": "dev"}
    (laptop.data / "identities.json").write_text(json.dumps(stored))
    ended = {f"session:{n}": {"names": [name], "expires": time.time() - 60} for n, name in enumerate(("dev", "role"))}
    (laptop.data / "sessions.json").write_text(json.dumps(ended))
    check = doctor(laptop).checks["identities"]
    assert check.status == "warn"
    assert check.found == "2 stored; sessions: 2, ended: 2: dev"
    assert check.hint == "`eks-token login NAME` starts a new one"


# --- the clock ----------------------------------------------------------------------------------------------


@contextmanager
def sts_with_a_clock(ahead: float) -> Iterator[str]:
    """The address of a server that answers as STS does to whoever signs nothing, `ahead` seconds in the future."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + ahead)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("ahead", "status", "says"),
    [
        pytest.param(0, "ok", "within", id="in time"),
        pytest.param(-50, "ok", "within", id="50 s fast"),
        pytest.param(120, "warn", "behind", id="2 minutes slow"),
        pytest.param(-120, "warn", "ahead of", id="2 minutes fast"),
        pytest.param(400, "fail", "AWS rejects what is signed here", id="too slow"),
    ],
)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"])
def test_the_clock_beside_that_of_sts(ahead: float, status: str, says: str, variable: str, home: Sandbox) -> None:
    with sts_with_a_clock(ahead) as url:
        check = doctor(home, "--online", env={variable: url}).checks["clock"]
    assert (check.status, says in check.found) == (status, True), check
    assert url in check.found


def test_an_sts_that_cannot_be_reached(home: Sandbox) -> None:
    report = doctor(home, "--online", env={"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    assert (report.status, report.checks["clock"].status) == (1, "fail")
    assert "cannot get the time from http://127.0.0.1:1" in report.checks["clock"].found


def test_nobody_is_asked_for_the_time_offline(home: Sandbox) -> None:
    with sts_with_a_clock(400) as url:
        assert "clock" not in doctor(home, env={"AWS_ENDPOINT_URL": url}).checks


# --- kubectl and contexts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instead", "status", "says"),
    [
        pytest.param(None, "fail", "is not on PATH", id="missing"),
        pytest.param("echo error: broken >&2; exit 1", "fail", "broken", id="broken"),
        pytest.param("echo hello", "fail", "does not print its version", id="something else"),
        pytest.param(
            """echo '{"clientVersion": {"gitVersion": "v1.20.4-eks"}}'""", "warn", "v1.20.4-eks", id="too old"
        ),
    ],
)
def test_what_may_be_wrong_with_kubectl(instead: str | None, status: str, says: str, laptop: Sandbox) -> None:
    (laptop.home / "bin/kubectl").unlink()
    if instead:
        write_program(laptop, "bin/kubectl", instead)
    report = doctor(laptop)
    assert report.checks["kubectl"].status == status
    assert says in report.checks["kubectl"].found
    assert report.status == (1 if status == "fail" else 0)


def test_a_broken_kubeconfig(laptop: Sandbox) -> None:
    laptop.write(".kube/config", "apiVersion: [")
    report = doctor(laptop)
    assert (report.status, report.checks["kubeconfig"].status) == (1, "fail")
    assert ".kube/config" in report.checks["kubeconfig"].found


def test_a_tilde_in_kubeconfig_which_kubectl_does_not_expand(laptop: Sandbox) -> None:
    report = doctor(laptop, env={"KUBECONFIG": f"{laptop.home}/.kube/config:~/.kube/other"})
    assert report.but_ok() == {"KUBECONFIG": "warn"}
    assert report.checks["KUBECONFIG"].found == "kubectl does not expand ~, so it does not read ~/.kube/other"
    assert doctor(laptop, "--kubeconfig", "~/.kube/config", env={"KUBECONFIG": "~/x"}).but_ok() == {}


def test_no_context_uses_the_program(laptop: Sandbox) -> None:
    laptop.write(".kube/config", kubeconfig())
    report = doctor(laptop)
    assert (report.status, report.checks["kubeconfig"].status) == (0, "warn")
    assert report.checks["kubeconfig"].hint == "see `eks-token kubeconfig --help`"


ALPHA = "client.authentication.k8s.io/v1alpha1"


@pytest.mark.parametrize(
    ("entry", "found", "hint"),
    [
        pytest.param(
            {"args": [*ARGS[:-1], "nobody"]},
            "there is no identity or AWS profile named 'nobody'",
            "store it with `eks-token login nobody`",
            id="an identity that is not there",
        ),
        pytest.param(
            {"args": ["--cluster-name", "demo"]},
            "--region is missing",
            "pass the cluster's AWS region, for example --region us-east-2",
            id="arguments that are wrong",
        ),
        pytest.param(
            {
                "args": ["--cluster-name", "demo", "--region", "us-east-2"],
                "env": [{"name": "AWS_PROFILE", "value": "x"}],
            },
            "there is no identity or AWS profile named 'x'",
            "store it with `eks-token login x`",
            id="a variable that is wrong",
        ),
        pytest.param(
            {"command": "/nowhere/eks-token"},
            "kubectl cannot find /nowhere/eks-token",
            "put it on PATH, or its full path in the kubeconfig",
            id="a command that is not there",
        ),
        pytest.param(
            {"apiVersion": ALPHA},
            f"kubectl 1.24 and later reject {ALPHA}; v1beta1 is the same",
            "change it in CONFIG",
            id="an API version that has gone",
        ),
        pytest.param(
            {"apiVersion": "client.authentication.k8s.io/v1"},
            "kubectl rejects client.authentication.k8s.io/v1 without an interactiveMode",
            "change it in CONFIG",
            id="what kubectl refuses",
        ),
        pytest.param({"args": ["--version"]}, "eks-token did not print an ExecCredential", "", id="no credential"),
    ],
)
def test_a_context_that_gets_no_token(entry: dict[str, Any], found: str, hint: str, laptop: Sandbox) -> None:
    laptop.write(".kube/config", kubeconfig({"command": "eks-token", "args": ARGS, **entry}))
    report = doctor(laptop)
    assert report.status == 1
    hint = hint.replace("CONFIG", f"{laptop.home}/.kube/config")
    assert report.checks["context demo"] == eks_token.Check("context demo", "fail", found, hint)


def test_a_context_that_needs_a_terminal_or_lacks_its_cluster(laptop: Sandbox) -> None:
    entry = {"command": str(laptop.home / "bin/eks-token"), "args": ARGS}
    text = kubeconfig({**entry, "interactiveMode": "Always"}, {**entry, "name": "lost"})
    path = laptop.write(
        "other/config", text.replace('"cluster": "demo", "user": "lost"', '"cluster": "x", "user": "lost"')
    )
    report = doctor(laptop, "--kubeconfig", str(path))
    check = report.checks["context demo"]
    assert check.status == "warn" and check.found.endswith("but only at a terminal")
    assert report.checks["context lost"] == eks_token.Check("context lost", "fail", "there is no cluster named 'x'")


def test_a_context_behind_a_wrapper_and_another_kubeconfig(laptop: Sandbox) -> None:
    words = ["exec", "dev", "--", "aws", "eks", "get-token", "--cluster-name", "demo"]
    path = laptop.write(
        "a file", kubeconfig({"command": "aws-vault", "args": words}, {"command": "kubergrunt", "name": "k"})
    )
    checks = doctor(laptop, "--kubeconfig", str(path)).checks
    assert checks["kubeconfig"].hint == f"`eks-token adopt --kubeconfig '{path}'` switches those of other plugins"
    hint = f"eks-token adopt --context demo --kubeconfig '{path}' --unwrap"
    assert checks["context demo"][1:] == ("warn", "still uses aws, through aws-vault", hint)
    assert checks["context k"][1:] == ("warn", "still uses kubergrunt", "see `eks-token kubeconfig --help`")


def test_a_context_that_needs_a_person_does_not_ask(laptop: Sandbox) -> None:
    laptop.config("[profile asks]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = dev\nmfa_serial = m\n")
    arguments = [*ARGS[:-1], "asks"]
    laptop.write(".kube/config", kubeconfig({"command": "eks-token", "args": arguments}))
    done = laptop.run("doctor", tty=True)
    assert "asks: an MFA code is needed, but nobody is there to type it" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command", ["aws", "/usr/local/bin/aws", "aws-iam-authenticator", "heptio-authenticator-aws", "atmos", "aws.exe"]
)
def test_a_context_on_a_slower_plugin(command: str, laptop: Sandbox) -> None:
    other = {"command": command, "args": ["eks", "get-token"], "name": "arn:aws:eks:r:1:cluster/it's"}
    laptop.write(".kube/config", kubeconfig({"command": "eks-token", "args": ARGS}, other))
    report = doctor(laptop)
    name = command.rpartition("/")[2].removesuffix(".exe")
    check = report.checks["context arn:aws:eks:r:1:cluster/it's"]
    assert (report.status, check.status, check.found) == (0, "warn", f"still uses {name}")
    assert check.hint == """eks-token adopt --context 'arn:aws:eks:r:1:cluster/it'"'"'s'"""


def test_a_relative_command_lies_beside_the_kubeconfig(laptop: Sandbox) -> None:
    laptop.write(".kube/config", kubeconfig({"command": "../bin/eks-token", "args": ARGS}))
    assert doctor(laptop).checks["context demo"].status == "ok"


def test_a_context_that_was_turned_back(laptop: Sandbox) -> None:
    aws = {"command": "aws", "args": ["--region", "eu-west-1", "eks", "get-token", "--cluster-name", "demo"]}
    before = laptop.write(".kube/config", kubeconfig(aws)).read_text()
    assert laptop.run("adopt", "--all").returncode == 0
    assert doctor(laptop).checks["context demo"].found.startswith("a token until")
    laptop.write(".kube/config", before)
    check = doctor(laptop).checks["context demo"]
    assert (check.status, check.found) == (
        "warn",
        f"uses aws again, or still: {laptop.home}/.kube/config has changed since entries in it were adopted",
    )
    assert check.hint.startswith("eks-token adopt --context demo; use `eks-token kubeconfig` instead")


def test_atmos_own_kubeconfig_is_looked_at_too(laptop: Sandbox) -> None:
    atmos = {"command": "atmos", "args": ["aws", "eks", "token"], "name": "dev-cluster"}
    laptop.write(".config/atmos/kube/config", kubeconfig(atmos))
    assert doctor(laptop).checks["context dev-cluster"].found == "still uses atmos"


def test_of_several_files_the_first_that_has_a_user_counts(laptop: Sandbox) -> None:
    first = laptop.write("first", kubeconfig({"command": "eks-token", "args": ARGS}))
    second = laptop.write(
        "second", kubeconfig({"command": "aws"}, {"command": "bin/eks-token", "args": ARGS, "name": "b"})
    )
    report = doctor(laptop, env={"KUBECONFIG": f"{first}:{second}:/nowhere/config"})
    assert report.but_ok() == {}
    assert {"context demo", "context b"} <= report.checks.keys()
