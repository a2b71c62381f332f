"""What goes wrong on a machine: a kill at any system call, a full or broken disk, limits, no locks, and a wrong clock.

The rule for each: the call prints a valid token or one error line, nothing is lost and nothing is left, and the next
call on a sound machine has a token. `make test` tries a sample; EKS_TOKEN_TEST_FAULTS=all tries everything, and prints
how it ended. Kills of a login are in test_cut_short.py, and keyrings that are mute or garble in test_keyring.py.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Completed, KeyringDaemon, Sandbox, as_root, missing, need, posix
from test_attacks import EVERYTHING, PROFILE, SECRET, TOKEN, outcome
from test_cut_short import CHANGING

import eks_token

pytestmark = [posix, pytest.mark.first_run]  # faults must meet a Python of the call's own


@pytest.fixture
def warm(home: Sandbox) -> Sandbox:
    """A home with a profile, after two calls: the program is unpacked and compiled, and there is an answer."""
    home.credentials(f"[default]\n{PROFILE}")
    for _ in range(2):
        assert outcome(home.run(*TOKEN)) == "token"
    return home


def chill(home: Sandbox) -> None:
    shutil.rmtree(home.cache)


def check_after(home: Sandbox) -> None:
    """The next calls have a token, from a cache that works, and nothing is left among the temporary files."""
    for words in (TOKEN, (*TOKEN, "--refresh"), TOKEN):
        assert outcome(home.run(*words)) == "token"
    assert next((home.cache / "tokens").rglob("%answer"))
    assert list(home.tmp.iterdir()) == []
    assert {path for path, _ in home.secrets_found([SECRET])} == {home.home / ".aws/credentials"}


def tally(name: str, found: Counter[str]) -> None:
    print(f"{name}: {sum(found.values())} tried: {dict(found)}")


# --- kills --------------------------------------------------------------------------------------------------

KILLED = {
    "a mint": [*TOKEN, "--refresh"],
    "a first call": [*TOKEN],
    "a refresh ahead": [*TOKEN],
    "emptying the cache": ["logout", "dev"],
}


def calls_of(home: Sandbox, words: list[str], env: dict[str, str]) -> list[tuple[str, int]]:
    """The system calls of a run that change something, as strace counts them: the second rename, say."""
    log = home.root / "calls"
    strace, *_ = need("strace")
    assert home.run(*words, command=[strace, "-qq", "-o", log, home.executable], env=env).returncode == 0
    counts: Counter[str] = Counter()
    changing = []
    for line in log.read_text(errors="replace").splitlines():
        name, bracket, _ = line.partition("(")
        counts[name] += 1
        if bracket and (EVERYTHING or any(word in line for word in (*CHANGING, "O_TRUNC"))):
            changing.append((name, counts[name]))
    log.unlink()
    return changing


@pytest.mark.parametrize("what", KILLED)
def test_a_call_that_is_killed_harms_no_later_one(what: str, warm: Sandbox, request: pytest.FixtureRequest) -> None:
    env = {"EKS_TOKEN_REFRESH": "ahead"} if what == "a refresh ahead" else {}
    vault = None
    if what == "emptying the cache":
        daemon: KeyringDaemon = request.getfixturevalue("keyring_daemon")
        warm.env["DBUS_SESSION_BUS_ADDRESS"] = daemon.address
        vault = eks_token.Vault(warm.env, sys.platform)

    def prepare() -> None:
        if what == "a first call":
            chill(warm)
        for refresh in (warm.cache / "tokens").rglob("%refresh"):
            os.utime(refresh, (time.time() - 60,) * 2)
        if vault is not None:
            vault.set_json("identity:dev", {"aws_access_key_id": "AKIDDEV", "aws_secret_access_key": SECRET[::-1]})
            warm.write(".local/share/eks-token/identities.json", '{"version":1,"default":"","identities":{"dev":{}}}')
            warm.data.chmod(0o700)

    prepare()
    calls = calls_of(warm, KILLED[what], env)
    chance = random.Random(what)
    tried = [chance.choice(calls) for _ in range(60)] if EVERYTHING else chance.sample(calls, min(len(calls), 4))
    found: Counter[str] = Counter()
    for name, number in tried:
        prepare()
        kill = ["-qq", "-o", os.devnull, "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={number}"]
        done = warm.run(*KILLED[what], command=[*need("strace"), *kill, warm.executable], env=env)
        found["killed" if done.returncode == -9 else f"status {done.returncode}"] += 1
        if vault is not None:
            again = warm.run("logout", "dev")
            assert again.returncode == 0 or "no identity named 'dev'" in again.stderr, (name, number, again.stderr)
            assert vault.everyone() == []
        try:
            check_after(warm)
        except AssertionError as error:
            raise AssertionError(f"{what} killed at {name} {number}: {error}") from error
    tally(f"kills of {what}", found)


# --- errors of the system -----------------------------------------------------------------------------------

ERRORS = [
    *("fsync:error=EIO", "flock:error=ENOLCK", "flock:error=ENOSYS", "rename:error=EXDEV", "rename:error=EIO"),
    *("mkdir:error=ENOSPC", "mkdir:error=EROFS", "unlink:error=EPERM", "utimensat:error=EPERM", "chmod:error=EPERM"),
    *("ftruncate:error=EIO", "link:error=EPERM", "umask:retval=0", "getrandom:error=ENOSYS"),
]


@pytest.mark.parametrize("cold", [True, False], ids=["the first call", "a mint"])
def test_an_error_of_the_system_costs_the_cache_and_not_the_token(cold: bool, warm: Sandbox) -> None:
    strace, *_ = need("strace")
    found: Counter[str] = Counter()
    for error in ERRORS if EVERYTHING else random.Random(str(cold)).sample(ERRORS, 4):
        if cold:
            chill(warm)
        inject = ["-qq", "-o", os.devnull, "-e", f"inject={error}"]
        done = warm.run(*TOKEN, "--refresh", command=[strace, *inject, warm.executable])
        found[outcome(done)] += 1
        shutil.rmtree(warm.tmp)  # where unlink fails, what is temporary stays
        warm.tmp.mkdir(mode=0o700)
        check_after(warm)
    tally(f"errors of the system, {'cold' if cold else 'warm'}", found)


LIMITS = [f"-f {blocks}" for blocks in (0, 1, 2, 8, 64, 512, 2048)] + [f"-n {files}" for files in range(13, 31)]


@pytest.mark.parametrize("cold", [True, False], ids=["the first call", "a mint"])
def test_a_limit_costs_the_cache_or_is_one_error(cold: bool, warm: Sandbox) -> None:
    found: Counter[str] = Counter()
    for limit in LIMITS if EVERYTHING else ["-f 0", "-f 64", "-n 13", "-n 16"]:
        if cold:
            chill(warm)
        command: list[str | Path] = ["/bin/sh", "-c", f'ulimit {limit}; exec "$@"', "sh", warm.executable]
        try:
            found[outcome(warm.run(*TOKEN, "--refresh", command=command))] += 1
        except AssertionError as error:
            raise AssertionError(f"ulimit {limit}: {error}") from error
        check_after(warm)
    tally(f"limits, {'cold' if cold else 'warm'}", found)


# --- disks --------------------------------------------------------------------------------------------------


@contextmanager
def disk(path: Path, options: str) -> Iterator[None]:
    """A small file system of its own at that path."""
    path.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", path], check=False).returncode:
        missing("mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


SIZES = [f"size={size}k" for size in range(4, 6000, 80)] + [f"nr_inodes={count}" for count in range(2, 700, 23)]


@as_root
@pytest.mark.parametrize("where", ["the cache's", "all there is"])
def test_a_disk_that_fills_at_any_step_costs_the_cache_or_is_one_error(where: str, home: Sandbox) -> None:
    """Where temporary files have no room either, and the program is not unpacked yet, there is an error."""
    home.credentials(f"[default]\n{PROFILE}")
    assert home.executable
    found: Counter[str] = Counter()
    for options in SIZES if EVERYTHING else random.Random(where).sample(SIZES, 3):
        with disk(home.root / "disk", options):
            env = {"XDG_CACHE_HOME": str(home.root / "disk")}
            env |= {"TMPDIR": str(home.root / "disk")} if where != "the cache's" else {}
            for _ in range(2):
                result = outcome(home.run(*TOKEN, env=env))
                assert result == "token" or where != "the cache's", options
            found[result] += 1
            # There is room again, and the same directory has what the full disk left.
            subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=9999", home.root / "disk"], check=True)
            for _ in range(2):
                assert outcome(home.run(*TOKEN, env=env)) == "token", options
        assert list(home.tmp.iterdir()) == []
    tally(f"full disks, {where}", found)


@as_root
@pytest.mark.parametrize("options", ["ro", "noexec", "nodev,nosuid,noexec,noatime", "lazytime", "ro,noexec"])
def test_a_disk_that_is_read_only_or_runs_nothing_is_no_reason_to_fail(options: str, warm: Sandbox) -> None:
    with disk(warm.cache.parent, "size=64m"):
        warm.cache.mkdir(mode=0o700)
        if "ro" not in options:
            assert outcome(warm.run(*TOKEN)) == "token"
        subprocess.run(["mount", "-o", f"remount,{options}", warm.cache.parent], check=True)
        for words in (TOKEN, (*TOKEN, "--refresh"), ("--cluster-name", "other", "--region", "us-east-2")):
            assert outcome(warm.run(*words)) == "token"
    check_after(warm)


@pytest.mark.parametrize("module", ["start", "site-packages/eks_token", "site-packages/botocore/session"])
def test_bytecode_that_a_full_disk_cut_short_is_compiled_again(module: str, warm: Sandbox) -> None:
    (app,) = (warm.cache / "app").glob("[0-9a-f]*")
    found: Counter[str] = Counter()
    for length in (0, 3, 8, 15, 16, 17, 100, -1, -2000) if EVERYTHING else (0, 16, -2000):
        assert outcome(warm.run(*TOKEN, "--refresh")) == "token"
        path = (app / module).parent / "__pycache__"
        (bytecode,) = path.glob(f"{Path(module).name}.cpython-*.pyc")
        os.truncate(bytecode, length if length >= 0 else bytecode.stat().st_size + length)
        found[outcome(warm.run(*TOKEN, "--refresh"))] += 1
        assert outcome(warm.run(*TOKEN, "--refresh")) == "token", length
    assert found["error"] == 0
    tally(f"bytecode of {module} cut", found)


# --- the clock ----------------------------------------------------------------------------------------------

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long ahead(void) { return atol(getenv("AHEAD")); }
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += ahead();
    return status;
}
time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux, which has LD_PRELOAD")
@pytest.mark.parametrize("ahead", [-86400, -3600, 3600, 86400])
def test_a_clock_that_was_wrong_leaves_no_wrong_answer(ahead: int, warm: Sandbox) -> None:
    """What is signed with a wrong clock is not served when it is right, and the other way round."""
    source, library = warm.write("clock.c", CLOCK), warm.root / "clock.so"
    subprocess.run([*need("cc"), "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    wrong = {"LD_PRELOAD": str(library), "AHEAD": str(ahead)}
    for env, off in ((wrong, ahead), ({}, 0), (wrong, ahead), ({}, 0)):
        done = warm.run(*TOKEN, *(["--refresh"] if off else []), env=env)
        assert outcome(done) == "token"
        assert abs(signed_at(done) - (time.time() + off)) < 900


def signed_at(done: Completed) -> float:
    import json

    expires = json.loads(done.stdout)["status"]["expirationTimestamp"]
    return eks_token.parse_time(expires) - 14 * 60
