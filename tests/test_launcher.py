"""The shell script at the head of the executable: it answers like the module, in every shell.

The tests compare it with the module: with what it has stored, and what it would look up for the same arguments and
environment. Each shell runs under the name sh, as on a system that has it as /bin/sh.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import package
import pytest
from conftest import as_root, interpreters, need
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import wait_for

import eks_token

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="only on POSIX: Windows starts Python itself")

LAUNCHER = package.launcher_text()
BUILD = "0123456789abcdef"
MISS = "MISS"
VARIABLES = [name for name, kind in eks_token.REQUEST_VARIABLES.items() if kind != "windows"]
YEAR = 365 * 24 * 3600  # seconds

TOKEN = ("--cluster-name", "demo", "--region", "us-east-2", "--identity", "dev")
AUTHENTICATOR = ("token", "-i", "demo")
PLAIN = [
    TOKEN,
    ("--cluster-name=demo", "--region=us-east-2", "-i", "dev", "--role-arn", "arn:aws:iam::111122223333:role/a/b"),
    ("aws", "eks", "token", "--cluster-name", "demo", "--region", "eu-west-1", "--identity=dev@acme.com"),
    ("--region", "us-east-2", "eks", "get-token", "--cluster-name", "demo", "--output", "json"),
    ("eks", "get-token", "--cluster-name", "demo", "--query", "status.token"),
    AUTHENTICATOR,
]
"""Requests in every grammar. The launcher can answer all of them."""


class Shell(NamedTuple):
    name: str
    path: str


SHELLS = ["dash", "bash", "busybox", "zsh", "mksh", "ksh93"]


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Shell:
    """Each shell in turn."""
    return Shell(request.param, *need(request.param))


@pytest.fixture(scope="module")
def shells() -> list[Shell]:
    """All shells that are installed, in one test."""
    found = [Shell(name, path) for name in SHELLS for path in [shutil.which(name)] if path]
    return found or [Shell("sh", *need("sh"))]


def suitable(command: str) -> str:
    """A script that the launcher takes for a Python that is new enough. It runs the command if it is not just tried."""
    return f'#!/bin/sh\n[ "$3" = -c ] && echo True && exit\n{command}\n'


class Desk:
    """A home with the launcher, answers that Cache.store has stored, and a Python that only says that it was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir()
        self.file = self.script("eks-token", LAUNCHER.replace("@BUILD@", BUILD))
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "EKS_TOKEN_REFRESH": "off",
            "EKS_TOKEN_PYTHON": str(self.script("asked", suitable(f"printf {MISS}"))),
        }
        directory = eks_token.cache_home(self.environ, sys.platform)
        assert directory is not None
        self.cache = eks_token.Cache(directory, str(self.home))
        os.makedirs(directory, 0o700)
        self.stored = 0

    def script(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def key(self, argv: Sequence[str], environ: Mapping[str, str]) -> eks_token.Key | None:
        version = eks_token.exec_info(environ.get("KUBERNETES_EXEC_INFO", "")).version
        return eks_token.request_key(version, argv, environ, sys.platform)

    def here(self, argv: Sequence[str] = TOKEN, environ: Mapping[str, str] | None = None) -> Path:
        """The directory of the answer to this request."""
        key = self.key(argv, self.environ if environ is None else environ)
        assert key is not None
        return Path(self.cache.root, "tokens", key.directory)

    def store(
        self,
        argv: Sequence[str] = TOKEN,
        environ: Mapping[str, str] | None = None,
        watched: Sequence[str | Path] = (),
    ) -> str:
        """Store a new answer to this request and return it. Directories look old."""
        for directory in {above for path in watched for above in Path(path).parents if self.root in above.parents}:
            if directory.exists():
                os.utime(directory, (time.time() - 100,) * 2)
        key = self.key(argv, self.environ if environ is None else environ)
        self.stored += 1
        answer = f"answer {self.stored}"
        if key is not None:
            now = int(time.time())
            minted = eks_token.Minted(answer, now, now + 840, True)
            state = eks_token.look_at(map(str, watched))
            self.cache.store(key, minted, state, self.cache.generation())
        return answer

    def module(self, argv: Sequence[str] = TOKEN, environ: Mapping[str, str] | None = None) -> str | None:
        """The module's answer to this request."""
        environ = self.environ if environ is None else environ
        try:
            key = self.key(argv, environ)
        except eks_token.Problem:
            return None
        directory = eks_token.cache_home(environ, sys.platform)
        if key is None or directory is None or "--refresh" in argv:
            return None
        answer = eks_token.Cache(directory).lookup(key, time.time())
        return answer and answer.text

    def launcher(
        self, shell: Shell, argv: Sequence[str] = TOKEN, environ: Mapping[str, str] | None = None, name: str = "sh"
    ) -> str | None:
        """What the launcher prints without asking Python; None if it does ask."""
        done = subprocess.run(
            [name, str(self.file), *argv],
            executable=shell.path,
            env=self.environ if environ is None else environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        # bash and mksh report an unknown locale
        messages = b"" if b"setlocale" in done.stderr else done.stderr
        assert (done.returncode, messages) == (0, b""), (shell.name, argv, done)
        output = done.stdout.decode()
        if output == MISS:
            return None
        assert output.endswith("\n") and "\n" not in output[:-1], (shell.name, output)
        return output[:-1]

    def answers(
        self, shells: Sequence[Shell], argv: Sequence[str] = TOKEN, environ: Mapping[str, str] | None = None
    ) -> dict[str, str | None]:
        """What each shell and the module answer to this request."""
        found = {shell.name: self.launcher(shell, argv, environ) for shell in shells}
        return found | {"module": self.module(argv, environ)}


@pytest.fixture(scope="module")
def _without_flush() -> Iterator[None]:
    """No test here turns the machine off, and flushing hundreds of files to disk takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def desk(tmp_path: Path, _without_flush: None) -> Desk:
    return new_desk(tmp_path)


@pytest.fixture(scope="module")
def shared_desk(tmp_path_factory: pytest.TempPathFactory, _without_flush: None) -> Desk:
    """For generated requests. Each stores its own answer."""
    return new_desk(tmp_path_factory.mktemp("shared"))


def new_desk(directory: Path) -> Desk:
    (directory / "desk").mkdir()
    return Desk(directory / "desk")


def old_file(path: Path, text: str = "", age: float = 100) -> Path:
    """A file that was written `age` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    modified = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(modified, modified))
    return path


# --- launcher and module agree ------------------------------------------------------------------------------

KUBECTL_INFO = [
    f'{{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/{version}"'
    f',"spec":{{"interactive":{interactive}}}}}\n'
    for version in ("v1", "v1beta1")
    for interactive in ("true", "false")
]
OTHER_INFO = [
    "{}",
    "null",
    "not JSON",
    KUBECTL_INFO[0].rstrip("\n"),
    KUBECTL_INFO[0].replace("v1", "v1alpha1"),
    KUBECTL_INFO[0].replace("v1", "v2"),
    KUBECTL_INFO[0].replace('"spec"', '"spec":{"cluster":{"server":"https://a"}},"spec"'),
    KUBECTL_INFO[0] + "\n",
    " " + KUBECTL_INFO[2],
]

no_nul = st.binary(max_size=12).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
odd_texts = st.one_of(
    st.sampled_from(
        [
            *["", " ", "..", ".", "/", "//", "a/", "/a", "a/../b", "a/./b", "a//b", "../../x", "-", "--", "|", "%"],
            *["a|b", "#", "*", "?", "[a]", "~", "$HOME", "`id`", "\\", "\\n", "a\nb", "\n", "'", '"', "\t", "\x7f"],
            *[
                "é",
                "e\u0301",
                "\u0131",
                "\udcff",
                "\udcc3",
                "a\udcffb",
                "x" * 200,
                "x" * 201,
                "x/" * 90 + "x",
                "é" * 120,
            ],
            *["%answer", "v1", "v1beta1", "HOME=/root", "AWS_PROFILE=dev", "--region", "--region=", "-n"],
        ]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
    no_nul,
)
plain_texts = st.from_regex(r"\A[A-Za-z0-9_.:@=,+-]{1,8}(/[A-Za-z0-9_:@=,+-]{1,8}){0,2}\Z")
names = st.one_of(st.sampled_from(["demo", "Demo", "dev", "prod", "us-east-2", "eu-west-1"]), plain_texts)
options = st.sampled_from(
    ["--cluster-name", "--region", "--identity", "-i", "--role-arn", "--profile", "-r", "--output", "--refresh"]
)
words = st.one_of(names, options, odd_texts, st.builds("{}={}".format, options, names), st.just("--debug"))
arguments = st.one_of(
    st.sampled_from(PLAIN).map(list),
    st.builds(lambda name, region: ["--cluster-name", name, "--region", region], names, names),
    st.builds(lambda name: ["eks", "get-token", "--cluster-name", name], names),
    st.lists(words, max_size=6),
)
values = st.one_of(
    names,
    st.sampled_from(["", "regional", "legacy", "/x/config", "/x", "x/config", "~/config", "/x/$HOME", "/x/", "true"]),
    odd_texts,
)
variable_names = st.sampled_from([*VARIABLES[1:], "EKS_TOKEN_DEBUG"])
file_variables = st.sampled_from(eks_token.variables_of("path"))
environments = st.builds(
    lambda some, files, info: {**some, **files, **({} if info is None else {"KUBERNETES_EXEC_INFO": info})},
    st.dictionaries(variable_names, values, max_size=4),
    st.dictionaries(file_variables, st.sampled_from(["/x/config", "/x/y/z", "x", "~/x", "/x/$y"]), max_size=1),
    st.one_of(st.none(), st.just(""), st.sampled_from(KUBECTL_INFO), st.sampled_from(OTHER_INFO)),
)


class Asked(NamedTuple):
    argv: tuple[str, ...]
    variables: Mapping[str, str]


requests = st.builds(lambda argv, variables: Asked(tuple(argv), variables), arguments, environments)


CHANGES = (
    *("insert", "replace", "drop", "case", "split", "join", "swap"),  # arguments
    *("set", "unset", "argument", "version"),  # variables
)


@st.composite
def near_misses(draw: st.DrawFn) -> tuple[Asked, Asked]:
    """A request, and one that is the same or differs from it as little as possible."""
    asked = draw(requests)
    argv, variables = list(asked.argv), dict(asked.variables)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, max(0, len(argv) - 1)))
        word, two = "".join(argv[at : at + 1]), argv[at : at + 2]
        known = draw(st.sampled_from(sorted(variables) or [""]))
        match draw(st.sampled_from(CHANGES)):
            case "insert":
                argv.insert(at, draw(words))
            case "replace":
                argv[at : at + 1] = [draw(words)]
            case "drop":
                argv[at : at + 1] = []
            case "case":
                argv[at : at + 1] = [word.swapcase()]
            case "split":  # parts that meet at another place: a/b is not a, b
                cut = draw(st.integers(0, len(word)))
                argv[at : at + 1] = [word[:cut], word[cut:]]
            case "join":
                argv[at : at + 2] = [draw(st.sampled_from(["", "=", "/", "|", " ", "|/"])).join(two)]
            case "swap":
                argv[at : at + 2] = reversed(two)
            case "set":
                variables[draw(variable_names)] = draw(values)
            case "unset":
                variables.pop(known, None)
            case "argument":  # what a variable adds to the request line, given as an argument
                argv.append(f"{known}={variables.pop(known, '')}")
            case "version":
                variables["KUBERNETES_EXEC_INFO"] = draw(st.sampled_from([*KUBECTL_INFO, *OTHER_INFO, ""]))
    return asked, Asked(tuple(argv), variables)


