"""Sessions are requested once and shared, as the servers count. What began before a change is not used after it."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import pytest
import test_login
from conftest import Completed, invocation
from servers import ACCOUNT, RecordingProxy, mfa_serial
from test_keyring import LimitedBackend
from test_login import (
    ASK_CODE,
    CODE,
    DEAD_BUS,
    NOBODY,
    Flow,
    Scene,
    as_json,
    chain_from_stored_over_a_profile_to_stored,
    keys_from_stdin,
    keys_with_mfa_from_stdin,
    named,
    role_of,
    role_over_a_profile,
    role_over_keys_with_mfa,
    role_over_sso,
    role_over_stored_keys,
    shorten,
    sso_profile_of_aws_config,
    sso_session_left_by_the_aws_cli,
    sso_with_one_role_only,
    temporary_keys_from_stdin,
    utc,
    words,
)
from verifier import Key

import eks_token

scene = test_login.scene

ROLE_CALLS = ("AssumeRole", "GetRoleCredentials", "GetSessionToken", "CreateToken")


def asked(scene: Scene) -> dict[str, int]:
    """How often AWS was asked for each kind of session since the last `forget`."""
    counts = scene.moto.counts + scene.sso.counts
    return {name: counts[name] for name in ROLE_CALLS if counts[name]}


def forget(scene: Scene) -> None:
    scene.moto.forget()
    scene.sso.forget()


def at_once(scene: Scene, name: str, clusters: Sequence[str], **env: str) -> list[str]:
    """The principal that each cluster sees. One process for each runs at the same time, without a terminal."""
    start, python = scene.home.start, scene.home.python
    processes = [start(*words(cluster, "-i", name), env=NOBODY | env, python=python) for cluster in clusters]

    def finish(process: "subprocess.Popen[str]", cluster: str) -> str:
        stdout, stderr = process.communicate(timeout=120)
        done = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
        return scene.whose(done, cluster).canonical_arn

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(finish, processes, clusters))


TWENTY = [f"cluster-{number}" for number in range(20)]


# --- once for all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [role_over_stored_keys, role_over_a_profile, role_over_keys_with_mfa], ids=named)
def test_ten_calls_within_a_session_cause_one_assume_role(flow: Flow, scene: Scene) -> None:
    name, expected = flow(scene)
    shorten(scene, "session:")
    if flow is role_over_keys_with_mfa:  # the session of its source is still valid
        scene.login("dev", "--mfa-code-stdin", stdin=f"{CODE}\n")
    forget(scene)
    for number in range(10):
        # the same cluster, another one, and one whose answer is not taken from the cache
        cluster = f"cluster-{number // 2}"
        done = scene.token(name, *(["--refresh"] if number % 3 == 2 else []), cluster=cluster, env=NOBODY)
        assert scene.whose(done, cluster).canonical_arn == expected
    assert asked(scene) == {"AssumeRole": 1}


@pytest.mark.parametrize(
    ("flow", "expired", "expected_calls"),
    [
        pytest.param(role_over_stored_keys, "session:", {"AssumeRole": 1}, id="a role"),
        pytest.param(chain_from_stored_over_a_profile_to_stored, "session:", {"AssumeRole": 3}, id="a chain of roles"),
        pytest.param(sso_with_one_role_only, "session:", {"GetRoleCredentials": 1}, id="SSO"),
        pytest.param(role_over_sso, "session:", {"AssumeRole": 1, "GetRoleCredentials": 1}, id="a role over SSO"),
        # a refresh token works only once: a second refresh would be an error
        pytest.param(sso_with_one_role_only, "s", {"CreateToken": 1, "GetRoleCredentials": 1}, id="an SSO token"),
    ],
)
def test_twenty_clusters_at_once_renew_what_has_expired_once(
    flow: Flow, expired: str, expected_calls: dict[str, int], scene: Scene
) -> None:
    name, expected = flow(scene)
    shorten(scene, expired)
    if "CreateToken" in expected_calls:
        scene.sso.expire_access_tokens()
    forget(scene)
    assert set(at_once(scene, name, TWENTY)) == {expected}
    assert asked(scene) == expected_calls


def test_two_roles_at_once_refresh_their_sso_token_once(scene: Scene) -> None:
    first = scene.sso.assign(ACCOUNT, "Admin")
    second = scene.sso.assign(ACCOUNT, "Viewer")
    for name, role in (("one", "Admin"), ("two", "Viewer")):
        scene.login(name, *scene.sso_options("--sso-account-id", ACCOUNT, "--sso-role-name", role))
    shorten(scene, "s")
    forget(scene)
    with scene.sso.hold("CreateToken") as hold:
        processes = [
            scene.home.start(*words("demo", "-i", name), env=NOBODY, python=scene.home.python)
            for name in ("one", "two")
        ]
        hold.wait()
    seen = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=60)
        seen.append(scene.whose(subprocess.CompletedProcess([], process.returncode, stdout, stderr)).canonical_arn)
    assert seen == [role_of(first), role_of(second)]
    assert asked(scene) == {"CreateToken": 1, "GetRoleCredentials": 2}


# --- expiry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "renewed"), [(110, True), (300, False)], ids=["less than two minutes", "more"])
def test_a_session_with_less_than_two_minutes_left_is_renewed(seconds: int, renewed: bool, scene: Scene) -> None:
    scene.moto.lifetime = seconds
    name, expected = role_over_stored_keys(scene)
    scene.moto.lifetime = None
    forget(scene)
    assert scene.principal(name) == expected
    assert asked(scene) == ({"AssumeRole": 1} if renewed else {})


@pytest.mark.parametrize("kind", ["a role", "an MFA session", "SSO"])
def test_a_session_that_cannot_be_renewed_is_used_until_it_expires_but_not_cached(kind: str, scene: Scene) -> None:
    scene.moto.lifetime = scene.sso.role_lifetime = 100
    if kind == "a role":
        name, expected = role_over_stored_keys(scene)
        scene.moto.fail("AssumeRole", "ServiceUnavailable", status=503)
    elif kind == "SSO":
        name, expected = sso_with_one_role_only(scene)
        scene.sso.revoke_all()
    else:
        name, expected = keys_with_mfa_from_stdin(scene)
    done = scene.token(name, env=NOBODY | {"AWS_MAX_ATTEMPTS": "1"})
    assert scene.whose(done).canonical_arn == expected
    assert expiration(done.stdout) <= time.time() + 100 - 60
    assert scene.answers() == []


def expiration(answer: str) -> float:
    return datetime.fromisoformat(json.loads(answer)["status"]["expirationTimestamp"]).timestamp()


@pytest.mark.parametrize(
    ("lifetime", "expected"), [(3600, 14 * 60), (600, 9 * 60)], ids=["a long session", "a short session"]
)
@pytest.mark.parametrize("flow", [keys_from_stdin, role_over_stored_keys, sso_with_one_role_only], ids=named)
def test_a_token_expires_after_fourteen_minutes_or_a_minute_before_its_credentials(
    flow: Flow, lifetime: int, expected: int, scene: Scene
) -> None:
    scene.moto.lifetime = scene.sso.role_lifetime = lifetime
    begun = time.time()
    name, _ = flow(scene)
    answer = scene.token(name).stdout
    lasts = 14 * 60 if flow is keys_from_stdin else expected
    assert begun + lasts - 1 <= expiration(answer) <= time.time() + lasts


# --- no keyring ---------------------------------------------------------------------------------------------


def role_of_a_profile(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice")
    scene.home.credentials(alice.profile("work"))
    role = scene.moto.create_role("admin", trusted=[alice.arn])
    scene.home.config(f"[profile admin]\nrole_arn = {role}\nsource_profile = work\n")
    return "admin", role


@pytest.mark.parametrize(
    ("flow", "call"),
    [
        pytest.param(role_of_a_profile, "AssumeRole", id="a role in AWS config"),
        pytest.param(sso_session_left_by_the_aws_cli, "GetRoleCredentials", id="an SSO session from the AWS CLI"),
    ],
)
def test_without_a_keyring_aws_config_still_works_and_no_session_is_stored(flow: Flow, call: str, scene: Scene) -> None:
    name, expected = flow(scene)
    for cluster in ("one", "two"):
        done = scene.token(name, cluster=cluster, env=DEAD_BUS)
        assert scene.whose(done, cluster).canonical_arn == expected
        assert done.stderr == ""
    assert asked(scene) == {call: 2}
    assert scene.kept() == []


@pytest.mark.parametrize("ring", ["locked", "missing"])
@pytest.mark.parametrize("person", [True, False], ids=["terminal", "no terminal"])
def test_an_unusable_keyring_is_reported_before_a_browser_opens(ring: str, person: bool, scene: Scene) -> None:
    name, _ = sso_profile_of_aws_config(scene)
    forget(scene)
    env = {**({} if person else NOBODY), **(DEAD_BUS if ring == "missing" else {})}
    with scene.ring.locked() if ring == "locked" else nullcontext():
        shown = scene.refused(*words("demo", "-i", name), env=env, steps=[] if person else None)
    assert "the SSO session has ended or was never started" in shown
    assert ("the keyring is locked" if ring == "locked" else "no keyring") in shown
    assert "Confirm the code" not in shown
    assert scene.sso.calls == []


def test_without_a_keyring_a_role_with_mfa_says_why_it_asks_every_time(scene: Scene) -> None:
    role = scene.moto.create_role("admin", mfa=True)
    scene.home.credentials(scene.moto.create_user("alice", mfa_code=CODE).profile("work"))
    serial = f"mfa_serial = {mfa_serial('alice')}"
    scene.home.config(f"[profile admin]\nrole_arn = {role}\nsource_profile = work\n{serial}\n")
    done = scene.token("admin", steps=[(ASK_CODE, f"{CODE}\n")], env=DEAD_BUS)
    assert scene.whose(done).canonical_arn == role
    assert "the session is not stored, so every call asks again: no keyring" in done.stderr
    shown = scene.refused(*words("demo", "-i", "admin", "--refresh"), env={**NOBODY, **DEAD_BUS})
    assert "an MFA code is needed, but nobody is there to type it, and no keyring" in shown


# --- a change while another process mints -------------------------------------------------------------------


@contextmanager
def minting(scene: Scene, name: str, operation: str = "AssumeRole") -> Iterator["subprocess.Popen[str]"]:
    """While the block runs, a process waits for AWS to give it a session."""
    server = scene.moto if operation == "AssumeRole" else scene.sso
    with server.hold(operation) as hold:
        process = scene.home.start(*words("demo", "-i", name), env=NOBODY, python=scene.home.python)
        hold.wait()
        yield process
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr


def test_an_answer_from_before_a_login_is_not_used_after_it(scene: Scene) -> None:
    name, _ = role_over_stored_keys(scene)
    shorten(scene, "session:")
    bob = scene.moto.create_user("bob")
    with minting(scene, name):
        scene.store(name, bob)
    assert scene.answers() == []
    assert scene.principal(name) == bob.arn


def test_an_answer_from_before_a_login_of_the_source_is_not_used_after_it(scene: Scene) -> None:
    name, _ = role_over_stored_keys(scene)
    shorten(scene, "session:")
    with minting(scene, name):
        scene.store("dev", scene.moto.create_user("bob"))
    assert scene.answers() == []
    # the role does not trust him
    assert "AWS refused AssumeRole: AccessDenied" in scene.refused(*words("demo", "-i", name))


def test_an_answer_and_a_session_from_before_a_logout_are_not_used_after_it(scene: Scene) -> None:
    name, _ = role_over_stored_keys(scene)
    shorten(scene, "session:")
    with minting(scene, name):
        assert scene.run("logout", name).returncode == 0
    assert scene.answers() == []
    assert scene.kept() == ["identity:dev"]
    assert "no identity" in scene.refused(*words("demo", "-i", name))


@pytest.mark.parametrize(
    ("flow", "expired", "operation"),
    [
        pytest.param(sso_profile_of_aws_config, "session:", "GetRoleCredentials", id="a session"),
        pytest.param(sso_with_one_role_only, "s", "CreateToken", id="a refreshed token"),
    ],
)
def test_what_sso_answers_during_a_logout_is_not_used_after_it(
    flow: Flow, expired: str, operation: str, scene: Scene
) -> None:
    name, _ = flow(scene)
    shorten(scene, expired)
    scene.sso.fail("Logout", "InternalServerException", status=500)  # so the server does not end the session
    with minting(scene, name, operation):
        assert scene.run("logout", name).returncode == 0
    assert (scene.answers(), scene.kept()) == ([], [])
    assert f"eks-token login {name}" in scene.refused(*words("demo", "-i", name))


def test_an_answer_and_a_session_from_before_an_edit_are_not_used_after_it(scene: Scene) -> None:
    name, _ = role_over_stored_keys(scene)
    shorten(scene, "session:")
    other = scene.moto.create_role("other")
    with minting(scene, name):
        scene.edit(lambda identities: identities[name].update(role_arn=other, external_id=""))
    scene.edit(lambda identities: identities[name].pop("external_id"))
    assert scene.principal(name) == other


def test_an_answer_from_before_an_edit_of_aws_config_is_not_used_after_it(scene: Scene) -> None:
    name, role = role_of_a_profile(scene)
    other = scene.moto.create_role("other")
    config = (scene.home.home / ".aws/config").read_text()
    with minting(scene, name):
        scene.home.config(config.replace(role, other))
    assert scene.principal(name) == other
    # with the old file and its old times, only what was cached for it may be used again
    scene.home.config(config)
    assert scene.principal(name) == role


# --- whose session it is ------------------------------------------------------------------------------------


def test_one_role_over_two_sources_is_two_sessions(scene: Scene) -> None:
    alice = scene.alice()
    scene.store("ops", scene.moto.create_user("bob"))
    role = scene.moto.create_role("admin", trusted=[alice.arn])
    scene.login("one", "--role-arn", role, "--source", "dev")
    # the role does not trust bob, and he must not get alice's session
    assert "AccessDenied" in scene.refused("login", "two", "--role-arn", role, "--source", "ops")
    scene.home.config(f"[profile three]\nrole_arn = {role}\nsource_profile = ops\n")
    assert "AccessDenied" in scene.refused(*words("demo", "-i", "three"))
    assert scene.principal("one") == role


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"external_id": "another"}, id="another external id"),
        pytest.param({"role_session_name": "another"}, id="another session name"),
        pytest.param({"duration_seconds": "1800"}, id="another duration"),
        pytest.param({"source_profile": "ops"}, id="another source"),
        pytest.param({"endpoint_url": "same"}, id="another endpoint"),
    ],
)
def test_a_change_of_a_sessions_parameters_makes_another_session(change: dict[str, str], scene: Scene) -> None:
    alice = scene.alice()
    scene.store("ops", alice)
    scene.login("admin", "--role-arn", scene.moto.create_role("admin"), "--source", "dev")
    if "endpoint_url" in change:
        change = {"endpoint_url": scene.moto.url}
    forget(scene)
    scene.edit(lambda identities: identities["admin"].update(change))
    assert scene.principal("admin") == f"arn:aws:iam::{ACCOUNT}:role/admin"
    assert asked(scene) == {"AssumeRole": 1}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param("", id="variable"),
        pytest.param("endpoint_url = {}\n", id="profile"),
        pytest.param("services = ours\n[services ours]\nsts =\n  endpoint_url = {}\n", id="services"),
    ],
)
def test_a_changed_endpoint_makes_another_session(settings: str, scene: Scene) -> None:
    name, role = role_of_a_profile(scene)
    config = (scene.home.home / ".aws/config").read_text()
    assert scene.principal(name) == role
    forget(scene)
    for age in (40, 20):
        with RecordingProxy(scene.moto.moto, scene.keys) as proxy:
            proxy.roles = scene.moto.roles
            scene.home.write(".aws/config", config + settings.format(proxy.url), age=age)
            env = {"AWS_ENDPOINT_URL": None, "AWS_ENDPOINT_URL_STS": None if settings else proxy.url}
            assert scene.principal(name, env=env) == role
            assert proxy.count("AssumeRole") == 1
    assert asked(scene) == {}


def test_new_keys_for_a_source_make_new_sessions_for_its_roles(scene: Scene) -> None:
    name, role = role_over_stored_keys(scene)
    key = scene.moto.moto.client("iam").create_access_key(UserName="alice")["AccessKey"]
    scene.keys.learn(key["AccessKeyId"], key["SecretAccessKey"], f"arn:aws:iam::{ACCOUNT}:user/alice")
    scene.login("dev", "--stdin", stdin=as_json([key["AccessKeyId"], key["SecretAccessKey"]]))
    forget(scene)
    assert scene.principal(name) == role
    assert scene.moto.last("AssumeRole").access_key_id == key["AccessKeyId"]


def test_new_keys_in_a_credentials_file_make_new_sessions_for_its_roles(scene: Scene) -> None:
    name, role = role_of_a_profile(scene)
    assert scene.principal(name) == role
    scene.home.credentials(scene.moto.create_user("bob").profile("work"))
    assert "AccessDenied" in scene.refused(*words("demo", "-i", name))


def test_new_keys_end_the_mfa_session_of_the_old_ones(scene: Scene) -> None:
    name, _ = keys_with_mfa_from_stdin(scene)
    bob = scene.moto.create_user("bob", mfa_code=CODE)
    scene.login(name, "--stdin", "--mfa-serial", mfa_serial("alice"), stdin=as_json(bob))
    assert "an MFA code is needed" in scene.refused(*words("demo", "-i", name), env=NOBODY)


def test_keys_in_the_keyring_work_with_the_mfa_device_in_the_profile_as_in_aws_vault(scene: Scene) -> None:
    role = scene.moto.create_role("admin", mfa=True)
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    settings = f"mfa_serial = {mfa_serial('alice')}\nduration_seconds = 1800\n"
    scene.home.config(f"[profile dev]\n{settings}[profile admin]\nrole_arn = {role}\nsource_profile = dev\n")
    said = scene.login("dev", "--stdin", "--mfa-code-stdin", stdin=f"{as_json(alice)}\n{CODE}\n").stderr
    assert "these settings of the AWS profile still apply: duration_seconds, mfa_serial" in said
    assert scene.identities()["dev"]["kind"] == "keys with MFA"
    assert scene.principal("dev", env=NOBODY) == alice.arn
    assert scene.principal("admin", env=NOBODY) == role
    assert asked(scene) == {"GetSessionToken": 1, "AssumeRole": 1}
    assert scene.moto.last("GetSessionToken").params["DurationSeconds"] == "1800"


def test_other_environment_keys_do_not_share_a_session(scene: Scene) -> None:
    alice, bob = scene.moto.create_user("alice"), scene.moto.create_user("bob")
    role = scene.moto.create_role("admin", trusted=[alice.arn])
    line = words("demo", "--role-arn", role)
    assert scene.whose(scene.run(*line, env=alice.environment)).canonical_arn == role
    assert "AccessDenied" in scene.refused(*line, env=bob.environment)


def two_sso_sessions(scene: Scene) -> None:
    """Profiles `a` and `b` of the sso-sessions `normal` and `admin`, at one start URL."""
    scene.sso.assign(ACCOUNT, "Admin")
    sessions = scene.sso_session("normal") + scene.sso_session("admin")
    profiles = zip("abc", ("normal", "admin", "admin"), strict=True)
    lines = [scene.sso_profile(name, ACCOUNT, "Admin", f"sso_session = {session}") for name, session in profiles]
    scene.home.config(sessions + "".join(lines))


@pytest.mark.parametrize("by", ["eks-token login", "aws sso login"])
def test_two_sso_sessions_at_one_start_url_are_two_people(by: str, scene: Scene) -> None:
    two_sso_sessions(scene)
    for name, session, user in (("a", "normal", "alice@example.com"), ("b", "admin", "root@example.com")):
        scene.sso.user = user
        if by == "aws sso login":
            scene.left_by_aws_cli(session)
        else:
            scene.login(name)
    assert [scene.whose(scene.token(name)).session_name for name in "abc"] == [
        "alice@example.com",
        "root@example.com",
        "root@example.com",
    ]
    if by == "eks-token login":
        assert scene.run("logout", "a").returncode == 0
        assert scene.principal("c")
        assert "eks-token login a" in scene.refused(*words("demo", "-i", "a"))


# --- the AWS CLI's own file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [300, -60], ids=["expiring", "expired"])
def test_the_aws_clis_session_is_refreshed_in_its_own_file(seconds: float, scene: Scene) -> None:
    name, expected = sso_session_left_by_the_aws_cli(scene)
    path = scene.left_by_aws_cli("corp", expiresAt=utc(seconds))
    before = json.loads(path.read_text())
    # one of five refreshes it, and the others find the new one; none of them needs a keyring
    assert set(at_once(scene, name, TWENTY[:5], **DEAD_BUS)) == {expected}
    after = json.loads(path.read_text())
    assert after.keys() == before.keys()
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"accessToken", "refreshToken", "expiresAt"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert asked(scene)["CreateToken"] == 1
    assert not [user for user in scene.kept() if user.startswith("sso:")]
    assert list(path.parent.iterdir()) == [path]


def test_the_aws_cli_and_the_program_share_one_session(scene: Scene, aws: str) -> None:
    """In twenty calls its access token expires four times. The tool that comes first refreshes it for both."""
    name, expected = sso_session_left_by_the_aws_cli(scene)
    scene.sso.role_lifetime = 60  # so short that both tools ask for credentials at each call
    path = scene.left_by_aws_cli("corp")
    line = ["eks", "get-token", "--cluster-name", "demo", "--region", "us-east-2", "--profile", name]
    refreshed, refresh_tokens = [], set()
    for turn in range(20):
        if turn % 5 == 0:
            scene.sso.expire_access_tokens()
            path.write_text(json.dumps(json.loads(path.read_text()) | {"expiresAt": utc(-1)}))
        program = [aws] if turn % 2 else [scene.home.executable]
        assert scene.whose(scene.run(*line, command=program, env={"AWS_ENDPOINT_URL": None})).canonical_arn == expected
        refreshed.append(asked(scene)["CreateToken"])
        refresh_tokens.add(json.loads(path.read_text())["refreshToken"])
    assert refreshed == [*[1] * 5, *[2] * 5, *[3] * 5, *[4] * 5]
    assert asked(scene)["GetRoleCredentials"] == 20
    assert len(refresh_tokens) == 4


def test_a_new_aws_sso_login_during_a_refresh_stays_in_the_file(scene: Scene) -> None:
    name, _ = sso_session_left_by_the_aws_cli(scene)
    scene.left_by_aws_cli("corp", expiresAt=utc(300))
    with minting(scene, name, "CreateToken"):
        path = scene.left_by_aws_cli("corp")
        before = path.read_text()
    assert path.read_text() == before


FUTURE = "2099-01-01T00:00:00"


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        pytest.param({}, True, id="as the AWS CLI v2 writes it"),
        pytest.param({"expiresAt": f"{FUTURE}UTC"}, True, id="as early AWS CLIs wrote it"),
        pytest.param({"expiresAt": FUTURE}, True, id="no time zone"),
        pytest.param({"startUrl": None}, True, id="no start URL"),
        *[pytest.param({"startUrl": f"https://x/start{end}"}, True, id=end) for end in ("/", "#", "#/", "/#/")],
        pytest.param({"refreshToken": None, "clientSecret": None}, True, id="from a legacy profile"),
        pytest.param({"startUrl": "https://y/start"}, False, id="another start URL"),
        pytest.param({"accessToken": None}, False, id="no token"),
        pytest.param({"accessToken": 5}, False, id="a token that is a number"),
        pytest.param({"expiresAt": None}, False, id="no expiry"),
        pytest.param({"expiresAt": "soon"}, False, id="an expiry that is not a time"),
        pytest.param({"registrationExpiresAt": "soon"}, False, id="a registration expiry that is not a time"),
    ],
)
def test_the_aws_clis_file_is_read_as_botocore_reads_it(
    changes: dict[str, object], good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path))
    portal = eks_token.Portal("https://x/start", "us-east-1", "corp")
    token = {"startUrl": portal.start_url, "accessToken": "access", "expiresAt": f"{FUTURE}Z", "refreshToken": "r"}
    content = {key: value for key, value in (token | changes).items() if value is not None}
    file = Path(eks_token.aws_cli_file(portal))
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    found = eks_token.left_by_aws_cli(str(file), portal)
    assert (found is not None) == good
    assert not found or (found["accessToken"], found["expiresAt"]) == ("access", f"{FUTURE}Z")
    # a read-only file is not refreshed, because every tool would lose the new refresh token
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "refreshToken" not in (eks_token.left_by_aws_cli(str(file), portal) or {})


# --- Windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [temporary_keys_from_stdin, keys_with_mfa_from_stdin, role_over_sso], ids=named)
def test_long_sessions_fit_into_a_keyring_with_the_size_limit_of_windows(
    flow: Flow, scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program runs in this process and is told that the platform is Windows."""
    backend = LimitedBackend()
    mint = scene.keys.mint

    def mint_long(arn: str, lifetime: float) -> tuple[str, Key]:
        key_id, key = mint(arn, lifetime)
        scene.keys[key_id] = key._replace(session_token=f"{key.session_token}{'A' * 900}")
        return key_id, scene.keys[key_id]

    def run(*args: str, stdin: str = "", **_: object) -> Completed:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status = eks_token.run(invocation(*args, platform="win32", cache=eks_token.installed().cache))
        return Completed(args, status, *capsys.readouterr())

    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in scene.home.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(scene.keys, "mint", mint_long)
    monkeypatch.setattr(eks_token, "choose_keyring", lambda *_: eks_token.WindowsKeyring(backend))
    monkeypatch.setattr(scene, "run", run)
    name, expected = flow(scene)
    assert scene.principal(name) == expected
    asked_before = asked(scene)
    assert scene.principal(name, "--refresh") == expected
    assert asked(scene) == asked_before
    assert any("part:" in user for _, user in backend.items)
    assert run("logout", "--all").returncode == 0
    assert [user for _, user in backend.items if "session" not in user and "sso" not in user] == []


