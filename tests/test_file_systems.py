"""A token, and what `doctor` says, on file systems that lack something: fractions of seconds, names, locks."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Sandbox, as_root, need
from servers import wait_for

TOKEN = ("--cluster-name", "demo", "--region", "us-east-2", "-i", "dev")
KEYS = f"[dev]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = {'x' * 40}\n"


def laptop(root: Path, executable: Path) -> Sandbox:
    """A home that has not run the program before."""
    home = Sandbox(root, lambda: executable)
    home.credentials(KEYS)
    return home


def checks(home: Sandbox, *command: str) -> dict[str, tuple[str, str]]:
    """What `doctor` says of the cache."""
    done = home.run("doctor", "-o", "json", command=[*command, str(home.executable)] if command else None)
    found = {check["check"]: (check["status"], check["found"]) for check in json.loads(done.stdout)}
    return {name: found[name] for name in ("cache", "cache locks", "cache clock", "launcher")}


def next_second() -> None:
    """A token that is signed in the same second is the same one."""
    now = int(time.time())
    wait_for(lambda: time.time() >= now + 1, "the next second")


def done(*command: str) -> None:
    """Most containers do not let us mount; a program that is not there is missing."""
    need(command[0])
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"only on a system that lets us {' '.join(command[:3])}")


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on another file system, which the test names."""
    here, image = tmp_path / "mounted", tmp_path / "image"
    here.mkdir()
    if request.param == "overlay":
        parts = {name: tmp_path / name for name in ("lowerdir", "upperdir", "workdir")}
        for part in parts.values():
            part.mkdir()
        options = ",".join(f"{name}={part}" for name, part in parts.items())
        done("mount", "-t", "overlay", "-o", options, "overlay", str(here))
    else:
        with image.open("wb") as file:
            file.truncate(256 << 20)
    if request.param == "ext3":
        done("mkfs.ext3", "-q", "-F", "-I", "128", str(image))  # without room for fractions of a second
        done("mount", "-t", "ext3", "-o", "loop", str(image), str(here))
    if request.param == "names of Windows":
        done("mkfs.ntfs", "-q", "-F", str(image))
        done("lowntfs-3g", "-o", "windows_names,ignore_case,umask=077", str(image), str(here))
    yield here
    subprocess.run(["umount", str(here)], check=True)


@as_root
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("ext3", "prints a cached answer in"),
        ("overlay", "prints a cached answer in"),
        ("names of Windows", "the cache is on a file system that does not take all names"),
    ],
    indirect=["place"],
)
def test_a_token_is_cached(place: Path, says: str, executable: Path) -> None:
    home = laptop(place / "laptop", executable)
    first = home.run(*TOKEN)
    assert (first.returncode, first.stderr) == (0, "")
    next_second()
    assert home.run(*TOKEN).stdout == first.stdout
    found = checks(home)
    assert says in found.pop("launcher")[1]
    assert {status for status, _ in found.values()} == {"ok"}
    os.utime(home.credentials(KEYS.replace("x", "y")), (1.7e9, 1.7e9))
    assert home.run(*TOKEN).stdout not in ("", first.stdout)


def test_without_locks_a_token_is_signed_and_not_cached(tmp_path: Path, executable: Path) -> None:
    (strace,) = need("strace")
    no_locks = (strace, "-f", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:error=ENOLCK")
    home = laptop(tmp_path / "laptop", executable)
    answer = home.run(*TOKEN, command=[*no_locks, str(executable)])
    assert (answer.returncode, "k8s-aws-v1." in answer.stdout) == (0, True), answer.stderr
    assert list(home.cache.rglob("%answer")) == []
    found = checks(home, *no_locks)
    assert found["cache locks"] == ("fail", "they do not work there, so nothing is cached")
    assert {found[name][0] for name in ("cache", "cache clock")} == {"ok"}
