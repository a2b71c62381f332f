"""From `login` to a token for the right principal, for every kind of identity; and what else talks to a person.

The program runs as a black box beside a real GNOME Keyring, moto and an Identity Center of the tests' own. `FLOWS` are
the ways to sign in; test_secrets.py walks them again.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from botocore.session import Session
from conftest import Completed, KeyringDaemon, Sandbox, as_root, invocation
from kubeconfigs import AWS_CLI, kubeconfig
from servers import ACCOUNT, AccessKey, Keys, RecordingProxy, SsoOidcServer, mfa_serial, wait_for
from test_keyring import LimitedBackend, stock_vault
from verifier import Identity, verify

import eks_token
from eks_token import DEVICE_GRANT, Vault, poll_for_token

REGION = "us-east-2"
SSO_REGION = "us-east-1"
CODE = "493817"
WRONG_CODE = "111111"
ASK_CODE = f"MFA code for {mfa_serial('alice')}: "
DEAD_BUS = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere"}
NOBODY = {
    "KUBERNETES_EXEC_INFO": json.dumps(
        {
            "kind": "ExecCredential",
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "spec": {"interactive": False},
        }
    )
}
Steps = Sequence[tuple[str, str]]


def words(cluster: str = "demo", *more: str) -> list[str]:
    return ["--cluster-name", cluster, "--region", REGION, *more]


def as_json(key: Sequence[str], **more: object) -> str:
    return json.dumps({"Version": 1, "AccessKeyId": key[0], "SecretAccessKey": key[1], **more})


class Scene:
    """A person's machine: a home with a keyring, AWS, and IAM Identity Center at the end of their endpoints."""

    def __init__(
        self, home: Sandbox, ring: KeyringDaemon, moto: RecordingProxy, sso: SsoOidcServer, keys: Keys
    ) -> None:
        self.home, self.ring, self.moto, self.sso, self.keys = home, ring, moto, sso, keys
        self.outputs: list[str] = []
        """All that was shown so far."""
        home.env |= {**moto.environment, **sso.environment}
        sso.interval = 0

    # commands

    def run(self, *args: str | Path, steps: Steps | None = None, **options: Any) -> Completed:
        """Runs the program; with `steps`, on a terminal."""
        done = self.home.run(*args, **options) if steps is None else self.home.run_pty(*args, steps=steps, **options)
        self.outputs += [done.stdout, done.stderr]
        return done

    def login(self, *args: str, **options: Any) -> Completed:
        done = self.run("login", *args, **options)
        assert done.returncode == 0, done.stderr
        return done

    def refused(self, *args: str, status: int = 1, **options: Any) -> str:
        """What is shown by a run that fails, with nothing on stdout; the error is one line."""
        done = self.run(*args, **options)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        # the terminal echoes ^C
        assert len(re.findall(r"^(?:\^C)?eks-token: error: ", done.stderr, re.M)) == 1
        assert "is a bug" not in done.stderr
        return done.stderr

    def token(self, name: str, *more: str, cluster: str = "demo", **options: Any) -> Completed:
        return self.run(*words(cluster, "-i", name, *more), **options)

    def whose(self, done: Completed, cluster: str = "demo") -> Identity:
        """Whom a cluster would see."""
        assert done.returncode == 0, done.stderr
        return verify(json.loads(done.stdout)["status"]["token"], cluster=cluster, secrets=self.keys)

    def principal(self, name: str, *more: str, **options: Any) -> str:
        return self.whose(self.token(name, *more, **options)).canonical_arn

    # what there is

    def store(self, name: str, key: Sequence[str], *options: str) -> None:
        self.login(name, "--stdin", *options, stdin=as_json(key))

    def alice(self, name: str = "dev", *, code: str | None = None) -> AccessKey:
        """Her keys, stored as `name`."""
        key = self.moto.create_user("alice", mfa_code=code)
        self.store(name, key)
        return key

    def sso_options(self, *more: str) -> list[str]:
        # a start URL may have a space before it and a scheme in capitals, as it comes from a message
        return ["--sso-start-url", f" {self.sso.start_url.replace('http', 'HTTP')}", "--sso-region", SSO_REGION, *more]

    def sso_session(self, name: str = "corp") -> str:
        return f"[sso-session {name}]\nsso_start_url = {self.sso.start_url}\nsso_region = {SSO_REGION}\n"

    def sso_profile(self, name: str, account: str, role: str, *more: str) -> str:
        lines = [f"[profile {name}]", f"sso_account_id = {account}", f"sso_role_name = {role}", *more]
        return "\n".join(lines) + "\n"

    def left_by_aws_cli(self, session: str, **changes: str) -> Path:
        """The file of a session that `aws sso login` began, named by its sso-session or legacy start URL."""
        from hashlib import sha1

        access_token, refresh_token = self.sso.new_session()
        client_id, client_secret = self.sso.register_client()
        token = {
            "startUrl": self.sso.start_url,
            "region": SSO_REGION,
            "accessToken": access_token,
            "expiresAt": utc(8 * 3600),
            "clientId": client_id,
            "clientSecret": client_secret,
            "registrationExpiresAt": utc(90 * 86400),
            "refreshToken": refresh_token,
        }
        name = f".aws/sso/cache/{sha1(session.encode()).hexdigest()}.json"
        return self.home.write(name, json.dumps(token | changes))

    def identities(self, **options: Any) -> dict[str, dict[str, Any]]:
        """What `identities` lists, by name."""
        done = self.run("identities", "-o", "json", **options)
        assert done.returncode == 0, done.stderr
        return {row["name"]: row for row in json.loads(done.stdout)}

    def kept(self) -> list[str]:
        """The users of the keyring's items."""
        return sorted(item["username"] for item in self.ring.stored())

    def records(self) -> Any:
        path = self.home.data / "identities.json"
        return json.loads(path.read_text()) if path.exists() else None

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """What a person does to identities.json with an editor; `change` gets the identities."""
        content = self.records()
        change(content["identities"])
        self.home.write(str((self.home.data / "identities.json").relative_to(self.home.home)), json.dumps(content))

    def answers(self) -> list[Path]:
        """The cached ones."""
        return list((self.home.cache / "tokens").rglob("%answer"))


def utc(seconds: float) -> str:
    """The time in so many seconds, as AWS writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


@pytest.fixture
def scene(home: Sandbox, keyring_daemon: KeyringDaemon, moto: RecordingProxy, sso: SsoOidcServer, keys: Keys) -> Scene:
    return Scene(home, keyring_daemon, moto, sso, keys)


def role_of(arn: str) -> str:
    """The role that a session's ARN is of, as `Identity.canonical_arn` has it."""
    account, _, role = arn.split(":", 4)[4].partition(":assumed-role/")
    return f"arn:aws:iam::{account}:role/{role.partition('/')[0]}"


# --- ways to sign in ----------------------------------------------------------------------------------------

Flow = Callable[[Scene], tuple[str, str]]
"""Signs in; returns the identity's name, and the principal that a cluster shall see."""


def keys_from_stdin(scene: Scene) -> tuple[str, str]:
    return "dev", scene.alice().arn


def temporary_keys_from_stdin(scene: Scene) -> tuple[str, str]:
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/ops/alice"
    key_id, key = scene.keys.mint(arn, 3600)
    given = as_json([key_id, key.secret], SessionToken=key.session_token, Expiration=utc(3600))
    scene.login("dev", "--stdin", stdin=given)
    return "dev", role_of(arn)