def is_the_launchers(asked: Asked, key: eks_token.Key | None) -> bool:
    """Whether the launcher has to answer this, if the module can."""
    given = {name: value for name, value in asked.variables.items() if value}
    if key is None or key.directory.startswith("%") or "--debug" in asked.argv or "EKS_TOKEN_DEBUG" in given:
        return False
    if given.get("KUBERNETES_EXEC_INFO", "") not in ("", *KUBECTL_INFO):
        return False
    if given.keys() & set(eks_token.variables_of("secret")):
        return False
    files = [value for name, value in given.items() if name in eks_token.variables_of("path")]
    return all(path.startswith("/") and "$" not in path for path in files)


@given(pair=near_misses())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_launcher_answers_what_the_module_would_and_never_anything_else(
    pair: tuple[Asked, Asked], shell: Shell, shared_desk: Desk
) -> None:
    stored, asked = pair
    try:
        shared_desk.store(stored.argv, shared_desk.environ | dict(stored.variables))
    except eks_token.Problem:  # an API version that is none
        pass
    environ = shared_desk.environ | dict(asked.variables)
    expected = shared_desk.module(asked.argv, environ)
    answer = shared_desk.launcher(shell, asked.argv, environ)
    if expected is None or answer is not None:
        assert answer == expected
    else:
        assert not is_the_launchers(asked, shared_desk.key(asked.argv, environ))


@given(parts=st.lists(st.one_of(odd_texts, values), min_size=20, max_size=60))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_launcher_and_module_agree_on_what_is_plain(parts: list[str], shell: Shell) -> None:
    function = re.search(r"^et_plain\(\) \{\n.*?^\}\n", LAUNCHER, re.S | re.M)
    assert function
    loop = 'for part; do if et_plain "$part"; then echo plain; else echo odd; fi; done'
    done = subprocess.run(
        ["sh", "-c", f"{function.group()}\n{loop}", "sh", *parts],
        executable=shell.path,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line == "plain" for line in done.stdout.splitlines()]
    assert said == [eks_token.is_plain(eks_token.quoted(part)) for part in parts]


@pytest.mark.parametrize("info", [*KUBECTL_INFO, "", None], ids=["v1", "v1 alone", "v1beta1", "v1beta1 alone", "", "-"])
def test_launcher_answers_every_plain_request(desk: Desk, shell: Shell, info: str | None) -> None:
    environ = desk.environ | {"AWS_PROFILE": "dev", "AWS_CONFIG_FILE": "/x/config"}
    environ |= {} if info is None else {"KUBERNETES_EXEC_INFO": info}
    answers = [desk.store(argv, environ) for argv in PLAIN]
    assert [desk.launcher(shell, argv, environ) for argv in PLAIN] == answers


def test_launcher_is_the_same_under_the_shells_own_name(desk: Desk, shell: Shell) -> None:
    answer = desk.store()
    name = "sh" if shell.name == "busybox" else shell.name
    assert desk.launcher(shell, name=name) == answer
    assert desk.launcher(shell, [*TOKEN, "--refresh"], name=name) is None


def test_yash_never_answers(desk: Desk) -> None:
    """It drops bytes that are not UTF-8 from variables, so two requests could look like one."""
    desk.store()
    assert desk.launcher(Shell("yash", *need("yash"))) is None


@pytest.mark.parametrize(
    ("argv", "variables"),
    [
        pytest.param((*TOKEN, "--refresh"), {}, id="a new token is asked for"),
        pytest.param((*TOKEN, "--debug"), {}, id="the steps are asked for"),
        pytest.param(TOKEN, {"EKS_TOKEN_DEBUG": "1"}, id="the steps are asked for by a variable"),
        *(pytest.param(TOKEN, {name: "x"}, id=f"{name} is hashed") for name in eks_token.variables_of("secret")),
    ],
)
def test_launcher_leaves_to_python(
    desk: Desk, shells: list[Shell], argv: Sequence[str], variables: Mapping[str, str]
) -> None:
    environ = desk.environ | dict(variables)
    desk.store(argv, environ)
    assert {desk.launcher(shell, argv, environ) for shell in shells} == {None}


def test_the_launcher_names_every_variable_of_the_module() -> None:
    names = re.findall(r"[A-Z0-9_]{4,}", LAUNCHER)
    assert set(VARIABLES) <= set(names)
    assert set(re.findall("@[A-Z]+@", LAUNCHER)) == {"@BUILD@", "@VERSION@"}


