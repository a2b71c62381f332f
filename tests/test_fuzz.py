"""Whatever it is given, the program prints a token that a cluster accepts, or says in one line why not.

Each case is a world: a command line, an environment, files, a keyring and what AWS answers. The first run in it must
succeed. Then one to three things are damaged, among them what the first run has stored, and the second run must keep
the rules of `check_end`. So half of all runs mint, and the other half begin where a real accident would.

    make fuzz MINUTES=60     goes on for an hour, and prints each new failure
"""

import argparse
import contextlib
import gc
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import pytest
import verifier
from conftest import ROOT, Sandbox, posix
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from keyring.backend import KeyringBackend
from servers import HttpServer, Incoming, Reply, query_result
from verifier import Key

import eks_token
from eks_token import Problem

pytestmark = posix

ARN = "arn:aws:iam::123456789012:user/fuzz"
MARK = "S3cr3tM4rk"  # in each secret, and in nothing else
LINE = re.compile("(eks-token: (error|warning): |hint: ).+")
TESTING = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


# --- worlds -------------------------------------------------------------------------------------------------


class World(NamedTuple):
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    files: Mapping[str, bytes]  # by their paths below HOME
    items: Mapping[tuple[str, str], str]  # the keyring's, by service and user
    keys: Mapping[str, Key]  # who may sign
    cluster: str


class MemoryKeyring(KeyringBackend):
    """The keyring of a run in this process, which `PYTHON_KEYRING_BACKEND` names."""

    priority = 1.0
    stored: ClassVar[dict[tuple[str, str], str]] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.stored.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.stored[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self.stored.pop((service, username), None)


SESSION = ("ASIAIOSFODNN7SESSION", Key(f"{MARK}OfTheSession", ARN, session_token=f"{MARK}/session+token=="))


class Aws(HttpServer):
    """STS, SSO and a container's credentials, as far as a token needs them. `spoil` may damage an answer."""

    spoil: Callable[[Reply], Reply]

    def reply(self, incoming: Incoming) -> Reply:
        key, (secret, _, token, *_) = SESSION
        end = time.time() + 3600
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
        session = dict(zip(names, (key, secret, token, eks_token.rfc3339(end)), strict=True))
        if action := re.search(rb"Action=(\w+)", incoming.body):
            answer = query_result(action[1].decode(), {"Credentials": session})
        elif incoming.path == "/federation/credentials":
            values = dict(zip(("accessKeyId", "secretAccessKey", "sessionToken"), session.values(), strict=False))
            answer = Reply.json(200, {"roleCredentials": {**values, "expiration": int(end * 1000)}})
        elif incoming.path == "/container":
            answer = Reply.json(200, {**session, "Token": token})
        else:
            answer = Reply.json(400, {"error": "invalid_request", "error_description": "no such thing"})
        return self.spoil(answer)


def untouched(reply: Reply) -> Reply:
    return reply


names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.@-]{0,20}", fullmatch=True).filter(
    lambda name: name.lower() not in ("false", "no", "off", "default")
)
clusters = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}", fullmatch=True)
regions = st.sampled_from(["us-east-1", "eu-west-1", "ap-southeast-2", "ca-west-1"])
secrets = st.from_regex(r"[A-Za-z0-9/+]{20,30}", fullmatch=True).map(lambda text: MARK + text)
key_ids = st.from_regex(r"AKIA[A-Z2-7]{16}", fullmatch=True)
ROLE = "arn:aws:iam::123456789012:role/fuzz"
KINDS = (
    "environment",
    "profile",
    "role",
    "stored",
    "stored_role",
    "mfa",
    "sso",
    "process",
    "web",
    "container",
    "atmos",
)