def keys_typed(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice")
    steps = [("access key ID: ", f"{alice.id}\n"), ("(not shown): ", f"{alice.secret}\n")]
    scene.login("dev", "--new-keys", steps=steps)
    return "dev", alice.arn


def keys_with_mfa_from_stdin(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    given = f"{as_json(alice)}\n{CODE}\n"
    scene.login("dev", "--stdin", "--mfa-serial", mfa_serial("alice"), "--mfa-code-stdin", stdin=given)
    return "dev", alice.arn


def keys_with_mfa_typed(scene: Scene) -> tuple[str, str]:
    alice = scene.alice(code=CODE)
    scene.login("dev", "--mfa-serial", mfa_serial("alice"), steps=[(ASK_CODE, f"{CODE}\n")])
    return "dev", alice.arn


def import_of_a_profile(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice")
    path = scene.home.credentials(alice.profile("work"))
    shown = scene.login("dev", "--import-profile", "work").stderr
    assert "delete aws_access_key_id and aws_secret_access_key from [work]" in shown
    assert alice.secret in path.read_text()  # the file is the person's to edit, who now does
    path.unlink()
    return "dev", alice.arn


def role_over_stored_keys(scene: Scene) -> tuple[str, str]:
    role = scene.moto.create_role("admin", trusted=[scene.alice().arn], external_id="ours")
    scene.login("admin", "--role-arn", role, "--source", "dev", "--external-id", "ours")
    return "admin", role


def role_over_a_profile(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice")
    scene.home.credentials(alice.profile("work"))
    role = scene.moto.create_role("admin", trusted=[alice.arn])
    scene.login("admin", "--role-arn", role, "--source", "work")
    return "admin", role


def role_with_mfa(scene: Scene) -> tuple[str, str]:
    role = scene.moto.create_role("admin", trusted=[scene.alice(code=CODE).arn], mfa=True)
    options = ["--role-arn", role, "--source", "dev", "--mfa-serial", mfa_serial("alice")]
    scene.login("admin", *options, "--mfa-code-stdin", stdin=f"{CODE}\n")
    return "admin", role


def role_over_keys_with_mfa(scene: Scene) -> tuple[str, str]:
    keys_with_mfa_from_stdin(scene)
    role = scene.moto.create_role("admin", mfa=True)
    scene.login("admin", "--role-arn", role, "--source", "dev", "--mfa-code-stdin", stdin=f"{CODE}\n")
    return "admin", role


def chain_from_stored_over_a_profile_to_stored(scene: Scene) -> tuple[str, str]:
    first = scene.moto.create_role("first", trusted=[scene.alice().arn])
    second = scene.moto.create_role("second", trusted=[first])
    third = scene.moto.create_role("third", trusted=[second])
    scene.home.config(
        f"[profile one]\nrole_arn = {first}\nsource_profile = dev\n"
        f"[profile two]\nrole_arn = {second}\nsource_profile = one\n"
    )
    scene.login("three", "--role-arn", third, "--source", "two")
    return "three", third


def chain_from_a_profile_over_stored_to_a_profile(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice")
    first = scene.moto.create_role("first", trusted=[alice.arn])
    second = scene.moto.create_role("second", trusted=[first])
    third = scene.moto.create_role("third", trusted=[second])
    scene.home.credentials(alice.profile("work"))
    scene.home.config(f"[profile three]\nrole_arn = {third}\nsource_profile = two\n")
    scene.login("one", "--role-arn", first, "--source", "work")
    scene.login("two", "--role-arn", second, "--source", "one")
    return "three", third


def sso_named_by_options(scene: Scene) -> tuple[str, str]:
    scene.sso.assign("111111111111", "Other")
    arn = scene.sso.assign(ACCOUNT, "Admin")
    scene.login("work", *scene.sso_options("--sso-account-id", ACCOUNT, "--sso-role-name", "Admin"))
    return "work", role_of(arn)


def sso_with_one_role_only(scene: Scene) -> tuple[str, str]:
    arn = scene.sso.assign(ACCOUNT, "Admin")
    scene.login("work", *scene.sso_options())
    return "work", role_of(arn)


def sso_chosen(scene: Scene) -> tuple[str, str]:
    scene.sso.assign("111111111111", "Other")
    scene.sso.assign(ACCOUNT, "Admin")
    arn = scene.sso.assign(ACCOUNT, "Viewer")
    steps = [("Account [1-2]: ", "2\n"), ("Role [1-2]: ", "two\n"), ("'two' is not one of", ""), ("[1-2]: ", "2\n")]
    scene.login("work", *scene.sso_options(), steps=steps)
    return "work", role_of(arn)


def sso_session_of_aws_config(scene: Scene) -> tuple[str, str]:
    arn = scene.sso.assign(ACCOUNT, "Admin")
    scene.home.config(scene.sso_session())
    scene.login("work", "--sso-session", "corp")
    return "work", role_of(arn)


def sso_profile_of_aws_config(scene: Scene) -> tuple[str, str]:
    arn = scene.sso.assign(ACCOUNT, "Admin")
    scene.home.config(scene.sso_session() + scene.sso_profile("work", ACCOUNT, "Admin", "sso_session = corp"))
    scene.login("work")
    return "work", role_of(arn)


def legacy_sso_profile_of_aws_config(scene: Scene) -> tuple[str, str]:
    arn = scene.sso.assign(ACCOUNT, "Admin")
    place = [f"sso_start_url = {scene.sso.start_url}", f"sso_region = {SSO_REGION}"]
    scene.home.config(scene.sso_profile("work", ACCOUNT, "Admin", *place))
    scene.login("work")
    return "work", role_of(arn)


def sso_session_left_by_the_aws_cli(scene: Scene) -> tuple[str, str]:
    arn = scene.sso.assign(ACCOUNT, "Admin")
    scene.home.config(scene.sso_session() + scene.sso_profile("work", ACCOUNT, "Admin", "sso_session = corp"))
    scene.left_by_aws_cli("corp")
    return "work", role_of(arn)


def role_over_sso(scene: Scene) -> tuple[str, str]:
    arn = scene.sso.assign(ACCOUNT, "Admin")
    scene.login("work", *scene.sso_options())
    role = scene.moto.create_role("deploy", trusted=[role_of(arn)])
    scene.login("deploy", "--role-arn", role, "--source", "work")
    return "deploy", role


def led_to_keys(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice")
    keys = [("access key ID: ", f"{alice.id}\n"), ("(not shown): ", f"{alice.secret}\n")]
    scene.login(steps=[("Name of the identity: ", "dev\n"), ("Kind [1-5]: ", "1\n"), *keys])
    return "dev", alice.arn


def led_to_keys_with_mfa(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    keys = [("access key ID: ", f"{alice.id}\n"), ("(not shown): ", f"{alice.secret}\n"), (ASK_CODE, f"{CODE}\n")]
    scene.login("dev", steps=[("Kind [1-5]: ", "2\n"), ("MFA device", f"{mfa_serial('alice')}\n"), *keys])
    return "dev", alice.arn


def led_to_a_role(scene: Scene) -> tuple[str, str]:
    role = scene.moto.create_role("admin", trusted=[scene.alice().arn])
    steps = [("Kind", "3\n"), ("ARN of the role", f"{role}\n"), ("that assumes it", "dev\n"), ("empty for none", "\n")]
    scene.login("admin", steps=steps)
    return "admin", role


def led_to_sso(scene: Scene) -> tuple[str, str]:
    arn = scene.sso.assign(ACCOUNT, "Admin")
    steps = [("Kind", "4\n"), ("Start URL", f"{scene.sso.start_url}\n"), ("AWS region", f"{SSO_REGION}\n")]
    scene.login("work", steps=steps)
    return "work", role_of(arn)


def led_to_an_import(scene: Scene) -> tuple[str, str]:
    alice = scene.moto.create_user("alice")
    path = scene.home.credentials(alice.profile("old"))
    scene.login("dev", steps=[("Kind", "5\n"), ("Profile: ", "old\n")])
    path.unlink()
    return "dev", alice.arn


FLOWS: list[Flow] = [
    keys_from_stdin,
    temporary_keys_from_stdin,
    keys_typed,
    keys_with_mfa_from_stdin,
    keys_with_mfa_typed,
    import_of_a_profile,
    role_over_stored_keys,
    role_over_a_profile,
    role_with_mfa,
    role_over_keys_with_mfa,
    chain_from_stored_over_a_profile_to_stored,
    chain_from_a_profile_over_stored_to_a_profile,
    sso_named_by_options,
    sso_with_one_role_only,
    sso_chosen,
    sso_session_of_aws_config,
    sso_profile_of_aws_config,
    legacy_sso_profile_of_aws_config,
    sso_session_left_by_the_aws_cli,
    role_over_sso,
    led_to_keys,
    led_to_keys_with_mfa,
    led_to_a_role,
    led_to_sso,
    led_to_an_import,
]


def named(flow: Flow) -> str:
    return flow.__name__.replace("_", " ")


@pytest.mark.parametrize("flow", FLOWS, ids=named)
def test_whoever_signed_in_is_whom_the_cluster_sees(flow: Flow, scene: Scene) -> None:
    name, expected = flow(scene)
    assert scene.principal(name) == expected
    asked = scene.moto.counts + scene.sso.counts
    # nobody is asked again, neither a person nor AWS: the sessions are kept
    assert scene.principal(name, "--refresh", env=NOBODY) == expected
    if flow is not temporary_keys_from_stdin:
        assert scene.moto.counts + scene.sso.counts == asked


def test_a_role_can_be_assumed_on_top_of_a_stored_identity(scene: Scene) -> None:
    name, role = role_over_stored_keys(scene)
    top = scene.moto.create_role("top", trusted=[role], external_id="theirs")
    done = scene.token(name, "--role-arn", top, "--external-id", "theirs", "--session-name", "alice")
    assert scene.whose(done).arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/top/alice"


# --- keys ---------------------------------------------------------------------------------------------------


def test_typed_keys_are_not_shown(scene: Scene) -> None:
    keys_typed(scene)
    assert not [text for text in scene.outputs if any(key.secret in text for key in scene.keys.values())]
    assert [text for text in scene.outputs if any(key_id in text for key_id in scene.keys)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(["--stdin", "--role-arn", "arn:aws:iam::123456789012:role/r"], "different kinds", id="two kinds"),
        pytest.param(
            ["--role-arn", "arn:aws:iam::123456789012:role/r"], "must be used together", id="a role without source"
        ),
        pytest.param(["--source", "dev"], "must be used together", id="a source without role"),
        pytest.param(["--sso-start-url", "https://x"], "--sso-region", id="a start URL without region"),
        pytest.param(["--sso-start-url", "x", "--sso-region", "r"], "not a start URL", id="a start URL that is none"),
        pytest.param(["--stdin", "--external-id", "x"], "--role-arn", id="an external id without role"),
        pytest.param(["--stdin", "--duration-seconds", "899"], "at least 900", id="too short a duration"),
        pytest.param(["--stdin", "--duration-seconds", "1h"], "at least 900", id="a duration that is no number"),
        pytest.param(["--new-keys"], "no terminal", id="keys to be typed where nobody is"),
        pytest.param([], "no option says", id="no option where nobody is"),
        pytest.param(["--sso-account", "1"], "--sso-account", id="an option cut short"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: list[str], words: str, scene: Scene) -> None:
    assert words in scene.refused("login", "dev", *given, status=2, stdin=as_json(["A", "S"])).splitlines()[0]
    assert (scene.records(), scene.kept()) == (None, [])


@pytest.mark.parametrize("name", ["", " dev", "-dev", "de\nv", "[dev]", "d" * 129])
def test_a_name_that_no_profile_could_have_is_refused(name: str, scene: Scene) -> None:
    scene.refused("login", "--stdin", "--no-verify", "--", name, status=2, stdin=as_json(["A", "S"]))
    assert scene.kept() == []


def test_importing_a_profile_without_keys_is_refused(scene: Scene) -> None:
    scene.home.config("[profile work]\nregion = eu-west-1\n")
    assert "has no keys" in scene.refused("login", "dev", "--import-profile", "work")
    assert "no AWS profile is named 'absent'" in scene.refused("login", "dev", "--import-profile", "absent")


def test_importing_a_profile_takes_its_region_and_leaves_the_rest(scene: Scene) -> None:
    alice = scene.moto.create_user("alice")
    scene.home.credentials(alice.profile("work"))
    scene.home.config("[profile work]\nregion = eu-west-1\n")
    scene.login("work", "--import-profile", "work")
    assert scene.records()["identities"]["work"]["region"] == "eu-west-1"


def test_signing_in_again_with_other_keys_replaces_them_and_what_was_cached(scene: Scene) -> None:
    scene.alice()
    scene.edit(dict)  # long enough ago that answers are cached
    scene.principal("dev")
    assert len(scene.answers()) == 1
    bob = scene.moto.create_user("bob")
    assert "in the keyring" in scene.login("dev", "--stdin", stdin=as_json(bob)).stderr
    assert scene.answers() == []
    assert scene.principal("dev") == bob.arn
    assert scene.kept() == ["identity:dev"]


def test_the_only_identity_and_then_the_default_one_is_meant_where_none_is_named(scene: Scene) -> None:
    alice = scene.alice()
    assert scene.whose(scene.run(*words())).arn == alice.arn
    bob = scene.moto.create_user("bob")
    scene.store("ops", bob)
    assert "dev, ops" in scene.refused(*words())
    scene.login("ops", "--default")
    assert scene.whose(scene.run(*words())).arn == bob.arn
    scene.store("dev", alice, "--default")
    assert scene.whose(scene.run(*words())).arn == alice.arn
    assert scene.login().stdout == f"{alice.arn}\n"


def test_signing_in_again_changes_what_the_options_name(scene: Scene) -> None:
    scene.alice(code=CODE)
    scene.login("dev", "--region", "eu-west-1")
    assert scene.records()["identities"]["dev"]["region"] == "eu-west-1"
    options = ["--mfa-serial", mfa_serial("alice"), "--duration-seconds", "900"]
    scene.login("dev", *options, "--mfa-code-stdin", stdin=f"{CODE}\n")
    assert scene.identities()["dev"]["kind"] == "keys with MFA"
    assert scene.records()["identities"]["dev"]["region"] == "eu-west-1"
    assert scene.moto.last("GetSessionToken").params["DurationSeconds"] == "900"


def test_the_settings_of_a_profile_are_not_login_s_to_change(scene: Scene) -> None:
    path = scene.home.credentials(scene.moto.create_user("alice").profile("work"))
    before = path.read_text()
    assert scene.login("work").stdout == f"arn:aws:iam::{ACCOUNT}:user/alice\n"
    assert "are in the AWS config file" in scene.refused("login", "work", "--default", status=2)
    assert (path.read_text(), scene.records()) == (before, None)


# --- MFA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "accepted"), [(1, True), (2, True), (3, False)])
def test_a_wrong_code_is_asked_for_again_at_most_twice(wrong: int, accepted: bool, scene: Scene) -> None:
    scene.alice(code=CODE)
    before = scene.records()
    codes = [WRONG_CODE] * wrong + [CODE] * accepted
    steps = [(ASK_CODE, f"{code}\n") for code in codes]
    done = scene.run("login", "dev", "--mfa-serial", mfa_serial("alice"), steps=steps)
    assert done.returncode == (0 if accepted else 1)
    assert scene.moto.count("GetSessionToken") == len(codes)
    assert not [code for code in codes if code in done.stderr]  # typed unseen
    if not accepted:
        assert "AWS refused GetSessionToken" in done.stderr
        assert (scene.records(), scene.kept()) == (before, ["identity:dev"])


def test_a_typed_code_may_have_a_space(scene: Scene) -> None:
    alice = scene.alice(code=CODE)
    typed = f" {CODE[:3]} {CODE[3:]}\n"
    scene.login("dev", "--mfa-serial", mfa_serial("alice"), steps=[(ASK_CODE, typed)])
    role = scene.moto.create_role("admin", mfa=True)
    scene.home.config(f"[profile admin]\nrole_arn = {role}\nsource_profile = own\nmfa_serial = {mfa_serial('alice')}\n")
    scene.home.credentials(alice.profile("own"))
    assert scene.principal("admin", steps=[(ASK_CODE, typed)]) == role


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "12 345"])
def test_what_is_no_code_counts_as_a_wrong_one(code: str, scene: Scene) -> None:
    scene.alice(code=CODE)
    scene.login("dev", "--mfa-serial", mfa_serial("alice"), steps=[(ASK_CODE, f"{code}\n"), (ASK_CODE, f"{CODE}\n")])
    assert scene.principal("dev") == f"arn:aws:iam::{ACCOUNT}:user/alice"


@pytest.mark.parametrize("line", [f"{WRONG_CODE}\n", "", "\n"], ids=["a wrong code", "no code", "an empty line"])
def test_a_wrong_code_on_stdin_is_an_error_and_nothing_is_stored(line: str, scene: Scene) -> None:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    options = ["--stdin", "--mfa-serial", mfa_serial("alice"), "--mfa-code-stdin"]
    shown = scene.refused("login", "dev", *options, stdin=f"{as_json(alice)}\n{line}")
    assert "dev: " in shown and "in the keyring" not in shown
    assert (scene.records() or {"identities": {}})["identities"] == {}
    assert scene.kept() == []


@pytest.mark.parametrize(("options", "seconds"), [([], 12 * 3600), (["--duration-seconds", "3600"], 3600)])
def test_an_mfa_session_lasts_twelve_hours_if_no_option_says_so(options: list[str], seconds: int, scene: Scene) -> None:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    given = f"{as_json(alice)}\n{CODE}\n"
    serial = ["--mfa-serial", mfa_serial("alice"), "--mfa-code-stdin"]
    done = scene.login("dev", "--stdin", *serial, *options, stdin=given)
    assert scene.moto.last("GetSessionToken").params["DurationSeconds"] == str(seconds)
    (ends,) = re.findall(r"signed in until (\S+)", done.stderr)
    assert utc(seconds - 60) < ends <= utc(seconds)


def test_one_mfa_session_serves_every_role_of_its_source(scene: Scene) -> None:
    keys_with_mfa_from_stdin(scene)
    roles = {name: scene.moto.create_role(name, mfa=True) for name in ("one", "two", "three")}
    scene.home.config(
        f"[profile three]\nrole_arn = {roles['three']}\nsource_profile = dev\nmfa_serial = {mfa_serial('alice')}\n"
    )
    scene.login("one", "--role-arn", roles["one"], "--source", "dev", "--mfa-code-stdin", stdin=f"{CODE}\n")
    asked = scene.moto.count("GetSessionToken")
    scene.home.write(".local/share/eks-token/identities.json", json.dumps(with_role(scene.records(), roles["two"])))
    for name in ("one", "two", "three", "dev"):
        whose = scene.principal(name, env=NOBODY)
        assert whose == roles.get(name, f"arn:aws:iam::{ACCOUNT}:user/alice")
    assert scene.moto.count("GetSessionToken") == asked


def with_role(records: Any, role: str) -> Any:
    """With a role `two` over `dev`, which asks for the device itself."""
    two = {"role_arn": role, "source_profile": "dev", "mfa_serial": mfa_serial("alice")}
    records["identities"]["two"] = two
    return records


def test_the_mfa_session_of_a_profile_serves_every_role_too(scene: Scene) -> None:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    scene.home.credentials(alice.profile("work"))
    roles = [scene.moto.create_role(name, mfa=True) for name in ("one", "two")]
    scene.home.config(
        "".join(
            f"[profile {role[-3:]}]\nrole_arn = {role}\nsource_profile = work\nmfa_serial = {mfa_serial('alice')}\n"
            for role in roles
        )
    )
    scene.login("one", "--mfa-code-stdin", stdin=f"{CODE}\n")
    assert [scene.principal(role[-3:]) for role in roles] == roles
    assert scene.moto.count("GetSessionToken") == 1


# --- roles --------------------------------------------------------------------------------------------------


def test_what_the_options_say_of_a_role_reaches_aws(scene: Scene) -> None:
    role = scene.moto.create_role("admin", trusted=[scene.alice().arn], external_id="ours")
    options = ["--external-id", "ours", "--role-session-name", "alice-at-work", "--duration-seconds", "1800"]
    done = scene.login("admin", "--role-arn", role, "--source", "dev", *options)
    assert done.stdout == f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/alice-at-work\n"
    asked = scene.moto.last("AssumeRole").params
    assert (asked["ExternalId"], asked["DurationSeconds"]) == ("ours", "1800")
    assert scene.whose(scene.token("admin")).session_name == "alice-at-work"


def test_a_role_needs_a_source_that_is_there(scene: Scene) -> None:
    arn = f"arn:aws:iam::{ACCOUNT}:role/admin"
    for source in ("absent", "admin"):
        shown = scene.refused("login", "admin", "--role-arn", arn, "--source", source)
        assert f"no identity or AWS profile named '{source}'" in shown
        assert f"eks-token login {source}" in shown
    assert scene.records() is None


@pytest.mark.parametrize(
    ("sources", "chain"),
    [
        pytest.param({"a": "b", "b": "a"}, "a -> b -> a", id="two"),
        pytest.param({"a": "b", "b": "c", "c": "b"}, "a -> b -> c -> b", id="it begins later on"),
        pytest.param({"a": "a"}, "a -> a", id="itself without keys"),
        pytest.param({"a": "x", "x": "y", "y": "a"}, "a -> x -> y -> a", id="stored and profiles"),
        pytest.param({"x": "a", "a": "y", "y": "x"}, "x -> a -> y -> x", id="profiles and stored"),
    ],
)
def test_a_loop_is_refused_with_its_chain(sources: Mapping[str, str], chain: str, scene: Scene) -> None:
    """Of these names, a to c are stored and x to z are profiles."""
    keys = {
        name: {"role_arn": f"arn:aws:iam::{ACCOUNT}:role/{name}", "source_profile": source}
        for name, source in sources.items()
    }
    stored = {name: keys[name] for name in keys if name < "x"}
    path = scene.home.write(".local/share/eks-token/identities.json", json.dumps({"identities": stored}))
    path.parent.chmod(0o700)
    profiles = [
        f"[profile {name}]\nrole_arn = {keys[name]['role_arn']}\nsource_profile = {keys[name]['source_profile']}\n"
        for name in keys
        if name >= "x"
    ]
    scene.home.config("".join(profiles))
    first = next(iter(sources))
    for line in (words("demo", "-i", first), ["login", first], ["whoami", "-i", first]):
        assert chain in scene.refused(*line)
    assert not scene.moto.calls


# --- SSO ----------------------------------------------------------------------------------------------------

PENDING, SLOW_DOWN = "AuthorizationPendingException", "SlowDownException"


def test_the_code_and_the_link_are_shown_and_the_answer_is_awaited(scene: Scene) -> None:
    scene.sso.device_answers += [PENDING, PENDING]
    scene.sso.assign(ACCOUNT, "Admin")
    done = scene.login("work", *scene.sso_options())
    assert re.search(rf"\b[0-9A-F]{{4}}-[0-9A-F]{{4}}\b.* {scene.sso.start_url}/#/device\?user_code=", done.stderr)
    assert "waiting" in done.stderr
    assert scene.sso.count("CreateToken") == 3
    (registered,) = [call.params for call in scene.sso.calls if call.operation == "RegisterClient"]
    assert registered["scopes"] == ["sso:account:access"]


def test_slow_down_adds_five_seconds_to_the_interval(sso: SsoOidcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    oidc = Session().create_client("sso-oidc", SSO_REGION, endpoint_url=sso.url, **keys)
    client = oidc.register_client(clientName="x", clientType="public", scopes=["sso:account:access"])
    person = {"clientId": client["clientId"], "clientSecret": client["clientSecret"]}
    device = oidc.start_device_authorization(**person, startUrl=sso.start_url)
    sso.device_answers += [PENDING, SLOW_DOWN, PENDING]
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    question = {**person, "grantType": DEVICE_GRANT, "deviceCode": device["deviceCode"]}
    assert "accessToken" in poll_for_token(oidc, question, device)
    assert waits == [sso.interval, sso.interval + 5, sso.interval + 5]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("AccessDeniedException", "denied in the browser"),
        ("ExpiredTokenException", "nobody confirmed the code in time"),
        ("InvalidGrantException", "InvalidGrant"),
        ("InternalServerException", "InternalServer"),
    ],
)
def test_a_request_that_comes_to_nothing_leaves_nothing(answer: str, words: str, scene: Scene) -> None:
    # botocore repeats what a server's own error kept from an answer
    scene.sso.device_answers += [PENDING, *[answer] * 5]
    scene.sso.assign(ACCOUNT, "Admin")
    assert words in scene.refused("login", "work", *scene.sso_options(), env={"AWS_MAX_ATTEMPTS": "1"})
    assert (scene.records(), scene.kept()) == (None, [])


@pytest.mark.parametrize(
    ("operation", "answer", "name"),
    [
        ("RegisterClient", {"clientId": "x", "clientSecret": "y"}, "clientSecretExpiresAt"),
        ("StartDeviceAuthorization", {"deviceCode": "x", "verificationUri": "y", "expiresIn": 1}, "userCode"),
        ("CreateToken", {"accessToken": "x"}, "expiresIn"),
        ("ListAccounts", {}, "accountList"),
        ("ListAccounts", {"accountList": [{"accountName": "x"}]}, "accountId"),
        ("ListAccountRoles", {"roleList": [{}]}, "roleName"),
        ("GetRoleCredentials", {"roleCredentials": {"accessKeyId": "x", "secretAccessKey": "y"}}, "sessionToken"),
    ],
)
def test_what_an_answer_of_sso_lacks_is_said_of_the_answer(
    operation: str, answer: object, name: str, scene: Scene
) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    scene.sso.answer(operation, 200, answer)
    shown = scene.refused("login", "work", *scene.sso_options())
    assert f"error: the SSO service's answer lacks '{name}'\n" in shown
    assert ((scene.records() or {"identities": {}})["identities"], scene.kept()) == ({}, [])


def test_a_code_that_nobody_confirms_is_given_up(scene: Scene) -> None:
    scene.sso.device_lifetime = 1
    scene.sso.device_answers += [PENDING] * 10000
    scene.sso.interval = 1
    assert "nobody confirmed the code in time" in scene.refused("login", "work", *scene.sso_options())


def test_ctrl_c_while_waiting_leaves_nothing(scene: Scene) -> None:
    scene.sso.device_answers += [PENDING] * 10000
    scene.sso.interval = 60
    done = scene.run("login", "work", *scene.sso_options(), steps=[("waiting", "\x03")])
    assert (done.returncode, done.stdout) == (130, "")
    assert "eks-token: error: interrupted" in done.stderr
    assert (scene.records(), scene.kept(), scene.answers()) == (None, [], [])


@pytest.mark.parametrize(("typed", "status"), [("\x03", 130), ("\x04", 1)], ids=["Ctrl-C", "the end of the input"])
def test_giving_up_at_the_choice_leaves_nothing(typed: str, status: int, scene: Scene) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    scene.sso.assign(ACCOUNT, "Viewer")
    done = scene.run("login", "work", *scene.sso_options(), steps=[("Role [1-2]: ", typed)])
    assert done.returncode == status
    assert (scene.records(), scene.kept()) == (None, [])


def test_where_nobody_can_choose_the_option_and_the_choices_are_named(scene: Scene) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    scene.sso.assign(ACCOUNT, "Viewer")
    assert "--sso-role-name is missing" in (shown := scene.refused("login", "work", *scene.sso_options()))
    assert "Admin, Viewer" in shown
    scene.sso.assign("111111111111", "Admin")
    assert "--sso-account-id is missing" in scene.refused("login", "work", *scene.sso_options())
    assert (scene.records(), scene.kept()) == (None, [])


def test_whoever_has_no_account_is_told_so(scene: Scene) -> None:
    assert "you do not have access to any account" in scene.refused("login", "work", *scene.sso_options())
    assert (scene.records(), scene.kept()) == (None, [])


def test_a_role_that_is_not_the_persons_is_refused_and_nothing_stays(scene: Scene) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    options = scene.sso_options("--sso-account-id", ACCOUNT, "--sso-role-name", "Owner")
    assert "AWS refused GetRoleCredentials: ForbiddenException" in scene.refused("login", "work", *options)
    assert (scene.records(), scene.kept()) == (None, [])


@pytest.mark.parametrize("options", [[], ["--no-browser"]], ids=["opened", "not opened"])
def test_the_browser_is_opened_if_no_option_says_otherwise(options: list[str], scene: Scene) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    opened = scene.home.home / "opened"
    browser = scene.home.write("browser", f'#!/bin/sh\necho "$1" >> {opened}\n')
    browser.chmod(0o700)
    done = scene.login("work", *scene.sso_options(*options), env={"BROWSER": str(browser)})
    link = done.stderr.split("in a browser: ")[1].split()[0]
    if options:
        assert not opened.exists()
    else:
        assert wait_for(lambda: opened.exists() and opened.read_text(), "the browser") == f"{link}\n"


def test_a_token_is_refreshed_silently(scene: Scene) -> None:
    name, expected = sso_with_one_role_only(scene)
    shorten(scene, "s")
    scene.sso.expire_access_tokens()
    done = scene.token(name, env=NOBODY)
    assert (scene.whose(done).canonical_arn, done.stderr) == (expected, "")
    assert scene.sso.last("CreateToken").params["grantType"] == "refresh_token"
    assert scene.sso.count("StartDeviceAuthorization") == 1
    # what the refresh brought is kept, refresh token included
    scene.sso.expire_access_tokens()
    shorten(scene, "sso:")
    assert scene.principal(name, "--role-arn", scene.moto.create_role("top")) == f"arn:aws:iam::{ACCOUNT}:role/top"


def shorten(scene: Scene, kind: str, seconds: float = 10, **more: str) -> None:
    """Lets the sessions of a kind in the keyring end in so many seconds; `more` is changed in SSO tokens as well."""
    vault = Vault(scene.home.env)
    for user in scene.kept():
        if user.startswith(kind):
            entry = vault.get_json(user) or {}
            if "expiresAt" in entry:
                entry |= {"expiresAt": utc(seconds), **more}
            else:
                keys = eks_token.parse_session(entry)
                entry = eks_token.as_sts_answers(keys._replace(expires=time.time() + seconds))
            vault.set_json(user, entry)


@pytest.mark.parametrize("how", ["registration", "refresh token", "session"])
def test_a_session_that_has_ended_is_one_line_that_names_login(how: str, scene: Scene) -> None:
    name, expected = sso_with_one_role_only(scene)
    if how == "registration":
        shorten(scene, "s", -10, registrationExpiresAt=utc(-10))
    else:
        shorten(scene, "session:" if how == "session" else "s", -10)
        scene.sso.revoke_all()
    shown = scene.refused(*words("demo", "-i", name), env=NOBODY)
    assert "the SSO session has ended" in shown
    assert f"eks-token login {name}" in shown
    scene.login(name)
    assert scene.principal(name, env=NOBODY) == expected


@pytest.mark.parametrize("kind", ["s", "session:"], ids=["ended", "revoked before its end"])
def test_signing_in_with_a_role_renews_the_sso_session_under_it(kind: str, scene: Scene) -> None:
    name, expected = role_over_sso(scene)
    shorten(scene, kind, -10)
    scene.sso.revoke_all()
    assert f"eks-token login {name}" in scene.refused(*words("demo", "-i", name), env=NOBODY)
    scene.login(name)
    assert scene.principal(name, env=NOBODY) == expected


@pytest.mark.parametrize("profile", ["sso-session", "legacy"])
def test_a_session_of_the_aws_cli_is_used_and_left_as_it_is(profile: str, scene: Scene) -> None:
    arn = scene.sso.assign(ACCOUNT, "Admin")
    place = [f"sso_start_url = {scene.sso.start_url}", f"sso_region = {SSO_REGION}"]
    more = ["sso_session = corp"] if profile == "sso-session" else place
    scene.home.config(scene.sso_session() + scene.sso_profile("work", ACCOUNT, "Admin", *more))
    name = "corp" if profile == "sso-session" else scene.sso.start_url
    path = scene.left_by_aws_cli(name)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert scene.principal("work") == role_of(arn)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert scene.sso.count("CreateToken") == 0
    assert not [user for user in scene.kept() if user.startswith("sso:")]


def test_a_session_of_the_aws_cli_helps_out_when_ours_has_ended(scene: Scene) -> None:
    name, expected = sso_profile_of_aws_config(scene)
    shorten(scene, "s", -10)
    scene.sso.revoke_all()
    scene.left_by_aws_cli("corp")
    assert scene.principal(name, env=NOBODY) == expected


def test_an_ended_session_of_the_aws_cli_is_none(scene: Scene) -> None:
    name, _ = sso_session_left_by_the_aws_cli(scene)
    scene.left_by_aws_cli("corp", expiresAt=utc(-60), registrationExpiresAt=utc(-60))
    assert "eks-token login work" in scene.refused(*words("demo", "-i", name))
    assert scene.sso.count("CreateToken") == 0


# --- nobody there -------------------------------------------------------------------------------------------


def mfa_session_has_ended(scene: Scene) -> str:
    name, _ = keys_with_mfa_from_stdin(scene)
    forget_sessions(scene)
    return name


def role_session_has_ended(scene: Scene) -> str:
    name, _ = role_with_mfa(scene)
    forget_sessions(scene)
    return name


def profile_asks_for_a_device(scene: Scene) -> str:
    role = scene.moto.create_role("admin", mfa=True)
    scene.home.credentials(scene.moto.create_user("alice", mfa_code=CODE).profile("work"))
    serial = f"mfa_serial = {mfa_serial('alice')}"
    scene.home.config(f"[profile admin]\nrole_arn = {role}\nsource_profile = work\n{serial}\n")
    return "admin"


def nobody_signed_in_at_sso(scene: Scene) -> str:
    scene.home.config(scene.sso_session() + scene.sso_profile("work", ACCOUNT, "Admin", "sso_session = corp"))
    return "work"


def keys_are_gone(scene: Scene) -> str:
    scene.alice()
    scene.ring.clear()
    return "dev"


def forget_sessions(scene: Scene) -> None:
    for user in scene.kept():
        if not user.startswith("identity:"):
            Vault(scene.home.env).delete(user)


@pytest.mark.parametrize("terminal", [True, False], ids=["kubectl says so", "no terminal"])
@pytest.mark.parametrize(
    "situation",
    [
        mfa_session_has_ended,
        role_session_has_ended,
        profile_asks_for_a_device,
        nobody_signed_in_at_sso,
        keys_are_gone,
    ],
    ids=named,
)
def test_where_nobody_is_one_line_names_the_login_that_helps(
    situation: Callable[[Scene], str], terminal: bool, scene: Scene
) -> None:
    name = situation(scene)
    options: dict[str, Any] = {"env": NOBODY, "steps": []} if terminal else {}
    shown = scene.refused(*words("demo", "-i", name), timeout=20, **options)
    assert f"hint: sign in with `eks-token login {name}`" in shown


def test_a_person_at_a_terminal_is_asked_when_kubectl_calls(scene: Scene) -> None:
    name, expected = role_with_mfa(scene)
    forget_sessions(scene)
    assert scene.principal(name, steps=[(ASK_CODE, f"{CODE}\n")]) == expected
    assert scene.principal(name, "--refresh", env=NOBODY) == expected


@pytest.mark.parametrize(("typed", "status"), [("\x03", 130), ("\x04", 1)], ids=["Ctrl-C", "the end of the input"])
def test_whoever_gives_up_at_kubectls_prompt_gets_no_token(typed: str, status: int, scene: Scene) -> None:
    name = mfa_session_has_ended(scene)
    scene.refused(*words("demo", "-i", name), status=status, steps=[(ASK_CODE, typed)])


# --- giving up, and failing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "status", "error"),
    [("\x03", 130, "interrupted"), ("\x04", 1, "the input ended")],
    ids=["Ctrl-C", "the end of the input"],
)
@pytest.mark.parametrize(
    "before",
    [
        pytest.param([("Name of the identity: ", "")], id="at the name"),
        pytest.param([("Name of the identity: ", "dev\n"), ("Kind [1-5]: ", "")], id="at the kind"),
        pytest.param([("identity: ", "dev\n"), ("Kind", "1\n"), ("key ID: ", "")], id="at the key"),
        pytest.param([("identity", "dev\n"), ("Kind", "1\n"), ("ID: ", "A\n"), ("shown): ", "")], id="at the secret"),
        pytest.param([("identity: ", "dev\n"), ("Kind", "3\n"), ("role: ", "")], id="at the role"),
        pytest.param([("identity: ", "dev\n"), ("Kind", "4\n"), ("URL", "https://x\n"), ("region", "")], id="at SSO"),
    ],
)
def test_giving_up_at_a_question_leaves_nothing(
    before: Steps, typed: str, status: int, error: str, scene: Scene
) -> None:
    *answered, (question, _) = before
    assert error in scene.refused("login", status=status, steps=[*answered, (question, typed)])
    assert (scene.records(), scene.kept()) == (None, [])


def test_an_empty_answer_for_the_keys_is_refused(scene: Scene) -> None:
    shown = scene.refused("login", "dev", "--new-keys", steps=[("ID: ", "AKIA\n"), ("shown): ", "\n")])
    assert "both the access key ID and the secret access key are needed" in shown


@pytest.mark.parametrize(
    "before", [keys_from_stdin, keys_with_mfa_from_stdin, role_over_a_profile, sso_chosen], ids=named
)
@pytest.mark.parametrize("after", ["a role", "SSO", "keys with MFA"])
def test_a_login_that_fails_leaves_what_was_there_before(before: Flow, after: str, scene: Scene) -> None:
    name, expected = before(scene)
    bob = scene.moto.create_user("bob", mfa_code=CODE)
    scene.store("other", bob, "--default")
    records, kept = scene.records(), scene.kept()
    if after == "a role":
        role = scene.moto.create_role("closed", trusted=[f"arn:aws:iam::{ACCOUNT}:user/nobody"])
        scene.refused("login", name, "--role-arn", role, "--source", "other", "--default")
    elif after == "SSO":
        scene.sso.start_url = "https://second.awsapps.com/start"
        options = scene.sso_options("--sso-account-id", ACCOUNT, "--sso-role-name", "Owner")
        scene.refused("login", name, *options, "--default")
    else:
        device = ["--mfa-serial", mfa_serial("bob"), "--mfa-code-stdin", "--default"]
        scene.refused("login", name, "--stdin", *device, stdin=f"{as_json(bob)}\n{WRONG_CODE}\n")
        if before is keys_from_stdin:
            scene.refused("login", name, *device, stdin=f"{WRONG_CODE}\n")
    assert scene.records() == records
    assert scene.kept() == kept
    assert scene.principal(name, env=NOBODY) == expected


# --- logout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", FLOWS, ids=named)
def test_logout_of_all_leaves_nothing_in_the_keyring_and_no_answer(flow: Flow, scene: Scene) -> None:
    name, _ = flow(scene)
    scene.principal(name)
    done = scene.run("logout", "--all")
    assert (done.returncode, done.stderr) == (0, "removed every identity\n")
    assert (scene.kept(), scene.answers()) == ([], [])
    assert (scene.records() or {"identities": {}})["identities"] == {}
    sessions = scene.home.data / "sessions.json"
    assert not sessions.exists() or json.loads(sessions.read_text()) == {}
    live = [session for session in scene.sso.sessions if not session.revoked]
    # the AWS CLI's session is the AWS CLI's to end
    assert len(live) == (1 if flow is sso_session_left_by_the_aws_cli else 0)


def test_logout_forgets_one_identity_and_its_sessions_and_answers(scene: Scene) -> None:
    name, _ = role_over_keys_with_mfa(scene)
    bob = scene.moto.create_user("bob")
    scene.store("ops", bob)
    scene.principal(name)
    assert scene.run("logout", name).returncode == 0
    assert sorted(scene.records()["identities"]) == ["dev", "ops"]
    assert scene.answers() == []
    assert scene.principal("dev", env=NOBODY) == f"arn:aws:iam::{ACCOUNT}:user/alice"
    assert "no identity" in scene.refused(*words("demo", "-i", name))
    # the source goes, and with it all sessions that were made of it
    assert scene.run("logout", "dev").returncode == 0
    assert scene.kept() == ["identity:ops"]
    assert scene.principal("ops") == bob.arn
    assert "ops" in scene.refused("logout", "dev")


def test_logout_revokes_an_sso_token_once_nobody_needs_it(scene: Scene) -> None:
    name, _ = sso_with_one_role_only(scene)
    second = scene.sso.assign(ACCOUNT, "Viewer")
    scene.login("view", *scene.sso_options("--sso-account-id", ACCOUNT, "--sso-role-name", "Viewer"))
    assert scene.run("logout", name).returncode == 0
    assert scene.sso.count("Logout") == 0
    assert scene.principal("view") == role_of(second)
    assert scene.run("logout", "view").returncode == 0
    assert scene.sso.count("Logout") == 1
    assert scene.kept() == []


def test_logout_of_a_profile_ends_its_sso_session(scene: Scene) -> None:
    name, _ = sso_profile_of_aws_config(scene)
    config = (scene.home.home / ".aws/config").read_text()
    scene.principal(name)
    assert scene.run("logout", name).returncode == 0
    assert [session.revoked for session in scene.sso.sessions] == [True]
    assert (scene.kept(), scene.answers()) == ([], [])
    assert (scene.home.home / ".aws/config").read_text() == config


def test_logout_goes_on_where_the_sso_service_does_not_answer(scene: Scene) -> None:
    name, _ = sso_with_one_role_only(scene)
    scene.sso.fail("Logout", "InternalServerException", status=500)
    assert scene.run("logout", name, env={"AWS_MAX_ATTEMPTS": "1"}).returncode == 0
    assert scene.kept() == []


def test_logout_of_the_default_leaves_no_default(scene: Scene) -> None:
    alice = scene.alice()
    scene.store("a", alice, "--default")
    scene.store("b", alice)
    assert scene.run("logout", "a").returncode == 0
    assert scene.records()["default"] == ""


def test_logout_needs_one_name_or_all(scene: Scene) -> None:
    scene.refused("logout", status=2)
    scene.refused("logout", "dev", "--all", status=2)
    assert "no identity named 'absent' is stored" in scene.refused("logout", "absent")


def test_logout_without_a_keyring_is_an_error_and_forgets_nothing(scene: Scene) -> None:
    scene.alice()
    before = scene.records()
    scene.refused("logout", "dev", env=DEAD_BUS)
    scene.refused("logout", "--all", env=DEAD_BUS)
    assert (scene.records(), scene.kept()) == (before, ["identity:dev"])


# --- identities and whoami ----------------------------------------------------------------------------------


def test_identities_are_listed_without_opening_the_keyring(scene: Scene) -> None:
    alice = scene.alice(code=CODE)
    keys_with_mfa = ["--mfa-serial", mfa_serial("alice"), "--mfa-code-stdin"]
    scene.login("safe", "--stdin", *keys_with_mfa, "--default", stdin=f"{as_json(alice)}\n{CODE}\n")
    role = scene.moto.create_role("admin")
    scene.login("admin", "--role-arn", role, "--source", "dev")
    scene.sso.assign(ACCOUNT, "Admin")
    scene.login("work", *scene.sso_options())
    scene.home.credentials(alice.profile("file"))
    scene.home.config(
        f"[profile cross]\nrole_arn = {role}\nsource_profile = dev\nmfa_serial = {mfa_serial('alice')}\n"
        "[profile tool]\ncredential_process = /bin/false\n"
        f"[profile web]\nrole_arn = {role}\nweb_identity_token_file = /t\n"
        f"[profile legacy]\nsso_start_url = https://x\nsso_region = {REGION}\nsso_account_id = 1\nsso_role_name = R\n"
        "[profile new]\nlogin_session = x\n[profile settings]\nregion = eu-west-1\n"
    )
    listed = scene.identities(env=DEAD_BUS)
    assert {name: (row["kind"], row["from"]) for name, row in listed.items()} == {
        "admin": ("role", "eks-token"),
        "cross": ("role with MFA", "AWS config"),
        "dev": ("keys", "eks-token"),
        "file": ("keys", "AWS config"),
        "legacy": ("SSO", "AWS config"),
        "new": ("aws login", "AWS config"),
        "safe": ("keys with MFA", "eks-token"),
        "tool": ("process", "AWS config"),
        "web": ("web identity", "AWS config"),
        "work": ("SSO", "eks-token"),
    }
    ending = alice.id[-4:]
    assert {name for name, row in listed.items() if row["access_key_ending"] == ending} == {"dev", "file", "safe"}
    assert {name for name, row in listed.items() if row["default"]} == {"safe"}
    lasting = {name: row["session_ends"] for name, row in listed.items() if row["session_ends"]}
    assert lasting.keys() == {"admin", "safe", "work"}
    assert utc(11 * 3600) < lasting["safe"] < utc(13 * 3600)
    text = scene.run("identities", env=DEAD_BUS).stdout
    assert re.search(rf"^safe +keys with MFA +eks-token +\.\.\.{ending} +{lasting['safe']} +default$", text, re.M)
    assert not [key for key in scene.keys.values() if key.secret in text + json.dumps(listed)]


DAMAGED_NOTES: dict[str, object] = {
    "session:a": {"names": {"a": 1}, "expires": 5},
    "session:b": {"names": ["b"], "expires": "soon"},
    "session:c": {"names": [], "expires": 5},
    "session:d": {"names": ["d", None], "expires": 5},
    "session:e": {"names": ["e"], "expires": 1e300},
    "session:f": {"names": ["f"]},
    "session:g": ["g"],
    "session:h": None,
    "sso:i": {"names": ["i"], "expires": 5, "token_expires": 5, "sso": ["one"]},
    "sso:j": {"names": ["j"], "expires": 5, "token_expires": None, "sso": ["one", "two"]},
    "sso:k": {"names": ["k"], "expires": 5, "token_expires": 5, "sso": [["one"], "two"]},
}


def test_a_damaged_note_of_a_session_stops_no_command(scene: Scene) -> None:
    name, _ = role_over_stored_keys(scene)
    notes = scene.home.data / "sessions.json"
    kept = json.loads(notes.read_text())
    notes.write_text(json.dumps(DAMAGED_NOTES | kept))
    assert scene.identities()[name]["session_ends"]
    assert "sessions: 1, ended: 0" in scene.run("doctor").stdout
    done = scene.run("logout", "--all", "--debug")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is damaged") >= len(DAMAGED_NOTES)
    assert scene.kept() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", "[" * 100_000], ids=["empty", "cut off", "list", "one", "deep"])
def test_a_damaged_file_of_sessions_stops_no_command(text: str, scene: Scene) -> None:
    name, _ = role_over_stored_keys(scene)
    (scene.home.data / "sessions.json").write_text(text)
    assert scene.identities()[name]["session_ends"] == ""
    assert scene.run("logout", "--all").returncode == 0
    assert scene.kept() == []


def test_where_there_are_no_identities_login_is_named(scene: Scene) -> None:
    done = scene.run("identities", env=DEAD_BUS)
    assert (done.returncode, done.stdout) == (0, "")
    assert "eks-token login NAME" in done.stderr
    assert scene.identities(env=DEAD_BUS) == {}


@pytest.mark.parametrize(
    "flow", [keys_from_stdin, keys_with_mfa_from_stdin, role_over_stored_keys, sso_chosen], ids=named
)
def test_whoami_says_whose_credentials_they_are(flow: Flow, scene: Scene) -> None:
    name, expected = flow(scene)
    about = json.loads(scene.run("whoami", "-i", name, "-o", "json").stdout)
    assert (about["identity"], about["account"]) == (name, ACCOUNT)
    assert (role_of(about["arn"]) if ":assumed-role/" in about["arn"] else about["arn"]) == expected
    assert bool(about["session_ends"]) == (flow is not keys_from_stdin)
    text = scene.run("whoami", "-i", name).stdout
    assert re.search(rf"^ARN: +{re.escape(about['arn'])}$", text, re.M)
    assert ("Session ends:" in text) == bool(about["session_ends"])


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(["whoami", "-i", "work"], id="whoami"),
        pytest.param(["whoami", "-i", "stored"], id="whoami of stored keys"),
        pytest.param(["login", "work"], id="login"),
        pytest.param(["login", "dev", "--import-profile", "work"], id="keys that are imported"),
    ],
)
def test_aws_is_asked_who_it_is_at_the_profiles_endpoint(line: list[str], scene: Scene) -> None:
    alice = scene.alice("stored")
    scene.edit(lambda identities: identities["stored"].update(endpoint_url=scene.moto.url))
    scene.home.credentials(alice.profile("work"))
    scene.home.config(f"[profile work]\nendpoint_url = {scene.moto.url}\n")
    elsewhere = {"AWS_ENDPOINT_URL": None, "HTTPS_PROXY": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    done = scene.run(*line, env=elsewhere)
    assert done.returncode == 0, done.stderr
    assert alice.arn in done.stdout


# --- credentials for other tools, and other tools' credentials ----------------------------------------------


@pytest.mark.parametrize(
    "flow", [keys_from_stdin, keys_with_mfa_from_stdin, role_over_stored_keys, sso_chosen], ids=named
)
def test_credentials_are_printed_as_a_credential_process_does(flow: Flow, scene: Scene) -> None:
    name, expected = flow(scene)
    answer = json.loads(scene.run("credentials", "-i", name, env=NOBODY).stdout)
    assert answer.pop("Version") == 1
    key = scene.keys[answer.pop("AccessKeyId")]
    assert (key.secret, key.session_token or None) == (answer.pop("SecretAccessKey"), answer.pop("SessionToken", None))
    assert (role_of(key.arn) if ":assumed-role/" in key.arn else key.arn) == expected
    assert (utc(0) < answer.pop("Expiration")) if flow is not keys_from_stdin else not answer
    assert scene.home.secrets_found([key.secret]) == []


def test_one_mfa_code_is_enough_for_kubectl_the_aws_cli_and_boto3(scene: Scene) -> None:
    """The profile has the identity's own name; for us it stays the stored one, and does not lead round in a loop."""
    scene.home.config(f"[profile dev]\ncredential_process = {scene.home.executable} credentials -i dev\n")
    name, arn = keys_with_mfa_from_stdin(scene)
    assert scene.principal(name) == arn
    ask_boto3 = "import boto3; print(boto3.Session(profile_name='dev').client('sts').get_caller_identity()['Arn'])"
    cli = [sys.executable, "-m", "awscli", "sts", "get-caller-identity", "--query", "Arn", "--output", "text"]
    for command in ([*cli, "--profile", "dev"], [sys.executable, "-c", ask_boto3]):
        done = scene.run(command=command, env={"AWS_DEFAULT_REGION": REGION})
        assert (done.stdout, done.stderr) == (f"{arn}\n", "")
    assert scene.moto.count("GetSessionToken") == 1


@pytest.mark.parametrize(
    ("processes", "chain"),
    [
        pytest.param({"dev": "dev"}, "dev -> dev", id="itself"),
        pytest.param({"dev": "two", "two": "dev"}, "dev -> two -> dev", id="another that leads back"),
    ],
)
def test_a_credential_process_that_leads_back_to_itself_is_one_line(
    processes: Mapping[str, str], chain: str, scene: Scene
) -> None:
    program = scene.home.executable
    scene.home.config(
        "".join(f"[profile {of}]\ncredential_process = {program} credentials -i {to}\n" for of, to in processes.items())
    )
    for line in (words("demo", "-i", "dev"), ["credentials", "-i", "dev"], ["whoami", "-i", "dev"]):
        done = scene.run(*line)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.search(rf"^eks-token: error: dev: credential_process failed: .*{chain}$", done.stderr, re.M)


def test_login_says_how_other_tools_go_on_with_a_profile(scene: Scene) -> None:
    alice = scene.moto.create_user("alice")
    scene.home.credentials(alice.profile("my work"))
    scene.home.config("[profile my work]\nregion = eu-west-1\n")
    expected = f"[profile my work] in ~/.aws/config: credential_process = {scene.home.executable} credentials -i "
    assert f"{expected}dev\n" in scene.login("dev", "--import-profile", "my work").stderr
    assert f"{expected}'my work'\n" in scene.login("my work", "--stdin", stdin=as_json(alice)).stderr
    bin_directory = scene.home.home / "bin"
    bin_directory.mkdir()
    (bin_directory / "eks-token").symlink_to(scene.home.executable)
    on_path = {"PATH": f"{bin_directory}:{os.environ['PATH']}"}
    shown = scene.login("my work", "--stdin", stdin=as_json(alice), env=on_path).stderr
    assert ": credential_process = eks-token credentials -i 'my work'\n" in shown
    assert "credential_process" not in scene.login("other", "--stdin", stdin=as_json(alice)).stderr


def helper(scene: Scene, script: str) -> Path:
    """A helper program of a person's own."""
    path = scene.home.write("helper", f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


def test_what_a_credential_process_asks_is_shown_while_it_runs(scene: Scene) -> None:
    alice = scene.moto.create_user("alice")
    path = helper(scene, f"printf 'touch your key: ' >&2; read answer; echo '{as_json(alice)}'")
    scene.home.config(f"[profile tool]\ncredential_process = {path}\n")
    assert scene.principal("tool", steps=[("touch your key: ", "\n")]) == alice.arn


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param("echo signing in >&2; echo no such vault >&2; exit 1", "no such vault", id="its last words"),
        pytest.param("echo eks-token: error: locked >&2; echo hint: unlock >&2; exit 1", "locked", id="and not a hint"),
        pytest.param("exit 3", "exit status 3", id="it says nothing"),
    ],
)
def test_the_last_words_of_a_credential_process_are_the_reason(script: str, reason: str, scene: Scene) -> None:
    scene.home.config(f"[profile tool]\ncredential_process = {helper(scene, script)}\n")
    done = scene.token("tool")
    assert done.returncode == 1
    assert done.stderr.endswith(f"eks-token: error: tool: credential_process failed: {reason}\n")


def test_a_credential_process_may_leave_a_program_in_the_background(scene: Scene) -> None:
    alice = scene.moto.create_user("alice")
    started = scene.home.home / "pid"
    path = helper(scene, f"sleep 30 >/dev/null & echo $! > {started}; echo '{as_json(alice)}'")
    scene.home.config(f"[profile tool]\ncredential_process = {path}\n")
    try:
        assert scene.principal("tool", timeout=20, steps=[]) == alice.arn
    finally:
        if started.exists():
            os.kill(int(started.read_text()), signal.SIGKILL)


def test_mfa_process_answers_instead_of_a_person(scene: Scene) -> None:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    command = f"echo touch >&2; echo '{CODE[:3]} {CODE[3:]}'"
    device = ["--mfa-serial", mfa_serial("alice"), "--mfa-process", command]
    scene.login("dev", "--stdin", *device, stdin=as_json(alice))
    role = scene.moto.create_role("admin", mfa=True)
    scene.login("admin", "--role-arn", role, "--source", "dev")
    forget_sessions(scene)
    assert scene.principal("admin", env=NOBODY) == role
    assert scene.moto.count("GetSessionToken") == 2  # one for the first login, one for the token


@pytest.mark.parametrize("where", ["mine", "role"])
def test_mfa_process_of_a_profile_answers_instead_of_a_person(where: str, scene: Scene) -> None:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    scene.home.credentials(alice.profile("mine"))
    role = scene.moto.create_role("admin", mfa=True)
    settings = {"mine": "", "role": f"role_arn = {role}\nsource_profile = mine\nmfa_serial = {mfa_serial('alice')}\n"}
    settings[where] += f"mfa_process = echo {CODE}\n"
    scene.home.config("".join(f"[profile {name}]\n{keys}" for name, keys in settings.items()))
    assert scene.principal("role", env=NOBODY) == role


@pytest.mark.parametrize(
    ("command", "error"),
    [
        pytest.param("echo no key is there >&2; exit 1", "mfa_process failed: no key is there", id="it fails"),
        pytest.param("echo code: 123456", "mfa_process must print a code of six digits", id="more than a code"),
        pytest.param("true", "mfa_process must print a code of six digits", id="nothing"),
        pytest.param(f"echo {WRONG_CODE}", "mfa_process printed the same code again", id="a wrong code"),
    ],
)
def test_an_mfa_process_without_a_code_is_one_line(command: str, error: str, scene: Scene) -> None:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    device = ["--mfa-serial", mfa_serial("alice"), "--mfa-process", command]
    assert error in scene.refused("login", "dev", "--stdin", *device, stdin=as_json(alice))
    assert (scene.records(), scene.kept()) == (None, [])


@pytest.mark.parametrize("command", [f"cat codes; echo {CODE} >codes", f"echo {CODE}"], ids=["two codes", "one code"])
def test_a_chain_that_needs_two_codes_asks_mfa_process_for_each(command: str, scene: Scene) -> None:
    alice = scene.moto.create_user("alice", mfa_code=CODE)
    scene.home.credentials(alice.profile("mine"))
    role, second = (scene.moto.create_role(name, mfa=True) for name in ("admin", "second"))
    device = f"mfa_serial = {mfa_serial('alice')}\nmfa_process = {command}\n"
    scene.home.write("codes", f"{WRONG_CODE}\n")  # for the second role, which botocore asks for first
    scene.home.config(
        f"[profile first]\nrole_arn = {role}\nsource_profile = mine\n{device}"
        f"[profile second]\nrole_arn = {second}\nsource_profile = first\n{device}"
    )
    said = scene.refused(*words("demo", "-i", "second"))
    assert ("mfa_process printed the same code again" in said) == (command == f"echo {CODE}"), said
    assert ("AWS refused AssumeRole" in said) == (command != f"echo {CODE}")  # AWS has no devices for roles


# --- answers that are not AWS's -----------------------------------------------------------------------------


def sts_session(expiration: str) -> bytes:
    keys = "<AccessKeyId>A</AccessKeyId><SecretAccessKey>S</SecretAccessKey><SessionToken>T</SessionToken>"
    result = f"<Credentials>{keys}<Expiration>{expiration}</Expiration></Credentials>"
    response = f"<AssumeRoleResult>{result}</AssumeRoleResult>"
    return f'<AssumeRoleResponse xmlns="https://sts.amazonaws.com/">{response}</AssumeRoleResponse>'.encode()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        pytest.param(200, b"<!DOCTYPE html><html><p>Welcome</html>", "is not XML (HTTP 200)", id="HTML"),
        pytest.param(200, b"<html><p>Welcome</p></html>", "is not XML (HTTP 200)", id="XHTML"),
        pytest.param(403, b"<html>blocked<br></html>", "is not XML (HTTP 403)", id="a proxy's refusal"),
        pytest.param(200, b"it works", "is not XML (HTTP 200)", id="text"),
        pytest.param(200, b"", "is not XML (HTTP 200)", id="nothing"),
        pytest.param(302, b"", "is a redirect (HTTP 302)", id="a redirect"),
        pytest.param(200, sts_session("soon"), "has a wrong 'Expiration'", id="an end that is not a time"),
        pytest.param(200, sts_session("2099-01-01T00:00:00"), "has a wrong 'Expiration'", id="an end without zone"),
        pytest.param(500, b"<html>", "AWS refused AssumeRole: 500", id="a server's own error"),
    ],
)
def test_an_answer_that_is_not_from_sts_is_one_line(status: int, body: bytes, error: str, scene: Scene) -> None:
    role = scene.moto.create_role("admin", trusted=[scene.alice().arn])
    scene.moto.answer("AssumeRole", status, body)
    options = ["--role-arn", role, "--source", "dev"]
    shown = scene.refused("login", "admin", *options, env={"AWS_MAX_ATTEMPTS": "1"})
    assert error in shown
    assert "the STS service's answer" in shown or status == 500
    assert "check endpoint_url" in shown or status == 500


@pytest.mark.parametrize(
    ("operation", "answer", "error"),
    [
        pytest.param("RegisterClient", b"<html>", "is not JSON (HTTP 200)", id="HTML"),
        pytest.param("RegisterClient", [], "is not JSON (HTTP 200)", id="a list"),
        pytest.param("StartDeviceAuthorization", {"expiresIn": "ten"}, "has a wrong 'expiresIn'", id="not a number"),
        pytest.param("CreateToken", {"accessToken": "x", "expiresIn": 10**15}, "wrong 'expiresIn'", id="a long life"),
        pytest.param("CreateToken", {"accessToken": ["x"], "expiresIn": 5}, "wrong 'accessToken'", id="a token list"),
        pytest.param("ListAccounts", {"accountList": {"a": 1}}, "has a wrong 'accountList'", id="accounts"),
        pytest.param("ListAccounts", {"accountList": ["x"]}, "has a wrong 'accountList'", id="an account"),
        pytest.param("GetRoleCredentials", {"roleCredentials": "x"}, "has a wrong 'roleCredentials'", id="credentials"),
    ],
)
def test_an_answer_of_sso_with_a_wrong_field_is_one_line(
    operation: str, answer: object, error: str, scene: Scene
) -> None:
    scene.sso.assign(ACCOUNT, "Admin")
    scene.sso.answer(operation, 200, answer)
    shown = scene.refused("login", "work", *scene.sso_options())
    assert f"error: the SSO service's answer {error}" in shown or f"the SSO service's answer has a {error}" in shown
    assert scene.kept() == []


def test_environment_keys_with_an_end_that_is_not_a_moment_are_one_line(scene: Scene) -> None:
    alice = scene.moto.create_user("alice")
    for end in ("soon", "2099-01-01T00:00:00"):
        env = {**alice.environment, "AWS_CREDENTIAL_EXPIRATION": end}
        assert "AWS_CREDENTIAL_EXPIRATION is not an ISO 8601 time" in scene.refused(*words(), env=env)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        pytest.param("config", "region = x\n[default]\n", "line 1: it is above the first [section]", id="no section"),
        pytest.param("credentials", "[a]\nhunter2\n", "line 2: it is not a [section] or KEY = VALUE", id="no value"),
        pytest.param("config", "[a]\n[b]\n[a]\n", "line 3: [a] appears a second time", id="a section twice"),
        pytest.param("config", "[a]\nx = 1\nx = 2\n", "line 3: x appears a second time in [a]", id="a key twice"),
        pytest.param("credentials", "[a]\nx = 1\ny = \udcff\n", "line 3: it is not UTF-8 text", id="not UTF-8"),
        pytest.param("config", "[a]\ns3 =\n  x\n", "it is not in the format of AWS config files", id="a subsection"),
    ],
)
def test_an_aws_file_that_cannot_be_parsed_is_one_line(name: str, text: str, error: str, scene: Scene) -> None:
    """And the commands that need no profile go on without it."""
    scene.alice()
    path = scene.home.home / ".aws" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    shown = scene.refused("whoami", "-i", "work")
    assert f"error: {path} cannot be read: {error}\n" in shown.replace("~", str(scene.home.home))
    done = scene.run("identities")
    assert (done.returncode, "dev" in done.stdout, "warning" in done.stderr) == (0, True, True), done.stderr
    doctor = scene.run("doctor", "-o", "json")
    assert json.loads(doctor.stdout) and "is a bug" not in doctor.stderr
    assert scene.run("logout", "dev").returncode == 0
    assert scene.kept() == []
    assert not [text for text in scene.outputs if "hunter2" in text]


