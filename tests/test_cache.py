"""The cache: what an answer is stored under, how long it is used, who signs the next token, and who can read it."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import package
import platformdirs
import pytest
import test_login
from conftest import ROOT, KeyringDaemon, Sandbox, as_root, invocation, posix
from hypothesis import given, settings
from hypothesis import strategies as st
from platformdirs import windows
from platformdirs.macos import MacOS
from platformdirs.unix import Unix
from platformdirs.windows import Windows
from servers import ApiServer, HttpServer, Incoming, RecordingProxy, Reply, wait_for
from test_login import Scene, role_over_keys_with_mfa, shorten, sso_with_one_role_only

import eks_token
from eks_token import Cache, Invocation, Key, Lock, LocksUnavailable, Minted, Problem

TOKEN = ("--cluster-name", "demo", "--region", "us-east-2")
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
NOBODY = 65534
LIFE = 840  # seconds that a token is good for

pytestmark = pytest.mark.first_run
scene = test_login.scene


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    root = tmp_path / "cache"
    root.mkdir(mode=0o700)
    return Cache(str(root), str(tmp_path))


@pytest.fixture
def debugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The module's debug messages."""
    said: list[str] = []
    monkeypatch.setattr(eks_token, "debug", said.append)
    yield said


def key_of(*argv: str, home: str = "/home/me", **variables: str) -> Key:
    key = eks_token.request_key("v1beta1", argv, {"HOME": home, **variables}, "linux")
    assert key is not None
    return key


def minted(text: str = "answer", life: int = LIFE, cacheable: bool = True) -> Minted:
    now = int(time.time())
    return Minted(text, now, now + life, cacheable)


def keep(cache: Cache, key: Key, text: str = "answer", watched: Sequence[Path] = (), **details: Any) -> None:
    """Store an answer. Directories that have just been made look older."""
    for path in watched:
        os.utime(path.parent, (time.time() - 100,) * 2)
    cache.store(key, minted(text, **details), eks_token.look_at(map(str, watched)), cache.generation())


def look_up(cache: Cache, key: Key) -> str | None:
    answer = cache.lookup(key, time.time())
    return answer and answer.text


def aged(path: Path, text: str = "", age: float = 100) -> Path:
    """A file written `age` seconds ago."""
    path.write_text(text)
    modified = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(modified, modified))
    return path


def answers_in(cache: Cache) -> list[Path]:
    return sorted(Path(cache.root, "tokens").rglob("%answer"))


# --- the key ------------------------------------------------------------------------------------------------