@st.composite
def worlds(draw: st.DrawFn, url: str, kinds: Sequence[str] = KINDS) -> World:
    """A world in which the command line mints."""
    kind, name, cluster = draw(st.sampled_from(kinds)), draw(names), draw(clusters)
    key, secret = draw(key_ids), draw(secrets)
    own = {"aws_access_key_id": key, "aws_secret_access_key": secret}
    words = {"bare": [], "aws": ["eks", "get-token"], "authenticator": ["token"]}
    grammar = draw(st.sampled_from(["bare", "aws"] if kind in ("mfa", "atmos", "environment") else [*words]))
    argv = [*words[grammar], "-i" if grammar == "authenticator" else "--cluster-name", cluster]
    argv += ["--region", draw(regions)]
    environ = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": url,
        "AWS_MAX_ATTEMPTS": "1",  # botocore waits between them
        "EKS_TOKEN_REFRESH": "off",
        "PYTHON_KEYRING_BACKEND": f"{MemoryKeyring.__module__}.MemoryKeyring",
    }
    if draw(st.booleans()):
        version = draw(st.sampled_from(["v1", "v1beta1"]))
        info = {"kind": "ExecCredential", "apiVersion": f"client.authentication.k8s.io/{version}"}
        environ["KUBERNETES_EXEC_INFO"] = json.dumps({**info, "spec": {"interactive": draw(st.booleans())}})
    profile: dict[str, str] = {}
    files: dict[str, bytes] = {}
    items: dict[tuple[str, str], str] = {}
    stored: dict[str, dict[str, str]] = {}
    token = Path(url.replace("http://", "/"), "token")  # replaced by a path below HOME
    if kind == "environment":
        environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    elif kind == "profile":
        profile = {**own, "region": draw(regions), "output": "json"}
    elif kind == "role":
        profile = {"role_arn": ROLE, "source_profile": f"{name}2", "role_session_name": draw(names).ljust(2, "x")}
        files[".aws/credentials"] = ini({f"{name}2": own})
    elif kind == "sso":
        start = f"https://{draw(names)}.awsapps.com/start"
        profile = {"sso_session": name, "sso_account_id": "123456789012", "sso_role_name": draw(names)}
        session = {"sso_start_url": start, "sso_region": draw(regions), "sso_registration_scopes": "sso:account:access"}
        files[".aws/config"] = ini({f"sso-session {name}": session})
        content = {"startUrl": start, "region": session["sso_region"], "accessToken": f"{MARK}access"}
        cached = {**content, "expiresAt": eks_token.rfc3339(time.time() + 7200)}
        files[f".aws/sso/cache/{hashlib.sha1(name.encode()).hexdigest()}.json"] = json.dumps(cached).encode()
    elif kind == "process":
        profile = {"credential_process": "cat keys.json"}
        printed = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret}
        files["keys.json"] = json.dumps(printed).encode()
    elif kind == "web":
        environ |= {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token)}
        files["token"] = f"{MARK}.web.identity".encode()
    elif kind == "container":
        environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{url}/container"
    elif kind == "atmos":
        end = eks_token.rfc3339(time.time() + 7200)
        files[f".config/atmos/{draw(names)}/aws/sso/credentials"] = f"; atmos: expiration={end}\n".encode() + ini(
            {name: own}
        )
    else:
        stored[name] = {"region": draw(regions)}
        items["eks-token", f"identity:{name}"] = json.dumps(own)
        if kind == "stored_role":
            stored[f"{name}-role"] = {"role_arn": ROLE, "source_profile": name}
            name = f"{name}-role"
        elif kind == "mfa":
            stored[name]["mfa_process"] = "echo 123456"
            stored[name]["mfa_serial"] = "arn:aws:iam::123456789012:mfa/fuzz"
    if profile:
        files[".aws/config"] = files.get(".aws/config", b"") + ini({f"profile {name}": profile})
    if stored:
        content_of_identities = {"identities": stored, "default": draw(st.sampled_from(["", *stored]))}
        files[".local/share/eks-token/identities.json"] = json.dumps(content_of_identities).encode()
    if kind not in ("environment", "web", "container"):
        if grammar == "authenticator" or (kind != "atmos" and draw(st.booleans())):
            environ["AWS_PROFILE"] = name
        else:
            argv += ["--profile" if grammar == "aws" else "--identity", name]
    known = {key: Key(secret, ARN), SESSION[0]: SESSION[1]}
    return World(tuple(argv), environ, files, items, known, cluster)