WRONG_TYPES: list[object] = [5, True, ["x"], {"x": "y"}]


@pytest.mark.parametrize("value", WRONG_TYPES, ids=str)
def test_a_field_of_a_wrong_type_in_the_keyring_damages_the_item_and_no_more(value: object, tmp_path: Path) -> None:
    vault = stock_vault(LimitedBackend())
    store = eks_token.Store(invocation(environ={"HOME": str(tmp_path)}), None, interactive=False)
    store.vault = vault
    keys = {"aws_access_key_id": "A", "aws_secret_access_key": "S", "aws_session_token": "T", "expiration": utc(900)}
    for field in keys:
        vault.set_json("identity:dev", {**keys, field: value})
        with pytest.raises(eks_token.DamagedEntry, match="incomplete"):
            eks_token.read_keys(vault, "dev")
    session = {"AccessKeyId": "A", "SecretAccessKey": "S", "SessionToken": "T", "Expiration": utc(900)}
    for entry in (value, *({**session, field: value} for field in session)):
        vault.set_json("session:x", {"Credentials": entry})
        assert eks_token.read_session(store, "session:x") is None
    portal = eks_token.Portal("https://x.awsapps.com/start", SSO_REGION)
    for field in ("accessToken", "expiresAt"):
        token = {"accessToken": "A", "expiresAt": utc(900), field: value}
        vault.set_json(eks_token.sso_user(portal), token)
        assert eks_token.read_sso_token(store, portal) is None


