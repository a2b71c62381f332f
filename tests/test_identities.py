"""Section 4 and login: names become credentials. The keyring is real; AWS is moto behind a proxy that checks calls."""

import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Completed, KeyringDaemon, Sandbox, assert_fails
from servers import ACCOUNT, AccessKey, Keys, RecordingProxy
from verifier import Identity, decoded_url, verify

from eks_token import (
    AwsFiles,
    Choice,
    Problem,
    Request,
    Stored,
    Vault,
    choose_identity,
    lay_over,
    plain_errors,
    process_keys,
    read_identities,
    rfc3339,
)

ALICE = AccessKey(
    "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", f"arn:aws:iam::{ACCOUNT}:user/alice"
)
LINE = ["--cluster-name", "demo", "--region", "eu-west-1"]


@pytest.fixture
def place(home: Sandbox) -> Sandbox:
    """An empty home without a session bus or a network."""
    return home


@pytest.fixture
def desk(place: Sandbox, keyring_daemon: KeyringDaemon, keys: Keys) -> Sandbox:
    """The same with an empty keyring; the verifier knows Alice."""
    place.env["DBUS_SESSION_BUS_ADDRESS"] = keyring_daemon.address
    keys.learn(*ALICE)
    return place


def process_output(key: AccessKey = ALICE, **more: Any) -> str:
    return json.dumps({"Version": 1, "AccessKeyId": key.id, "SecretAccessKey": key.secret, **more})


def login(home: Sandbox, name: str = "dev", *options: str, key: AccessKey = ALICE, **more: Any) -> Completed:
    done = home.run("login", name, "--stdin", "--no-verify", *options, stdin=process_output(key, **more))
    assert done.returncode == 0, done.stderr
    return done


def signed_by(done: Completed, keys: Keys) -> Identity:
    assert done.returncode == 0, done.stderr
    return verify(json.loads(done.stdout)["status"]["token"], cluster="demo", secrets=keys)


# --- login --------------------------------------------------------------------------------------------------


BAD_ENDS: list[object] = ["", 5, [], "soon", "2099-01-01T00:00:00", "9999-99-99T00:00:00Z"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        *[pytest.param(text, "is not a JSON object", id=text or "nothing") for text in ("", "keys", "[]", "null", "5")],
        pytest.param("[" * 100_000, "is not a JSON object", id="too deep for the parser"),
        pytest.param(process_output(Version=2), "is not Version 1", id="another version"),
        pytest.param(process_output(Version="1"), "is not Version 1", id="a version that is a string"),
        pytest.param(json.dumps({"Version": 1, "SecretAccessKey": ALICE.secret}), "lacks AccessKeyId", id="no id"),
        pytest.param(json.dumps({"Version": 1, "AccessKeyId": "x"}), "lacks SecretAccessKey", id="no secret"),
        pytest.param(process_output(AccessKeyId=""), "lacks AccessKeyId", id="an empty id"),
        pytest.param(
            process_output(AccessKeyId=["x"]), "has a wrong AccessKeyId: it is not text", id="an id in a list"
        ),
        pytest.param(process_output(SessionToken=5), "has a wrong SessionToken: it is not text", id="a number"),
        *[
            pytest.param(process_output(Expiration=end), "has a wrong Expiration: it is not", id=f"it ends at {end!r}")
            for end in BAD_ENDS
        ],
        pytest.param(process_output(Expiration="2020-01-01T00:00:00Z"), "expired at 2020-01-01", id="expired"),
    ],
)
def test_errors_in_keys_in_json_are_explained_without_showing_the_keys(text: str, error: str) -> None:
    with pytest.raises(Problem) as caught:
        process_keys(text, "the answer")
    assert "the answer" in caught.value.message and error in caught.value.message
    assert ALICE.secret not in caught.value.message


@pytest.mark.parametrize(
    ("given", "error"),
    [
        pytest.param(f"{ALICE.id} {ALICE.secret}", "the JSON on stdin is not a JSON object", id="not JSON"),
        pytest.param(process_output() + "\n123456", "more text", id="a code without an option for it"),
    ],
)
def test_bad_keys_on_stdin_are_one_line_and_nothing_is_stored(
    given: str, error: str, desk: Sandbox, keyring_daemon: KeyringDaemon
) -> None:
    done = desk.run("login", "dev", "--stdin", "--no-verify", stdin=given)
    assert_fails(done, error)
    assert ALICE.secret not in done.stderr
    assert keyring_daemon.stored() == []
    assert not (desk.data / "identities.json").exists()