# --- never wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIABLES[1:])
def test_another_value_of_a_variable_is_another_request(desk: Desk, shells: list[Shell], name: str) -> None:
    """No argument names a region here, so that the two region variables count."""
    unset, one, other = desk.environ, desk.environ | {name: "/x/one"}, desk.environ | {name: "/x/other"}
    desk.store(AUTHENTICATOR, unset)
    assert set(desk.answers(shells, AUTHENTICATOR, one).values()) == {None}
    desk.store(AUTHENTICATOR, one)
    assert set(desk.answers(shells, AUTHENTICATOR, other).values()) == {None}
    shutil.rmtree(desk.cache.root + "/tokens")
    desk.store(AUTHENTICATOR, one)
    assert set(desk.answers(shells, AUTHENTICATOR, unset).values()) == {None}


@pytest.mark.parametrize(
    ("argv", "variables"),
    [
        pytest.param(TOKEN, {"AWS_REGION": "a", "AWS_DEFAULT_REGION": "b"}, id="regions that an option overrides"),
        pytest.param(("--region=us-east-2", *TOKEN[:2]), {"AWS_REGION": "eu-west-1"}, id="the same, joined on"),
        pytest.param(TOKEN, {"AWS_STS_REGIONAL_ENDPOINTS": "regional"}, id="the value that is the default"),
        pytest.param(TOKEN, dict.fromkeys(VARIABLES[1:], ""), id="empty variables"),
        pytest.param(TOKEN, {"EDITOR": "vi", "AWS_PAGER": "less"}, id="variables that do not matter"),
    ],
)
def test_variables_that_change_nothing_change_no_request(
    desk: Desk, shells: list[Shell], argv: Sequence[str], variables: Mapping[str, str]
) -> None:
    answer = desk.store(argv)
    assert set(desk.answers(shells, argv, desk.environ | dict(variables)).values()) == {answer}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("DBUS_SESSION_BUS_ADDRESS", ["unix:path=/tmp/a", "unix:path=/tmp/b", "unix:path=/run/user/99999/bus"]),
        ("XDG_RUNTIME_DIR", ["/tmp/a", "/tmp/b", "/run/usr"]),
        ("KEYRING_PROPERTY_PREFERRED_COLLECTION", ["/org/a", "/org/b"]),
        ("KEYRING_PROPERTY_WALLET", ["a", "b"]),
        ("AWS_ENDPOINT_URL_STS", ["http://a/b", "http:/a/b", "http:///a/b", "https://a/b"]),
    ],
)
def test_another_keyring_or_endpoint_is_another_request(
    desk: Desk, shells: list[Shell], name: str, values: list[str]
) -> None:
    environs = [desk.environ, *(desk.environ | {name: value} for value in values)]
    for environ in environs:
        answer = desk.store(TOKEN, environ)
        assert set(desk.answers(shells, TOKEN, environ).values()) == {answer}
        for other in environs:
            if other != environ:
                assert answer not in desk.answers(shells, TOKEN, other).values()


