"""Thousands of generated steps: no answer is ever of another identity than a new token would be at that moment.

A step switches a file in one of the ways that people and programs do, a variable, the keyring or what a helper prints,
kills a mint at some system call, or fills the disk. After each, the launcher in several shells and Python are asked.
`make test` takes 300 steps; `EKS_TOKEN_TEST_STEPS=6000 make test PYTEST='-k generated_steps'` takes thousands.
The one exception, a file that is changed in place and gets its date back, is not among them (see SECURITY.md).
"""

import configparser
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Completed, KeyringDaemon, Sandbox, need
from test_cache import SECRET_KEY, TOKEN, signed_with
from test_launcher import SHELLS, suitable

STEPS = int(os.environ.get("EKS_TOKEN_TEST_STEPS", "300"))
SEEDS = 3
SECOND = 10**9  # nanoseconds
ARCHIVED = 1_700_000_000 * SECOND  # the one date that files from an archive or a checkout have
# System calls at which to kill a mint, and how many of each it makes at least.
CALLS = [("rename", 6), ("unlink", 6), ("fsync", 5), ("utimensat", 6), ("flock", 4), ("mkdir", 8), ("openat", 200)]


@pytest.fixture
def other_keyring() -> Iterator[KeyringDaemon]:
    """A second session bus, with its own keyring."""
    daemon = KeyringDaemon()
    yield daemon
    daemon.stop()


