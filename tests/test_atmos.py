"""Atmos as a source of credentials: the session files and keyring items of `atmos auth login` are only read."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import test_login
from servers import ACCOUNT, mfa_serial
from test_keyring import LimitedBackend, stock_vault
from test_login import ASK_CODE, CODE, DEAD_BUS, NOBODY, Scene, utc, words

from eks_token import Problem, SecretStore, atmos_keys, go_seconds

scene = test_login.scene

GUEST = f"arn:aws:sts::{ACCOUNT}:assumed-role/%s/atmos"


def role(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


def session(
    scene: Scene, name: str, who: str, *, ends: str | None = "; atmos: expiration=%s", seconds: float = 3600
) -> str:
    """A section of Atmos' credentials file, with the comment above it (cloudposse/atmos, aws/files.go)."""
    key_id, key = scene.keys.mint(GUEST % who, max(seconds, 1))
    comment = [] if ends is None else [ends % utc(seconds)] if "%s" in ends else [ends]
    keys = {"aws_access_key_id": key_id, "aws_secret_access_key": key.secret, "aws_session_token": key.session_token}
    return "\n".join([*comment, f"[{name}]", *(f"{key:21} = {value}" for key, value in keys.items())]) + "\n\n"


def write(scene: Scene, text: str, *, realm: str = "0123abcd", provider: str = "sso", below: str = ".config") -> Path:
    path = scene.home.write(f"{below}/atmos/{realm}{'/' if realm else ''}aws/{provider}/credentials", text)
    # nothing is cached against a directory that has just changed
    os.utime(scene.home.home / below / "atmos", (1.7e9, 1.7e9))
    return path


def put(scene: Scene, name: str, data: object, wrapped: str = "%s") -> None:
    """Stores an item as Atmos does: service atmos_NAME, user atmos-auth."""
    text = wrapped % (data if isinstance(data, str) else json.dumps({"type": "aws", "data": data}))
    SecretStore(scene.home.env, False).set(f"atmos_{name}", "atmos-auth", text)


def keys_of(scene: Scene, who: str, **more: object) -> dict[str, object]:
    key = scene.moto.create_user(who, mfa_code=CODE)
    return {"access_key_id": key.id, "secret_access_key": key.secret, **more}


# --- session files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("realm", "below", "env"),
    [
        pytest.param("0123456789abcdef", ".config", {}, id="the default realm, a hash of a path"),
        pytest.param("", ".config", {}, id="no realm, as in early versions"),
        pytest.param("ours", ".config", {"ATMOS_AUTH_REALM": "ours"}, id="a realm from the environment"),
        pytest.param("x", "xdg", {"XDG_CONFIG_HOME": "HOME/xdg"}, id="XDG_CONFIG_HOME"),
        pytest.param(
            "x",
            "a",
            {"ATMOS_XDG_CONFIG_HOME": "HOME/a", "XDG_CONFIG_HOME": "HOME/xdg"},
            id="ATMOS_XDG_CONFIG_HOME first",
        ),
    ],
)
def test_a_session_from_atmos_is_found(realm: str, below: str, env: dict[str, str], scene: Scene) -> None:
    path = write(scene, session(scene, "other", "other") + session(scene, "dev", "dev"), realm=realm, below=below)
    before = path.read_bytes(), path.stat().st_mtime_ns
    changes = {name: value.replace("HOME", str(scene.home.home)) for name, value in env.items()}
    # reading a file does not need a keyring
    assert scene.principal("dev", env={**changes, **DEAD_BUS}) == role("dev")
    assert scene.whose(scene.run(*words(), env={**changes, "ATMOS_IDENTITY": "dev"})).canonical_arn == role("dev")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert (scene.kept(), scene.records()) == ([], None)


def test_a_name_is_also_looked_up_in_lower_case(scene: Scene) -> None:
    write(scene, session(scene, "dev/admin", "dev"))
    assert scene.principal("Dev/Admin") == role("dev")


def test_a_name_in_two_realms_is_an_error_that_names_atmos_auth_realm(scene: Scene) -> None:
    write(scene, session(scene, "dev", "one"), realm="aaaa")
    write(scene, session(scene, "dev", "two"), realm="bbbb")
    shown = scene.refused(*words("demo", "-i", "dev"))
    assert "several of Atmos's realms" in shown
    assert "ATMOS_AUTH_REALM" in shown
    assert scene.principal("dev", env={"ATMOS_AUTH_REALM": "bbbb"}) == role("two")