@pytest.mark.parametrize("value", WRONG_TYPES, ids=str)
def test_a_field_of_a_wrong_type_in_atmoss_item_is_one_line(value: object) -> None:
    backend = LimitedBackend()
    data = {"access_key_id": "A", "secret_access_key": "S", "session_token": "T", "expiration": utc(900)}
    data |= {"region": REGION, "mfa_arn": mfa_serial("alice"), "session_duration": "12h"}
    for item in (value, {"type": "aws", "data": value}, *({"type": "aws", "data": {**data, of: value}} for of in data)):
        backend.items["atmos_dev", "atmos-auth"] = json.dumps(item)
        with pytest.raises(eks_token.Problem, match=r"is not one that Atmos writes|has no AWS keys"):
            eks_token.atmos_keys("dev", stock_vault(backend), {})


def test_whoami_of_an_unknown_name_is_one_line_with_the_nearest(scene: Scene) -> None:
    scene.alice("production")
    assert "did you mean production?" in scene.refused("whoami", "-i", "prodution")


def test_a_name_that_the_file_lacks_and_the_keyring_has_is_repaired(scene: Scene) -> None:
    alice = scene.alice()
    (scene.home.data / "identities.json").unlink()
    done = scene.token("dev")
    assert scene.whose(done).arn == alice.arn
    assert "dev was missing" in done.stderr and "added again" in done.stderr
    assert list(scene.records()["identities"]) == ["dev"]
    assert scene.token("dev").stderr == ""