def test_login_asks_aws_who_owns_the_keys(desk: Sandbox, moto: RecordingProxy) -> None:
    alice = moto.create_user("alice")
    done = desk.run("login", "dev", "--stdin", stdin=process_output(alice), env=moto.environment)
    assert done.returncode == 0
    assert alice.arn in done.stdout + done.stderr
    assert [(call.operation, call.access_key_id) for call in moto.calls] == [("GetCallerIdentity", alice.id)]

    moto.calls.clear()
    options = ["login", "dev", "--stdin", "--no-verify"]
    assert desk.run(*options, stdin=process_output(alice), env=moto.environment).returncode == 0
    assert moto.calls == []


@pytest.mark.parametrize(
    ("wrong", "env", "error"),
    [
        pytest.param(
            {"id": "AKIAUNKNOWNUNKNOWN00"},
            {},
            "AWS refused GetCallerIdentity: InvalidClientTokenId",
            id="an unknown id",
        ),
        pytest.param(
            {"secret": "x" * 40}, {}, "AWS refused GetCallerIdentity: SignatureDoesNotMatch", id="another secret"
        ),
        pytest.param({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "127.0.0.1:9", id="no connection"),
    ],
)
def test_keys_that_aws_does_not_confirm_are_not_stored(
    wrong: dict[str, str],
    env: dict[str, str],
    error: str,
    desk: Sandbox,
    moto: RecordingProxy,
    keyring_daemon: KeyringDaemon,
) -> None:
    key = moto.create_user("alice")._replace(**wrong)
    env = {**moto.environment, "AWS_MAX_ATTEMPTS": "1", **env}
    done = desk.run("login", "dev", "--stdin", stdin=process_output(key), env=env)
    assert_fails(done, error)
    assert key.secret not in done.stderr
    assert keyring_daemon.stored() == []
    assert not (desk.data / "identities.json").exists()


# --- identities.json and the keyring ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut off"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="without identities"),
        pytest.param('{"identities": ["dev"]}', id="identities in a list"),
        pytest.param('{"identities": {"dev": 1}}', id="an identity that is a number"),
        pytest.param('{"identities": {"dev": {"region": 1}}}', id="a value that is a number"),
        pytest.param('{"identities": {"dev": null}}', id="an identity that is null"),
        pytest.param("[" * 100_000, id="too deep for the parser"),
        pytest.param("\0" * 100, id="zeros, as a crash leaves them"),
    ],
)
def test_a_damaged_identities_file_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    path.write_text(content)
    with pytest.raises(Problem) as caught:
        read_identities(str(path))
    assert caught.value.message == f"{path} is damaged"
    assert "eks-token login" in caught.value.hint


def test_nothing_is_stored_without_a_home_or_a_file(tmp_path: Path) -> None:
    for path in (None, str(tmp_path / "identities.json")):
        assert read_identities(path) == ("", {}, ())


def test_an_identity_that_the_keyring_lacks_is_an_error_that_names_login(
    desk: Sandbox, keyring_daemon: KeyringDaemon
) -> None:
    login(desk)
    keyring_daemon.clear()
    assert_fails(desk.run(*LINE, "-i", "dev"), "dev", "eks-token login dev")


@pytest.mark.parametrize("value", ["", "[]", '{"aws_access_key_id": "x"}'])
def test_a_broken_keyring_item_is_one_line(value: str, desk: Sandbox) -> None:
    login(desk)
    Vault(desk.environment()).set("identity:dev", value)
    assert_fails(desk.run(*LINE, "-i", "dev"), "identity:dev")


# --- profiles, by botocore's providers ----------------------------------------------------------------------


def test_static_keys_in_either_file_are_used(place: Sandbox, keys: Keys) -> None:
    keys.learn(*ALICE)
    place.credentials(ALICE.profile("one"))
    place.config(ALICE.profile("profile two"))
    for name in ("one", "two"):
        assert signed_by(place.run(*LINE, "-i", name), keys).arn == ALICE.arn