@pytest.mark.parametrize(
    ("ends", "ended"),
    [
        pytest.param("; atmos: expiration=%s", True, id="as Atmos writes it"),
        pytest.param("# atmos: expiration=%s", True, id="with a number sign"),
        pytest.param(";atmos: expiration=%s ", True, id="with other whitespace"),
        pytest.param("; atmos: expiration=soon", False, id="not a time"),
        pytest.param("; atmos: expiration=", False, id="empty"),
        pytest.param("; another program: expiration=%s", False, id="another program's"),
        pytest.param(None, False, id="none"),
    ],
)
def test_the_comment_above_a_section_says_when_it_expires(ends: str | None, ended: bool, scene: Scene) -> None:
    write(scene, session(scene, "other", "other") + session(scene, "dev", "dev", ends=ends, seconds=-60))
    done = scene.token("dev")
    if ended:
        assert done.returncode == 1
        assert "Atmos's session expired at" in done.stderr
        assert "hint: sign in with `atmos auth login -i dev`" in done.stderr
    else:
        assert done.returncode == 0


def test_a_token_does_not_outlive_its_session(scene: Scene) -> None:
    write(scene, session(scene, "dev", "dev", seconds=300))
    expires = json.loads(scene.token("dev").stdout)["status"]["expirationTimestamp"]
    assert utc(300 - 75) <= expires <= utc(300 - 60)
    about = json.loads(scene.run("whoami", "-i", "dev", "-o", "json").stdout)
    assert utc(300 - 75) <= about["session_ends"] <= utc(300)


def test_a_file_that_atmos_rewrote_is_read_again(scene: Scene) -> None:
    write(scene, session(scene, "dev", "before"))
    assert scene.principal("dev") == role("before")
    assert scene.answers()
    write(scene, session(scene, "dev", "after"))
    assert scene.principal("dev") == role("after")


def test_a_deleted_file_is_not_answered_from_the_cache(scene: Scene) -> None:
    path = write(scene, session(scene, "dev", "dev"))
    assert scene.principal("dev") == role("dev")
    path.unlink()
    assert "there is no identity or AWS profile named 'dev'" in scene.refused(*words("demo", "-i", "dev"))


def test_a_file_that_is_not_a_credentials_file_is_a_warning(scene: Scene) -> None:
    write(scene, "not a section\n", provider="broken")
    write(scene, session(scene, "dev", "dev"))
    done = scene.token("dev")
    assert scene.whose(done).canonical_arn == role("dev")
    assert "broken/credentials cannot be read" in done.stderr


def test_a_section_without_its_secret_is_an_error(scene: Scene) -> None:
    write(scene, "[dev]\naws_access_key_id = AKIA\n")
    assert "dev is incomplete" in scene.refused(*words("demo", "-i", "dev"))


def test_stored_identities_and_profiles_come_before_atmos(scene: Scene) -> None:
    write(scene, session(scene, "dev", "atmos") + session(scene, "work", "atmos"))
    alice = scene.alice("dev")
    scene.home.credentials(alice.profile("work"))
    assert [scene.principal(name) for name in ("dev", "work")] == [alice.arn, alice.arn]


def test_a_session_comes_before_keys_until_it_expires(scene: Scene) -> None:
    put(scene, "dev", keys_of(scene, "alice"))
    path = write(scene, session(scene, "dev", "session"))
    assert scene.principal("dev") == role("session")
    path.write_text(session(scene, "dev", "session", seconds=-60))
    assert scene.principal("dev") == f"arn:aws:iam::{ACCOUNT}:user/alice"


# --- keyring items ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda text: text, id="plain"),
        pytest.param(lambda text: "go-keyring-base64:" + base64.b64encode(text.encode()).decode(), id="base64"),
        pytest.param(lambda text: "go-keyring-encoded:" + text.encode().hex(), id="hex, as in early versions"),
    ],
)
def test_keys_from_atmos_are_found_in_the_keyring(wrap: Callable[[str], str], scene: Scene) -> None:
    put(scene, "dev", wrap(json.dumps({"type": "aws", "data": keys_of(scene, "alice", region="eu-west-1")})))
    before = scene.ring.stored()
    assert scene.principal("dev") == f"arn:aws:iam::{ACCOUNT}:user/alice"
    assert scene.ring.stored() == before
    assert scene.records() is None