def test_a_damaged_list_of_identities_is_one_line(scene: Scene) -> None:
    scene.home.write(".local/share/eks-token/identities.json", '{"identities": {"dev": 1}}')
    for line in (words("demo", "-i", "dev"), ["identities"], ["whoami"], ["logout", "dev"]):
        assert "identities.json is damaged" in scene.refused(*line)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda path: os.chown(path, 12345, -1), "belongs to another user", id="another's file"),
        pytest.param(
            lambda path: os.chown(path.parent, 12345, -1), "belongs to another user", id="another's directory"
        ),
        pytest.param(lambda path: path.chmod(0o666), "others can write to", id="a file that others can write"),
        pytest.param(
            lambda path: path.parent.chmod(0o770), "others can write to", id="a directory that others can write"
        ),
    ],
)
def test_identities_that_another_user_may_have_written_are_not_used(
    spoil: Callable[[Path], None], error: str, scene: Scene
) -> None:
    """They can name a command to run."""
    scene.alice()
    ran = scene.home.home / "ran"
    scene.edit(lambda identities: identities.update(evil={"credential_process": f"touch {ran}"}))
    try:
        spoil(scene.home.data / "identities.json")
    except PermissionError:
        pytest.skip("not as root, so nothing can be given to another user")
    for line in (words("demo", "-i", "evil"), ["identities"], ["whoami", "-i", "dev"], ["login", "dev"]):
        assert error in scene.refused(*line)
    assert not ran.exists()