texts = st.one_of(
    st.sampled_from(
        ["", "a", "b", "a|b", "a|", "|", "/", "a/b", "..", "../..", "%", "%41", "A", "#", "é", "\udcff", "--x=a"]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    st.binary(max_size=5).map(lambda data: os.fsdecode(data.replace(b"\0", b""))),
    st.sampled_from(["x" * 200, "x" * 201, "x" * 199 + "/"]),
)
paths = st.sampled_from(["/a", "/b", "/a/b", "/a/../b", "/$A"])
arguments = st.lists(st.one_of(texts, st.sampled_from(["--refresh", "--debug", "--region", "--region=x"])), max_size=4)
variables = st.fixed_dictionaries(
    {},
    optional={
        name: paths if name in eks_token.variables_of("path") else texts
        for name in (
            "AWS_PROFILE",
            "AWS_REGION",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_CONFIG_FILE",
            "ATMOS_IDENTITY",
            "XDG_DATA_HOME",
        )
    },
)
environments = st.builds(lambda some, home: {**some, "HOME": home}, variables, st.sampled_from(["/", "/root", "/h/a"]))
versions = st.sampled_from(["v1", "v1beta1", "v1alpha1"])
asked = st.tuples(versions, arguments, environments)
Asked = tuple[str, list[str], dict[str, str]]


def meaning(version: str, argv: Sequence[str], environ: Mapping[str, str]) -> object:
    """What a request means. Requests that mean different things must never share an answer."""
    words = tuple(word for word in argv if word not in ("--refresh", "--debug"))
    named = any(word == "--region" or word.startswith("--region=") for word in words)
    relevant = {
        name: os.path.expandvars(value) if name in eks_token.variables_of("path") else value
        for name, value in environ.items()
        if value and not (named and name in eks_token.variables_of("region"))
    }
    return version, words, tuple(sorted(relevant.items()))


@given(one=asked, other=asked)
@settings(max_examples=500, deadline=None)
def test_two_requests_share_a_line_only_if_they_mean_the_same(one: Asked, other: Asked) -> None:
    first, second = (eks_token.request_key(*each, "linux") for each in (one, other))
    assert first and second
    assert (first.line == second.line) == (meaning(*one) == meaning(*other))
    assert (first.directory == second.directory) == (first.line == second.line)


@given(one=asked, platform=st.sampled_from(["linux", "darwin", "win32"]))
@settings(max_examples=500, deadline=None)
def test_an_answers_directory_is_below_tokens_and_never_one_of_an_answers_files(one: Asked, platform: str) -> None:
    key = eks_token.request_key(*one, platform)
    assert key
    components = key.directory.removesuffix("/").split("/")
    assert not {".", ".."} & set(components) and not key.directory.startswith("/")
    assert all(len(component.encode()) <= 255 for component in components)
    assert key.line.isascii() and key.line.isprintable() and " " not in key.line
    if "%" in key.directory:
        assert re.fullmatch("%[0-9a-f]{64}", key.directory)
    assert platform != "win32" or "%" in key.directory


def test_refresh_and_debug_do_not_make_another_request() -> None:
    assert key_of(*TOKEN, "--refresh", "--debug") == key_of(*TOKEN)


@pytest.mark.parametrize("name", eks_token.variables_of("secret"))
def test_a_secret_variable_is_entered_as_its_hash(name: str) -> None:
    key, other = key_of(*TOKEN, **{name: "hush-hush"}), key_of(*TOKEN, **{name: "hush-hush!"})
    assert key.line != other.line
    assert "hush" not in key.line and f"|{name}#" in key.line
    assert key.directory.startswith("%")  # which the launcher never looks at


@pytest.mark.parametrize(
    ("value", "same"),
    [
        pytest.param("config", "{cwd}/config", id="relative"),
        pytest.param("../config", "{parent}/config", id="relative, upwards"),
        pytest.param("~/config", "{home}/config", id="from home"),
        pytest.param("$SOMEWHERE/config", "/some/where/config", id="from a variable"),
        pytest.param("/x/$SOMEWHERE/config", "/x/some/where/config", id="with a variable within"),
    ],
)
def test_two_names_of_one_file_make_one_request(
    value: str, same: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SOMEWHERE", "/some/where")
    same = same.format(cwd=tmp_path, parent=tmp_path.parent, home="/home/me")
    assert key_of(*TOKEN, AWS_CONFIG_FILE=value) == key_of(*TOKEN, AWS_CONFIG_FILE=same)


@posix
def test_a_relative_file_in_a_directory_that_is_gone_has_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    environ = {"HOME": "/home/me", "AWS_CONFIG_FILE": "config"}
    assert eks_token.request_key("v1", TOKEN, environ, "linux") is None


@pytest.mark.parametrize("name", eks_token.variables_of("windows"))
def test_windows_variables_count_on_windows(name: str) -> None:
    """Another HOME there may be another user's."""
    keys = [eks_token.request_key("v1", TOKEN, {"HOME": "/h", name: value}, "win32") for value in ("a", "b")]
    assert keys[0] != keys[1]
    assert key_of(*TOKEN, **{name: "a"}) == key_of(*TOKEN)


def test_the_variables_stand_in_the_order_of_the_request_line() -> None:
    """HOME first, the others sorted."""
    assert list(eks_token.REQUEST_VARIABLES) == ["HOME", *sorted({*eks_token.REQUEST_VARIABLES} - {"HOME"})]
    kinds = {"plain", "path", "region", "secret", "sts", "bus", "runtime", "windows"}
    assert set(eks_token.REQUEST_VARIABLES.values()) == kinds


# --- the directories ----------------------------------------------------------------------------------------


def homes(environ: Mapping[str, str], platform: str) -> set[str | None]:
    """The cache directory, as the module, the built start.py and the launcher find it."""
    start: dict[str, Any] = {"__name__": "start"}
    exec(package.self_contained("start.py"), start)
    found = {eks_token.cache_home(environ, platform), start["cache_home"](environ, platform)}
    return found if platform == "win32" else found | {launchers_home(environ, platform)}


def launchers_home(environ: Mapping[str, str], platform: str) -> str | None:
    """The launcher's rule, for this platform. The directory does not have to exist."""
    function = re.search(r"^et_find_cache\(\) \{\n.*?^\}\n", package.launcher_text(), re.DOTALL | re.MULTILINE)
    assert function
    rule = re.sub(r"\t\tif ! \[ -O.*?\t\tfi\n", "", function[0], flags=re.DOTALL)
    rule = rule.replace("/System/Library/CoreServices", "/" if platform == "darwin" else "/nonexistent")
    command = ["/bin/sh", "-c", f"{rule}et_find_cache; printf '%s' \"$et_cache\""]
    return subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=True).stdout or None


HOMES = [
    pytest.param({}, id="nothing else"),
    pytest.param({"XDG_CACHE_HOME": "/x/cache", "XDG_DATA_HOME": "/x/data"}, id="XDG"),
    pytest.param({"XDG_CACHE_HOME": "/x/ca che/é", "XDG_DATA_HOME": "/x/da ta/é"}, id="XDG, with odd names"),
    pytest.param({"XDG_CACHE_HOME": "relative", "XDG_DATA_HOME": "relative"}, id="relative XDG"),
    pytest.param({"XDG_CACHE_HOME": "", "XDG_DATA_HOME": ""}, id="empty XDG"),
]


@pytest.mark.parametrize(("platform", "reference"), [("linux", Unix), ("darwin", MacOS)])
@pytest.mark.parametrize("variables", HOMES)
def test_directories_are_those_of_platformdirs(
    platform: str, reference: type, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"HOME": "/home/me", **variables}
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platformdirs, "PlatformDirs", reference)
    wanted = reference("eks-token")
    assert homes(environ, platform) == {wanted.user_cache_dir}
    assert eks_token.data_home(environ, platform) == wanted.user_data_dir


def test_directories_on_windows_are_those_of_platformdirs(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"LOCALAPPDATA": r"C:\Users\me\AppData\Local", "USERPROFILE": r"C:\Users\me"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platformdirs, "PlatformDirs", Windows)
    monkeypatch.setattr(windows, "get_win_folder", windows.get_win_folder_from_env_vars)  # the registry is not here
    wanted = Windows("eks-token")
    assert homes(environ, "win32") == {wanted.user_cache_dir}
    assert eks_token.data_home(environ, "win32") == wanted.user_data_dir


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}, {"XDG_CACHE_HOME": "/x"}])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_without_an_absolute_home_there_is_no_cache(environ: Mapping[str, str], platform: str) -> None:
    """platformdirs asks the passwd file then, which the launcher cannot."""
    assert homes(environ, platform) == {None}
    assert eks_token.data_home(environ, platform) is None


# --- answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["answer", "", "two\nlines", "é\u2028", "x" * 5000, " "])
def test_an_answer_comes_back_as_it_was(cache: Cache, text: str) -> None:
    key = key_of(*TOKEN)
    assert look_up(cache, key) is None
    keep(cache, key, text)
    assert look_up(cache, key) == text


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(TOKEN, id="plain"),
        pytest.param(("--identity", "two words"), id="a space"),
        pytest.param(("-C", "../../x"), id="upwards"),
        pytest.param(("x" * 5000,), id="too long for a file name"),
        pytest.param(("\udcff", "é", "", "%answer", "a|b"), id="odd"),
        pytest.param(tuple("abcdefgh" * 10), id="many words"),
    ],
)
def test_every_request_can_have_an_answer(cache: Cache, argv: Sequence[str]) -> None:
    keep(cache, key_of(*argv))
    keep(cache, key_of(*argv, "more"), "another")
    assert look_up(cache, key_of(*argv)) == "answer"
    assert look_up(cache, key_of(*argv, "more")) == "another"
    assert sorted(os.listdir(os.path.dirname(cache.root))) == ["cache"]


def test_an_answer_whose_path_is_too_long_is_kept_under_its_hash(cache: Cache) -> None:
    key = key_of(*["x" * 200] * 30)
    keep(cache, key)
    assert look_up(cache, key) == "answer"


