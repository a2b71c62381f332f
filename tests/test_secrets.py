"""Secrets are in the keyring and nowhere else. Each test signs in one way and then searches everything."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_login
from conftest import disguises
from servers import ACCOUNT, mfa_serial
from test_login import (
    CODE,
    FLOWS,
    NOBODY,
    WRONG_CODE,
    Flow,
    Scene,
    as_json,
    chain_from_stored_over_a_profile_to_stored,
    keys_from_stdin,
    keys_with_mfa_from_stdin,
    named,
    role_over_sso,
    role_with_mfa,
    shorten,
    sso_with_one_role_only,
    words,
)
from verifier import PREFIX, decoded_url

scene = test_login.scene

TOKEN = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]+")
SSO_SECRETS = ("accessToken", "refreshToken", "clientSecret", "deviceCode")


def keys_by_credential_process(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice")
    given = scene.home.write(".aws/given", as_json(alice))
    scene.home.config(f"[profile tool]\ncredential_process = cat {given}\n")
    return "tool", alice.arn


def role_refreshed_over_sso(scene: Scene) -> tuple[str, str]:
    name, expected = role_over_sso(scene)
    shorten(scene, "s")
    return name, expected


def login_that_fails(scene: Scene) -> tuple[str, str]:
    name, expected = keys_from_stdin(scene)
    bob = scene.moto.create_user("bob", mfa_code=CODE)
    given = f"{as_json(bob)}\n{WRONG_CODE}\n"
    device = ["--mfa-serial", mfa_serial("bob"), "--mfa-code-stdin"]
    scene.refused("login", name, "--stdin", *device, stdin=given)
    scene.refused("login", name, "--stdin", stdin=as_json(["AKIAUNKNOWNUNKNOWNXX", bob.secret]))
    scene.refused("login", name, "--stdin", stdin=as_json(bob) + as_json(bob))
    scene.refused("login", name, "--stdin", stdin=as_json(bob, Version=2))
    scene.moto.fail("GetCallerIdentity", "InternalFailure", "oops", status=500)
    scene.refused("login", name, "--stdin", stdin=as_json(bob), env={"AWS_MAX_ATTEMPTS": "1"})
    scene.moto.forget()
    return name, expected


def secrets_of(scene: Scene) -> set[str]:
    """Every secret that the servers have issued or received so far."""
    found = {secret for key in scene.keys.values() for secret in (key.secret, key.session_token) if secret}
    for session in scene.sso.sessions:
        found |= {*session.access_tokens, session.refresh_token or ""}
    for call in (*scene.sso.calls, *scene.moto.calls):
        found |= {call.params.get(name, "") for name in (*SSO_SECRETS, "TokenCode", "WebIdentityToken")}
    return found - {""}


def without_tokens(text: str, secrets: set[str], session_tokens: set[str]) -> str:
    """The text without its bearer tokens, whose URLs may contain session tokens but no other secret."""
    for token in TOKEN.findall(text):
        shown = list(disguises(decoded_url(token).encode()))
        assert not [secret for secret in secrets - session_tokens if any(secret.encode() in part for part in shown)]
    return TOKEN.sub("", text)


def places(scene: Scene, secrets: set[str]) -> list[Path]:
    """The files in the sandbox that contain one of these secrets, except the user's own files in ~/.aws."""
    # the extracted program and its bytecode would take long to search
    for path in (scene.home.cache / "app").rglob("*"):
        if path.is_file() and (path.stat().st_nlink > 1 or path.suffix == ".pyc"):
            path.unlink()
    session_tokens = {key.session_token for key in scene.keys.values() if key.session_token}
    outputs = "\n".join(scene.outputs)
    (scene.home.root / "shown").write_text(without_tokens(outputs, secrets, session_tokens))
    for answer in scene.answers():
        answer.write_text(without_tokens(answer.read_text(), secrets, session_tokens))
    own = scene.home.home / ".aws"
    return sorted({path for path, _ in scene.home.secrets_found(list(secrets)) if own not in path.parents})