@as_root
@pytest.mark.first_run
@pytest.mark.parametrize(
    ("line", "refused"),
    [
        (["login", "dev", "--stdin"], True),
        (["login", "work"], False),
        (words("demo", "-i", "work"), False),
        (["kubeconfig", *words("demo", "-i", "mine")], True),
        (["adopt", "--all"], True),
        (["adopt", "--all", "--kubeconfig", "../elsewhere"], True),  # the backup would be in the home
        (["logout", "--all"], False),
    ],
    ids=str,
)
def test_root_writes_nothing_in_another_users_home(line: list[str], refused: bool, scene: Scene) -> None:
    alice = scene.moto.create_user("alice")
    scene.moto.create_cluster("demo", region=REGION)
    scene.home.credentials(alice.profile("mine"))
    role = scene.moto.create_role("admin", trusted=[alice.arn])
    scene.home.config(f"[profile work]\nrole_arn = {role}\nsource_profile = mine\n")
    if line[0] == "adopt":
        scene.home.write(".kube/config", kubeconfig(AWS_CLI))
        scene.home.write("../elsewhere", kubeconfig(AWS_CLI))
    os.chown(scene.home.home, 12345, -1)
    before = {path: path.lstat().st_mtime_ns for path in scene.home.home.rglob("*")}
    done = scene.run(*line, stdin=as_json(alice))
    assert done.returncode == refused, done.stderr
    assert not refused or f"{scene.home.home} belongs to another user, so " in done.stderr
    assert not refused or scene.kept() == []
    assert {path: path.lstat().st_mtime_ns for path in scene.home.home.rglob("*")} == before


