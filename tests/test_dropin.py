"""Kubeconfigs of other programs, with nothing but `command:` changed, work for the same principal.

The AWS CLI runs too, as the reference for its grammar. The one from PyPI is v1, which prefers
AWS_DEFAULT_PROFILE to AWS_PROFILE. Version 2, which we follow, does the opposite.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import Completed, KeyringDaemon, Sandbox
from servers import ACCOUNT, AccessKey, ApiServer, Keys, RecordingProxy
from verifier import decoded_url, verify

REGION = "us-east-2"
AT_REGION = ["--cluster-name", "demo", "--region", REGION]
GRAMMARS = {
    "bare": AT_REGION,
    "atmos": ["aws", "eks", "token", *AT_REGION],
    "aws": ["--region", REGION, "eks", "get-token", "--cluster-name", "demo", "--output", "json"],
    "token": ["token", "-i", "demo", "--region", REGION],
}


def access_key(who: str) -> AccessKey:
    return AccessKey(f"AKIA{who.upper():0<16}", f"secret-of-{who}-", f"arn:aws:iam::{ACCOUNT}:user/{who}")


ENVIRONMENT = access_key("environment").environment
PROFILES = ("default", "work", "other")


@pytest.fixture
def place(home: Sandbox, keyring_daemon: KeyringDaemon) -> Sandbox:
    """A home with an empty keyring."""
    return home


def store(home: Sandbox, who: str, *options: str, name: str | None = None) -> None:
    key = access_key(who)
    given = {"Version": 1, "AccessKeyId": key.id, "SecretAccessKey": key.secret}
    done = home.run("login", name or who, "--stdin", "--no-verify", *options, stdin=json.dumps(given))
    assert done.returncode == 0, done.stderr


def signer(done: Completed) -> str:
    """The owner of the access key that signed the printed token."""
    assert done.returncode == 0, done.stderr
    query = parse_qs(urlsplit(decoded_url(json.loads(done.stdout)["status"]["token"])).query)
    key = query["X-Amz-Credential"][0].partition("/")[0]
    return key.removeprefix("AKIA").rstrip("0").lower()


# --- whose token it is --------------------------------------------------------------------------------------


class Row(NamedTuple):
    """Who is expected for Atmos (bare or not), the AWS CLI and aws-iam-authenticator; a tuple is an error's words."""

    atmos: str | tuple[str, ...] | None
    aws: str | tuple[str, ...] | None
    token: str | tuple[str, ...] | None
    env: Mapping[str, str] = {}
    options: Mapping[str, Sequence[str]] = {}
    profiles: Sequence[str] = PROFILES
    stored: Sequence[str] = ()
    default: str = ""
    judged: bool = True  # the AWS CLI is asked too: no stored identity matters, and v1 and v2 agree

    def expected(self, grammar: str) -> str | tuple[str, ...] | None:
        return {"aws": self.aws, "token": self.token}.get(grammar, self.atmos)