def test_answers_can_share_directories_but_never_files(cache: Cache) -> None:
    """tokens/a|/ and tokens/a/b|/ share directories, and no files."""
    keys = [key_of(*argv) for argv in (["a"], ["a/b"], ["a", "b"], ["a/b", "c"], ["a|", "b"], [])]
    for number, key in enumerate(keys):
        keep(cache, key, f"answer {number}")
    assert [look_up(cache, key) for key in keys] == [f"answer {number}" for number in range(len(keys))]


def test_a_newer_answer_takes_the_place_of_an_older_one(cache: Cache, tmp_path: Path) -> None:
    config = aged(tmp_path / "config", age=500)
    keep(cache, key_of(*TOKEN), "old", [config])
    aged(config, age=100)
    keep(cache, key_of(*TOKEN), "new", [config])
    assert look_up(cache, key_of(*TOKEN)) == "new"
    # the stamps of the old times are gone, and there are no temporary files
    (answer,) = answers_in(cache)
    stamps = set(re.findall(r"%\d+", answer.read_text()))
    assert f"%{config.stat().st_mtime_ns}" in stamps
    assert {path.name for path in answer.parent.iterdir()} == {"%answer", "%refresh", *stamps}


def test_an_answer_is_served_until_a_minute_before_the_token_ends(cache: Cache) -> None:
    key, answer = key_of(*TOKEN), minted()
    cache.store(key, answer, (), "")
    ends = answer.expires - 60
    times = (answer.issued - 0.001, answer.issued, ends - 0.001, ends, answer.expires)
    assert [cache.lookup(key, now) is not None for now in times] == [False, True, True, False, False]


@pytest.mark.parametrize(
    "details",
    [
        pytest.param({"life": 60}, id="a minute to go"),
        pytest.param({"life": -10}, id="over"),
        pytest.param({"cacheable": False}, id="not cacheable"),
    ],
)
def test_what_ends_too_soon_is_not_stored(cache: Cache, details: dict[str, Any]) -> None:
    keep(cache, key_of(*TOKEN), **details)
    assert answers_in(cache) == []


# --- files that decide --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "kept"), [(0, False), (1, False), (-1, False), (-3600, True), (3, True)])
def test_an_answer_is_not_stored_if_one_of_its_files_has_just_changed(
    cache: Cache, tmp_path: Path, age: float, kept: bool
) -> None:
    """It may change again within the same tick of the file system's clock."""
    keep(cache, key_of(*TOKEN), watched=[aged(tmp_path / "config", age=age)])
    assert look_up(cache, key_of(*TOKEN)) == ("answer" if kept else None)


def test_an_answer_is_not_stored_if_one_of_its_files_changes_meanwhile(cache: Cache, tmp_path: Path) -> None:
    config, key = aged(tmp_path / "config", age=500), key_of(*TOKEN)
    before = eks_token.look_at([str(config)])
    aged(config, age=100)
    cache.store(key, minted(), before, "")
    assert look_up(cache, key) is None


def test_nothing_is_stored_if_the_file_system_has_another_clock(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, debugged: list[str]
) -> None:
    """The launcher's only clock is the time of a file just written."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 30)
    keep(cache, key_of(*TOKEN))
    assert answers_in(cache) == []
    assert "clock" in debugged[-1]


# --- emptied and swept --------------------------------------------------------------------------------------


def test_emptying_forgets_every_answer(cache: Cache) -> None:
    keys = [key_of(*TOKEN, word) for word in ("a", "b", "two words")]
    for key in keys:
        keep(cache, key)
    cache.empty()
    assert [look_up(cache, key) for key in keys] == [None] * 3
    assert not any(name.startswith("tokens") for name in os.listdir(cache.root))
    keep(cache, keys[0])
    assert look_up(cache, keys[0]) == "answer"


def test_an_empty_cache_can_be_emptied(cache: Cache) -> None:
    cache.empty()
    cache.empty()


def test_an_answer_that_was_started_before_the_cache_was_emptied_is_not_stored(cache: Cache) -> None:
    begun = [cache.generation()]
    for _ in range(3):
        cache.empty()
        begun.append(cache.generation())
    assert len(set(begun)) == 4
    for generation in begun[:-1]:
        cache.store(key_of(*TOKEN), minted(), (), generation)
        assert look_up(cache, key_of(*TOKEN)) is None
    cache.store(key_of(*TOKEN), minted(), (), begun[-1])
    assert look_up(cache, key_of(*TOKEN)) == "answer"


def test_no_token_of_an_identity_that_changes_meanwhile_is_stored(
    home: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`login` ends between the reading of the identities and the look at their files."""
    set_environment(monkeypatch, home)
    real = eks_token.read_identities

    def slow(path: str | None) -> eks_token.Stored:
        stored = real(path)
        Cache(str(home.cache)).empty()
        return stored

    monkeypatch.setattr(eks_token, "read_identities", slow)
    assert eks_token.token_command(asked_here(*TOKEN)) == 0
    assert capsys.readouterr().out
    assert answers_in(Cache(str(home.cache))) == []


def let_time_pass(cache: Cache, seconds: int) -> None:
    """Make everything that is stored this many seconds older."""
    for path in (Path(cache.root, "swept"), *answers_in(cache)):
        if path.exists():
            os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_answers_that_have_ended_are_removed_once_an_hour(cache: Cache) -> None:
    old = [key_of(*TOKEN, word) for word in ("a", "a/b", "two words")]
    for key in old:
        keep(cache, key)
    let_time_pass(cache, 3590)
    keep(cache, key_of(*TOKEN, "a/c"))
    assert len(answers_in(cache)) == 4
    let_time_pass(cache, 20)
    keep(cache, key_of(*TOKEN, "new"))
    assert {path.parent for path in answers_in(cache)} == {
        Path(cache.directory(key_of(*TOKEN, word))) for word in ("a/c", "new")
    }
    tokens = Path(cache.root, "tokens")
    assert [path for path in tokens.rglob("*") if path.is_dir() and not any(path.iterdir())] == []


def test_an_answer_that_was_renewed_is_not_removed(cache: Cache) -> None:
    keep(cache, key_of(*TOKEN))
    let_time_pass(cache, 4000)
    keep(cache, key_of(*TOKEN), "renewed")
    keep(cache, key_of(*TOKEN, "new"))
    assert look_up(cache, key_of(*TOKEN)) == "renewed"