def test_login_without_a_keyring_is_one_line_and_stores_nothing(scene: Scene) -> None:
    key = scene.moto.create_user("alice")
    for options, given in ((["--stdin"], as_json(key)), (scene.sso_options(), None)):
        for bus in (DEAD_BUS, dict.fromkeys(DEAD_BUS)):
            shown = scene.refused("login", "dev", *options, stdin=given, env=bus)
            assert "keyring" in shown and "PYTHON_KEYRING_BACKEND" in shown
    # known before a person was sent to the browser
    assert not scene.sso.calls
    assert scene.records() is None


def test_the_files_are_the_users_alone(scene: Scene) -> None:
    role_over_stored_keys(scene)
    for path in (scene.home.data / "identities.json", scene.home.data / "sessions.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert scene.home.data.stat().st_mode & 0o777 == 0o700


def test_control_characters_never_reach_the_terminal(scene: Scene) -> None:
    odd = "\x1b]0;owned\x07\x9b31m\x7f"
    (scene.home.data / "identities.json").parent.mkdir(parents=True, exist_ok=True)
    record = {"role_arn": f"arn:aws:iam::{ACCOUNT}:role/x", "source_profile": odd, "mfa_serial": odd}
    stored = {"version": 1, "default": "", "identities": {f"dev{odd}": record}}
    (scene.home.data / "identities.json").write_text(json.dumps(stored))
    scene.home.credentials(scene.moto.create_user("alice").profile("own"))
    keys = f"role_arn = arn:aws:iam::{ACCOUNT}:role/x\nsource_profile = own\nmfa_serial = {odd}\n"
    scene.home.config(f"[profile odd{odd}]\nrole_arn = {odd}\nsource_profile = x\n[profile mfa]\n{keys}")
    arn = f"arn:aws:eks:{odd}:{ACCOUNT}:cluster/demo{odd}"
    contents = {"clusters": [{"name": arn, "cluster": {}}, {"name": arn.replace(f"demo{odd}", "demo"), "cluster": {}}]}
    scene.home.write(".kube/config", json.dumps(contents))
    asked = [("MFA code for ", "\x03")]
    lines: dict[tuple[str, ...], Steps] = {
        ("identities",): [],
        ("identities", "-o", "json"): [],
        ("whoami", "-i", f"dev{odd}"): [],
        ("credentials", "-i", f"dev{odd}"): [],
        ("credentials", "-i", "mfa"): asked,
        ("whoami", "-i", "mfa"): asked,
        tuple(words("demo", "-i", "mfa")): asked,
        ("completion", "zsh", "", "logout", ""): [],
        ("completion", "fish", "", "kubeconfig", "--cluster-name", ""): [],
        ("completion", "bash", "", "login", "--source", f"dev{odd}"): [],
        ("doctor",): [],
        ("logout", f"dev{odd}"): [],
        ("login", f"x{odd}"): [],
    }
    for line, steps in lines.items():
        shown = scene.home.run_pty(*line, steps=steps)
        assert not set("\x1b\x07\x9b\x7f") & set(shown.stdout + shown.stderr.replace("\x1b[K", "")), line
