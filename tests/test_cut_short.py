"""A login that is cut short at any system call: the identity is the old one or the new one, and nothing is lost.

strace sends the signals. `make test` cuts three kinds of login short, just before and just after the new record is in
place. `EKS_TOKEN_TEST_KILLS=300 make test PYTEST='-k cut_short'` spreads that many signals over all kinds.
"""

import itertools
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import test_login
from conftest import need
from servers import ACCOUNT, AccessKey, mfa_serial
from test_login import CODE, NOBODY, Scene, as_json, role_of

scene = test_login.scene
pytestmark = pytest.mark.first_run  # the Python that is killed must be the one that signs in

KILLS = int(os.environ.get("EKS_TOKEN_TEST_KILLS", "0"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# What changes a file, a lock or the keyring. Half of the kills, by each signal, come at one of the last of these.
CHANGING = ("rename", "unlink", "sendmsg", "sendto", "fsync", "flock", "mkdir", "O_CREAT", "utimensat")

# What `dev` is before the login and after it. Without EKS_TOKEN_TEST_KILLS, only the first three are tried.
KINDS = ("keys", "keys with MFA", "role", "SSO")
OFTEN = (("keys", "keys with MFA"), ("keys", "role"), ("", "keys"))
RARE = (("", "import"), ("keys", "other region"))
CHANGES = [*dict.fromkeys((*OFTEN, *itertools.product(("", *KINDS), KINDS), *RARE))] if KILLS else [*OFTEN]


class Login(NamedTuple):
    options: tuple[str, ...]
    stdin: str | None = None


class Change(NamedTuple):
    """A login of `dev`, and whom a cluster sees before and after it ("" for nobody)."""

    before: tuple[Login, ...]
    old: str
    after: Login
    new: str


def keys(name: str, key: AccessKey, *options: str) -> Login:
    return Login((name, "--stdin", *options), as_json(key) + f"\n{CODE}\n" * ("--mfa-code-stdin" in options))


def change_of(scene: Scene, old: str, new: str) -> Change:
    alice, bob, carol = (scene.moto.create_user(name, mfa_code=CODE) for name in ("alice", "bob", "carol"))
    scene.home.credentials(carol.profile("work"))
    device = ("--mfa-serial", mfa_serial("alice"), "--mfa-code-stdin")
    roles = [scene.moto.create_role(name, trusted=[carol.arn]) for name in ("admin", "other")]
    role, other_role = (Login(("dev", "--role-arn", arn, "--source", "other")) for arn in roles)
    person = role_of(scene.sso.assign(ACCOUNT, "Admin"))
    first = {
        "keys": (keys("dev", bob), bob.arn),
        "keys with MFA": (keys("dev", alice, *device), alice.arn),
        "role": (role, roles[0]),
        "SSO": (Login(("dev", *scene.sso_options())), person),
        "import": (Login(("dev", "--import-profile", "work")), carol.arn),
        "other region": (Login(("dev", "--region", "eu-west-1")), bob.arn),
    }
    again = {
        "keys": (keys("dev", carol), carol.arn),
        "keys with MFA": (Login(("dev", "--mfa-code-stdin"), f"{CODE}\n"), alice.arn),
        "role": (other_role, roles[1]),
        "SSO": (Login(("dev",)), person),
    }
    before = [keys("other", carol)] if "role" in (old, new) else []
    if old:
        before.append(first[old][0])
    return Change(tuple(before), first[old][1] if old else "", *(again if old == new else first)[new])


def login(scene: Scene, what: Login) -> None:
    scene.login(*what.options, stdin=what.stdin)


def prepare(scene: Scene, change: Change) -> None:
    for step in change.before:
        login(scene, step)
    if change.old:
        assert scene.principal("dev") == change.old  # which also stores an answer


class Call(NamedTuple):
    """A system call of a login, as strace counts: the 12th rename, say."""

    name: str
    number: int


def moments(scene: Scene, change: Change) -> list[Call]:
    """At which of its system calls to cut a login short, from a login that is not."""
    log = scene.home.root / "calls"
    assert trace(scene, change, "-o", str(log)) == 0
    every, changing, replaced = [], [], 0
    counts: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        kind, bracket, _ = line.partition("(")
        if not bracket:  # the end of the process
            continue
        counts[kind] += 1
        every.append(Call(kind, counts[kind]))
        if any(word in line for word in CHANGING):
            changing.append(every[-1])
        if kind == "rename" and "identities.json" in line:
            replaced = len(changing)
    if not KILLS:
        return changing[replaced - 1 : replaced + 1]
    chance = random.Random(KILLS)
    return [chance.choice(changing[-60:] if kill % 8 >= 4 else every) for kill in range(-(-KILLS // len(CHANGES)))]


def trace(scene: Scene, change: Change, *options: str) -> int:
    """Run the login under strace. Returns its exit status, or the negative number of the signal that ended it."""
    strace, *_ = need("strace")
    command: list[str | Path] = [strace, "-qq", *options, scene.home.executable, "login"]
    return scene.run(*change.after.options, stdin=change.after.stdin, command=command).returncode


def check(scene: Scene, change: Change, former: object) -> str:
    """What the login left: "old" or "new", and no third thing."""
    record = (scene.records() or {"identities": {}})["identities"].get("dev")
    outcome = "old" if record == former else "new"
    expected = change.old if record == former else change.new
    for more in ((), ("--refresh",)):
        done = scene.token("dev", *more, env=NOBODY)
        if not expected:
            assert "no identity or AWS profile named 'dev'" in done.stderr
        elif done.returncode:  # all that may be missing is a session that only a person can start
            assert "sign in with `eks-token login dev`" in done.stderr
            assert ("mfa_serial" in record or "sso_account_id" in record) and "--mfa" not in done.stderr
        else:
            assert scene.whose(done).canonical_arn == expected
    done = scene.run("logout", "--all")
    assert done.returncode == 0, done.stderr
    assert scene.kept() == []
    assert scene.answers() == []
    found = scene.home.secrets_found([key.secret for key in scene.keys.values()])
    assert {path.name for path, _ in found} <= {"credentials"}  # the file that an import leaves to the user
    return outcome


@pytest.mark.parametrize(("old", "new"), CHANGES, ids=lambda kind: kind or "nobody")
def test_a_login_that_is_cut_short_leaves_the_old_identity_or_the_new_one(old: str, new: str, scene: Scene) -> None:
    need("strace")
    change = change_of(scene, old, new)
    prepare(scene, change)
    if not old:  # Python compiles modules in the first run, with system calls that later runs do not make
        login(scene, change.after)
        assert scene.run("logout", "--all").returncode == 0
        prepare(scene, change)
    cuts = moments(scene, change)
    assert check(scene, change, former=None) == "new"
    outcomes: Counter[tuple[bool, str]] = Counter()  # whether the signal ended the login, and what it left
    for call, number in zip(cuts, itertools.cycle(SIGNALS), strict=False):
        prepare(scene, change)
        former = (scene.records() or {"identities": {}})["identities"].get("dev")
        injection = f"inject={call.name}:signal={number.name}:when={call.number}"
        status = trace(scene, change, "-o", "/dev/null", "-e", injection)
        assert status in (0, -number, 128 + number), f"{injection}: exit status {status}"
        try:
            outcome = check(scene, change, former)
        except AssertionError as error:
            raise AssertionError(f"{injection}: {error}") from error
        outcomes[status != 0, outcome] += 1
    left = {outcome: outcomes[True, outcome] for outcome in ("old", "new")}
    kills = sum(left.values())
    print(f"{old or 'nobody'} -> {new}: {len(cuts)} signals, {kills} of them ended the login: {left}")
    assert kills >= len(cuts) * 3 / 4, "too few signals ended the login"