def test_a_realm_is_part_of_an_items_name(scene: Scene) -> None:
    put(scene, "ours_dev", keys_of(scene, "alice"))
    assert scene.principal("dev", env={"ATMOS_AUTH_REALM": "ours"}) == f"arn:aws:iam::{ACCOUNT}:user/alice"
    scene.refused(*words("demo", "-i", "dev"))


def test_an_sso_providers_entry_is_not_credentials(scene: Scene) -> None:
    bearer = "aoaAAAAAG-a-bearer-token-of-the-sso-provider"
    put(scene, "corp", {"access_key_id": bearer, "region": "us-east-1", "expiration": utc(3600)})
    shown = scene.refused(*words("demo", "-i", "corp", "--debug"))
    assert "has no AWS keys" in shown
    assert bearer not in shown


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("hello", id="not JSON"),
        pytest.param("[]", id="not an object"),
        pytest.param('{"type": "oidc", "data": {"token": "t"}}', id="another type"),
        pytest.param('{"type": "aws"}', id="no data"),
        pytest.param(
            '{"type": "aws", "data": {"access_key_id": "x", "secret_access_key": "y", "expiration": "soon"}}',
            id="an expiry that is not a time",
        ),
        pytest.param('{"type": "aws", "data": {"session_duration": "a day"}}', id="not a duration"),
        pytest.param("go-keyring-base64:%%%", id="not base64"),
        pytest.param("go-keyring-encoded:xyz", id="not hex"),
    ],
)
def test_an_item_that_atmos_did_not_make_is_one_line(text: str) -> None:
    backend = LimitedBackend()
    backend.items["atmos_dev", "atmos-auth"] = text
    with pytest.raises(Problem, match="atmos_dev is not one that Atmos writes"):
        atmos_keys("dev", stock_vault(backend), {})


def test_an_expired_session_in_the_keyring_is_refused(scene: Scene) -> None:
    put(scene, "dev", keys_of(scene, "alice", session_token="t", expiration=utc(-60)))
    assert "Atmos's session expired" in scene.refused(*words("demo", "-i", "dev"))


def test_an_mfa_device_and_a_duration_make_an_mfa_session(scene: Scene) -> None:
    data = keys_of(scene, "alice", mfa_arn=mfa_serial("alice"), session_duration="12h")
    put(scene, "dev", data)
    assert "eks-token login dev" in scene.refused(*words("demo", "-i", "dev"), env=NOBODY)
    assert scene.principal("dev", steps=[(ASK_CODE, f"{CODE}\n")]) == f"arn:aws:iam::{ACCOUNT}:user/alice"
    assert scene.moto.last("GetSessionToken").params["DurationSeconds"] == "43200"
    assert scene.principal("dev", "--refresh", env=NOBODY) == f"arn:aws:iam::{ACCOUNT}:user/alice"
    # other keys must not get this session
    put(scene, "dev", {**keys_of(scene, "bob"), "mfa_arn": mfa_serial("alice")})
    assert "an MFA code is needed" in scene.refused(*words("demo", "-i", "dev", "--refresh"), env=NOBODY)


@pytest.mark.parametrize(("duration", "seconds"), [("1h30m", "5400"), ("3600s", "3600"), ("", "")])
def test_a_duration_is_read_as_go_writes_it(duration: str, seconds: str) -> None:
    assert go_seconds(duration) == seconds


def test_a_role_can_be_assumed_with_an_identity_from_atmos(scene: Scene) -> None:
    put(scene, "dev", keys_of(scene, "alice"))
    admin = scene.moto.create_role("admin", trusted=[f"arn:aws:iam::{ACCOUNT}:user/alice"])
    assert scene.principal("dev", "--role-arn", admin) == admin
    assert scene.run("logout", "--all").returncode == 0
    assert [item["service"] for item in scene.ring.stored()] == ["atmos_dev"]  # its keys stay