def ini(sections: Mapping[str, Mapping[str, str]]) -> bytes:
    lines = (
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items())
        for name, section in sections.items()
    )
    return "\n".join(lines).encode()


# --- damage -------------------------------------------------------------------------------------------------

ODD = [
    *["", " ", "\n", "\t", "\x1b[31m", "\x7f", "é", "\udce9", "\u2028", "\ufeff", "a" * 5000, "-", "--", "=", "%s"],
    *["${HOME}", "~", "..", "/", "0", "-1", "1e999", "9" * 400, "null", "[", "{", "]", "}", "'", '"', "#", ";"],
    *["true", "NaN", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "default", ROLE],
]
odd = st.sampled_from(ODD) | st.text(max_size=20)
odd_json: st.SearchStrategy[object] = st.sampled_from(
    [None, True, 0, -1, 1e308, float("nan"), float("inf"), 10**400, [], {}, [[]], {"": None}, *ODD, "[" * 3000]
)


def pick(draw: st.DrawFn, choices: Sequence[Any]) -> Any:
    """One of them. hypothesis wants each draw to be from the same range, and what a run leaves behind is not."""
    return choices[draw(st.integers(0, 9999)) % len(choices)]


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file, an item or an answer, after an accident or in another program's hands."""
    with contextlib.suppress(ValueError):
        if draw(st.booleans()) and isinstance(tree := json.loads(content), dict):
            return json.dumps(damaged_json(draw, tree)).encode()
    start = draw(st.integers(0, 9999)) * len(content) // 9999
    end = min(len(content), start + draw(st.integers(0, 40)))
    lines = content.splitlines(keepends=True) or [b""]
    at = draw(st.integers(0, 9999)) % len(lines)
    how = draw(st.sampled_from(["cut", "drop", "twice", "insert", "garbage", "without line", "line twice", "value"]))
    if how == "value":  # of a key in INI, of an element in XML
        new = draw(odd).encode(errors="surrogateescape")
        found = list(re.finditer(rb"(?<== ).+|(?<=>)[^<>]+(?=<)", content))
        if found:
            one = pick(draw, found)
            return content[: one.start()] + new + content[one.end() :]
    return {
        "cut": content[:start],
        "drop": content[:start] + content[end:],
        "twice": content[:end] + content[start:],
        "insert": content[:start] + draw(odd).encode(errors="surrogateescape") + content[start:],
        "garbage": draw(st.binary(max_size=50)),
        "without line": b"".join(lines[:at] + lines[at + 1 :]),
        "line twice": b"".join(lines[: at + 1] + lines[at:]),
    }.get(how, b"")


