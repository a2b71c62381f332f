"""How the executable starts (build/start.py): where it unpacks itself, what it repairs, and what it refuses."""

import ast
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import start
from conftest import Completed, Sandbox, as_root, inspected, missing

import eks_token

ROOT = Path(__file__).resolve().parent.parent
VERSION = f"eks-token {eks_token.__version__}\n"
TOKEN = ("--cluster-name", "sample", "--region", "us-east-2")
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}
DAY = 24 * 60 * 60

pytestmark = pytest.mark.first_run


@pytest.fixture
def app(home: Sandbox) -> Path:
    """The directory that the program was unpacked to, after one run."""
    assert home.run("--version").stdout == VERSION
    return unpacked(home)


def unpacked(home: Sandbox) -> Path:
    """The one directory that the program was unpacked to; nothing else but the lock is there."""
    names = {path.name for path in (home.cache / "app").iterdir()} - {".lock"}
    assert len(names) == 1, names
    return home.cache / "app" / names.pop()


def sizes(app: Path) -> dict[str, int]:
    """The sizes of the program's files, without bytecode, which comes and goes."""
    return {
        path.relative_to(app).as_posix(): path.stat().st_size
        for path in app.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def mints(home: Sandbox, **env: str | None) -> Completed:
    return home.run(*TOKEN, env=KEYS | env)


def printed_a_token(done: Completed) -> bool:
    return done.returncode == 0 and '"token": "k8s-aws-v1.' in done.stdout and "Traceback" not in done.stderr


def modes(directory: Path) -> set[tuple[bool, str]]:
    """The modes in a directory: (is it a directory, mode in octal digits)."""
    return {(path.is_dir(), f"{stat.S_IMODE(path.lstat().st_mode):o}") for path in [directory, *directory.rglob("*")]}


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def make_empty(path: Path) -> None:
    os.truncate(path, 0)


# Who may read it


@pytest.mark.parametrize("umask", ["000", "022", "077", "777"])
@pytest.mark.parametrize(
    "words",
    [
        pytest.param('"$1" --version', id="by the launcher"),
        pytest.param('"$2" -I -S "$1" --version', id="by Python, from the archive"),
        pytest.param('"$2" -I -S $3/app/*/__main__.py "$1" --version', id="by Python, from the directory"),
    ],
)
def test_the_program_is_the_users_alone_under_any_umask(home: Sandbox, umask: str, words: str) -> None:
    words = f'umask {umask}; if [ -d "$3" ]; then {words}; else "$2" -I -S "$1" --version; fi'
    command: list[str | Path]
    command = ["/bin/sh", "-c", words, "sh", home.executable, home.env["EKS_TOKEN_PYTHON"], home.cache]
    for _ in range(3):
        done = home.run(command=command)
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, "")
    assert modes(home.cache) == {(True, "700"), (False, "600")}


def test_a_directory_that_others_could_read_is_closed_to_them(home: Sandbox, app: Path) -> None:
    for directory in (home.cache, home.cache / "app", app):
        directory.chmod(0o755)
    done = home.run("--version")
    assert (done.stdout, done.stderr) == (VERSION, "")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home.cache, home.cache / "app", app)} == {0o700}


def link(cache: Path) -> None:
    real = cache.with_name("elsewhere")
    real.mkdir(mode=0o700)
    cache.symlink_to(real)


def make_writable(mode: int) -> Callable[[Path], None]:
    def change(cache: Path) -> None:
        cache.mkdir()
        cache.chmod(mode)

    return change


def give_away(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    os.chown(cache, 12345, 12345)


def give_home_away(cache: Path) -> None:
    os.chown(cache.parent.parent, 12345, 12345)


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        pytest.param(link, "is a symbolic link", id="a link"),
        pytest.param(make_writable(0o770), "others can write", id="writable by a group"),
        pytest.param(make_writable(0o707), "others can write", id="writable by everybody"),
        pytest.param(give_away, "belongs to another user", id="another user's", marks=as_root),
        pytest.param(give_home_away, "belongs to another user", id="root in another user's home", marks=as_root),
    ],
)
def test_a_directory_that_is_not_safe_is_refused(home: Sandbox, prepare: Callable[[Path], None], why: str) -> None:
    home.cache.parent.mkdir()
    prepare(home.cache)
    before = set(home.home.rglob("*"))
    done = mints(home)
    assert printed_a_token(done)
    assert re.fullmatch(rf"eks-token: warning: nothing is cached: .*{why}.*\n", done.stderr)
    assert set(home.home.rglob("*")) == before
    assert list(home.tmp.iterdir()) == []