def test_another_persons_sso_sign_in_ends_the_first_ones_role_sessions(scene: Scene) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    scene.sso.assign(ACCOUNT, "Viewer")
    for name, role in (("a", "Admin"), ("b", "Viewer")):
        scene.login(name, *scene.sso_options("--sso-account-id", ACCOUNT, "--sso-role-name", role))
    assert "alice" in scene.whose(scene.token("b")).arn
    scene.sso.user = "mallory@example.com"
    scene.login("a", "--no-browser")
    assert "mallory" in scene.whose(scene.token("b")).arn


def test_another_persons_aws_sso_login_ends_the_first_ones_role_sessions(scene: Scene) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    scene.home.config(scene.sso_session() + scene.sso_profile("work", ACCOUNT, "Admin", "sso_session = corp"))
    scene.left_by_aws_cli("corp")
    assert "alice" in scene.whose(scene.token("work")).arn
    scene.sso.user = "mallory@example.com"
    scene.left_by_aws_cli("corp")
    assert "mallory" in scene.whose(scene.token("work")).arn


def test_what_is_minted_during_a_sign_in_in_the_browser_is_forgotten(scene: Scene) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    scene.login("a", *scene.sso_options())
    with ThreadPoolExecutor() as pool:
        with scene.sso.hold("CreateToken") as held:
            signing_in = pool.submit(scene.run, "login", "a", "--no-browser")
            held.wait()
            assert "alice" in scene.whose(scene.token("a")).arn
            scene.sso.user = "mallory@example.com"
        assert "mallory" in signing_in.result().stdout
    assert "mallory" in scene.whose(scene.token("a")).arn