class World:
    """A home in which everything that decides whose token it is can be switched.

    Time passes faster than really: what a step has changed gets a date in the past, three seconds after the one of the
    step before, so that answers that depend on it can be cached.
    """

    def __init__(self, home: Sandbox, buses: list[str], seed: int) -> None:
        self.home, self.buses, self.chance = home, buses, random.Random(seed)
        self.number = 0
        self.clock = time.time_ns() - 10**6 * SECOND
        self.counts: Counter[str] = Counter()
        self.folders = [home.home / ".aws", home.home / "alternative"]
        self.elsewhere = home.root / "elsewhere"  # not in the home, whose date would tell
        self.state = home.home / "state.json"
        self.logins: dict[tuple[str, str], str] = {}  # the access key of each identity on each bus
        asked = home.write("asked", suitable("echo MISS"))
        asked.chmod(0o755)
        self.asked = str(asked)
        config = home.write("config", f"[profile tool]\ncredential_process = cat {self.state}\n")
        home.env["AWS_CONFIG_FILE"] = str(config)
        self.variables: dict[str, str] = {"AWS_PROFILE": "work", "DBUS_SESSION_BUS_ADDRESS": buses[0]}
        self.versions = [self.elsewhere / f"version {number}" for number in range(4)]  # what a link may lead to
        for version in self.versions:
            version.mkdir(parents=True)
            self.write_credentials(version / "credentials")
        self.switch_helper()
        for bus in buses:
            self.login("dev", bus)
        for _ in range(8):
            self.switch_file()
        self.let_time_pass()

    def new_key(self) -> str:
        self.number += 1
        return f"AKIA{self.number:016}"

    def expected(self) -> str:
        """The access key that a new token would be signed with; "" if there is none."""
        given, name = self.variables, self.variables["AWS_PROFILE"]
        if "AWS_ACCESS_KEY_ID" in given:
            return given["AWS_ACCESS_KEY_ID"]
        if name == "tool":
            return str(json.loads(self.state.read_text())["AccessKeyId"])
        if name in ("dev", "ops"):
            return self.logins.get((name, given["DBUS_SESSION_BUS_ADDRESS"]), "")
        parser = configparser.ConfigParser()
        parser.read(given.get("AWS_SHARED_CREDENTIALS_FILE") or self.folders[0] / "credentials")
        return parser.get(name, "aws_access_key_id", fallback="")

    def write_credentials(self, file: Path) -> None:
        keys = {name: self.new_key() for name in ("work", "home")}
        file.write_text(
            "".join(
                f"[{name}]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET_KEY}\n"
                for name, key in keys.items()
            )
        )

    # What a step does

    def switch_file(self) -> None:
        """Switch a credentials file, with dates that are mostly alike."""
        folder = self.chance.choice(self.folders)
        file, fresh = folder / "credentials", self.elsewhere / f"folder {self.new_key()}"
        way = self.chance.choice(["edit", "older", "rename", "link", "relink", "folder", "linked folder", "remove"])
        self.counts[f"file: {way}"] += 1
        if way in ("edit", "older"):
            if file.exists():
                self.write_credentials(file)
                if way == "older":  # as cp -p does
                    date(file, self.chance.randrange(12 * 10**17, 16 * 10**17))
            return
        if way == "relink":  # by somebody who puts the date of the folder back
            if folder.exists():
                modified = folder.stat().st_mtime_ns
                file.unlink(missing_ok=True)
                file.symlink_to(self.chance.choice(self.versions) / "credentials")
                date(folder.resolve(), modified)
            return
        fresh.mkdir()
        self.write_credentials(fresh / "credentials")
        date(fresh / "credentials", ARCHIVED)
        date(fresh, ARCHIVED)
        if way == "remove":
            file.unlink(missing_ok=True)
        elif way in ("rename", "link") and folder.exists():
            if way == "link":
                file.unlink(missing_ok=True)
                file.symlink_to(fresh / "credentials")
            else:
                (fresh / "credentials").replace(file)
        else:
            if folder.is_symlink():
                folder.unlink()
            elif folder.exists():
                folder.rename(self.elsewhere / f"folder {self.new_key()}")
            if way == "linked folder":
                folder.symlink_to(fresh)
            else:
                fresh.rename(folder)
        used = {path.resolve() for each in self.folders for path in (each, (each / "credentials").parent)}
        used |= {(each / "credentials").resolve().parent for each in self.folders}
        for unused in set(self.elsewhere.glob("folder *")) - used:
            shutil.rmtree(unused)

    def switch_variable(self) -> None:
        self.variables = {
            "AWS_PROFILE": self.chance.choice(["work", "work", "home", "dev", "dev", "ops", "tool"]),
            "DBUS_SESSION_BUS_ADDRESS": self.chance.choice(self.buses),
        }
        if self.chance.random() < 0.3:
            self.variables["AWS_SHARED_CREDENTIALS_FILE"] = str(self.folders[1] / "credentials")
        if self.chance.random() < 0.1:
            keys = {"AWS_ACCESS_KEY_ID": f"AKIA{self.chance.randrange(3)}", "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
            self.variables = {**self.variables, "AWS_PROFILE": "", **keys}

    def switch_helper(self) -> None:
        keys = {"Version": 1, "AccessKeyId": self.new_key(), "SecretAccessKey": SECRET_KEY}
        self.state.write_text(json.dumps(keys))

    def sign_in(self) -> None:
        self.login("ops", self.chance.choice(self.buses))

    def login(self, name: str, bus: str) -> None:
        keys = {"Version": 1, "AccessKeyId": self.new_key(), "SecretAccessKey": SECRET_KEY}
        words = ("login", name, "--stdin", "--no-verify")
        done = self.home.run(*words, stdin=json.dumps(keys), env={"DBUS_SESSION_BUS_ADDRESS": bus})
        assert done.returncode == 0, done.stderr
        self.logins[name, bus] = str(keys["AccessKeyId"])

    def kill_a_mint(self) -> None:
        call, most = self.chance.choice(CALLS)
        calls = f"?{call},?{call}at,?{call}at2" if call in ("rename", "unlink", "mkdir") else f"?{call}"
        injection = f"inject={calls}:signal=SIGKILL:when={self.chance.randint(1, most)}"
        command: list[str | Path] = [*need("strace"), "-qq", "-o", os.devnull, "-e", injection, self.home.executable]
        done = self.ask(*command, words=("--refresh",), env={"EKS_TOKEN_PYTHON": self.home.env["EKS_TOKEN_PYTHON"]})
        self.counts["killed"] += done.returncode in (-9, 137)

    def fill_the_disk(self) -> None:
        """Files may have no more than so many blocks, so the write that is one too many fails."""
        limit = f'ulimit -f {self.chance.choice([0, 0, 1, 2, 3])}; trap "" XFSZ; exec "$@"'
        words = self.chance.choice([(), ("--refresh",)])
        env = {"EKS_TOKEN_PYTHON": self.home.env["EKS_TOKEN_PYTHON"]}
        self.check(self.ask("sh", "-c", limit, "sh", self.home.executable, words=words, env=env))

    def refresh_ahead(self) -> None:
        for refresh in (self.home.cache / "tokens").rglob("%refresh"):
            os.utime(refresh)
        done = self.ask(self.home.executable, env={"EKS_TOKEN_REFRESH": "ahead"})
        assert done.stdout == ""

    def do_nothing(self) -> None:
        pass

    # What is asked

    def ask(self, *command: str | Path, words: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Completed:
        return self.home.run(*TOKEN, *words, env=self.variables | (env or {}), command=command)

    def check(self, done: Completed) -> None:
        expected = self.expected()
        if expected:
            assert signed_with(done) == expected
        else:
            assert (done.returncode, done.stdout) == (1, "")

    def ask_everybody(self) -> None:
        for name in self.chance.sample(SHELLS, 3):
            shell = need(name)[0]
            command: list[str | Path] = [shell, *(["sh"] if name == "busybox" else []), self.home.executable]
            done = self.ask(*command, env={"EKS_TOKEN_PYTHON": self.asked})
            if done.stdout != "MISS\n":
                self.check(done)
                self.counts["printed by a shell"] += 1
        if self.chance.random() < 0.7:
            done = self.ask(self.home.executable, env=self.chance.choice([{}, {"EKS_TOKEN_DEBUG": "1"}]))
            self.check(done)
            self.counts["printed by Python"] += "answered from the cache" in done.stderr
            self.counts["signed"] += "signed for" in done.stderr

    def let_time_pass(self) -> None:
        """Give everything that has just changed a date in the past, which no file had before."""
        self.clock += 3 * SECOND + self.chance.randrange(SECOND)
        for top in (self.home.home, self.elsewhere):
            for here, folders, files in os.walk(top):
                if Path(here) == self.home.cache.parent:
                    folders.clear()
                for path in (Path(here), *(Path(here, name) for name in files)):
                    if path.lstat().st_mtime > time.time() - 3600:
                        date(path, self.clock)

    def take(self, steps: int) -> None:
        kinds = {
            self.switch_file: 45,
            self.switch_variable: 20,
            self.switch_helper: 5,
            self.do_nothing: 15,
            self.sign_in: 2,
            self.kill_a_mint: 8,
            self.fill_the_disk: 4,
            self.refresh_ahead: 5,
        }
        for step in self.chance.choices([*kinds], weights=[*kinds.values()], k=steps):
            self.counts[step.__name__] += 1
            step()
            if self.chance.random() < 0.3:  # at once, before anybody can tell the dates apart
                self.ask_everybody()
            self.let_time_pass()
            self.ask_everybody()


def date(path: Path, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_answer_in_generated_steps_is_ever_of_another_identity(
    home: Sandbox, keyring_daemon: KeyringDaemon, other_keyring: KeyringDaemon, seed: int
) -> None:
    need(*SHELLS, "strace")
    world = World(home, [keyring_daemon.address, other_keyring.address], seed)
    try:
        world.take(STEPS // SEEDS)
    finally:
        print(f"seed {seed}: {dict(world.counts)}; {world.variables}")
    assert all(world.counts[kind] for kind in ("printed by a shell", "printed by Python", "signed", "killed"))