def damaged_json(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one of its values, on any level, replaced by another or left out."""
    if not isinstance(tree, (dict, list)) or not tree or draw(st.integers(0, 3)) == 0:
        return draw(odd_json)
    place = pick(draw, list(tree) if isinstance(tree, dict) else range(len(tree)))
    changed = tree.copy()
    if draw(st.integers(0, 4)) == 0:
        del changed[place]
    else:
        changed[place] = damaged_json(draw, tree[place])
    return changed


# A variable that decides where files are gets a path that is safe to write to. The others are not the program's.
VARIABLES = sorted(
    name
    for name, kind in eks_token.REQUEST_VARIABLES.items()
    if kind != "windows" and name not in ("HOME", "AWS_EC2_METADATA_DISABLED", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
)
OPTIONS = ["--help", "--version", "--refresh", "--debug", "--cache", "-i", "--identity=", "--role-arn", "--cluster-id"]
OPTIONS += ["--query", "--output", "text", "--token-only", "--external-id", "--session-name", "status", "eks", "token"]


@st.composite
def damaged_world(draw: st.DrawFn, world: World, kinds: Sequence[str]) -> World:
    what = draw(st.sampled_from(kinds))
    text = odd.filter(lambda text: "\0" not in text)  # which the kernel keeps out
    if what == "argv":
        at = draw(st.integers(0, len(world.argv)))
        new = [draw(st.sampled_from(OPTIONS) | text)] if draw(st.booleans()) else []
        return world._replace(argv=(*world.argv[:at], *new, *world.argv[at + draw(st.integers(0, 1)) :]))
    if what == "environ":
        name = draw(st.sampled_from(VARIABLES))
        return world._replace(environ={**world.environ, name: draw(text.filter(lambda text: not text.startswith("/")))})
    if what == "exec info":
        info = world.environ.get("KUBERNETES_EXEC_INFO", '{"spec": {"interactive": true}}').encode(
            errors="surrogateescape"
        )
        new_info = draw(damaged_bytes(info)).decode(errors="surrogateescape").replace("\0", "")
        return world._replace(environ={**world.environ, "KUBERNETES_EXEC_INFO": new_info})
    if what == "item" and world.items:
        item = pick(draw, sorted(world.items))
        value = draw(damaged_bytes(world.items[item].encode())).decode(errors="replace")
        return world._replace(items={**world.items, item: value})
    files = [name for name, content in sorted(world.files.items()) if b"_process" not in content]
    if files:  # those that name no command to be run
        name = pick(draw, files)
        return world._replace(files={**world.files, name: draw(damaged_bytes(world.files[name]))})
    return world


@st.composite
def spoiling(draw: st.DrawFn) -> Callable[[Reply], Reply]:
    """What an answer becomes: the same for each answer of a run."""
    status = draw(st.sampled_from([200, 200, 200, 201, 302, 400, 403, 404, 429, 500, 503]))
    example = query_result("AssumeRole", {"Credentials": {"AccessKeyId": "x", "Expiration": "y"}})
    foreign = draw(st.sampled_from([b"", b"<html>sign in to the proxy</html>", b"{}", b"[]", example.body]))
    choice, choices = draw(st.booleans()), draw(st.randoms(use_true_random=False))

    def spoil(reply: Reply) -> Reply:
        if choice:
            return reply._replace(status=status, body=foreign)
        body = reply.body
        places = [found.span() for found in re.finditer(rb'(?<=>)[^<>]+(?=<)|"[^"]*"|\d+', body)]
        start, end = choices.choice(places)
        new = choices.choice([*ODD, "null", "[]", "{}", '"x"']).encode(errors="surrogateescape")
        return reply._replace(status=status, body=body[:start] + new + body[end:])

    return spoil


# --- runs ---------------------------------------------------------------------------------------------------


class End(NamedTuple):
    status: int
    stdout: str
    stderr: str
    bug: str = ""  # the traceback of an unexpected error


def place(world: World, home: Path) -> dict[str, str]:
    """Writes a world's files, ten minutes old, and returns its environment."""
    for name, content in world.files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
            path.chmod(0o600)
            os.utime(path, (time.time() - 600,) * 2)
    for path in [*home.rglob("*"), home]:
        if path.is_dir():
            os.utime(path, (time.time() - 600,) * 2)
    environ = {**world.environ, "HOME": str(home), "PATH": os.environ["PATH"]}
    environ |= {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}  # nothing is asked outside
    return {name: str(home / "token") if value.endswith("/token") else value for name, value in environ.items()}


def run(world: World, home: Path) -> End:
    """Runs the program in this process."""
    bugs: list[str] = []
    really_run = eks_token.run

    def watched_run(invocation: eks_token.Invocation) -> int:
        try:
            return really_run(invocation)
        except (Problem, eks_token.ReaderGone, SystemExit):
            raise
        except BaseException:
            bugs.append(traceback.format_exc())
            raise

    before, mask, paths = os.getcwd(), os.umask(0o077), [*sys.path]
    out, err = io.StringIO(), io.StringIO()
    MemoryKeyring.stored = dict(world.items)
    with (
        mock.patch.dict(os.environ, place(world, home), clear=True),
        mock.patch.object(eks_token, "run", watched_run),
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.chdir(home)
        try:
            status: object = eks_token.main(world.argv)
        except SystemExit as end:
            status = end.code
        finally:
            os.chdir(before)
            os.umask(mask)
            sys.path[:] = paths
            gc.enable()
            eks_token._secrets.clear()
            eks_token._debugging = False
    return End(int(str(status or 0)), out.getvalue(), err.getvalue(), "".join(bugs))


def after(world: World, home: Path) -> World:
    """The world as a run has left it."""
    files = {str(path.relative_to(home)): path for path in home.rglob("*")}
    contents = {name: path.read_bytes() for name, path in files.items() if path.is_file() and path.stat().st_size}
    return world._replace(files=contents, items=dict(MemoryKeyring.stored))


def check_minted(world: World, end: End) -> None:
    """A token for the cluster, signed by one of the world's keys."""
    assert end.status == 0 and not end.bug, (end.stderr, end.bug)
    assert not end.stderr
    token = json.loads(end.stdout)["status"]["token"]
    assert verifier.verify(token, cluster=world.cluster, secrets=world.keys).arn == ARN


def check_end(world: World, end: End) -> None:
    """What holds however a run ends."""
    assert not end.bug, end.bug
    assert MARK not in end.stderr, end.stderr
    assert end.status in (0, 1, 2), end.status
    assert bool(end.stdout) == (end.status == 0), (end.status, end.stdout, end.stderr)
    lines = end.stderr.split("\n")[:-1]
    if not world.argv or "--debug" in world.argv:
        return
    assert sum(line.startswith("eks-token: error: ") for line in lines) == bool(end.status), end.stderr
    for line in lines:
        assert LINE.fullmatch(line), end.stderr
        assert line.isprintable(), end.stderr
        assert len(line.encode(errors="surrogateescape")) <= 500, end.stderr


WAYS = ("argv", "environ", "exec info", "item", "file", "file", "answer")
shares: Counter[str] = Counter()  # runs, and those that printed a token


def one_case(data: st.DataObject, aws: Aws, runner: Callable[[World, Path], End], kinds: Sequence[str] = KINDS) -> None:
    home = Path(tempfile.mkdtemp(prefix="eks-token-fuzz-"))
    aws.spoil = untouched
    try:
        world = data.draw(worlds(aws.url, kinds))
        end = runner(world, home)
        check_minted(world, end)
        world = after(world, home)
        for way in data.draw(st.lists(st.sampled_from(WAYS), min_size=1, max_size=3)):
            if way == "answer":
                aws.spoil = data.draw(spoiling())
            else:
                world = data.draw(damaged_world(world, [way]))
        if data.draw(st.booleans()):
            world = world._replace(argv=(*world.argv, "--refresh"))
        again = runner(world, home)
        check_end(world, again)
        shares.update(runs=2, minted=1 + (again.status == 0 and '"token"' in again.stdout))
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def aws_answers() -> Iterator[Aws]:
    with Aws() as server:
        yield server


def test_a_run_mints_or_says_in_one_line_why_not(aws_answers: Aws) -> None:
    shares.clear()

    @settings(TESTING, max_examples=120)
    @given(st.data())
    def cases(data: st.DataObject) -> None:
        one_case(data, aws_answers, run)

    cases()
    assert shares["minted"] * 2 >= shares["runs"]


@pytest.mark.parametrize(
    ("variables", "status", "words"),
    [
        pytest.param(
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "/container"},
            429,
            "Received non 200 response 429 from container metadata: Too Many Requests",
            id="an error of a container's service that has credentials in it",
        ),
        pytest.param(
            {
                "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
                "KUBERNETES_EXEC_INFO": '{"apiVersion": "' + "[" * 3000 + '"}',
            },
            200,
            "KUBERNETES_EXEC_INFO asks for API version",
            id="an API version of 3 kB",
        ),
    ],
)
def test_what_was_found_stays_fixed(
    variables: Mapping[str, str], status: int, words: str, aws_answers: Aws, tmp_path: Path
) -> None:
    aws_answers.spoil = lambda reply: reply._replace(status=status)
    environ = {name: aws_answers.url + value if name.endswith("_URI") else value for name, value in variables.items()}
    world = World(("--cluster-name", "demo", "--region", "us-east-1"), environ, {}, {}, {}, "demo")
    end = run(world, tmp_path)
    check_end(world, end)
    assert end.status == 1 and words in end.stderr


def test_the_executable_keeps_the_same_rules(aws_answers: Aws, home: Sandbox) -> None:
    assert home.executable

    def run_executable(world: World, place_of: Path) -> End:
        cache = place_of / ".cache/eks-token"
        if not cache.exists():
            shutil.copytree(home.cache / "app", cache / "app", copy_function=os.link)
        environ = place(world, place_of)
        done = home.run(
            *world.argv, command=[home.executable], python=home.python, env={**dict.fromkeys(home.env), **environ}
        )
        return End(done.returncode, done.stdout, done.stderr)

    @settings(TESTING, max_examples=6)
    @given(st.data())
    def cases(data: st.DataObject) -> None:
        one_case(data, aws_answers, run_executable, ["environment", "profile", "role", "sso", "web"])

    cases()


# --- what reads a single text -------------------------------------------------------------------------------

READERS: Mapping[str, tuple[Callable[[str], object], Sequence[type[Exception]], Sequence[str]]] = {
    "exec info": (eks_token.exec_info, [Problem], ['{"apiVersion": "client.authentication.k8s.io/v1"}']),
    "a time": (eks_token.parse_time, [ValueError], ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123+02:00"]),
    "an answer": (
        eks_token.parse_answer,
        [ValueError],
        [
            eks_token.answer_script(
                eks_token.Answer("line", 1, 2, eks_token.look_at(["/etc/passwd"]), "it's"), ["[ a ]"]
            )
        ],
    ),
    "a duration": (eks_token.go_seconds, [ValueError], ["12h", "1h30m", "90s"]),
    "a Go keyring's item": (eks_token.go_keyring_decoded, [ValueError], ["go-keyring-base64:e30=", "{}"]),
    "a role": (eks_token.check_role_arn, [Problem], [ROLE]),
    "arguments": (
        lambda text: eks_token.parse_request(text.split(" "), {}, "v1"),
        [Problem],
        [
            "--cluster-name a --region us-east-1 --identity=x --role-arn " + ROLE,
            "--region us-east-1 eks get-token --cluster-name a --output json --query status.token --no-verify-ssl",
            "token -i a -r " + ROLE + " -s me --token-only --region us-east-1",
            "aws eks token --cluster-name a --region us-east-1 --identity x --pager --no-color",
        ],
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_text_is_read_or_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    read, refusals, samples = READERS[name]
    for sample in samples:
        read(sample)

    @settings(TESTING, max_examples=150)
    @given(st.data())
    def cases(data: st.DataObject) -> None:
        sample = data.draw(st.sampled_from(samples))
        text = data.draw(st.text(max_size=100) | damaged_bytes(sample.encode())) if sample else ""
        text = text if isinstance(text, str) else text.decode(errors="surrogateescape")
        try:
            read(text)
        except tuple(refusals) as refusal:
            assert str(refusal) or type(refusal) is not Problem

    cases()


# --- for longer ---------------------------------------------------------------------------------------------


def fuzz(minutes: float) -> int:
    """Runs batches of cases, each with a new seed, and prints each failure the first time."""
    end, failures, cases = time.monotonic() + minutes * 60, Counter[str](), 0
    start = time.time_ns()
    with Aws() as aws:
        while time.monotonic() < end:
            batch = start + cases

            @seed(batch)
            @settings(TESTING, max_examples=100, derandomize=False, print_blob=False, phases=[Phase.generate])
            @given(st.data())
            def some(data: st.DataObject) -> None:
                one_case(data, aws, run)

            try:
                some()
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    break
                for one in error.exceptions if isinstance(error, BaseExceptionGroup) else [error]:
                    lines = str(one).strip().splitlines() or [repr(one)]
                    kind = re.sub(
                        r"eks-token-fuzz-\w+|[0-9a-f]{8,}", "*", lines[-1] if "Traceback" in lines[0] else lines[0]
                    )
                    failures[kind[:120]] += 1
                    if failures[kind[:120]] == 1:
                        print(f"--- seed {batch}\n{one}\n" + "\n".join(getattr(one, "__notes__", [])), flush=True)
            cases += 100
            print(f"{time.strftime('%H:%M:%S')} {cases} cases, {shares}, {dict(failures)}", flush=True)
    return bool(failures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    sys.path[:0] = [str(ROOT)]
    sys.exit(fuzz(parser.parse_args().minutes))