def test_a_call_does_not_spend_long_on_old_answers(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("a", "b", "c"):
        keep(cache, key_of(*TOKEN, word))
    let_time_pass(cache, 4000)
    with monkeypatch.context() as patch:
        patch.setattr(eks_token, "SWEEP_SECONDS", -1)
        keep(cache, key_of(*TOKEN, "new"))
    assert len(answers_in(cache)) == 4
    keep(cache, key_of(*TOKEN, "new"))
    assert len(answers_in(cache)) == 1


def test_removing_answers_leaves_what_is_not_ours(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    aged(tmp_path / "precious/%answer")
    keep(cache, key_of(*TOKEN))
    (Path(cache.root, "tokens") / "link").symlink_to(tmp_path / "precious")
    aged(Path(cache.directory(key_of(*TOKEN))) / "notes")
    let_time_pass(cache, 4000)
    keep(cache, key_of(*TOKEN, "new"))
    assert len(answers_in(cache)) == 1
    assert (tmp_path / "precious/%answer").exists() and (Path(cache.directory(key_of(*TOKEN))) / "notes").exists()


PLACES = ["generation", "now", "swept", "lock", "tokens", "%answer"]


@posix
@pytest.mark.parametrize("kind", ["fifo", "directory"])
@pytest.mark.parametrize("place", PLACES)
def test_a_pipe_or_directory_instead_of_a_file_is_a_miss_and_hangs_nobody(cache: Cache, place: str, kind: str) -> None:
    key = key_of(*TOKEN)
    keep(cache, key)
    path = Path(cache.directory(key) if place == "%answer" else cache.root, place)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    began = time.monotonic()
    assert look_up(cache, key) == (None if place in ("tokens", "%answer") else "answer")
    keep(cache, key)
    look_up(cache, key)
    cache.generation()
    assert time.monotonic() - began < 5


# --- bad input ----------------------------------------------------------------------------------------------


def stored(cache: Cache, key: Key) -> Path:
    """The file with an answer that depends on other files."""
    keep(cache, key, watched=[aged(Path(cache.root).parent / "config"), Path(cache.root).parent / "absent"])
    assert look_up(cache, key) == "answer"
    return Path(cache.directory(key), "%answer")


@given(data=st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_garbage_instead_of_an_answer_is_a_miss(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    key, cache = key_of(*TOKEN), Cache(str(tmp_path_factory.getbasetemp() / "garbage"))
    path = Path(cache.directory(key), "%answer")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    assert look_up(cache, key) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("# eks-token-3 ", "# eks-token-4 ", id="another format"),
        pytest.param("# eks-token-3 ", "eks-token-3 ", id="no comment"),
        pytest.param("# eks-token-3 ", "# eks-token-3 x", id="no number"),
        pytest.param("|demo|", "|demo |", id="a field too many"),
        pytest.param("|demo|", "|prod|", id="another request"),
        pytest.param("\nif ", "\n# -\nif ", id="a state without a file"),
        pytest.param("\nif ", "\n# - a b\nif ", id="a file with a space"),
        pytest.param("\nif ", "\n\nif ", id="an empty line"),
        pytest.param("echo 'answer'", "echo 'ans'wer'", id="a quote that ends the text"),
        pytest.param("\nfi\n", "\nfi\n\n", id="something after the end"),
        pytest.param("\nfi\n", "\nfi", id="no newline at the end"),
        pytest.param("et_printed=yes", "et_printed=", id="another end"),
    ],
)
def test_an_answer_that_does_not_parse_is_a_miss(cache: Cache, old: str, new: str) -> None:
    path = stored(cache, key_of(*TOKEN))
    path.write_text(path.read_text().replace(old, new, 1))
    assert look_up(cache, key_of(*TOKEN)) is None


@pytest.mark.parametrize("name", ["%answer", "", "/"])
def test_something_else_instead_of_an_answer_is_a_miss(cache: Cache, name: str) -> None:
    key = key_of(*TOKEN)
    here = Path(cache.root, "tokens", key.directory)
    if name.startswith("%"):
        (here / name).mkdir(parents=True)
        (here / name / "more").touch()
    else:
        here.parent.mkdir(parents=True)
        here.write_text("a file")
    keep(cache, key)
    # a file where a directory should be means only that the answer is kept under its hash
    assert look_up(cache, key) == (None if name == "%answer" else "answer")


def test_a_generation_may_be_garbage(cache: Cache) -> None:
    Path(cache.root, "generation").write_bytes(b"\xff\x00garbage")
    keep(cache, key_of(*TOKEN))
    assert look_up(cache, key_of(*TOKEN)) == "answer"
    began = cache.generation()
    cache.empty()
    assert cache.generation() != began


# --- locks --------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
import eks_token
with eks_token.Lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNTER = """
import sys, time
import eks_token
for _ in range(20):
    with eks_token.Lock(sys.argv[1]):
        with open(sys.argv[2]) as file:
            number = int(file.read())
        time.sleep(0.001)
        with open(sys.argv[2], "w") as file:
            file.write(str(number + 1))
"""


def started(program: str, *argv: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, argv)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock tmp_path/lock until its stdin ends."""
    process = started(HOLDER, tmp_path / "lock")
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    """Each holder deletes the file, so this also fails if it does so in the wrong order."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [started(COUNTER, tmp_path / "lock", counter) for _ in range(6)]
    for process in processes:
        _, messages = process.communicate(timeout=60)
        assert (process.returncode, messages) == (0, "")
    assert counter.read_text() == "120"
    assert not (tmp_path / "lock").exists()


def test_a_waiter_gives_up_with_an_error(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    began = time.monotonic()
    with pytest.raises(Problem) as caught, Lock(str(tmp_path / "lock"), seconds=0.3):
        pass
    assert 0.3 <= time.monotonic() - began < 5
    assert "another eks-token" in caught.value.message and caught.value.hint
    assert (tmp_path / "lock").exists()  # only its holder deletes it


def test_waiters_give_up_after_two_minutes(tmp_path: Path) -> None:
    assert Lock(str(tmp_path / "lock")).seconds == 120


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert (tmp_path / "lock").exists()
    with Lock(str(tmp_path / "lock"), seconds=5):
        pass
    assert not (tmp_path / "lock").exists()


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError), Lock(str(tmp_path / "lock")):
        raise ValueError
    with Lock(str(tmp_path / "lock"), seconds=0):
        pass


@posix
def test_a_lock_on_a_deleted_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last holder deletes the file after we have opened it and before we have locked it."""
    path = tmp_path / "lock"
    real = eks_token.lock_file
    deleted: list[Path] = []

    def late(file: int) -> bool:
        if len(deleted) < 2:
            path.unlink()
            deleted.append(path)
            if len(deleted) == 2:
                path.touch()  # and another waiter has made a new one
        return real(file)

    monkeypatch.setattr(eks_token, "lock_file", late)
    with Lock(str(path), seconds=5) as lock:
        assert len(deleted) == 2
        assert os.path.samestat(os.fstat(lock._file), path.stat())


def test_descriptors_of_failed_tries_are_closed(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    lock = Lock(str(tmp_path / "lock"))
    assert not lock._try()
    with pytest.raises(OSError):
        os.fstat(lock._file)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_locks_that_do_not_work_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def broken(file: int) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(eks_token, "lock_file", broken)
    with pytest.raises(LocksUnavailable), Lock(str(tmp_path / "lock")):
        pass


def test_without_a_directory_for_them_there_are_no_locks(cache: Cache, debugged: list[str]) -> None:
    Path(cache.root, "lock").write_text("a file")
    with pytest.raises(LocksUnavailable):
        cache.lock("cache")
    keep(cache, key_of(*TOKEN))
    assert look_up(cache, key_of(*TOKEN)) is None
    assert "LocksUnavailable" in debugged[-1]


def test_each_name_has_its_own_lock(cache: Cache) -> None:
    names = ["cache", "vault", "request a", "request b", "session x", "request " + "x" * 5000, "request ../../x"]
    paths = [cache.lock(name).path for name in names]
    assert len(set(paths)) == len(paths)
    assert {os.path.dirname(path) for path in paths} == {os.path.join(cache.root, "lock")}


def test_a_token_is_printed_if_the_cache_stays_locked(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, debugged: list[str]
) -> None:
    """Another process was stopped while it stored an answer."""
    process = started(HOLDER, Path(cache.lock("cache").path))
    assert process.stdout and process.stdout.readline() == "held\n"
    monkeypatch.setattr(eks_token, "Lock", lambda path, seconds: Lock(path, seconds=0.1))
    keep(cache, key_of(*TOKEN))
    process.communicate("")
    assert answers_in(cache) == []
    assert debugged == ["not cached: Problem"]


# --- the token command --------------------------------------------------------------------------------------


def set_environment(monkeypatch: pytest.MonkeyPatch, home: Sandbox, **more: str) -> None:
    """Set this process's environment, which botocore reads, to the sandbox's, with keys."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in {**home.env, **KEYS, **more}.items():
        monkeypatch.setenv(name, value)


def asked_here(*argv: str) -> Invocation:
    return invocation(*argv, cache=eks_token.installed().cache)


def token_of(output: str) -> str:
    return str(json.loads(output)["status"]["token"])


def test_a_token_is_minted_once_and_then_looked_up(
    home: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_environment(monkeypatch, home)
    assert eks_token.token_command(asked_here(*TOKEN)) == 0
    first = capsys.readouterr()

    def forbidden(*_: object) -> Minted:
        raise AssertionError("minted again")

    monkeypatch.setattr(eks_token, "mint", forbidden)
    assert eks_token.token_command(asked_here(*TOKEN)) == 0
    assert capsys.readouterr() == first
    with pytest.raises(AssertionError, match="minted again"):
        eks_token.token_command(asked_here(*TOKEN, "--refresh"))


@pytest.mark.parametrize(
    ("function", "number"),
    [
        *(("lock_file", number) for number in (errno.ENOLCK, errno.EOPNOTSUPP)),
        *(("write_file", number) for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO)),
    ],
)
def test_a_token_is_printed_if_locks_do_not_work_or_nothing_can_be_written(
    home: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], function: str, number: int
) -> None:
    def broken(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    set_environment(monkeypatch, home)
    monkeypatch.setattr(eks_token, function, broken)
    assert eks_token.token_command(asked_here(*TOKEN)) == 0
    shown = capsys.readouterr()
    assert token_of(shown.out) and shown.err == ""
    assert answers_in(Cache(str(home.cache))) == []


def test_a_failed_write_keeps_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        eks_token.write_file(str(tmp_path / "file"), "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_an_interrupted_mint_frees_its_lock(home: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Minted:
        raise KeyboardInterrupt

    set_environment(monkeypatch, home)
    monkeypatch.setattr(eks_token, "mint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        eks_token.token_command(asked_here(*TOKEN))
    assert list((home.cache / "lock").iterdir()) == []


# --- whose directory ----------------------------------------------------------------------------------------


def opened(home: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The cache directory of an installed package."""
    set_environment(monkeypatch, home)
    return eks_token.installed().cache


@posix
@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o744])
def test_a_directory_that_others_may_read_is_closed_to_them(
    home: Sandbox, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    home.cache.mkdir(parents=True)
    home.cache.chmod(mode)
    assert opened(home, monkeypatch)
    assert stat.S_IMODE(home.cache.stat().st_mode) == 0o700


@posix
@pytest.mark.parametrize("kind", ["link", "file", "writable"])
def test_a_directory_that_is_not_safe_is_refused_with_a_warning(
    home: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """More reasons are in test_start.py: the executable has the same functions."""
    home.cache.parent.mkdir()
    if kind == "link":
        home.cache.symlink_to(make(home.home / "elsewhere"))
    elif kind == "file":
        home.cache.touch()
    else:
        make(home.cache).chmod(0o770)
    assert opened(home, monkeypatch) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("eks-token: warning: nothing is cached")


@posix
def test_only_on_macos_the_users_own_group_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is staff there, with every user in it."""
    os.chown(tmp_path, -1, os.getegid())
    tmp_path.chmod(0o770)
    monkeypatch.setattr(sys, "platform", "linux")
    eks_token.check_above(str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(eks_token.Refused, match="others can write to"):
        eks_token.check_above(str(tmp_path / "cache"))


@as_root
@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_root_caches_nothing_below_another_users_directory(
    home: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    theirs = home.home if variable == "HOME" else home.root / "theirs"
    theirs.mkdir(exist_ok=True)
    os.chown(theirs, NOBODY, NOBODY)
    home.env[variable] = str(theirs)
    assert opened(home, monkeypatch) is None
    assert "another user" in capsys.readouterr().err


@posix
def test_a_token_is_printed_if_the_disk_is_full(home: Sandbox) -> None:
    """No file can get any bytes. What was unpacked before still runs."""
    assert home.run(*TOKEN, env=KEYS).returncode == 0
    limited = ["sh", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$@"', "sh", str(home.executable)]
    other = ("--cluster-name", "other", "--region", "us-east-2")
    done = home.run(*other, env=KEYS, command=limited)
    assert (done.returncode, done.stderr) == (0, "")
    assert token_of(done.stdout)
    assert len(answers_in(Cache(str(home.cache)))) == 1
    halves = [path for path in home.cache.rglob("*") if re.search(r"\.\d+$", path.name)]
    assert halves == []


@posix
@pytest.mark.parametrize("umask", ["000", "022", "777"])
def test_everything_in_the_cache_is_private(home: Sandbox, umask: str) -> None:
    anyway = ["sh", "-c", f'umask {umask}; exec "$@"', "sh", str(home.executable)]
    for argv in (TOKEN, (*TOKEN, "--refresh"), TOKEN):
        assert home.run(*argv, env=KEYS, command=anyway).returncode == 0
    # and the launcher's own file
    home.credentials(f"[p]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    for _ in range(2):
        assert home.run(*TOKEN, "--identity", "p", command=anyway).returncode == 0
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (home.cache, *home.cache.rglob("*"))}
    assert {path: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}
    assert {"now", "python", "tokens", "lock", "app"} <= {path.name for path in home.cache.iterdir()}


# --- the executable -----------------------------------------------------------------------------------------


def signed_with(done: "subprocess.CompletedProcess[str]") -> str:
    """The access key that a run's token was signed with."""
    assert done.returncode == 0, done.stderr
    return parsed(token_of(done.stdout))["X-Amz-Credential"].partition("/")[0]


def parsed(token: str) -> dict[str, str]:
    import base64
    from urllib.parse import parse_qsl, urlsplit

    data = token.removeprefix("k8s-aws-v1.")
    url = base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)).decode()
    return dict(parse_qsl(urlsplit(url).query))


def profile(access_key: str, name: str = "default") -> str:
    return f"[{name}]\naws_access_key_id = {access_key}\naws_secret_access_key = {SECRET_KEY}\n"


def test_no_secret_is_in_any_file_or_file_name(home: Sandbox) -> None:
    """Except for the session token in a cached token's URL, which is useless without its secret key."""
    session = "IQoJb3JpZ2luX2VjEXAMPLE/SESSION+TOKEN=="
    secrets: dict[str, str] = {
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": session,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "Basic a-containers-password",
    }
    for words in ((), ("--identity", "two words"), ("--debug",)):
        env = {**secrets, "AWS_ACCESS_KEY_ID": ACCESS_KEY}
        done = home.run(*TOKEN, *words, env=env)
        assert done.returncode == (1 if "--identity" in words else 0)
        assert not any(value in done.stderr for value in secrets.values())
    found = home.secrets_found(list(secrets.values()))
    assert {value for _, value in found} == {session}
    assert {path.name for path, _ in found} == {"%answer"}


@pytest.mark.parametrize("named_by", ["profile", "variable"])
def test_the_token_follows_a_web_identity_token_file(
    home: Sandbox, moto: RecordingProxy, keyring_daemon: KeyringDaemon, named_by: str
) -> None:
    """As in a pod: a link leads to another directory. The session in the keyring belongs to the old token."""
    role, pod = moto.create_role("web"), home.home / "pod"
    for name in ("one", "two"):
        aged(make(pod / name) / "token", f"eyJhbGciOiJub25lIn0.{name}.")
    (pod / "data").symlink_to("one")
    os.utime(pod, (time.time() - 100,) * 2)
    settings = {"AWS_ROLE_ARN": role, "AWS_WEB_IDENTITY_TOKEN_FILE": str(pod / "data/token")}
    if named_by == "profile":
        profile = "".join(f"{name.removeprefix('AWS_').lower()} = {value}\n" for name, value in settings.items())
        home.config(f"[default]\n{profile}")
    env = moto.environment | (settings if named_by == "variable" else {})
    first = home.run(*TOKEN, env=env)
    assert home.run(*TOKEN, env=env).stdout == first.stdout
    assert moto.counts == {"AssumeRoleWithWebIdentity": 1}
    (pod / "data").unlink()
    (pod / "data").symlink_to("two")
    home.settle(pod)
    assert home.run(*TOKEN, env=env).stdout != first.stdout
    assert moto.counts == {"AssumeRoleWithWebIdentity": 2}


def make(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def test_a_token_is_asked_for_twice_and_minted_once(home: Sandbox) -> None:
    home.credentials(profile(ACCESS_KEY))
    first = home.run(*TOKEN)
    time.sleep(1.1)  # a token minted now would be dated later
    assert home.run(*TOKEN).stdout == first.stdout
    assert home.run(*TOKEN, env={"EKS_TOKEN_DEBUG": "1"}).stdout == first.stdout
    refreshed = home.run(*TOKEN, "--refresh")
    assert refreshed.stdout != first.stdout
    assert home.run(*TOKEN).stdout == refreshed.stdout


# --- refresh ahead ------------------------------------------------------------------------------------------


def refreshing(home: Sandbox, *argv: str, env: Mapping[str, str | None] | None = None) -> str:
    """The token that a call prints, which may start a refresh in the background."""
    done = home.run(*(argv or TOKEN), env={"EKS_TOKEN_REFRESH": None, **(env or {})})
    assert (done.returncode, done.stderr) == (0, "")
    return token_of(done.stdout)


def let_half_its_life_pass(home: Sandbox) -> Path:
    """Return the file whose date says when the next token is signed, after dating it now."""
    (path,) = (home.cache / "tokens").rglob("%refresh")
    os.utime(path)
    return path


def settle(home: Sandbox, refresh: Path) -> None:
    """Wait until no refresh is running: the next one is due later, and no request is locked."""
    locks = home.cache / "lock"
    wait_for(lambda: refresh.stat().st_mtime > time.time() and not list(locks.iterdir()), "the end of a refresh")


@posix
@pytest.mark.parametrize("hit", ["launcher", "python"])
def test_from_half_of_its_life_on_an_answer_is_refreshed_behind_it(home: Sandbox, hit: str) -> None:
    home.credentials(profile(ACCESS_KEY))
    env = {"AWS_CONTAINER_AUTHORIZATION_TOKEN": "hush" if hit == "python" else None}
    first = refreshing(home, env=env)
    refresh = Path(*(home.cache / "tokens").rglob("%refresh"))
    assert abs(refresh.stat().st_mtime - time.time() - (LIFE - 60) / 2) < 30
    time.sleep(1.1)  # a token that is signed now has another date
    assert refreshing(home, env=env) == first
    let_half_its_life_pass(home)
    assert refreshing(home, env={"EKS_TOKEN_REFRESH": "off", **env}) == first
    assert not refresh.with_name("%claim").exists()
    assert refreshing(home, env=env) == first
    settle(home, refresh)
    second = refreshing(home, env=env)
    assert second != first
    assert refresh.stat().st_mtime > time.time() + 300


@posix
@pytest.mark.parametrize("failure", ["no keys", "killed"])
def test_a_refresh_that_fails_is_tried_again_a_minute_later(home: Sandbox, failure: str) -> None:
    state = home.write("state.json", json.dumps({"Version": 1, "AccessKeyId": "AKIAONE", "SecretAccessKey": "secret"}))
    home.config(f"[default]\ncredential_process = cat {state}\n")
    argv = (*TOKEN, "--cache")
    first = refreshing(home, *argv)
    state.write_text("" if failure == "no keys" else "kill -9 $PPID")
    refresh = let_half_its_life_pass(home)
    assert refreshing(home, *argv) == first
    settle(home, refresh)
    assert 50 < refresh.stat().st_mtime - time.time() <= 60
    assert refreshing(home, *argv) == first  # and starts nothing
    assert not refresh.with_name("%claim").exists()


@posix
def test_a_claim_that_a_killed_process_left_is_taken_over(cache: Cache) -> None:
    key, now = key_of(*TOKEN), time.time()
    keep(cache, key)
    assert not cache.claim_refresh(key, now)
    cache.postpone_refresh(key, now)
    assert [cache.claim_refresh(key, now) for _ in range(3)] == [True, False, False]
    assert [cache.claim_refresh(key, now + 61) for _ in range(2)] == [True, True]
    cache.postpone_refresh(key, now + 60)
    assert not cache.claim_refresh(key, now + 59)


@posix
def test_the_refresh_asks_nobody(home: Sandbox) -> None:
    """Not even for an MFA code that mfa_process would print: it may wait for a touch."""
    resolver = eks_token.Resolver(invocation(environ={**home.env, "EKS_TOKEN_REFRESH": "ahead"}), None, False)
    resolver.mfa_process = lambda: "touch your-key"  # type: ignore[method-assign]
    with pytest.raises(Problem):
        resolver.ask_mfa_code("MFA code: ")


@posix
def test_a_refresh_of_an_answer_that_is_gone_signs_nothing(home: Sandbox) -> None:
    home.credentials(profile(ACCESS_KEY))
    done = home.run(*TOKEN, env={"EKS_TOKEN_REFRESH": "ahead"})
    assert (done.returncode, done.stdout) == (0, "")
    assert answers_in(Cache(str(home.cache))) == []


def test_debug_mentions_the_refresh(home: Sandbox) -> None:
    home.credentials(profile(ACCESS_KEY))
    refreshing(home)
    refresh = let_half_its_life_pass(home)
    done = home.run(*TOKEN, "--debug", env={"EKS_TOKEN_REFRESH": None})
    assert "in the background" in done.stderr
    settle(home, refresh)


MINUTE = 60


def sessions_asked_for(scene: Scene) -> dict[str, int]:
    counts = scene.moto.counts + scene.sso.counts
    return {name: counts[name] for name in ("AssumeRole", "GetRoleCredentials", "GetSessionToken") if counts[name]}


def shorten_role_sessions(scene: Scene, seconds: float) -> None:
    """Make sessions of an hour end in this many seconds. MFA sessions, which last twelve hours, stay as they are."""
    vault = eks_token.Vault(scene.home.env)
    for user in scene.kept():
        if user.startswith("session:"):
            entry = vault.get_json(user) or {}
            if eks_token.keys_left(eks_token.parse_session(entry)) < 2 * 60 * MINUTE:
                shorten(scene, user, seconds)


def left_behind(home: Sandbox) -> list[str]:
    """The processes of this home that are still running."""
    mine = f"HOME={home.home}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mine in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: it looks for processes in /proc")
def test_after_the_first_call_nobody_waits_for_aws(scene: Scene, kubectl: Path, api_server: ApiServer) -> None:
    """Two identities, one with an MFA session and one with SSO, for three times half the life of an answer.

    AWS does not answer before all the calls have ended. A call that waited for it would print a new token.
    """
    home, served = scene.home, ["AssumeRole", "GetRoleCredentials"]
    named = [role_over_keys_with_mfa(scene)[0], sso_with_one_role_only(scene)[0]]
    (home.home / ".kube").mkdir()  # or kubectl makes it
    home.settle(home.data / "identities.json")
    requests = [test_login.words("demo", "-i", name) for name in named]
    tokens = [refreshing(home, *request) for request in requests]
    kubeconfigs = [
        home.write(f"kubeconfig-{name}", api_server.kubeconfig({"command": str(home.executable), "args": request}))
        for name, request in zip(named, requests, strict=True)
    ]
    for _ in range(3):
        time.sleep(1.1)  # a token that is signed now has another date
        shorten_role_sessions(scene, 12 * MINUTE)
        scene.moto.forget()
        scene.sso.forget()
        due = list((home.cache / "tokens").rglob("%refresh"))
        assert len(due) == 2
        for refresh in due:
            os.utime(refresh)
        with scene.moto.hold(served[0]) as role, scene.sso.hold(served[1]) as sso_role:
            for request, token in zip(requests, tokens, strict=True):
                shown = all_at_once(home, 5, *request, EKS_TOKEN_REFRESH="")
                assert {token_of(output) for output, _ in shown} == {token}
            role.wait()
            sso_role.wait()
            for path in kubeconfigs:
                done = home.run("get", "namespaces", "--kubeconfig", path, command=[kubectl])
                assert (done.returncode, "kube-system" in done.stdout) == (0, True), done.stderr
            assert {verdict.token for verdict in api_server.verdicts} == {*tokens}
        for refresh in due:
            settle(home, refresh)
        wait_for(lambda: not left_behind(home), "the end of the refreshes")
        assert sessions_asked_for(scene) == dict.fromkeys(served, 1)
        former, tokens = tokens, [refreshing(home, *request) for request in requests]
        assert not {*former} & {*tokens}
        api_server.verdicts.clear()
    assert left_behind(home) == []


@posix
@pytest.mark.parametrize(
    ("minutes", "renewed"), [pytest.param(12, 1, id="ends before the next token"), pytest.param(20, 0, id="lasts")]
)
def test_a_refresh_renews_a_session_that_would_end_with_the_next_token(
    scene: Scene, minutes: int, renewed: int
) -> None:
    name, _ = role_over_keys_with_mfa(scene)
    scene.home.settle(scene.home.data / "identities.json")
    request = test_login.words("demo", "-i", name)
    refreshing(scene.home, *request)
    shorten_role_sessions(scene, minutes * MINUTE)
    scene.moto.forget()
    refresh = let_half_its_life_pass(scene.home)
    refreshing(scene.home, *request)
    settle(scene.home, refresh)
    assert scene.moto.count("AssumeRole") == renewed


# --- sources that may give others each time ---------------------------------------------------------------

GRAMMARS = [
    pytest.param(TOKEN, id="eks-token"),
    pytest.param(("aws", "eks", "token", *TOKEN), id="atmos"),
    pytest.param(("--region", "us-east-2", "eks", "get-token", "--cluster-name", "demo"), id="aws"),
    pytest.param(("token", "-i", "demo", "--region", "us-east-2"), id="aws-iam-authenticator"),
]


class LocalServer(HttpServer):
    """A local server like those of aws-vault and aws-sso-cli: it gives credentials of the role that is chosen now."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen = ""

    def reply(self, incoming: Incoming) -> Reply:
        expiration = eks_token.rfc3339(time.time() + 3600)
        keys = {"AccessKeyId": self.chosen, "SecretAccessKey": SECRET_KEY, "Token": "t", "Expiration": expiration}
        return Reply.json(200, keys)


@pytest.fixture
def local_server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.mark.parametrize("source", ["credential_process", "container"])
@pytest.mark.parametrize("argv", GRAMMARS)
def test_a_source_that_may_answer_differently_is_asked_each_time(
    home: Sandbox, local_server: LocalServer, argv: Sequence[str], source: str
) -> None:
    """saml2aws, granted and role switchers decide by what no key can name."""
    state = home.home / "state.json"
    environ: dict[str, str | None] = {}
    if source == "container":
        environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = local_server.url
    else:
        home.config(f"[default]\ncredential_process = cat {state}\n")

    def choose(access_key: str) -> None:
        local_server.chosen = access_key
        keys = {"Version": 1, "AccessKeyId": access_key, "SecretAccessKey": SECRET_KEY}
        home.write("state.json", json.dumps(keys))

    for access_key in ("AKIAONE", "AKIATWO"):
        choose(access_key)
        assert signed_with(home.run(*argv, env=environ)) == access_key
        assert answers_in(Cache(str(home.cache))) == []
    assert signed_with(home.run(*argv, "--cache", env=environ)) == "AKIATWO"
    choose("AKIATHREE")
    assert signed_with(home.run(*argv, "--cache", env=environ)) == "AKIATWO"
    assert signed_with(home.run(*argv, env=environ)) == "AKIATHREE"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        *(("http://127.0.0.1:9911/", True), ("http://localhost:9911/role", True), ("http://[::1]:80/", True)),
        *(("http://169.254.170.2/v2", False), ("http://169.254.170.23/v1/credentials", False), ("nonsense", False)),
        *(("http://[fd00:ec2::23]/v1/credentials", False), ("https://example.com/", False), ("http://[", False)),
    ],
)
def test_servers_on_this_machine_are_not_those_of_ecs_and_ec2(url: str, local: bool) -> None:
    assert eks_token.is_loopback(url) == local


# --- many at once -------------------------------------------------------------------------------------------

MINTED = "signed for"


def stored_identity(home: Sandbox, name: str = "dev") -> None:
    keys = {"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY}
    done = home.run("login", name, "--stdin", "--no-verify", stdin=json.dumps(keys))
    assert done.returncode == 0, done.stderr
    # nothing is cached that depends on a file that has just changed
    record = home.data / "identities.json"
    os.utime(record, (time.time() - 10,) * 2)


def all_at_once(home: Sandbox, count: int, *argv: str, **env: str) -> list[tuple[str, str]]:
    """stdout and stderr of so many processes; each has to succeed."""
    processes = [home.start(*argv, env=env) for _ in range(count)]
    shown = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, shown
    return shown


def test_fifty_processes_at_once_sign_one_token(home: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    stored_identity(home)
    shutil.rmtree(home.cache)
    # with --debug, the launcher leaves each of them to Python
    shown = all_at_once(home, 50, *TOKEN, EKS_TOKEN_DEBUG="1")
    tokens = {token_of(output) for output, _ in shown}
    assert len(tokens) == 1, [messages for _, messages in shown if MINTED in messages]
    assert parsed(tokens.pop())["X-Amz-Credential"].startswith(ACCESS_KEY)
    assert sum(MINTED in messages for _, messages in shown) == 1
    assert list((home.cache / "lock").iterdir()) == []
    assert len(answers_in(Cache(str(home.cache)))) == 1


def test_calls_during_a_login_print_whole_tokens(home: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    stored_identity(home)
    keys = {"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY}
    asking = [home.start(*TOKEN) for _ in range(8)]
    login = home.run("login", "dev", "--stdin", "--no-verify", stdin=json.dumps(keys))
    asking += [home.start(*TOKEN) for _ in range(8)]
    shown = [process.communicate(timeout=120) for process in asking]
    assert login.returncode == 0
    assert [process.returncode for process in asking] == [0] * 16, shown
    assert all(token_of(output) and messages == "" for output, messages in shown)


def test_a_mint_that_hangs_or_dies_does_not_stop_others(home: Sandbox) -> None:
    """Its credential_process hangs while it holds the lock. Then it is killed."""
    home.config(
        "[profile slow]\ncredential_process = sleep 60\n[profile quick]\n" + profile("AKIAQUICK").split("\n", 1)[1]
    )
    assert home.run("--version").returncode == 0
    slow = home.start(*TOKEN, "--identity", "slow")
    deadline = time.monotonic() + 20
    while not list((home.cache / "lock").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    # another request is not held up
    assert signed_with(home.run(*TOKEN, "--identity", "quick")) == "AKIAQUICK"
    slow.kill()
    slow.communicate()
    (lock,) = (home.cache / "lock").iterdir()
    with Lock(str(lock), seconds=5):
        pass