@pytest.mark.parametrize("mark", ["x_security_token_expires", "aws_session_expiration", "aws_expiration", "expiration"])
def test_the_expiry_that_a_tool_wrote_limits_the_token(mark: str, place: Sandbox, keys: Keys) -> None:
    key_id, key = keys.mint(f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/me", 600)
    section = f"[dev]\naws_access_key_id = {key_id}\naws_secret_access_key = {key.secret}\n"
    end = time.time() + 300
    for text in (rfc3339(end), rfc3339(end).replace("T", " ").replace("Z", "+0000")):
        place.credentials(f"{section}aws_session_token = {key.session_token}\n{mark} = {text}\n")
        done = place.run(*LINE, "-i", "dev", "--refresh")
        assert json.loads(done.stdout)["status"]["expirationTimestamp"] == rfc3339(int(end) - 60)
        done = place.run("token", "-i", "demo", "--refresh", env={"AWS_PROFILE": "dev"})
        assert json.loads(done.stdout)["status"]["expirationTimestamp"] == rfc3339(int(end) - 60)
    place.credentials(f"{section}aws_session_token = {key.session_token}\n{mark} = 2020-01-01T00:00:00Z\n")
    done = place.run(*LINE, "-i", "dev")
    assert_fails(done, "the credentials of dev expired at 2020-01-01T00:00:00Z", "renew them with the tool")
    # long-term keys do not expire, even if an old tool left a time there
    place.credentials(f"{ALICE.profile('dev')}{mark} = 2020-01-01T00:00:00Z\n")
    assert place.run(*LINE, "-i", "dev").returncode == 0


@pytest.fixture
def aws_login(place: Sandbox, keys: Keys) -> Callable[..., AccessKey]:
    """Writes the files that `aws login` writes for the profile `dev`, and returns the keys."""

    def write(seconds: float, directory: str = ".aws/login/cache", **changes: Any) -> AccessKey:
        arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/me"
        place.config(f"[profile dev]\nlogin_session = {arn}\n")
        key_id, key = keys.mint(arn, 3600)
        token = {"accessKeyId": key_id, "secretAccessKey": key.secret, "sessionToken": key.session_token}
        token |= {"accountId": ACCOUNT, "expiresAt": rfc3339(time.time() + seconds), **changes}
        name = f"{directory}/{sha256(arn.encode()).hexdigest()}.json"
        place.write(name, json.dumps({"accessToken": token, "refreshToken": "r", "dpopKey": "k", "clientId": "c"}))
        return AccessKey(key_id, key.secret, arn)

    return write


@pytest.mark.parametrize("grammar", ["ours", "aws", "token"])
def test_a_session_from_aws_login_is_used_until_it_expires(
    grammar: str, aws_login: Callable[..., AccessKey], place: Sandbox, keys: Keys
) -> None:
    key = aws_login(300)
    aws_login(200, "elsewhere")
    lines = {
        "ours": [*LINE, "-i", "dev"],
        "aws": ["eks", "get-token", "--cluster-name", "demo", "--profile", "dev"],
        "token": ["token", "-i", "demo"],
    }
    env = {"AWS_PROFILE": "dev"} if grammar == "token" else {}
    done = place.run(*lines[grammar], env=env)
    assert signed_by(done, keys).arn == key.arn
    first = json.loads(done.stdout)["status"]["expirationTimestamp"]
    # the variable is part of the request
    elsewhere = place.run(*lines[grammar], env={**env, "AWS_LOGIN_CACHE_DIRECTORY": str(place.home / "elsewhere")})
    assert json.loads(elsewhere.stdout)["status"]["expirationTimestamp"] < first


RENEWING_AWS = """#!/bin/sh
[ "$*" = "configure export-credentials --profile dev --format process" ] && cat "$HOME/renewed.json"
"""


@pytest.mark.parametrize("seconds", [60, -60], ids=["expiring", "expired"])
def test_the_aws_cli_renews_a_session_from_aws_login(
    seconds: float, aws_login: Callable[..., AccessKey], place: Sandbox, keys: Keys
) -> None:
    aws_login(seconds)
    key_id, key = keys.mint(f"arn:aws:sts::{ACCOUNT}:assumed-role/renewed/me", 900)
    more = {"SessionToken": key.session_token, "Expiration": rfc3339(time.time() + 900)}
    place.write("renewed.json", process_output(AccessKey(key_id, key.secret, key.arn), **more))
    place.write("bin/aws", RENEWING_AWS).chmod(0o755)
    path = {"PATH": f"{place.home}/bin:{place.env['PATH']}"}
    assert signed_by(place.run(*LINE, "-i", "dev", env=path), keys).arn == key.arn
    # without an AWS CLI, the session is used until it expires, and then the error is one line
    done = place.run(*LINE, "-i", "dev", "--refresh", env={"PATH": "/nowhere"})
    if seconds > 0:
        assert "assumed-role/admin/me" in signed_by(done, keys).arn
    else:
        assert_fails(done, "no AWS CLI is on PATH to renew it", "aws login --profile dev")


@pytest.mark.parametrize("changes", [{"expiresAt": "soon"}, {"accessKeyId": 5}, {"sessionToken": None}], ids=str)
def test_a_damaged_session_from_aws_login_is_one_line(
    changes: dict[str, Any], aws_login: Callable[..., AccessKey], place: Sandbox
) -> None:
    aws_login(300, **changes)
    assert_fails(place.run(*LINE, "-i", "dev", env={"PATH": "/nowhere"}), "aws login", "aws login --profile dev")


def test_a_profiles_role_is_assumed_from_its_source(place: Sandbox, moto: RecordingProxy, keys: Keys) -> None:
    alice = moto.create_user("alice")
    first = moto.create_role("first", trusted=[alice.arn], external_id="x1")
    second = moto.create_role("second", trusted=[first])
    place.credentials(alice.profile("alice"))
    place.config(
        f"[profile first]\nrole_arn = {first}\nsource_profile = alice\nexternal_id = x1\nrole_session_name = me\n"
        f"[profile second]\nrole_arn = {second}\nsource_profile = first\nduration_seconds = 1800\n"
    )
    done = place.run(*LINE, "-i", "first", env=moto.environment)
    assert signed_by(done, keys).arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/first/me"
    done = place.run(*LINE, "-i", "second", env=moto.environment)
    assert signed_by(done, keys).canonical_arn == second
    assert moto.last("AssumeRole").params["DurationSeconds"] == "1800"


def test_the_source_of_a_profiles_role_may_be_a_stored_identity(
    desk: Sandbox, moto: RecordingProxy, keys: Keys
) -> None:
    alice = moto.create_user("alice")
    role = moto.create_role("admin", trusted=[alice.arn])
    login(desk, "alice", key=alice)
    desk.config(f"[profile admin]\nrole_arn = {role}\nsource_profile = alice\n")
    assert signed_by(desk.run(*LINE, "-i", "admin", env=moto.environment), keys).canonical_arn == role


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        pytest.param("region = us-gov-west-1\n", "sts.us-gov-west-1.amazonaws.com", id="GovCloud"),
        pytest.param("region = us-east-2\nuse_fips_endpoint = true\n", "sts-fips.us-east-2.amazonaws.com", id="FIPS"),
        pytest.param("region = eu-west-1\nuse_dualstack_endpoint = true\n", "sts.eu-west-1.api.aws", id="dual-stack"),
        pytest.param("region = us-east-2\nsts_regional_endpoints = legacy\n", "sts.amazonaws.com", id="legacy"),
    ],
)
def test_keys_stored_under_a_profiles_name_keep_the_profiles_settings(settings: str, host: str, desk: Sandbox) -> None:
    desk.config(f"[profile dev]\n{settings}credential_process = false\nrole_arn = x\nsource_profile = gone\n")
    said = login(desk).stderr
    assert "dev: these settings of the AWS profile still apply: region" in said
    done = desk.run("eks", "get-token", "--cluster-name", "demo", "--profile", "dev")
    assert done.returncode == 0, done.stderr
    token = json.loads(done.stdout)["status"]["token"]
    assert urlsplit(decoded_url(token)).hostname == host
    assert ALICE.id in decoded_url(token)