NO_DEFAULT = ("work", "other")
TWO = ("dev", "ops")
CHOSEN = {
    "the default profile": Row("default", "default", "default"),
    "environment keys": Row("environment", "environment", "environment", env=ENVIRONMENT),
    "environment keys before AWS_PROFILE": Row(
        "environment", "environment", "environment", env={**ENVIRONMENT, "AWS_PROFILE": "work"}
    ),
    "AWS_PROFILE": Row("work", "work", "work", env={"AWS_PROFILE": "work"}),
    "AWS_DEFAULT_PROFILE": Row("other", "other", "other", env={"AWS_DEFAULT_PROFILE": "other"}),
    "AWS_PROFILE before AWS_DEFAULT_PROFILE": Row(
        "work", "work", "work", env={"AWS_PROFILE": "work", "AWS_DEFAULT_PROFILE": "other"}, judged=False
    ),
    "ATMOS_IDENTITY, only for Atmos": Row("work", "default", "default", env={"ATMOS_IDENTITY": "work"}),
    "ATMOS_IDENTITY before environment keys": Row(
        "work", "environment", "environment", env={**ENVIRONMENT, "ATMOS_IDENTITY": "work"}
    ),
    "ATMOS_IDENTITY names a stored identity": Row(
        "ops", "default", "default", env={"ATMOS_IDENTITY": "ops"}, stored=TWO, default="dev"
    ),
    "--identity before every variable": Row(
        "work",
        None,
        None,
        env={**ENVIRONMENT, "ATMOS_IDENTITY": "other", "AWS_PROFILE": "other"},
        options={"atmos": ["--identity", "work"]},
    ),
    "--identity before the stored default": Row(
        "ops", None, None, stored=TWO, default="dev", options={"atmos": ["-i", "ops"]}
    ),
    "an empty --identity is ignored": Row("dev", None, None, stored=["dev"], options={"atmos": ["--identity="]}),
    "ATMOS_IDENTITY=false leaves the choice to AWS variables": Row(
        "default", "default", "default", env={"ATMOS_IDENTITY": "False"}, stored=["dev"]
    ),
    "--identity=off, with AWS_PROFILE": Row(
        "work",
        None,
        None,
        env={"ATMOS_IDENTITY": "dev", "AWS_PROFILE": "work"},
        options={"atmos": ["--identity=off"]},
        stored=["dev"],
    ),
    "--profile before every variable": Row(
        None,
        "work",
        None,
        env={**ENVIRONMENT, "AWS_PROFILE": "other", "AWS_DEFAULT_PROFILE": "other"},
        options={"aws": ["--profile", "work"]},
    ),
    "--profile names a stored identity": Row(
        None, "dev", None, env=ENVIRONMENT, stored=["dev"], options={"aws": ["--profile=dev"]}, judged=False
    ),
    "AWS_PROFILE names a stored identity": Row(
        "dev", "dev", "dev", env={"AWS_PROFILE": "dev"}, stored=TWO, default="ops", judged=False
    ),
    "a stored identity before a profile": Row(
        "dev", "dev", "dev", env={"AWS_PROFILE": "work"}, stored=["dev=work"], judged=False
    ),
    "the stored default, if AWS config has none": Row(
        "dev", "dev", "dev", profiles=NO_DEFAULT, stored=TWO, default="dev", judged=False
    ),
    "the stored default first, only for Atmos": Row("dev", "default", "default", stored=TWO, default="dev"),
    "the only stored identity": Row("dev", "dev", "dev", profiles=NO_DEFAULT, stored=["dev"], judged=False),
    "the only stored identity first, only for Atmos": Row("dev", "default", "default", stored=["dev"]),
    "environment keys before stored identities": Row(
        "environment", "environment", "environment", env=ENVIRONMENT, stored=["dev"]
    ),
    "AWS_PROFILE before stored identities": Row(
        "work", "work", "work", env={"AWS_PROFILE": "work"}, stored=TWO, default="dev"
    ),
    "several stored identities and no default": Row(TWO, TWO, TWO, profiles=NO_DEFAULT, stored=TWO, judged=False),
    "several stored, and the default profile": Row(TWO, "default", "default", stored=TWO),
    "empty variables are ignored": Row(
        "default",
        "default",
        "default",
        env=dict.fromkeys(
            ("ATMOS_IDENTITY", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ""
        ),
        judged=False,
    ),
    "a missing profile": Row(
        ("absent",), ("absent",), ("absent",), env={"AWS_PROFILE": "absent"}, stored=["dev"], judged=False
    ),
}


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in CHOSEN.items()])
def test_the_token_is_for_the_identity_that_the_original_would_choose(row: Row, place: Sandbox, aws: str) -> None:
    place.credentials("\n".join(access_key(name).profile(name) for name in row.profiles))
    for stored in row.stored:
        who, _, name = stored.partition("=")
        store(place, who, *(["--default"] if who == row.default else []), name=name or None)
    for grammar, words in GRAMMARS.items():
        expected = row.expected(grammar)
        options = row.options.get("atmos" if grammar == "bare" else grammar, ())
        if expected is None:
            continue
        done = place.run(*words, *options, env=row.env)
        if isinstance(expected, str):
            assert (grammar, signer(done)) == (grammar, expected)
        else:
            assert (grammar, done.returncode, done.stdout) == (grammar, 1, "")
            assert done.stderr.startswith("eks-token: error: ")
            assert all(name in done.stderr.splitlines()[0] for name in expected)
        if grammar == "aws" and row.judged:
            assert signer(place.run(*words, *options, env=row.env, command=[aws])) == expected


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize(
    ("there", "not_there"),
    [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")],
    ids=["only the id", "only the secret"],
)
def test_one_environment_key_without_the_other_is_an_error_that_names_both(
    grammar: str, there: str, not_there: str, place: Sandbox
) -> None:
    place.credentials(access_key("default").profile())
    done = place.run(*GRAMMARS[grammar], env={there: ENVIRONMENT[there]})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == f"eks-token: error: {there} is set, but {not_there} is not"


# --- kubeconfigs that other programs write ------------------------------------------------------------------


class Scene:
    """A cluster `demo` in EKS that kubectl can reach, and users alice (profile default) and bob (profile work)."""

    def __init__(self, place: Sandbox, keys: Keys, moto: RecordingProxy, api_server: ApiServer, kubectl: Path) -> None:
        self.place, self.moto, self.api_server, self._kubectl = place, moto, api_server, kubectl
        self.alice, self.bob = moto.create_user("alice"), moto.create_user("bob")
        self.role = moto.create_role("admin", trusted=[self.alice.arn])
        moto.create_cluster("demo", region=REGION, server=api_server)
        place.credentials(self.alice.profile() + self.bob.profile("work"))
        self.kubeconfig = place.home / "kubeconfig"

    def principal(self, env: Mapping[str, str]) -> str:
        """The principal as whom `kubectl get namespaces` gets in."""
        self.api_server.verdicts.clear()
        arguments = ["--kubeconfig", str(self.kubeconfig), "get", "namespaces"]
        done = self.place.run(*arguments, command=[self._kubectl], env=env)
        assert done.returncode == 0, done.stderr
        assert "kube-system" in done.stdout
        (principal,) = set(self.api_server.principals)
        return str(principal)


@pytest.fixture
def scene(place: Sandbox, keys: Keys, moto: RecordingProxy, api_server: ApiServer, kubectl: Path) -> Scene:
    return Scene(place, keys, moto, api_server, kubectl)


ADMIN = f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/EKSGetTokenAuth"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param([], "alice", id="plain"),
        pytest.param(["--role-arn", f"arn:aws:iam::{ACCOUNT}:role/admin"], "admin", id="with a role"),
        pytest.param(["--profile", "work"], "bob", id="with a profile, as a variable"),
    ],
)
def test_what_aws_eks_update_kubeconfig_writes_works(options: list[str], expected: str, scene: Scene, aws: str) -> None:
    arguments = ["--name", "demo", "--kubeconfig", str(scene.kubeconfig), "--region", REGION, *options]
    written = scene.place.run("eks", "update-kubeconfig", *arguments, command=[aws], env=scene.moto.environment)
    assert written.returncode == 0, written.stderr
    of_aws = scene.kubeconfig.read_text()
    scene.kubeconfig.write_text(of_aws.replace("command: aws\n", f"command: {scene.place.executable}\n"))
    assert scene.kubeconfig.read_text() != of_aws

    principal = scene.principal(scene.moto.environment)
    assert principal == {"alice": scene.alice.arn, "bob": scene.bob.arn, "admin": ADMIN}[expected]
    if expected != "admin":  # to assume a role it would need AWS_ENDPOINT_URL, and would then sign for that host
        scene.kubeconfig.write_text(of_aws.replace("command: aws\n", f"command: {aws}\n"))
        assert scene.principal({}) == principal