def test_a_directory_that_became_unsafe_is_not_run_from(home: Sandbox, app: Path) -> None:
    (app / "site-packages/eks_token.py").write_text("def main(): print('not ours')\n")
    home.cache.chmod(0o777)
    done = home.run("--version")
    assert done.stdout == VERSION
    assert "others can write" in done.stderr


def test_a_token_is_printed_if_the_directory_is_a_file(home: Sandbox) -> None:
    home.cache.parent.mkdir()
    home.cache.write_text("")
    assert printed_a_token(mints(home))


# Without a cache


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"HOME": None}, id="no HOME"),
        pytest.param({"HOME": ""}, id="an empty HOME"),
        pytest.param({"HOME": "relative"}, id="a relative HOME"),
        pytest.param({"XDG_CACHE_HOME": "/dev/null"}, id="a file"),
        pytest.param({"XDG_CACHE_HOME": "/proc/self"}, id="a file system that takes no files"),
    ],
)
def test_without_a_cache_the_program_runs_and_leaves_nothing(home: Sandbox, env: dict[str, str | None]) -> None:
    done = mints(home, **env)
    assert printed_a_token(done)
    assert [*home.home.iterdir(), *home.tmp.iterdir()] == []


def test_a_relative_cache_home_counts_as_unset(home: Sandbox) -> None:
    assert home.run("--version", env={"XDG_CACHE_HOME": "relative"}).stdout == VERSION
    assert sorted(path.name for path in home.home.iterdir()) == [".cache"]


@pytest.fixture
def full_disk(home: Sandbox) -> Iterator[Path]:
    """A file system in the home with space for a few small files."""
    path = home.home / "full"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        missing("mount")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@as_root
def test_on_a_full_disk_nothing_is_cached(home: Sandbox, full_disk: Path) -> None:
    done = mints(home, XDG_CACHE_HOME=str(full_disk))
    assert printed_a_token(done)
    assert [path for path in full_disk.rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert list(home.tmp.iterdir()) == []


@as_root
def test_full_disks_everywhere_are_one_error(home: Sandbox, full_disk: Path) -> None:
    done = home.run("--version", env={"XDG_CACHE_HOME": str(full_disk), "TMPDIR": str(full_disk)})
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"eks-token: error: cannot unpack .*: No space left on device\nhint: .*\n", done.stderr)
    assert [path for path in full_disk.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_a_limit_on_the_size_of_files_is_one_error(home: Sandbox) -> None:
    command: list[str | Path] = ["/bin/sh", "-c", 'ulimit -f 512; exec "$@"', "sh", home.executable]
    done = home.run("--version", command=command)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"eks-token: error: cannot unpack .*: File too large\nhint: .*\n", done.stderr)
    assert list(home.tmp.iterdir()) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_program_that_is_ended_removes_its_temporary_directory(home: Sandbox, name: str) -> None:
    marker = home.root / "started"
    waits = home.write("waits", f"#!/bin/sh\necho >'{marker}'\nexec sleep 30\n")
    waits.chmod(0o755)
    config = home.config(f"[default]\ncredential_process = {waits}\n")
    process = home.start(*TOKEN, env={"HOME": None, "AWS_CONFIG_FILE": str(config)})
    try:
        wait_until(marker.exists)
        assert list(home.tmp.iterdir()) != []
        process.send_signal(signal.Signals[name])
        process.wait(10)
    finally:
        process.kill()
        process.communicate()
    assert list(home.tmp.iterdir()) == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_at_any_moment_is_no_traceback(home: Sandbox, app: Path) -> None:
    """Python and the program start within the first hundredths of a second."""
    stopped = set()
    for moment in range(30):
        process = home.start(*TOKEN, "--refresh", env=KEYS)
        time.sleep(moment / 500)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=20)
        assert messages in ("", "eks-token: error: interrupted\n")
        assert process.returncode in (0, 130, -signal.SIGINT)
        stopped.add(process.returncode != 0)
    assert True in stopped