def test_the_users_own_bus_is_as_if_unset(desk: Desk, shells: list[Shell], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = desk.store()
    user = f"/run/user/{os.geteuid()}"
    assert set(desk.answers(shells, TOKEN, desk.environ | {"XDG_RUNTIME_DIR": user}).values()) == {answer}
    if not os.path.isdir(user):
        pytest.skip("only on systems with a runtime directory")
    environ = desk.environ | {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={user}/bus"}
    assert set(desk.answers(shells, TOKEN, environ).values()) == {answer}


def test_a_backend_that_is_not_keyrings_own_is_left_to_python(desk: Desk, shells: list[Shell]) -> None:
    environ = desk.environ | {"PYTHON_KEYRING_BACKEND": "keyrings.cryptfile.CryptFileKeyring"}
    answer = desk.store(TOKEN, environ)
    assert {desk.launcher(shell, TOKEN, environ) for shell in shells} == {None}
    assert desk.module(TOKEN, environ) == answer
    environ = environ | {"KEYRING_PROPERTY_KEYRING_KEY": "hush"}
    assert set(desk.answers(shells, TOKEN, environ).values()) == {None}
    key = desk.key(TOKEN, environ)
    assert key and "hush" not in key.line


@pytest.mark.parametrize("word", ["--regional", "--region-x=a", "region=a", "-region", "x--region"])
def test_a_word_like_the_region_option_overrides_no_variable(desk: Desk, shells: list[Shell], word: str) -> None:
    desk.store((*AUTHENTICATOR, word))
    environ = desk.environ | {"AWS_REGION": "eu-west-1"}
    assert set(desk.answers(shells, (*AUTHENTICATOR, word), environ).values()) == {None}


def test_another_home_is_another_request_even_with_a_copy_of_the_cache(desk: Desk, shells: list[Shell]) -> None:
    desk.store()
    other = desk.root / "other"
    shutil.copytree(desk.home, other)
    environ = desk.environ | {"HOME": str(other)}
    assert set(desk.answers(shells, TOKEN, environ).values()) == {None}
    # not even if the copy is at the path that an answer would have there
    root = Path(str(eks_token.cache_home(environ, sys.platform)))
    shutil.copytree(desk.here(), root / desk.here(TOKEN, environ).relative_to(desk.cache.root))
    shutil.copy(Path(desk.cache.root, "now"), root)
    assert set(desk.answers(shells, TOKEN, environ).values()) == {None}


@pytest.mark.parametrize("home", ["", "relative/home", "/nonexistent/home", None])
def test_without_a_home_nothing_is_answered(desk: Desk, shells: list[Shell], home: str | None) -> None:
    desk.store()
    environ = {name: value for name, value in desk.environ.items() if name != "HOME"}
    environ |= {"XDG_CACHE_HOME": str(Path(desk.cache.root).parent)} | ({} if home is None else {"HOME": home})
    assert {desk.launcher(shell, TOKEN, environ) for shell in shells} == {None}


def test_another_cache_home_has_other_answers(desk: Desk, shells: list[Shell], tmp_path: Path) -> None:
    desk.store()
    environ = desk.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    assert set(desk.answers(shells, TOKEN, environ).values()) == {None}
    shutil.copytree(desk.cache.root, tmp_path / "eks-token")
    assert set(desk.answers(shells, TOKEN, environ).values()) == {desk.module()}


def test_relative_cache_home_is_as_if_unset(desk: Desk, shells: list[Shell]) -> None:
    answer = desk.store()
    assert set(desk.answers(shells, TOKEN, desk.environ | {"XDG_CACHE_HOME": "relative"}).values()) == {answer}


@pytest.mark.parametrize("info", [KUBECTL_INFO[0], *OTHER_INFO])
def test_another_api_version_is_another_request(desk: Desk, shells: list[Shell], info: str) -> None:
    desk.store(TOKEN, desk.environ | {"KUBERNETES_EXEC_INFO": KUBECTL_INFO[2]})
    environ = desk.environ | {"KUBERNETES_EXEC_INFO": info}
    assert {desk.launcher(shell, TOKEN, environ) for shell in shells} == {None}


def test_a_file_system_that_ignores_case_confuses_nobody(desk: Desk, shells: list[Shell]) -> None:
    """The path of the other request leads to this one's answer there."""
    desk.store()
    other = (*TOKEN[:-1], "Dev")
    shutil.copytree(desk.here(), desk.here(other))
    assert (desk.here(other) / "%answer").exists()
    assert set(desk.answers(shells, other).values()) == {None}


def shifted(seconds: float) -> Callable[[Path], object]:
    def shift(path: Path) -> None:
        modified = path.stat().st_mtime_ns + int(seconds * 1e9)
        os.utime(path, ns=(modified, modified))

    return shift


def replaced_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(shifted(50), id="newer"),
        pytest.param(shifted(-50), id="older, as when a backup is put back"),
        pytest.param(shifted(1), id="a second newer"),
        pytest.param(Path.unlink, id="gone"),
        pytest.param(replaced_by_directory, id="a directory now"),
        pytest.param(lambda path: path.write_text("changed"), id="written"),
    ],
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_change_of_a_file_that_was_read_ends_the_answer(
    desk: Desk, shells: list[Shell], which: int, change: Callable[[Path], object]
) -> None:
    watched = [
        old_file(desk.home / ".aws/config"),
        old_file(desk.home / ".aws/credentials"),
        old_file(desk.home / ".local/share/eks-token/identities.json"),
    ]
    answer = desk.store(watched=watched)
    assert set(desk.answers(shells).values()) == {answer}
    change(watched[which])
    assert set(desk.answers(shells).values()) == {None}


def test_a_fraction_of_a_second_is_a_change_where_the_shell_sees_it(desk: Desk, shells: list[Shell]) -> None:
    """busybox compares whole seconds; files that somebody edits differ by more, see SETTLE_SECONDS."""
    config = old_file(desk.home / ".aws/config")
    os.utime(config, ns=(1_700_000_000_200_000_000, 1_700_000_000_200_000_000))
    desk.store(watched=[config])
    shifted(0.5)(config)
    answers = desk.answers(shells)
    answers.pop("busybox", None)
    assert set(answers.values()) == {None}


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_file_that_appears_ends_the_answer(desk: Desk, shells: list[Shell], kind: str) -> None:
    config, credentials = desk.home / "config", old_file(desk.home / "credentials")
    answer = desk.store(watched=[config, credentials])
    assert set(desk.answers(shells).values()) == {answer}
    if kind == "file":
        old_file(config)
    elif kind == "directory":
        config.mkdir()
    else:
        config.symlink_to(credentials)
    assert set(desk.answers(shells).values()) == {None}


def alike(*paths: Path, date: int = 1_700_000_000_123_456_789) -> None:
    """Give files and directories the same date, as an archive, a checkout or Nix does."""
    for path in paths:
        os.utime(path, ns=(date, date))


def renamed_over(home: Path) -> None:
    alike(old_file(home / "other", "other"))
    alike(home / ".aws/config")
    (home / "other").replace(home / ".aws/config")


def renamed_with_its_directory(home: Path) -> None:
    (home / ".aws").rename(home / ".aws.former")
    (home / "work").rename(home / ".aws")


def relinked(where: str, to: str) -> Callable[[Path], None]:
    def relink(home: Path) -> None:
        """As `ln -sfn` does, but the directory of the link keeps its date."""
        date = (home / where).parent.stat().st_mtime_ns
        (home / where).unlink()
        (home / where).symlink_to(to)
        alike((home / where).parent, date=date)

    return relink


def moved_away(home: Path) -> None:
    (home / ".aws/config").rename(home / "elsewhere")


def edited_in_place(home: Path) -> None:
    (home / ".aws/config").write_text("other")


def copied_with_an_older_date(home: Path) -> None:
    edited_in_place(home)
    alike(home / ".aws/config", date=1_600_000_000_000_000_000)


SWITCHES = [
    pytest.param({}, renamed_over, id="mv"),
    pytest.param({}, moved_away, id="mv, away"),
    pytest.param({}, renamed_with_its_directory, id="mv of the directory"),
    pytest.param({}, edited_in_place, id="edited"),
    pytest.param({}, copied_with_an_older_date, id="cp -p of an older one"),
    pytest.param({".aws/config": "../work/config"}, relinked(".aws/config", "../home/config"), id="ln -sfn"),
    pytest.param({".aws": "work"}, relinked(".aws", "home"), id="ln -sfn of the directory"),
    pytest.param({".aws": "current", "current": "work"}, relinked("current", "home"), id="ln -sfn further on"),
    pytest.param({".aws": "current", "current": "work"}, edited_in_place, id="edited behind links"),
    pytest.param({".aws": "work"}, lambda home: renamed_over(home), id="mv behind a link"),
    pytest.param({".aws": "work"}, lambda home: (home / "work").rename(home / "away"), id="mv of what a link leads to"),
]


@pytest.mark.parametrize(("links", "switch"), SWITCHES)
def test_every_switch_of_a_file_with_equal_dates_is_seen(
    desk: Desk, shells: list[Shell], links: Mapping[str, str], switch: Callable[[Path], object]
) -> None:
    for name in ("work", "home", ".aws"):
        old_file(desk.home / name / "config", name)
    for name, target in links.items():
        if (desk.home / name).is_dir():
            shutil.rmtree(desk.home / name)
        (desk.home / name).unlink(missing_ok=True)
        (desk.home / name).symlink_to(target)
    everything = sorted({*desk.home.rglob("*"), desk.home} - {*desk.home.rglob(".cache/**")} - {desk.home / ".cache"})
    alike(*everything)
    key, now = desk.key(TOKEN, desk.environ), int(time.time())
    assert key
    state = eks_token.look_at([str(desk.home / ".aws/config")])
    desk.cache.store(key, eks_token.Minted("answer", now, now + 840, True), state, desk.cache.generation())
    assert set(desk.answers(shells).values()) == {"answer"}
    switch(desk.home)
    assert set(desk.answers(shells).values()) == {None}


@pytest.mark.parametrize(
    "date",
    [
        pytest.param(0, id="OSTree"),
        pytest.param(10**9, id="Nix"),
        pytest.param(315_532_800 * 10**9, id="zip"),
        pytest.param((int(time.time()) + YEAR) * 10**9, id="in the future"),
    ],
)
def test_only_python_judges_a_file_whose_date_says_nothing(desk: Desk, shells: list[Shell], date: int) -> None:
    for generation in ("1", "2"):
        alike(old_file(desk.home / generation / "config"), date=date)
    (desk.home / "config").symlink_to("1/config")
    answer = desk.store(watched=[desk.home / "config"])
    assert {desk.launcher(shell) for shell in shells} == {None}
    assert desk.module() == answer
    relinked("config", "2/config")(desk.home)
    assert desk.module() is None


def test_a_directory_that_has_just_changed_leaves_the_answer_to_python_for_a_while(
    desk: Desk, shells: list[Shell]
) -> None:
    answer = desk.store(watched=[old_file(desk.home / ".aws/config")])
    old_file(desk.home / ".bash_history")
    key = desk.key(TOKEN, desk.environ)
    assert key
    for age, answered in ((0, None), (2.5, answer)):
        os.utime(desk.home, (time.time() - age,) * 2)
        found = desk.cache.lookup(key, time.time())
        assert found and found.text == answer
        desk.cache.write_for_sh(key, found)  # as Python does when it has printed an answer
        assert {desk.launcher(shell) for shell in shells} == {answered}


@pytest.mark.parametrize(
    "name",
    [
        "two  words",
        "schlüssel",
        "back\\slash",
        "'quoted\"",
        "%41 x",
        "blank ",
        "tab\t",
        "return\r",
        "\u2028",
        "$HOME `id`",
    ],
)
def test_a_watched_file_can_have_any_name(desk: Desk, shells: list[Shell], name: str) -> None:
    path = old_file(desk.home / name)
    answer = desk.store(watched=[path, desk.home / f"no {name}"])
    assert set(desk.answers(shells).values()) == {answer}
    shifted(5)(path)
    assert set(desk.answers(shells).values()) == {None}
    answer = desk.store(watched=[path, desk.home / f"no {name}"])
    assert set(desk.answers(shells).values()) == {answer}
    old_file(desk.home / f"no {name}")
    assert set(desk.answers(shells).values()) == {None}


@pytest.mark.parametrize("name", ["line\nbreak", "a\udcff", "keyringrc.cfg"])
def test_only_python_judges_a_file_that_sh_cannot(desk: Desk, shells: list[Shell], name: str) -> None:
    path = desk.home / name
    answer = desk.store(watched=[old_file(path)])
    assert {desk.launcher(shell) for shell in shells} == {None}
    assert desk.module() == answer
    shifted(5)(path)
    assert desk.module() is None


# --- the clock ----------------------------------------------------------------------------------------------


def redate(here: Path, issued: int, fresh_until: int) -> None:
    """Give an answer other times, as if it had been stored then."""
    path = here / "%answer"
    before = eks_token.parse_answer(path.read_text())
    text = path.read_text().replace(f" {before.issued} {before.fresh_until} ", f" {issued} {fresh_until} ", 1)
    old, new = (str(moment * 10**9 - 1) for moment in (before.issued, issued))
    path.write_text(text.replace(f"%{old}", f"%{new}"))
    (here / f"%{old}").rename(here / f"%{new}")
    os.utime(here / f"%{new}", ns=(int(new), int(new)))
    os.utime(path, (fresh_until, fresh_until))


@pytest.mark.parametrize(
    ("issued", "fresh_until", "served"),
    [
        pytest.param(-60, 60, True, id="in its time"),
        pytest.param(0, 60, True, id="issued this second"),
        pytest.param(-840, 5, True, id="about to end"),
        pytest.param(-840, 0, False, id="ended this second"),
        pytest.param(-YEAR, -YEAR + 780, False, id="ended a year ago"),
        pytest.param(5, 785, False, id="issued in the future: the clock was set back"),
        pytest.param(YEAR, YEAR + 780, False, id="issued a year ahead"),
        pytest.param(-60, -120, False, id="ended before it began"),
    ],
)
def test_an_answer_serves_in_its_time_only(
    desk: Desk, shells: list[Shell], issued: int, fresh_until: int, served: bool
) -> None:
    answer = desk.store()
    now = int(time.time())
    redate(desk.here(), now + issued, now + fresh_until)
    assert set(desk.answers(shells).values()) == {answer if served else None}


# --- damage -------------------------------------------------------------------------------------------------


def overwritten(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change an answer and keep its date, as a failing disk might."""

    def overwrite(here: Path) -> None:
        path = here / "%answer"
        state = path.stat()
        path.write_bytes(change(path.read_bytes()))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    return overwrite


def replaced(old: bytes, new: bytes) -> Callable[[Path], object]:
    return overwritten(lambda data: data.replace(old, new))


def replaced_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def without_stamps(here: Path) -> None:
    for path in here.glob("%[0-9]*"):
        path.unlink()


def without_a_stamp(here: Path) -> None:
    min(here.glob("%[0-9]*")).unlink()


DAMAGES = [
    pytest.param(lambda here: (here / "%answer").unlink(), False, id="no answer"),
    pytest.param(shutil.rmtree, False, id="nothing"),
    pytest.param(overwritten(lambda data: b""), False, id="empty"),
    pytest.param(overwritten(lambda data: b"\0" * len(data)), False, id="zeros"),
    pytest.param(overwritten(lambda data: bytes(range(256))), False, id="all bytes"),
    pytest.param(overwritten(lambda data: b"x" * 100_000), False, id="a long line"),
    pytest.param(overwritten(lambda data: b"\x7fELF" + os.urandom(5000)), False, id="garbage"),
    pytest.param(replaced(b"demo", b"prod"), False, id="another request's"),
    pytest.param(replaced(b"\nfi\n", b"\n"), False, id="no end"),
    # What only the shell depends on, or is wary of
    pytest.param(without_stamps, True, id="no stamps"),
    pytest.param(without_a_stamp, True, id="a stamp less"),
    pytest.param(lambda here: os.utime(here / "%answer"), True, id="another date, as after a copy"),
    pytest.param(lambda here: replaced_by_link(here / "%answer"), True, id="a link to it"),
    pytest.param(replaced_by_link, True, id="a link to its directory"),
]


@pytest.mark.parametrize(("damage", "module_answers"), DAMAGES)
def test_what_is_damaged_is_a_miss(
    desk: Desk, shells: list[Shell], damage: Callable[[Path], object], module_answers: bool
) -> None:
    answer = desk.store(watched=[old_file(desk.home / "config"), desk.home / "absent"])
    assert set(desk.answers(shells).values()) == {answer}
    damage(desk.here())
    found = desk.answers(shells)
    assert found.pop("module") == (answer if module_answers else None)
    assert set(found.values()) == {None}, found


@pytest.mark.parametrize("place", ["", "tokens"], ids=["the cache", "tokens"])
def test_a_link_in_the_place_of_a_directory_is_not_followed(desk: Desk, shells: list[Shell], place: str) -> None:
    desk.store()
    replaced_by_link(Path(desk.cache.root, place))
    assert {desk.launcher(shell) for shell in shells} == {None}


def test_an_answer_that_was_cut_anywhere_is_a_miss(desk: Desk, shells: list[Shell]) -> None:
    desk.store(watched=[old_file(desk.home / "config"), desk.home / "absent"])
    path = desk.here() / "%answer"
    whole, state = path.read_bytes(), path.stat()
    for length in range(0, len(whole) - 1, 3):
        path.write_bytes(whole[:length])
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert desk.module() is None
        # the last newline does not matter
        assert {desk.launcher(shell) for shell in shells[length % len(shells) :][:1]} == {None}, whole[:length]


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
@pytest.mark.parametrize("place", ["%answer", "now", "tokens"])
def test_a_pipe_or_directory_instead_of_a_file_is_a_miss_and_hangs_nobody(
    desk: Desk, shells: list[Shell], place: str, kind: str
) -> None:
    desk.store()
    path = desk.here() / place if place == "%answer" else Path(desk.cache.root, place)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    if place != "tokens":
        os.utime(path, (2**31, 2**31), follow_symlinks=kind != "device")
    assert {desk.launcher(shell) for shell in shells} == {None}


@as_root
@pytest.mark.parametrize("whose", ["cache", "home", "answer"])
def test_what_belongs_to_another_user_is_not_read(desk: Desk, shells: list[Shell], whose: str) -> None:
    desk.store()
    owned = {"cache": Path(desk.cache.root), "home": desk.home, "answer": desk.here() / "%answer"}[whose]
    os.chown(owned, 65534, 65534)
    assert {desk.launcher(shell) for shell in shells} == {None}
    os.chown(owned, 0, 0)
    assert {desk.launcher(shell) for shell in shells} == {"answer 1"}


@as_root
def test_a_home_that_belongs_to_root_but_takes_files_is_one(shells: list[Shell], _without_flush: None) -> None:
    """OpenShift runs containers as an arbitrary user in group 0. Its HOME belongs to root."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        desk = new_desk(Path(directory))
        answer = desk.store()
        desk.home.chmod(0o775)
        subprocess.run(["chown", "-R", "12345:0", desk.cache.root], check=True)
        for shell in shells:
            done = run(desk, shell, user=12345, group=0, extra_groups=[])
            assert (done.stdout, done.stderr) == (answer + "\n", ""), shell.name


# --- what it prints -----------------------------------------------------------------------------------------


def run(
    desk: Desk, shell: Shell, *argv: str, environ: Mapping[str, str | None] | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run the launcher, however it ends."""
    variables = {**desk.environ, **(environ or {})}
    return subprocess.run(
        ["sh", str(desk.file), *(argv or TOKEN)],
        executable=shell.path,
        env={name: value for name, value in variables.items() if value is not None},
        cwd=desk.home,
        check=False,
        encoding="utf-8",
        errors="surrogateescape",
        **({"capture_output": True, "stdin": subprocess.DEVNULL} | options),
    )


def test_an_answer_is_printed_to_the_byte(desk: Desk, shell: Shell) -> None:
    text = '{"kind": "ExecCredential", "é%s it\'s $HOME `id`\tb": "' + "x" * 5000 + '"}\n\nlast '
    store_text(desk, text)
    done = run(desk, shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, text + "\n", "")


@pytest.mark.parametrize("text", ["-n", "a\\nb", "-"])
def test_a_text_that_not_every_echo_prints_is_left_to_python(desk: Desk, shells: list[Shell], text: str) -> None:
    store_text(desk, text)
    assert {desk.launcher(shell) for shell in shells} == {None}
    assert desk.module() == text


def store_text(desk: Desk, text: str) -> None:
    key, now = desk.key(TOKEN, desk.environ), int(time.time())
    assert key
    desk.cache.store(key, eks_token.Minted(text, now, now + 840, True), (), "")


@pytest.mark.parametrize("stdout", ["full", "closed"])
def test_an_answer_that_cannot_be_written_is_pythons_to_report(desk: Desk, shell: Shell, stdout: str) -> None:
    """So the error is always the same."""
    if stdout == "full" and not os.path.exists("/dev/full"):
        pytest.skip("only on systems with /dev/full")
    desk.store()
    asked = desk.script("asked too", suitable("echo asked >&2; exit 1"))
    to: dict[str, Any] = {"capture_output": False, "stderr": subprocess.PIPE}
    if stdout == "closed":
        done = run(desk, shell, environ={"EKS_TOKEN_PYTHON": str(asked)}, preexec_fn=lambda: os.close(1), **to)
    else:
        with open("/dev/full", "w") as full:
            done = run(desk, shell, environ={"EKS_TOKEN_PYTHON": str(asked)}, stdout=full, **to)
    assert (done.returncode, done.stderr) == (1, "asked\n")


# --- python -------------------------------------------------------------------------------------------------


def echo(desk: Desk, name: str = "echo") -> Path:
    """A Python that prints its arguments and environment as JSON."""
    text = (
        "import json, os, sys\n"
        "print(json.dumps([sys.argv, {os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()}]))\n"
    )
    program = desk.script(f"{name}.py", text)
    return desk.script(name, suitable(f'exec {interpreters()[0].path} -I "{program}" "$@"'))


HOSTILE_WORDS = ["a b", "", "*", "'", '"', "\n", "x\n", "-n", "\\", "\\n", "$HOME", "`id`", "é", "\udcff", "--", "~"]


def unpacked(desk: Desk) -> Path:
    """The program as build/start.py leaves it: the manifest last."""
    program = old_file(Path(desk.cache.root, "app", BUILD, "__main__.py"), "pass", age=20)
    old_file(program.with_name("manifest"), BUILD, age=10)
    return program


CHECK = package.check_text().replace("'\\''", "'").replace("@BUILD@", BUILD)


@pytest.mark.parametrize("is_unpacked", [False, True], ids=["archive", "unpacked"])
def test_arguments_reach_python_as_they_are(desk: Desk, shell: Shell, is_unpacked: bool) -> None:
    program = str(unpacked(desk)) if is_unpacked else ""
    done = run(desk, shell, *HOSTILE_WORDS, environ={"EKS_TOKEN_PYTHON": str(echo(desk))})
    (_, *argv), _ = json.loads(done.stdout)
    assert argv == [*(["-IS", "-c", CHECK, program] if program else ["-I", "-S"]), str(desk.file), *HOSTILE_WORDS]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda program: old_file(program, "", age=20), id="empty"),
        pytest.param(lambda program: old_file(program, "cut", age=5), id="written to after its manifest"),
        pytest.param(Path.unlink, id="gone"),
    ],
)
def test_a_program_that_is_not_as_it_was_unpacked_is_left_to_the_archive(
    desk: Desk, shell: Shell, spoil: Callable[[Path], object]
) -> None:
    spoil(unpacked(desk))
    done = run(desk, shell, environ={"EKS_TOKEN_PYTHON": str(echo(desk))})
    (_, *argv), _ = json.loads(done.stdout)
    assert argv == ["-I", "-S", str(desk.file), *TOKEN]


@as_root
def test_a_program_of_another_user_is_not_run(desk: Desk, shells: list[Shell]) -> None:
    program = unpacked(desk)
    os.chown(program, 65534, 65534)
    for shell in shells:
        (_, *argv), _ = json.loads(run(desk, shell, environ={"EKS_TOKEN_PYTHON": str(echo(desk))}).stdout)
        assert argv[2] == str(desk.file)


def test_variables_reach_python_unchanged(desk: Desk, shell: Shell) -> None:
    """Whatever their names are: a shell script's own variables would replace exported ones."""
    called = "path line status name value file info region word stamp here cache python build last tag request answer"
    variables = {name: f"/mine  {name} é\n*" for name in called.split()}
    variables |= {"KUBERNETES_EXEC_INFO": KUBECTL_INFO[0], "AWS_PROFILE": "a b", "EMPTY": "", "IFS": "x", "CDPATH": "/"}
    desk.store()
    done = run(desk, shell, environ=variables | {"EKS_TOKEN_PYTHON": str(echo(desk))})
    _, seen = json.loads(done.stdout)
    variables.pop("IFS")  # the shells' own, and no concern of Python's
    assert {name: seen.get(name) for name in variables} == variables
    assert [name for name in seen if name.startswith("et_")] == []


@pytest.mark.parametrize(
    ("cwd", "pwd"),
    [
        *(pytest.param(name, f"{{}}/{name}", id=repr(name)) for name in ("real/sub", "-", "a\nb", "a\n", "a b*")),
        pytest.param("real/sub", "{}/link", id="by a link"),
        pytest.param("real", "{}/link/..", id="above what a link leads to"),
        pytest.param("real", ".", id="relative"),
        pytest.param("real", "{}/nowhere", id="wrong"),
        pytest.param("real", None, id="unset"),
        pytest.param("gone", "{}/gone", id="gone"),
        pytest.param("gone", None, id="gone and unset"),
    ],
)
def test_python_starts_in_the_users_directory(desk: Desk, shell: Shell, cwd: str, pwd: str | None) -> None:
    """Elsewhere, a relative path in a variable could name the files of another identity."""
    here, old = desk.root / cwd, desk.root / "real"
    (old / "sub").mkdir(parents=True)
    (desk.root / "link").symlink_to("real/sub")
    here.mkdir(exist_ok=True)
    wanted = here.stat()
    program = desk.script("where.py", "import os\nhere = os.stat('.')\nprint(here.st_ino, os.environ['OLDPWD'])\n")
    python = desk.script("where", suitable(f'exec {interpreters()[0].path} -I -S "{program}"'))

    def enter() -> None:
        os.chdir(here)
        if cwd == "gone":
            here.rmdir()

    variables = {"PWD": pwd and pwd.format(desk.root), "OLDPWD": str(old), "EKS_TOKEN_PYTHON": str(python)}
    inode, _, before = run(desk, shell, environ=variables, preexec_fn=enter).stdout.rstrip("\n").partition(" ")
    assert inode == str(wanted.st_ino)
    assert before == str(old) or shell.name == "zsh"  # which starts with an OLDPWD of its own


def test_stdin_reaches_python_unread(desk: Desk, shell: Shell) -> None:
    reader = desk.script("reader", suitable("exec cat"))
    desk.store()
    done = run(
        *(desk, shell, "login", "dev", "--stdin"),
        environ={"EKS_TOKEN_PYTHON": str(reader)},
        stdin=None,
        input="first\nsecond",
    )
    assert done.stdout == "first\nsecond"


def test_pythons_status_and_messages_pass_through(desk: Desk, shell: Shell) -> None:
    failing = desk.script("failing", suitable("echo out; echo err >&2; exit 7"))
    done = run(desk, shell, environ={"EKS_TOKEN_PYTHON": str(failing)})
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize("named", ["/nonexistent/python", "no-such-python", "two words", "a\n\x1b]0;b\x07"])
def test_a_named_python_that_is_not_there_is_one_error_line(desk: Desk, shell: Shell, named: str) -> None:
    """It cannot control the terminal."""
    done = run(desk, shell, environ={"EKS_TOKEN_PYTHON": named})
    assert (done.returncode, done.stdout) == (1, "")
    shown = f": {named}" if named.isprintable() else ""
    assert done.stderr == f"eks-token: error: EKS_TOKEN_PYTHON is not a program{shown}\n"


UNSUITABLE = [
    pytest.param("#!/bin/sh\necho noise\necho noise >&2\nexit 127\n", id="a shim for a version that is not installed"),
    pytest.param("#!/bin/sh\necho usage >&2\necho usage >&2\nexit 2\n", id="one that does not know the options"),
    pytest.param("#!/bin/sh\n[ $3 = -c ] && echo False\n", id="an old one"),
    pytest.param("#!/bin/sh\n", id="a program that says nothing"),
    pytest.param("#!/nonexistent/interpreter\n", id="a script whose interpreter is gone"),
    pytest.param("\x7fELF\2\1\1" + 11 * "\0" + "\xb7" + 50 * "\0", id="a program for another machine"),
    pytest.param("", id="an empty file"),
]


@pytest.mark.parametrize("text", UNSUITABLE)
def test_a_named_program_that_is_no_suitable_python_is_one_error_line(desk: Desk, shell: Shell, text: str) -> None:
    named = desk.script("bin/named", text)
    done = run(desk, shell, environ={"EKS_TOKEN_PYTHON": str(named)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"eks-token: error: EKS_TOKEN_PYTHON is not Python 3.10 or newer: {named}\n"


def test_a_fresh_answer_needs_no_python(desk: Desk, shell: Shell) -> None:
    answer = desk.store()
    assert desk.launcher(shell, TOKEN, desk.environ | {"EKS_TOKEN_PYTHON": "/nonexistent/python"}) == answer


class Programs:
    """A PATH of directories with spaces in their names, which only has the Pythons that a test adds."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.directories: list[Path] = []
        head, loop, places = LAUNCHER.replace("@BUILD@", BUILD).partition("for et_place in ")
        places, do, rest = places.partition("; do\n")
        places = re.sub(r"(^|\s)/", rf"\1{self.root}/", places)
        desk.script("eks-token", head + loop + places + do + rest)
        for tool in ("cat", "printf"):  # not every shell has a printf of its own
            self.add(tool, f'#!/bin/sh\nexec {need(tool)[0]} "$@"\n')

    def add(self, name: str, text: str, directory: str = "my tools") -> Path:
        script = self.desk.script(f"{directory}/{name}", text)
        if script.parent not in self.directories:
            self.directories.append(script.parent)
        return script

    @property
    def root(self) -> Path:
        """The launcher looks here, and not in /, for Pythons that are not on PATH."""
        return self.desk.root / "root"

    def run(self, shell: Shell, **environ: str) -> "subprocess.CompletedProcess[str]":
        path = ":".join(map(str, self.directories))
        return run(self.desk, shell, environ={"EKS_TOKEN_PYTHON": None, "PATH": path, **environ})


@pytest.fixture
def programs(desk: Desk) -> Programs:
    return Programs(desk)


@pytest.mark.parametrize("name", ["python3", *(f"python3.{minor}" for minor in range(10, 16))])
def test_a_python_is_found_on_a_path_with_spaces(programs: Programs, shell: Shell, name: str) -> None:
    programs.add(name, suitable("printf found"))
    done = programs.run(shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "found", "")


def test_real_pythons_are_told_apart_by_their_age(programs: Programs, shell: Shell, python: str) -> None:
    programs.add("python3", f'#!/bin/sh\nexec {python} "$@"\n')
    text = "import sys\ndef main(): print(sys.flags.isolated, sys.flags.no_site, *sys.argv[2:])\n"
    unpacked(programs.desk).with_name("start.py").write_text(text)
    done = programs.run(shell)
    assert (done.stdout, done.stderr) == (f"1 1 {' '.join(TOKEN)}\n", "")


@pytest.mark.parametrize("text", UNSUITABLE)
def test_a_python_that_does_not_suit_is_passed_over(programs: Programs, shell: Shell, text: str) -> None:
    programs.add("python3", text)
    programs.add("python3.12", suitable("printf found"))
    done = programs.run(shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "found", "")


def test_without_a_python_there_is_one_error_and_a_hint(programs: Programs, shell: Shell) -> None:
    done = programs.run(shell)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "eks-token: error: no Python 3.10 or newer was found\nhint: install one, or set EKS_TOKEN_PYTHON to its path\n"
    )


PLACES = [
    *("/opt/homebrew/bin/python3", "/usr/local/bin/python3.15", "/opt/local/bin/python3.10", "/usr/bin/python3"),
    *("/Library/Frameworks/Python.framework/Versions/3.13/bin/python3", "/run/current-system/sw/bin/python3"),
    *("HOME/.local/bin/python3.13", "HOME/.nix-profile/bin/python3", "HOME/.pyenv/versions/3.12.1/bin/python3.12"),
    *("HOME/.local/share/uv/python/cpython-3.14.0-linux-x86_64-gnu/bin/python3.14", "HOME/miniconda3/bin/python3"),
    *("HOME/.local/share/mise/installs/python/3.11.9/bin/python3", "HOME/.asdf/installs/python/3.10.2/bin/python3"),
    *("PYENV_ROOT=/my pyenv/versions/3.11.1/bin/python3", "UV_PYTHON_INSTALL_DIR=/uv/3/bin/python3"),
    *("MISE_DATA_DIR=/mise/installs/python/3/bin/python3", "XDG_DATA_HOME=/data/uv/python/3/bin/python3"),
]


@pytest.mark.parametrize("place", PLACES)
def test_a_python_is_found_where_package_and_version_managers_put_it(
    programs: Programs, shells: list[Shell], place: str
) -> None:
    """After some that do not suit."""
    name, _, path = place.rpartition("=")
    path = path.replace("HOME/", f"{programs.desk.home}/")
    if not path.startswith(str(programs.desk.root)):
        path = f"{programs.root}{path}"
    programs.desk.script(path, suitable("printf found"))
    programs.desk.script(f"{programs.desk.home}/.pyenv/versions/3.9.1/bin/python3", "exit 1\n")
    environ = {name: path[: path.index("/", len(str(programs.root)) + 1)]} if name else {}
    assert {programs.run(shell, SHELLOPTS="noglob", **environ).stdout for shell in shells} == {"found"}


class Remembered(NamedTuple):
    """A Python that has been started before, as build/start.py remembers it."""

    program: Path
    record: Path

    def remember(self) -> None:
        self.record.write_text(f"{self.program}\n")
        found = self.program.stat()
        os.utime(self.record, ns=(found.st_mtime_ns, found.st_mtime_ns))


@pytest.fixture
def remembered(programs: Programs) -> Remembered:
    """It is not on PATH, but another one is. It counts how often it is tried."""
    program = programs.desk.script("else where/my python", suitable("printf remembered"))
    old_file(
        program,
        f"#!/bin/sh\n[ $3 = -c ] && echo >>'{programs.desk.root}/tried' && echo True && exit\nprintf remembered\n",
    )
    programs.add("python3", suitable("printf found"))
    remembered = Remembered(program, Path(programs.desk.cache.root, "python"))
    remembered.remember()
    return remembered


def tried(programs: Programs) -> int:
    path = programs.desk.root / "tried"
    return len(path.read_text()) if path.exists() else 0


def test_the_python_that_worked_last_is_started_untried(
    programs: Programs, shell: Shell, remembered: Remembered
) -> None:
    link = programs.desk.root / "link"
    link.symlink_to(remembered.program)
    started = remembered.record.with_name("starting")
    for environ in ({}, {"EKS_TOKEN_PYTHON": str(remembered.program)}, {"EKS_TOKEN_PYTHON": str(link)}):
        assert programs.run(shell, **environ).stdout == "remembered"
        assert tried(programs) == 0
        started.unlink()  # as build/start.py does
    named = programs.add("named", suitable("printf named"))
    assert programs.run(shell, EKS_TOKEN_PYTHON=str(named)).stdout == "named"


@pytest.mark.parametrize("text", UNSUITABLE)
def test_a_remembered_python_that_no_longer_suits_is_not_started(
    programs: Programs, shell: Shell, remembered: Remembered, text: str
) -> None:
    remembered.program.write_text(text)
    for _ in range(2):
        done = programs.run(shell)
        assert (done.returncode, done.stdout, done.stderr) == (0, "found", "")


def test_a_remembered_python_that_lost_a_library_fails_once(
    programs: Programs, shell: Shell, remembered: Remembered
) -> None:
    remembered.program.write_text("#!/bin/sh\necho python: error while loading shared libraries >&2\nexit 127\n")
    remembered.remember()
    done = programs.run(shell)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (127, "", 1)
    for _ in range(2):
        done = programs.run(shell)
        assert (done.returncode, done.stdout, done.stderr) == (0, "found", "")


def test_a_start_that_is_still_under_way_is_not_one_that_failed(
    programs: Programs, shell: Shell, remembered: Remembered
) -> None:
    remembered.record.with_name("starting").write_text(f"{os.getpid()}\n")
    assert programs.run(shell).stdout == "remembered"
    assert tried(programs) == 0
    remembered.record.with_name("starting").write_text("")
    assert programs.run(shell).stdout == "remembered"
    assert tried(programs) == 1


def test_where_no_start_can_be_noted_python_is_tried_first(
    programs: Programs, shell: Shell, remembered: Remembered
) -> None:
    remembered.record.with_name("starting").mkdir()
    assert programs.run(shell).stdout == "remembered"
    assert tried(programs) == 1


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda record: record.write_text("/nonexistent/python\n"), id="removed since"),
        pytest.param(lambda record: record.write_text(""), id="empty"),
        pytest.param(lambda record: record.write_text("/\n"), id="names a directory"),
        pytest.param(lambda record: record.write_text("\x01\x02"), id="garbage"),
        pytest.param(lambda record: (record.unlink(), record.mkdir()), id="a directory"),
        pytest.param(make_fifo, id="a FIFO"),
        pytest.param(lambda record: (record.unlink(), record.symlink_to("/dev/zero")), id="a device"),
        pytest.param(lambda record: make_fifo(record.with_name("starting")), id="a FIFO next to it"),
    ],
)
def test_without_a_good_record_another_python_is_found(
    programs: Programs, shell: Shell, remembered: Remembered, spoil: Callable[[Path], object]
) -> None:
    spoil(remembered.record)
    remembered.program.unlink()
    done = programs.run(shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "found", "")


@as_root
def test_a_python_that_another_user_names_is_not_run(programs: Programs, shells: list[Shell]) -> None:
    programs.add("python3", suitable("printf found"))
    record = Path(programs.desk.cache.root, "python")
    record.write_text(f"{programs.add('theirs', suitable('theirs'))}\n")
    os.chown(record, 65534, 65534)
    assert {programs.run(shell).stdout for shell in shells} == {"found"}


# --- refresh ahead ------------------------------------------------------------------------------------------


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def slow_python(desk: Desk) -> Iterator[Path]:
    """The file to which a Python writes how it was started. That Python runs until the file is removed."""
    file = desk.root / "refreshes"
    words = f'echo "$$ $EKS_TOKEN_REFRESH $*" >>"{file}"; while [ -e "{file}" ]; do sleep 0.05; done'
    desk.environ["EKS_TOKEN_PYTHON"] = str(desk.script("slow", suitable(words)))
    del desk.environ["EKS_TOKEN_REFRESH"]
    yield file
    started = [int(line.split()[0]) for line in file.read_text().splitlines()] if file.exists() else []
    file.unlink(missing_ok=True)
    for process in started:
        wait_for(lambda: not is_running(process), "the end of a refresh")  # noqa: B023


def test_ten_answers_at_once_start_one_refresh_and_wait_for_none(desk: Desk, shell: Shell, slow_python: Path) -> None:
    answer = desk.store()
    assert desk.launcher(shell) == answer
    os.utime(desk.here() / "%refresh")
    processes = [
        subprocess.Popen(
            ["sh", str(desk.file), *TOKEN],
            executable=shell.path,
            env=desk.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    # the pipes end although the refresh goes on
    assert [process.communicate(timeout=30) for process in processes] == [(f"{answer}\n", "")] * 10
    wait_for(slow_python.exists, "a refresh")
    time.sleep(0.2)
    (line,) = slow_python.read_text().splitlines()
    _, *words = line.split()
    assert words == ["ahead", "-I", "-S", str(desk.file), *TOKEN]


def test_a_refresh_can_be_turned_off(desk: Desk, shells: list[Shell], slow_python: Path) -> None:
    answer = desk.store()
    os.utime(desk.here() / "%refresh")
    environ = desk.environ | {"EKS_TOKEN_REFRESH": "off"}
    assert {desk.launcher(shell, TOKEN, environ) for shell in shells} == {answer}
    assert not slow_python.exists() and not (desk.here() / "%claim").exists()


# --- a hostile environment ----------------------------------------------------------------------------------


FUNCTIONS = ["[", "cd", "printf", "command", "echo", "read", "kill", "umask", "test", "cat", "et_answer", "et_start"]


@pytest.mark.parametrize(
    "variables",
    [
        *(
            pytest.param({"SHELLOPTS": option}, id=f"set -o {option}")
            for option in (
                *(
                    "errexit",
                    "nounset",
                    "noglob",
                    "noclobber",
                    "allexport",
                    "pipefail",
                    "keyword",
                    "errtrace",
                    "xtrace",
                ),
                "physical:functrace:histexpand:monitor",
            )
        ),
        pytest.param(
            {f"BASH_FUNC_{name}%%": "() { echo harm; }" for name in FUNCTIONS},
            id="functions in the way of commands",
        ),
        *(pytest.param({"IFS": value}, id=f"IFS={value!r}") for value in ("", "/", "|", "e", "-:", "\n")),
        pytest.param({"BASHOPTS": "nocasematch:failglob:nullglob:extglob:dotglob"}, id="options of bash"),
        pytest.param({"CDPATH": "/:/tmp", "PWD": "/nonexistent", "OLDPWD": ""}, id="directories"),
        pytest.param({"POSIXLY_CORRECT": "1"}, id="POSIXLY_CORRECT"),
        *(
            pytest.param({"LC_ALL": locale, "LANG": locale}, id=f"locale {locale}")
            for locale in ("C", "POSIX", "tr_TR.UTF-8", "en_US.ISO-8859-1", "ja_JP.SJIS", "nonsense")
        ),
        pytest.param({"PS4": "$(echo harm >&2)", "PS1": "$(echo harm >&2)", "PROMPT_COMMAND": "echo"}, id="prompts"),
        pytest.param({"SECONDS": "9", "RANDOM": "9", "OPTIND": "9", "TMOUT": "1"}, id="shells' variables"),
        pytest.param({"YASH_VERSION": "", "ZSH_VERSION": "x", "BASH_VERSION": "x", "KSH_VERSION": "x"}, id="versions"),
        pytest.param(
            {f"et_{name}": "/harm" for name in ("cache", "line", "here", "region", "value", "last", "info", "end")},
            id="variables named like the launcher's own",
        ),
    ],
)
def test_the_environment_does_the_launcher_no_harm(
    desk: Desk, shell: Shell, variables: Mapping[str, str], tmp_path: Path
) -> None:
    harm = tmp_path / "harm"
    harm.write_text("echo harm; echo harm >&2; set -e\n")
    answer = desk.store(watched=[old_file(desk.home / "config"), desk.home / "absent"])
    environ = desk.environ | {"ENV": str(harm), "BASH_ENV": str(harm)} | dict(variables)
    assert desk.launcher(shell, TOKEN, environ) == answer
    assert desk.launcher(shell, (*TOKEN, "--refresh"), environ) is None
    assert desk.launcher(shell, (*TOKEN, "a b"), environ) is None
    assert desk.launcher(shell, AUTHENTICATOR, environ) is None
    found = desk.script("bin/python3", suitable("printf found"))
    path = f"{found.parent}:{os.environ['PATH']}"
    done = run(desk, shell, *AUTHENTICATOR, environ={**variables, "EKS_TOKEN_PYTHON": None, "PATH": path})
    assert (done.returncode, done.stdout) == (0, "found")


def test_a_directory_that_is_gone_when_the_launcher_goes_back_is_one_line(shell: Shell, desk: Desk) -> None:
    desk.store()
    work = desk.root / "work"
    work.mkdir()
    answer = desk.here() / "%answer"
    answer.write_text('rmdir "$et_from"\n')  # as if somebody else removed it at that moment
    os.utime(answer, (time.time() + 600,) * 2)
    done = subprocess.run(
        ["sh", str(desk.file), *TOKEN],
        executable=shell.path,
        env=desk.environ,
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not work.exists()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"eks-token: error: cannot go back to the directory: {str(work)[:100]}\n"