@pytest.mark.parametrize("setting", ["source_profile", "credential_process", "sso_session", "login_session", "region"])
def test_a_nested_setting_is_not_read_as_our_own(setting: str, desk: Sandbox) -> None:
    desk.config(f"[profile dev]\nrole_arn = arn:aws:iam::123456789012:role/dev\n{setting} =\n  a = b\n")
    done = desk.run("eks", "get-token", "--cluster-name", "demo", "--profile", "dev")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("eks-token: error: dev: Partial credentials found in assume-role")


def test_a_stored_identity_replaces_only_the_source_of_the_credentials() -> None:
    profile = {"region": "eu-west-1", "services": "ours", "mfa_serial": "x", "duration_seconds": "1800"}
    source = {"credential_process": "aws", "sso_account_id": "1", "aws_access_key_id": "AKIA", "role_arn": "r"}
    files = AwsFiles({"dev": profile | source, "ops": source}, {}, {})
    stored = Stored("", {"dev": {"role_arn": "ours", "source_profile": "ops", "region": "us-east-1"}, "ops": {}})
    profiles = lay_over(files, stored, {}).profiles
    assert profiles["ops"] == {}
    assert profiles["dev"]["role_arn"] == "ours"
    assert profiles["dev"]["region"] == "us-east-1"
    assert (profiles["dev"]["services"], profiles["dev"]["duration_seconds"]) == ("ours", "1800")
    # its device opens an MFA session of the source's keys
    assert profiles[profiles["dev"]["source_profile"]]["mfa_serial"] == "x"
    assert not source.keys() - {"role_arn"} & profiles["dev"].keys()