def process_list() -> bytes:
    """The command lines of all processes. (Other users cannot read a process's environment.)"""
    shown = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            shown.append(path.read_bytes())
        except OSError:  # it has ended
            continue
    return b"\n".join(shown)


@contextmanager
def watched_processes() -> Iterator[set[bytes]]:
    """All command lines that were seen while the block ran."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("only on Linux")
    seen: set[bytes] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            seen.update(process_list().split(b"\n"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


@pytest.mark.parametrize(
    "flow", [*FLOWS, keys_by_credential_process, role_refreshed_over_sso, login_that_fails], ids=named
)
def test_no_secret_is_left_or_shown_anywhere(flow: Flow, scene: Scene) -> None:
    scene.home.env["EKS_TOKEN_DEBUG"] = "1"
    with watched_processes() as seen:
        name, expected = flow(scene)
        assert scene.principal(name) == expected
        assert scene.principal(name) == expected  # from the cache
        shorten(scene, "session:")
        scene.run(*words("second", "-i", name), env=NOBODY)  # renewed, or refused
        for command in (["whoami", "-i", name], ["whoami", "-i", name, "-o", "json"], ["identities"]):
            scene.run(*command)
        secrets = secrets_of(scene)
        assert len(secrets) >= 2
        assert places(scene, secrets) == []
    lines = b"\n".join(seen)
    assert name.encode() in lines  # so the watch saw something
    assert not [secret for secret in secrets if secret.encode() in lines]


@pytest.mark.parametrize("flow", [role_with_mfa, role_over_sso], ids=named)
def test_logout_shows_and_leaves_no_secret(flow: Flow, scene: Scene) -> None:
    scene.home.env["EKS_TOKEN_DEBUG"] = "1"
    name, _ = flow(scene)
    scene.principal(name)
    assert scene.run("logout", "--all").returncode == 0
    assert places(scene, secrets_of(scene)) == []


@pytest.mark.parametrize(
    ("flow", "operation"),
    [
        pytest.param(keys_with_mfa_from_stdin, "GetSessionToken", id="an MFA session"),
        pytest.param(role_with_mfa, "AssumeRole", id="a role"),
        pytest.param(sso_with_one_role_only, "CreateToken", id="an SSO login"),
        pytest.param(sso_with_one_role_only, "GetRoleCredentials", id="SSO credentials"),
    ],
)
def test_a_login_that_waits_for_aws_shows_no_secret(flow: Flow, operation: str, scene: Scene) -> None:
    server = scene.sso if operation in ("CreateToken", "GetRoleCredentials") else scene.moto
    scene.home.env["EKS_TOKEN_DEBUG"] = "1"
    with server.hold(operation) as hold:
        walk = threading.Thread(target=flow, args=[scene])
        walk.start()
        hold.wait()
        listed = process_list()
        secrets = secrets_of(scene)
        found = [path for path, _ in scene.home.secrets_found(list(secrets)) if "app" not in path.parts]
        hold.release.set()
        walk.join()
    assert b"login" in listed
    assert not [secret for secret in secrets if secret.encode() in listed]
    assert found == []


def test_debug_output_of_errors_shows_no_secret(scene: Scene) -> None:
    name, _ = chain_from_stored_over_a_profile_to_stored(scene)
    shorten(scene, "session:", -10)
    for code, status in (("AccessDenied", 403), ("InternalFailure", 500)):
        # some errors from STS quote the request
        quoted = json.dumps([key.secret for key in scene.keys.values()])
        scene.moto.fail("AssumeRole", code, f"you sent {quoted}", status=status)
        shown = scene.refused(*words("demo", "-i", name, "--debug"), env={"AWS_MAX_ATTEMPTS": "1"})
        assert "you sent" in shown and "[secret]" in shown
    sent = {key.secret for key in scene.keys.values() if key.arn == f"arn:aws:iam::{ACCOUNT}:user/alice"}
    assert places(scene, sent) == []


def test_the_search_finds_what_it_looks_for(scene: Scene) -> None:
    alice = scene.alice()
    scene.home.write(".cache/eks-token/leak", f"x{alice.secret}x")
    assert [path.name for path in places(scene, secrets_of(scene))] == ["leak"]