def test_ctrl_c_in_a_callback_ends_the_program_too(home: Sandbox, app: Path) -> None:
    """Python only reports what a weak reference's callback raises, as when the importer drops the lock of a module."""
    path = app / "site-packages" / "eks_token.py"
    text = path.read_text()
    _, docstring, rest = text.split('"""', 2)
    before, future, after = rest.partition("from __future__ import annotations\n")
    dropped = "class Dropped:\n    def __del__(self):\n        raise KeyboardInterrupt\n\nDropped()\n"
    docstring = docstring[: -len(dropped)]  # so that the size is the one in the manifest
    path.write_text(f'"""{docstring}"""{before}{future}{dropped}{after}')
    assert path.stat().st_size == len(text.encode())
    shutil.rmtree(path.with_name("__pycache__"))
    done = home.run(*TOKEN, "--refresh", env=KEYS)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "eks-token: error: interrupted\n")


def test_a_file_system_that_loses_a_renamed_directory_is_an_error(
    executable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After this error, a temporary directory is used, as if the disk were full."""
    monkeypatch.setattr(os, "rename", lambda old, new: None)
    with pytest.raises(OSError):
        start.unpacked(str(executable), str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


# Repair


def lose(name: str) -> Callable[[Path], None]:
    return lambda app: (app / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda app: halve(app / name)


def lose_every_other(app: Path) -> None:
    for path in sorted(app.rglob("*.py"))[::2]:
        path.unlink()


def lose_packages(app: Path) -> None:
    shutil.rmtree(app / "site-packages")


def lose_all(app: Path) -> None:
    shutil.rmtree(app)
    app.mkdir(mode=0o700)


def replace_by_file(app: Path) -> None:
    shutil.rmtree(app)
    app.write_text("")


def replace_by_link(app: Path) -> None:
    app.rename(app.parent.parent / "moved")
    app.symlink_to(app.parent.parent / "moved")


def halve_bytecode(app: Path) -> None:
    for path in app.rglob("*.pyc"):
        halve(path)


DAMAGES = [
    pytest.param(lose("site-packages/eks_token.py"), id="the program is gone"),
    pytest.param(cut("site-packages/eks_token.py"), id="the program is cut short"),
    pytest.param(lose("site-packages/botocore/data/endpoints.json"), id="data that is read late is gone"),
    pytest.param(lose("start.py"), id="start.py is gone"),
    pytest.param(cut("start.py"), id="start.py is cut short"),
    pytest.param(lambda app: make_empty(app / "start.py"), id="start.py is empty"),
    pytest.param(lose("__main__.py"), id="__main__.py is gone"),
    pytest.param(cut("__main__.py"), id="__main__.py is cut short"),
    pytest.param(lambda app: make_empty(app / "__main__.py"), id="__main__.py is empty"),
    pytest.param(lose("manifest"), id="the manifest is gone"),
    pytest.param(cut("manifest"), id="the manifest is cut short"),
    pytest.param(lose_every_other, id="half of the modules are gone"),
    pytest.param(lose_packages, id="all packages are gone"),
    pytest.param(lose_all, id="an empty directory"),
    pytest.param(replace_by_file, id="a file instead of the directory"),
    pytest.param(replace_by_link, id="a link instead of the directory"),
    pytest.param(halve_bytecode, id="bytecode is cut short"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_repaired(home: Sandbox, app: Path, damage: Callable[[Path], None]) -> None:
    home.run("--version")  # for the bytecode
    whole = sizes(app)
    damage(app)
    done = home.run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, "")
    assert home.run("--version").stdout == VERSION
    assert not app.is_symlink()
    assert sizes(unpacked(home)) == whole


def test_a_cached_answer_does_not_wait_for_a_check_of_all_files(home: Sandbox, app: Path) -> None:
    first = mints(home)
    data = app / "site-packages/botocore/data/endpoints.json"
    data.unlink()
    env = {"EKS_TOKEN_DEBUG": "1"}  # so that Python answers
    assert mints(home, **env).stdout == first.stdout
    assert not data.exists()
    assert printed_a_token(home.run(*TOKEN, "--refresh", env=KEYS))
    assert data.exists()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_fifo, make_endless, Path.mkdir], ids=["FIFO", "device", "directory"])
@pytest.mark.parametrize(
    "name",
    ["python", "starting", "app/.lock", *("app/BUILD/" + name for name in ("__main__.py", "start.py", "manifest"))],
)
def test_a_pipe_device_or_directory_instead_of_a_file_hangs_nobody(
    home: Sandbox, app: Path, name: str, make: Callable[[Path], None]
) -> None:
    path = home.cache / name.replace("BUILD", app.name)
    path.unlink(missing_ok=True)
    make(path)
    for _ in range(2):
        done = home.run("--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, "")
    assert name in ("python", "app/.lock") or path.is_file() == (name != "starting")


def test_once_unpacked_the_archive_is_not_read(home: Sandbox, app: Path, tmp_path: Path) -> None:
    head = tmp_path / "eks-token"
    head.write_bytes(home.executable.read_bytes().partition(b"PK\x03\x04")[0])
    head.chmod(0o755)
    assert home.run("--version", command=[head]).stdout == VERSION


@pytest.mark.parametrize("start_of_archive", [b"", b"PK\x03\x04"], ids=["cut off", "only begun"])
def test_damage_without_an_archive_to_repair_it_from_is_one_error(
    home: Sandbox, app: Path, tmp_path: Path, start_of_archive: bytes
) -> None:
    head = tmp_path / "eks-token"
    head.write_bytes(home.executable.read_bytes().partition(b"PK\x03\x04")[0] + start_of_archive)
    head.chmod(0o755)
    (app / "site-packages/eks_token.py").unlink()
    done = home.run("--version", command=[head])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"eks-token: error: {head} cannot be read, or is damaged\nhint: install it again\n"


def test_a_damaged_archive_is_one_error(home: Sandbox, tmp_path: Path) -> None:
    broken = tmp_path / "eks-token"
    content = bytearray(home.executable.read_bytes())
    with zipfile.ZipFile(home.executable) as archive:
        at = archive.getinfo("site-packages/eks_token.py").header_offset + 200
    content[at : at + 100] = bytes(100)
    broken.write_bytes(content)
    broken.chmod(0o755)
    done = home.run("--version", command=[broken])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"eks-token: error: {broken} cannot be read, or is damaged\nhint: install it again\n"
    assert {path.name for path in (home.cache / "app").iterdir()} == {".lock"}


@pytest.mark.parametrize("by_python", [pytest.param(False, id="the directory"), pytest.param(True, id="the archive")])
def test_what_fails_unexpectedly_is_unpacked_again(home: Sandbox, app: Path, by_python: bool) -> None:
    """A file that was overwritten and has its old size is only noticed when it is used."""
    module = app / "site-packages/botocore/auth.py"
    module.write_text("1 / 0".ljust(module.stat().st_size))
    python = [home.env["EKS_TOKEN_PYTHON"], "-I", "-S"] if by_python else []
    command: list[str | Path] = [*python, home.executable]
    done = home.run(*TOKEN, env=KEYS, command=command)
    assert done.returncode == 1 and "unexpected ZeroDivisionError" in done.stderr
    assert printed_a_token(home.run(*TOKEN, env=KEYS, command=command))


def test_an_unexpected_error_is_one_line_and_makes_the_next_start_unpack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "app" / start.BUILD / start.MANIFEST
    manifest.parent.mkdir(parents=True)
    manifest.write_text("")
    monkeypatch.setattr(start, "cache", str(tmp_path))
    monkeypatch.setattr(start, "run_in_directory", lambda *_, **__: int("x"))
    monkeypatch.setattr(sys, "argv", ["__main__.py", "eks-token"])
    with pytest.raises(SystemExit, match="1"):
        start.main()
    assert capsys.readouterr().err.splitlines() == [
        "eks-token: error: ValueError: invalid literal for int() with base 10: 'x'",
        "hint: EKS_TOKEN_DEBUG=1 shows where",
    ]
    assert not manifest.exists()


# Several processes, several builds


def test_processes_that_start_at_once_on_a_cold_cache_unpack_once(home: Sandbox) -> None:
    processes = [home.start("--version") for _ in range(12)]
    results = [process.communicate(timeout=60) for process in processes]
    assert results == [(VERSION, "")] * len(processes)
    unpacked(home)


def test_processes_that_find_damage_at_once_all_get_through(home: Sandbox, app: Path) -> None:
    whole = sizes(app)
    lose_every_other(app)
    processes = [home.start("--version") for _ in range(12)]
    results = [process.communicate(timeout=60) for process in processes]
    assert results == [(VERSION, "")] * len(processes)
    assert sizes(unpacked(home)) == whole


def test_a_start_does_not_wait_for_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "LOCK_PATIENCE", 0.1)
    held = start.locked(str(tmp_path / "lock"))
    assert held is not None
    assert start.locked(str(tmp_path / "lock")) is None
    os.close(held)
    assert start.locked(str(tmp_path / "lock")) is not None


def test_builds_that_nobody_uses_are_removed(home: Sandbox) -> None:
    apps = home.cache / "app"
    ages = {
        "0123456789abcdef": 15 * DAY,
        "fedcba9876543210": 13 * DAY,
        ".0123456789abcdef.x1_y2z3": 2 * DAY,
        ".fedcba9876543210.x1_y2z3": 60,
        "0123456789abcdeX": 100 * DAY,
        "notes": 100 * DAY,
        ".hidden": 100 * DAY,
    }
    home.cache.mkdir(parents=True, mode=0o700)
    for name, age in ages.items():
        (apps / name / "site-packages").mkdir(parents=True)
        os.utime(apps / name, (time.time() - age,) * 2)
    apps.chmod(0o700)
    assert home.run("--version").stdout == VERSION
    kept = {path.name for path in apps.iterdir()} & ages.keys()
    assert kept == ages.keys() - {"0123456789abcdef", ".0123456789abcdef.x1_y2z3"}


def test_a_link_named_like_a_build_is_not_followed(home: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("")
    apps = home.cache / "app"
    apps.mkdir(parents=True, mode=0o700)
    home.cache.chmod(0o700)
    (apps / "0123456789abcdef").symlink_to(tmp_path / "precious")
    os.utime(apps / "0123456789abcdef", (0, 0), follow_symlinks=False)
    assert home.run("--version").stdout == VERSION
    assert (tmp_path / "precious/file").exists()
    unpacked(home)


@pytest.mark.parametrize(
    ("age", "noted"), [pytest.param(3600, False, id="today"), pytest.param(3 * DAY, True, id="days ago")]
)
def test_a_build_in_use_is_dated_once_a_day(home: Sandbox, app: Path, age: int, noted: bool) -> None:
    home.run("--version")  # for the bytecode, whose directory is new in app
    then = int(time.time()) - age
    os.utime(app, (then, then))
    home.run("--version")
    assert (app.stat().st_mtime != then) == noted


def test_a_build_is_not_named_after_its_file(home: Sandbox, app: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "my köfer's kubectl helper"
    shutil.copy(home.executable, renamed)
    assert home.run("--version", command=[renamed]).stdout == VERSION
    assert unpacked(home) == app


def test_a_person_is_told_once_that_the_program_is_unpacked(home: Sandbox) -> None:
    first, second = (home.run("--version", tty=True) for _ in range(2))
    assert first.stderr.split() == f"eks-token: unpacking {eks_token.__version__}, once".split()
    assert second.stderr == ""


# What it imports


def imported(home: Sandbox, app: Path, *words: str) -> set[str]:
    """The modules that Python imports to print a token."""
    command: list[str | Path] = [home.env["EKS_TOKEN_PYTHON"], "-X", "importtime", "-I", "-S", app / "__main__.py"]
    done = home.run(*TOKEN, *words, env=KEYS, command=[*command, home.executable])
    assert '"token": "k8s-aws-v1.' in done.stdout
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_a_token_imports_no_more_than_it_needs(home: Sandbox, app: Path) -> None:
    """Importing one of these takes as long as the rest of a cached answer, or a quarter of a new token."""
    imported(home, app)
    cached = imported(home, app)
    assert cached & {"_hashlib", "hashlib", "botocore", "keyring", "json", "re", "typing", "platformdirs"} == set()
    signed = imported(home, app, "--refresh")
    assert "botocore.auth" in signed
    assert signed & {"botocore.session", "botocore.client", "keyring", "jeepney", "importlib.metadata"} == set()


# Which Python


def test_every_python_runs_the_file(home: Sandbox, python: str) -> None:
    for _ in range(2):
        done = home.run("--version", command=[python, home.executable])
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, "")


def test_the_launcher_starts_every_python(home: Sandbox, python: str) -> None:
    for _ in range(2):
        done = home.run("--version", python=python)
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, "")
    assert (home.cache / "python").read_bytes() == os.fsencode(os.path.realpath(python)) + b"\n"
    env: dict[str, str | None] = {"EKS_TOKEN_PYTHON": python, "AWS_CREDENTIAL_EXPIRATION": "2126-01-01T00:00:00Z"}
    assert printed_a_token(mints(home, **env))


def test_the_python_below_a_virtual_environment_is_remembered(home: Sandbox, python: str, tmp_path: Path) -> None:
    below = inspected(python)  # not the script that stands for it while coverage is measured
    assert below is not None
    subprocess.run([python, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    for _ in range(2):
        assert home.run("--version", python=str(tmp_path / "venv/bin/python")).stdout == VERSION
        assert (home.cache / "python").read_bytes() == os.fsencode(below.path) + b"\n"
    assert stat.S_IMODE((home.cache / "python").stat().st_mode) == 0o600


TOO_OLD = r"eks-token: error: Python 3\.10 or newer is needed, this is {} \(.+\)\nhint: .+\n"


def old_pythons() -> list[str]:
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [path for pattern in ("2.*", "3.[0-9].*") for path in versions.glob(f"{pattern}/bin/python")]
    return sorted(map(str, found)) or ["none"]


@pytest.mark.parametrize("old", old_pythons(), ids=lambda path: Path(path).parent.parent.name)
def test_an_old_python_says_so(home: Sandbox, old: str) -> None:
    if old == "none":
        pytest.skip("only on a machine with a Python before 3.10")
    version = Path(old).parent.parent.name.rpartition(".")[0]
    done = home.run("--version", command=[old, home.executable])
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(TOO_OLD.format(re.escape(version)), done.stderr)


def test_an_old_python_can_read_what_it_runs_first() -> None:
    text = (ROOT / "build/__main__.py").read_text()
    ast.parse(text, feature_version=(3, 4))
    code = "import sys; sys.version_info = (3, 9, 99); exec(sys.stdin.read())"
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(TOO_OLD.format(r"3\.9"), done.stderr)


# Variables and files of others


@pytest.mark.parametrize("name", ["SHIV_PREPEND_PYTHONPATH", "PYTHONPATH"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["launcher", "Python on the archive"])
def test_no_variable_makes_it_run_other_code(home: Sandbox, tmp_path: Path, name: str, by_hand: bool) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for module in ("eks_token", "start", "_bootstrap", "json", "botocore", "evil", "tempfile"):
        (evil / f"{module}.py").write_text(f"print('{module} is not ours')\ndef main(): return 0\n")
    env: dict[str, str | None] = {
        name: str(evil),
        "SHIV_INTERPRETER": "1",
        "SHIV_ENTRY_POINT": "evil:main",
        "SHIV_MODULE": "evil:main",
        "SHIV_CONSOLE_SCRIPT": "evil",
        "SHIV_ROOT": str(tmp_path / "root"),
        "SHIV_FORCE_EXTRACT": "1",
        "SHIV_COMPILE_PYC": "1",
        "SHIV_EXTEND_PYTHONPATH": "1",
    }
    python = [home.env["EKS_TOKEN_PYTHON"], "-I", "-S"] if by_hand else []
    command: list[str | Path] = [*python, home.executable]
    for _ in range(2):
        done = home.run("--version", env=env, command=command)
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, "")
    assert not (tmp_path / "root").exists()
    assert not (home.home / ".shiv").exists()


def test_a_module_in_the_working_directory_is_not_imported(home: Sandbox) -> None:
    for module in ("start", "eks_token", "os", "_bootstrap"):
        home.write(f"{module}.py", "raise SystemExit('not ours')\n")
    for python in ([], [home.env["EKS_TOKEN_PYTHON"]]):
        assert home.run("--version", command=[*python, home.executable]).stdout == VERSION