@pytest.mark.parametrize("word", ["false", "FALSE", "0", "no", "No", "off"])
@pytest.mark.parametrize("grammar", ["eks-token", "atmos"])
def test_the_words_of_atmos_for_no_identity_disable_stored_identities(word: str, grammar: str) -> None:
    stored = Stored("dev", {"dev": {}, "ops": {}})
    own = Choice("", named=False, environment=True)
    assert choose_identity(Request(grammar, "demo", "", word), {"ATMOS_IDENTITY": "dev"}, stored) == own
    assert choose_identity(Request(grammar, "demo", "", ""), {"ATMOS_IDENTITY": word}, stored) == own
    named = Choice("work", named=True, environment=True)
    variables = {"ATMOS_IDENTITY": word, "AWS_PROFILE": "work"}
    assert choose_identity(Request(grammar, "demo", "", ""), variables, stored) == named
    # the AWS CLI may have a profile with such a name
    assert choose_identity(Request("aws", "demo", "", word), {}, stored).profile == word


def test_environment_keys_may_be_the_source_of_a_profiles_role(
    place: Sandbox, moto: RecordingProxy, keys: Keys
) -> None:
    alice = moto.create_user("alice")
    role = moto.create_role("admin", trusted=[alice.arn])
    place.config(f"[profile admin]\nrole_arn = {role}\ncredential_source = Environment\n")
    env = {**moto.environment, **alice.environment}
    assert signed_by(place.run(*LINE, "-i", "admin", env=env), keys).canonical_arn == role


def process_profile(place: Sandbox, answer: str) -> Path:
    """Makes a profile `tool` whose credential_process prints this. Returns the file in which it counts its runs."""
    runs = place.home / "runs"
    runs.unlink(missing_ok=True)
    place.write("answer.json", answer)
    script = place.write("tool.py", f"open({str(runs)!r}, 'a').write('x')\nprint(open('answer.json').read())\n")
    place.config(f"[profile tool]\ncredential_process = {sys.executable} {script}\n")
    return runs


def test_a_credential_process_runs_once_for_each_new_token(place: Sandbox, keys: Keys) -> None:
    keys.learn(*ALICE)
    runs = process_profile(place, process_output())
    for expected in ("x", "xx"):
        assert signed_by(place.run(*LINE, "-i", "tool"), keys).arn == ALICE.arn
        assert runs.read_text() == expected
    for _ in range(2):
        assert signed_by(place.run(*LINE, "-i", "tool", "--cache"), keys).arn == ALICE.arn
        assert runs.read_text() == "xxx"


def test_bad_output_of_a_credential_process_is_one_line(place: Sandbox) -> None:
    process_profile(place, '{"Version": 1}')
    assert_fails(place.run(*LINE, "-i", "tool"), "the output of the credential_process of tool lacks AccessKeyId")


def test_our_own_key_error_is_not_reported_as_a_users_mistake() -> None:
    with pytest.raises(KeyError), plain_errors("dev"):
        raise KeyError("userCode")


def test_a_web_identity_becomes_its_role(place: Sandbox, moto: RecordingProxy, keys: Keys) -> None:
    role = moto.create_role("web")
    token = place.write("token", "eyJhbGciOiJub25lIn0.e30.")
    profile = f"role_arn = {role}\nweb_identity_token_file = {token}\nrole_session_name = pod"
    place.config(f"[profile web]\n{profile}\n")
    assert signed_by(place.run(*LINE, "-i", "web", env=moto.environment), keys).canonical_arn == role
    env = {**moto.environment, "AWS_ROLE_ARN": role, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token)}
    assert signed_by(place.run(*LINE, env=env), keys).canonical_arn == role
    assert moto.counts == {"AssumeRoleWithWebIdentity": 2}