def variables(**values: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


ROLE = f"arn:aws:iam::{ACCOUNT}:role/admin"
WRITTEN = {
    "Atmos": ({"args": ["aws", "eks", "token", *AT_REGION]}, "alice"),
    "Atmos, with an identity": (
        {"args": ["aws", "eks", "token", *AT_REGION, "--identity=work"], "env": variables(ATMOS_IDENTITY="work")},
        "bob",
    ),
    "eksctl": (
        {
            "args": ["eks", "get-token", "--output", "json", "--cluster-name", "demo", "--region", REGION],
            "env": variables(AWS_STS_REGIONAL_ENDPOINTS="regional"),
        },
        "alice",
    ),
    "eksctl, with a role and a profile": (
        {
            "args": [*GRAMMARS["aws"][2:], "--region", REGION, "--role-arn", ROLE],
            "env": variables(AWS_STS_REGIONAL_ENDPOINTS="regional", AWS_PROFILE="default"),
        },
        "admin",
    ),
    "eksctl, with aws-iam-authenticator": (
        {
            "args": ["token", "-i", "demo"],
            "env": variables(AWS_STS_REGIONAL_ENDPOINTS="regional", AWS_DEFAULT_REGION=REGION, AWS_PROFILE="work"),
        },
        "bob",
    ),
    "aws-iam-authenticator": ({"args": ["token", "-i", "demo"]}, "alice"),
    "aws-iam-authenticator, with a profile": (
        {"args": ["token", "-i", "demo"], "env": variables(AWS_PROFILE="work")},
        "bob",
    ),
    "aws-iam-authenticator, with a role": ({"args": ["token", "-i", "demo", "-r", ROLE]}, "admin"),
    "Terraform's module, without options": (
        {"args": ["eks", "get-token", "--cluster-name", "demo"], "apiVersion": "client.authentication.k8s.io/v1"},
        "alice",
    ),
}


@pytest.mark.parametrize(("entry", "expected"), [pytest.param(*case, id=name) for name, case in WRITTEN.items()])
def test_the_exec_entry_of_another_program_works(entry: dict[str, Any], expected: str, scene: Scene) -> None:
    command = {"command": str(scene.place.executable)}
    scene.kubeconfig.write_text(scene.api_server.kubeconfig({**entry, **command}))
    principals = {"alice": scene.alice.arn, "bob": scene.bob.arn, "admin": ADMIN}
    assert scene.principal(scene.moto.environment) == principals[expected]
    assert scene.principal(scene.moto.environment) == principals[expected]
    assert scene.moto.count("AssumeRole") <= 1


# --- roles --------------------------------------------------------------------------------------------------

Assumed = Callable[..., dict[str, str]]


@pytest.fixture
def assumed(place: Sandbox, moto: RecordingProxy, keys: Keys) -> Assumed:
    """Runs a command line, checks that the token is for the role, and returns the parameters of AssumeRole."""

    def run(*line: str, env: Mapping[str, str]) -> dict[str, str]:
        moto.calls.clear()
        done = place.run(*line, env={**moto.environment, **env})
        assert done.returncode == 0, done.stderr
        who = verify(json.loads(done.stdout)["status"]["token"], cluster="demo", secrets=keys)
        call = moto.last("AssumeRole").params
        assert (moto.count("AssumeRole"), who.session_name) == (1, call["RoleSessionName"])
        assert who.canonical_arn == call["RoleArn"]
        return call

    return run


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_a_role_session_is_named_as_by_the_aws_cli(
    grammar: str, assumed: Assumed, place: Sandbox, moto: RecordingProxy, aws: str
) -> None:
    alice = moto.create_user("alice")
    role = moto.create_role("admin", trusted=[alice.arn])
    option = "-r" if grammar == "token" else "--role-arn"
    call = assumed(*GRAMMARS[grammar], option, role, env=alice.environment)
    assert call["RoleSessionName"] == "EKSGetTokenAuth"
    if grammar == "aws":
        place.run(*GRAMMARS[grammar], option, role, env={**moto.environment, **alice.environment}, command=[aws])
        assert moto.count("AssumeRole") == 2
        assert moto.last("AssumeRole").params == call


@pytest.mark.parametrize(
    "line",
    [
        pytest.param([*GRAMMARS["bare"], "--external-id", "x1", "--session-name", "me", "--role-arn"], id="bare"),
        pytest.param([*GRAMMARS["token"], "-e", "x1", "-s", "me", "-r"], id="authenticator"),
        pytest.param(
            [*GRAMMARS["token"], "--external-id", "x1", "--session-name", "me", "--role"], id="authenticator, long"
        ),
    ],
)
def test_external_id_and_session_name_reach_aws(line: list[str], assumed: Assumed, moto: RecordingProxy) -> None:
    alice = moto.create_user("alice")
    role = moto.create_role("admin", trusted=[alice.arn], external_id="x1")
    call = assumed(*line, role, env=alice.environment)
    assert (call["ExternalId"], call["RoleSessionName"]) == ("x1", "me")


def test_the_role_may_come_from_default_role(assumed: Assumed, moto: RecordingProxy) -> None:
    alice = moto.create_user("alice")
    role = moto.create_role("admin", trusted=[alice.arn])
    assert assumed(*GRAMMARS["token"], env={**alice.environment, "DEFAULT_ROLE": role})["RoleArn"] == role


def test_a_federated_sessions_name_is_forwarded_to_the_role(assumed: Assumed, moto: RecordingProxy, keys: Keys) -> None:
    role = moto.create_role("admin")
    key_id, key = keys.mint(f"arn:aws:sts::{ACCOUNT}:assumed-role/federated/alice@example.com", 3600)
    session = {**AccessKey(key_id, key.secret, "").environment, "AWS_SESSION_TOKEN": str(key.session_token)}
    line = [*GRAMMARS["token"], "-r", role, "--forward-session-name"]
    assert assumed(*line, env=session)["RoleSessionName"] == "alice@example.com"
    # a user does not have a session name to forward
    alice = moto.create_user("alice")
    assert assumed(*line, env=alice.environment)["RoleSessionName"] == "EKSGetTokenAuth"


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_a_role_that_may_not_be_assumed_is_one_line(grammar: str, place: Sandbox, moto: RecordingProxy) -> None:
    alice = moto.create_user("alice")
    role = moto.create_role("admin", trusted=[f"arn:aws:iam::{ACCOUNT}:user/bob"])
    option = "-r" if grammar == "token" else "--role-arn"
    done = place.run(*GRAMMARS[grammar], option, role, env={**moto.environment, **alice.environment})
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert re.match(r"eks-token: error: .*AWS refused AssumeRole: AccessDenied: ", line)
    assert alice.secret not in line