@pytest.mark.parametrize(
    ("config", "name", "error", "hint"),
    [
        pytest.param("[profile production]\nregion = x\n", "prodution", "'prodution'", "production", id="misspelt"),
        pytest.param("", "zzz", "'zzz'", "eks-token login zzz", id="unknown"),
        pytest.param(
            "[profile empty]\nregion = eu-west-1\n", "empty", "empty", "eks-token login", id="without credentials"
        ),
        pytest.param(
            f"[profile a]\nrole_arn = {ALICE.arn}\nsource_profile = b\n"
            f"[profile b]\nrole_arn = {ALICE.arn}\nsource_profile = c\n"
            f"[profile c]\nrole_arn = {ALICE.arn}\nsource_profile = b\n",
            "a",
            "a -> b -> c -> b",
            "",
            id="a loop of sources",
        ),
        pytest.param(
            f"[profile a]\nrole_arn = {ALICE.arn}\nsource_profile = a\n",
            "a",
            "a -> a",
            "",
            id="its own source without keys",
        ),
        pytest.param(f"[profile a]\nrole_arn = {ALICE.arn}\nsource_profile = gone\n", "a", "gone", "", id="no source"),
        pytest.param(
            "[profile a]\nlogin_session = arn:aws:sts::123456789012:assumed-role/x/me\n",
            "a",
            "the session of `aws login` has expired, and",
            "sign in with `aws login --profile a`",
            id="aws login",
        ),
        pytest.param("[profile a\n", "a", ".aws/config", "", id="a config file that cannot be parsed"),
        pytest.param("[profile a]\naws_access_key_id = x\n", "a", "aws_secret_access_key", "", id="half a key"),
    ],
)
def test_a_profile_without_usable_credentials_is_one_line(
    config: str, name: str, error: str, hint: str, place: Sandbox
) -> None:
    place.config(config)
    assert_fails(place.run(*LINE, "-i", name), error, hint)


def test_a_profile_with_keys_may_be_its_own_source(place: Sandbox, moto: RecordingProxy, keys: Keys) -> None:
    alice = moto.create_user("alice")
    role = moto.create_role("admin", trusted=[alice.arn])
    place.config(f"{alice.profile('profile admin')}role_arn = {role}\nsource_profile = admin\n")
    assert signed_by(place.run(*LINE, "-i", "admin", env=moto.environment), keys).canonical_arn == role


# --- with and without a keyring -----------------------------------------------------------------------------


class RecordingBus:
    """A socket in the place of the session bus. It counts connections and closes them."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:path={path}"
        self.calls = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                if connection.recv(4) == b"stop":
                    return
            self.calls += 1

    def stop(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._socket.getsockname())
            last.send(b"stop")
            self._thread.join()
        self._socket.close()


@pytest.fixture
def bus(place: Sandbox) -> Iterator[RecordingBus]:
    # the path of a socket is at most 107 bytes long, and pytest's directories have long names
    with tempfile.TemporaryDirectory() as directory:
        recorder = RecordingBus(Path(directory) / "bus")
        place.env["DBUS_SESSION_BUS_ADDRESS"] = recorder.address
        yield recorder
        recorder.stop()


@pytest.mark.parametrize(
    ("options", "env"),
    [
        pytest.param([], ALICE.environment, id="environment keys"),
        pytest.param(["-i", "static"], {}, id="a profile's keys"),
        pytest.param(["-i", "tool"], {}, id="a credential_process"),
        pytest.param([], {"AWS_PROFILE": "static"}, id="AWS_PROFILE"),
        pytest.param([], {}, id="the default profile"),
    ],
)
def test_the_keyring_is_not_used_if_it_is_not_needed(
    options: list[str], env: Mapping[str, str], place: Sandbox, bus: RecordingBus, keys: Keys
) -> None:
    keys.learn(*ALICE)
    process_profile(place, process_output())
    place.credentials(ALICE.profile("static") + ALICE.profile())
    assert signed_by(place.run(*LINE, *options, env=env), keys).arn == ALICE.arn
    assert bus.calls == 0
    # the recorder does see a call that uses the keyring
    assert place.run(*LINE, "-i", "unknown").returncode == 1
    assert bus.calls > 0


def test_a_missing_or_locked_keyring_is_one_line(desk: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    login(desk)
    assert_fails(desk.run(*LINE, "-i", "dev", env={"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere"}), "keyring")
    with keyring_daemon.locked():
        assert_fails(desk.run(*LINE, "-i", "dev"), "locked", "unlock")
    assert desk.run(*LINE, "-i", "dev").returncode == 0
