"""A table of AWS config shapes. The program and a plain botocore session resolve each to the same principal, or both
refuse it. There is no keyring here, because AWS config does not need one.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
import test_login
from conftest import Completed, Program, Sandbox, invocation
from servers import ACCOUNT, HttpServer, Incoming, Keys, RecordingProxy, Reply, SsoOidcServer, mfa_serial
from test_login import CODE, REGION, SSO_REGION, utc
from verifier import decoded_url, identity, verify

import eks_token

OTHER_ACCOUNT = "210987654321"
PEER = """
import os, sys, botocore.credentials, botocore.session, botocore.tokens, botocore.utils
botocore.utils.ContainerMetadataFetcher.SLEEP_TIME = 0
# these were computed before this HOME was set
for provider in (botocore.credentials.SSOProvider, botocore.tokens.SSOTokenProvider):
    provider._SSO_TOKEN_CACHE_DIR = os.path.expanduser("~/.aws/sso/cache")
session = botocore.session.Session(profile=sys.argv[1] or None)
credentials = session.get_credentials()
print(credentials.get_frozen_credentials().access_key if credentials else sys.exit("no credentials"))
"""


class Shape(NamedTuple):
    """KEYS-who, ROLE-name, SERIAL, START-URL and FILE-hex are placeholders that `World.fill` replaces."""

    expected: str | None  # a user, a role, or a session's name if it is set; None: both refuse
    config: str = ""
    credentials: str = ""
    profile: str = ""  # named by an option; "" for none
    env: Mapping[str, str] = {}
    code: bool = False  # both ask for an MFA code
    signed_in: str = ""  # to SSO with the AWS CLI: the sso-session, or "legacy"


def process(**answer: object) -> str:
    """A credential_process that prints this."""
    return "credential_process = cat FILE-" + json.dumps(answer).encode().hex()


GIVEN = {"Version": 1, "AccessKeyId": "ID-alice", "SecretAccessKey": "SECRET-alice"}
ADMIN = "role_arn = ROLE-admin\n"
ROLE = f"[profile p]\n{ADMIN}source_profile = work\n"
WORK = "[work]\nKEYS-alice\n"
SSO = "sso_account_id = 123456789012\nsso_role_name = Admin\n"
LEGACY = f"[profile p]\n{SSO}sso_start_url = START-URL\nsso_region = {SSO_REGION}\n"
SESSION = f"[sso-session corp]\nsso_start_url = START-URL\nsso_region = {SSO_REGION}\n"
OF_SESSION = f"[profile p]\n{SSO}sso_session = corp\n{SESSION}"
WEB = f"[profile p]\n{ADMIN}web_identity_token_file = FILE-token\n"

SHAPES = {
    # files and sections
    "the default profile in the credentials file": Shape("alice", credentials="[default]\nKEYS-alice\n"),
    "the default profile in the config file": Shape("alice", "[default]\nKEYS-alice\n"),
    "the default profile with the word profile": Shape("alice", "[profile default]\nKEYS-alice\n"),
    "the credentials file before the config file": Shape(
        "alice", "[profile p]\nKEYS-bob\n", "[p]\nKEYS-alice\n", profile="p"
    ),
    "a profile in the credentials file": Shape("alice", "", "[default]\nKEYS-bob\n" + WORK, profile="work"),
    "a profile in the config file": Shape("alice", "[profile work]\nKEYS-alice\n", profile="work"),
    "a quoted name": Shape("alice", '[profile "my work"]\nKEYS-alice\n', profile="my work"),
    "a name in another case": Shape(None, "[profile work]\nKEYS-alice\n", profile="Work"),
    "a section in the config file without the word profile": Shape(None, "[p]\nKEYS-alice\n", profile="p"),
    "a missing profile": Shape(None, "", "[default]\nKEYS-alice\n", profile="p"),
    "a profile with only settings": Shape(None, "[profile p]\nregion = eu-west-1\n", profile="p"),
    "nothing at all": Shape(None),
    "a config file that cannot be parsed": Shape(None, "role_arn\n[profile", WORK, profile="work"),
    "files in other places": Shape(
        "alice",
        env={"AWS_SHARED_CREDENTIALS_FILE": "FILE-5b776f726b5d0a4b4559532d616c6963650a", "AWS_PROFILE": "work"},
    ),
    # the environment
    "AWS_PROFILE": Shape("alice", "", "[default]\nKEYS-bob\n" + WORK, env={"AWS_PROFILE": "work"}),
    "AWS_DEFAULT_PROFILE": Shape("alice", "", WORK, env={"AWS_DEFAULT_PROFILE": "work"}),
    "environment keys": Shape("env", "", "[default]\nKEYS-alice\n", env={"KEYS": "env"}),
    "environment keys of a session": Shape("guest", env={"KEYS": "guest"}),
    "environment keys before AWS_PROFILE": Shape("env", "", WORK, env={"KEYS": "env", "AWS_PROFILE": "work"}),
    "a profile option before environment keys": Shape("alice", "", WORK, profile="work", env={"KEYS": "env"}),
    # keys
    "keys with a session token": Shape("guest", "", "[p]\nKEYS-guest\n", profile="p"),
    "keys with a session token under its old name": Shape("guest", "", "[p]\nOLD-KEYS-guest\n", profile="p"),
    "a session token of another session": Shape("alice", "", "[p]\nKEYS-alice\n[q]\nKEYS-guest\n", profile="p"),
    "only an access key id": Shape(None, "", "[p]\naws_access_key_id = AKIAALONE\n", profile="p"),
    "only a secret": Shape(None, "", "[p]\naws_secret_access_key = alone\n", profile="p"),
    "keys in the config file and only an id in the other": Shape(
        None, "[profile p]\nKEYS-alice\n", "[p]\naws_access_key_id = AKIAALONE\n", profile="p"
    ),
    "mfa_serial next to keys, which does nothing": Shape("alice", "", "[p]\nKEYS-alice\nmfa_serial = SERIAL\n", "p"),
    # roles
    "a role": Shape("admin", ROLE, WORK, "p"),
    "a role from AWS_PROFILE": Shape("admin", ROLE, WORK, env={"AWS_PROFILE": "p"}),
    "a role in the default profile": Shape("admin", f"[default]\n{ADMIN}source_profile = work\n", WORK),
    "a role in the credentials file": Shape("admin", "", f"{WORK}[p]\n{ADMIN}source_profile = work\n", "p"),
    "a role whose source is the default profile": Shape(
        "admin", f"[profile p]\n{ADMIN}source_profile = default\n", "[default]\nKEYS-alice\n", "p"
    ),
    "a role in another account": Shape("other", ROLE.replace("-admin", "-other"), WORK, "p"),
    "a chain of three roles": Shape(
        "third",
        "[profile one]\nrole_arn = ROLE-admin\nsource_profile = work\n"
        "[profile two]\nrole_arn = ROLE-second\nsource_profile = one\n"
        "[profile p]\nrole_arn = ROLE-third\nsource_profile = two\n",
        WORK,
        "p",
    ),
    "a chain without one of its roles": Shape(
        None, "[profile p]\nrole_arn = ROLE-third\nsource_profile = work\n", WORK, "p"
    ),
    "a role that does not trust its source": Shape(None, ROLE, "[work]\nKEYS-bob\n", "p"),
    "a role with its external id": Shape("ext", f"{ROLE.replace('-admin', '-ext')}external_id = ours\n", WORK, "p"),
    "a role with a wrong external id": Shape(
        None, f"{ROLE.replace('-admin', '-ext')}external_id = theirs\n", WORK, "p"
    ),
    "a role without its external id": Shape(None, ROLE.replace("-admin", "-ext"), WORK, "p"),
    "a session name": Shape("admin/alice", f"{ROLE}role_session_name = alice\n", WORK, "p"),
    "a session name that is too short": Shape(None, f"{ROLE}role_session_name = a\n", WORK, "p"),
    "a duration": Shape("admin", f"{ROLE}duration_seconds = 1800\n", WORK, "p"),
    "a duration above the role's maximum": Shape(None, f"{ROLE}duration_seconds = 43200\n", WORK, "p"),
    "a duration that is not a number, which is ignored": Shape("admin", f"{ROLE}duration_seconds = 1h\n", WORK, "p"),
    "a region": Shape("admin", f"{ROLE}region = eu-west-1\n", WORK, "p"),
    "a device on the role": Shape(
        "mfa", f"{ROLE.replace('-admin', '-mfa')}mfa_serial = SERIAL\n", WORK, "p", code=True
    ),
    "a device on a role that does not need one": Shape("admin", f"{ROLE}mfa_serial = SERIAL\n", WORK, "p", code=True),
    "a device on the source, not on the role": Shape(
        None, ROLE.replace("-admin", "-mfa"), f"{WORK}mfa_serial = SERIAL\n", "p"
    ),
    "a device on the first role of a chain": Shape(
        "second",
        "[profile one]\nrole_arn = ROLE-admin\nsource_profile = work\nmfa_serial = SERIAL\n"
        "[profile p]\nrole_arn = ROLE-second\nsource_profile = one\n",
        WORK,
        "p",
        code=True,
    ),
    "a missing source": Shape(None, ROLE, "", "p"),
    "a source with only settings": Shape(None, f"{ROLE}[profile work]\nregion = eu-west-1\n", "", "p"),
    "a source with only an id": Shape(None, ROLE, "[work]\naws_access_key_id = AKIAALONE\n", "p"),
    "a source with keys and a role, whose keys are used": Shape(
        "admin", f"{ROLE}[profile work]\nrole_arn = ROLE-second\nsource_profile = p\n", WORK, "p"
    ),
    "a role without a source": Shape(None, f"[profile p]\n{ADMIN}", WORK, "p"),
    "a role without a source, next to keys": Shape(None, f"[profile p]\n{ADMIN}KEYS-alice\n", "", "p"),
    "its own source, with keys": Shape("admin", f"[profile p]\n{ADMIN}source_profile = p\nKEYS-alice\n", "", "p"),
    "its own source, with keys and a device": Shape(
        "mfa",
        "[profile p]\nrole_arn = ROLE-mfa\nsource_profile = p\nmfa_serial = SERIAL\nKEYS-alice\n",
        "",
        "p",
        code=True,
    ),
    "its own source, without keys": Shape(None, f"[profile p]\n{ADMIN}source_profile = p\n", "", "p"),
    "a loop": Shape(
        None,
        f"[profile p]\n{ADMIN}source_profile = q\n[profile q]\nrole_arn = ROLE-second\nsource_profile = p\n",
        "",
        "p",
    ),
    "a source and a credential_source": Shape(None, f"{ROLE}credential_source = Environment\n", WORK, "p"),
    "credential_source Environment": Shape(
        "admin", f"[profile p]\n{ADMIN}credential_source = Environment\n", profile="p", env={"KEYS": "alice"}
    ),
    "credential_source Environment without keys": Shape(
        None, f"[profile p]\n{ADMIN}credential_source = Environment\n", WORK, "p"
    ),
    "credential_source EcsContainer": Shape(
        "admin", f"[profile p]\n{ADMIN}credential_source = EcsContainer\n", profile="p", env={"CONTAINER": "guest"}
    ),
    "credential_source EcsContainer without one": Shape(
        None, f"[profile p]\n{ADMIN}credential_source = EcsContainer\n", WORK, "p"
    ),
    "an unknown credential_source": Shape(
        None, f"[profile p]\n{ADMIN}credential_source = Cloud\n", profile="p", env={"KEYS": "alice"}
    ),
    # containers, processes and web identities
    "a container": Shape("guest", env={"CONTAINER": "guest"}),
    "a container with a token": Shape(
        "guest", env={"CONTAINER": "guest", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "Basic container"}
    ),
    "a container that fails": Shape(None, env={"CONTAINER": "nobody"}),
    "a container whose credentials do not expire": Shape(None, env={"CONTAINER": "endless"}),
    "a process": Shape("alice", f"[profile p]\n{process(**GIVEN)}\n", profile="p"),
    "a process with a session": Shape(
        "guest",
        "[profile p]\n"
        + process(Version=1, AccessKeyId="ID-guest", SecretAccessKey="SECRET-guest", SessionToken="TOKEN-guest")
        + "\n",
        profile="p",
    ),
    "a process whose keys will expire": Shape(
        "alice", f"[profile p]\n{process(**GIVEN, Expiration=utc(3600))}\n", profile="p"
    ),
    "a process whose keys have expired": Shape(
        None, f"[profile p]\n{process(**GIVEN, Expiration='2020-01-01T00:00:00Z')}\n", profile="p"
    ),
    "a process of a later version": Shape(None, f"[profile p]\n{process(**GIVEN | {'Version': 2})}\n", profile="p"),
    "a process that lacks the secret": Shape(
        None, f"[profile p]\n{process(Version=1, AccessKeyId='ID-alice')}\n", profile="p"
    ),
    "a process that fails": Shape(None, "[profile p]\ncredential_process = false\n", profile="p"),
    "a missing process": Shape(None, "[profile p]\ncredential_process = /nowhere\n", profile="p"),
    "a process that does not print JSON": Shape(None, "[profile p]\ncredential_process = echo hello\n", profile="p"),
    "a process as a role's source": Shape("admin", f"{ROLE}[profile work]\n{process(**GIVEN)}\n", profile="p"),
    "keys before a process": Shape("bob", f"[profile p]\n{process(**GIVEN)}\nKEYS-alice\n", "[p]\nKEYS-bob\n", "p"),
    "a web identity": Shape("admin", WEB, profile="p"),
    "a web identity with a session name": Shape("admin/pod", f"{WEB}role_session_name = pod\n", profile="p"),
    "a web identity before keys": Shape("admin", WEB, "[p]\nKEYS-bob\n", "p"),
    "a web identity without its file": Shape(None, WEB.replace("FILE-token", "/nowhere"), profile="p"),
    "a web identity without a role": Shape(None, "[profile p]\nweb_identity_token_file = FILE-token\n", profile="p"),
    "a web identity from the environment": Shape(
        "admin/pod",
        env={
            "AWS_ROLE_ARN": "ROLE-admin",
            "AWS_WEB_IDENTITY_TOKEN_FILE": "FILE-token",
            "AWS_ROLE_SESSION_NAME": "pod",
        },
    ),
    "a profile option before a web identity from the environment": Shape(
        "alice", "", WORK, "work", env={"AWS_ROLE_ARN": "ROLE-admin", "AWS_WEB_IDENTITY_TOKEN_FILE": "FILE-token"}
    ),
    # SSO
    "an sso-session": Shape("sso", OF_SESSION, profile="p", signed_in="corp"),
    "a legacy start URL": Shape("sso", LEGACY, profile="p", signed_in="legacy"),
    "an sso-session without a login": Shape(None, OF_SESSION, profile="p"),
    "a legacy start URL without a login": Shape(None, LEGACY, profile="p"),
    "a missing sso-session": Shape(None, OF_SESSION.replace("= corp", "= x"), profile="p", signed_in="corp"),
    "SSO without an account": Shape(
        None, LEGACY.replace("sso_account_id = 123456789012\n", ""), profile="p", signed_in="legacy"
    ),
    "SSO without a region": Shape(
        None, LEGACY.replace(f"sso_region = {SSO_REGION}\n", ""), profile="p", signed_in="legacy"
    ),
    "SSO with a role that the user does not have": Shape(
        None, OF_SESSION.replace("Admin", "Owner"), profile="p", signed_in="corp"
    ),
    "an sso-session and a profile that contradict each other": Shape(
        None,
        OF_SESSION.replace("_session = corp\n", "_session = corp\nsso_region = eu-west-1\n"),
        "",
        "p",
        {},
        False,
        "corp",
    ),
    "SSO before keys": Shape("sso", OF_SESSION, "[p]\nKEYS-bob\n", "p", signed_in="corp"),
    "SSO as a role's source": Shape(
        "deploy",
        f"{OF_SESSION.replace('profile p', 'profile q')}[profile p]\nrole_arn = ROLE-deploy\nsource_profile = q\n",
        profile="p",
        signed_in="corp",
    ),
    # endpoints
    "an endpoint in the profile": Shape(
        "admin", f"{ROLE}endpoint_url = ENDPOINT\n", WORK, "p", {"AWS_ENDPOINT_URL": ""}
    ),
    "an endpoint in a services section": Shape(
        "admin",
        f"{ROLE}services = ours\n[services ours]\nsts =\n  endpoint_url = ENDPOINT\n",
        WORK,
        "p",
        {"AWS_ENDPOINT_URL": ""},
    ),
    "a missing services section": Shape(
        None, f"{ROLE}services = ours\n", WORK, "p", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    ),
}


GO_PROCESS = "role_arn = ROLE-admin\n" + process(**GIVEN)
# What the AWS SDK for Go, which aws-iam-authenticator uses, reads differently from botocore, and what it reads alike.
SAME_IN_GO = [
    "environment keys before AWS_PROFILE",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "a role",
    "a chain of three roles",
    "a role with its external id",
    "a device on the role",
    "a container",
    "a process",
    "an sso-session",
    "a legacy start URL",
    "a web identity",
    "a loop",
    "its own source, with keys",
    "keys before a process",
    "only an access key id",
]
GO_SHAPES = {name: SHAPES[name] for name in SAME_IN_GO} | {
    "a web identity from the environment before AWS_PROFILE": Shape(
        "admin",
        "",
        WORK,
        env={"AWS_PROFILE": "work", "AWS_ROLE_ARN": "ROLE-admin", "AWS_WEB_IDENTITY_TOKEN_FILE": "FILE-token"},
    ),
    "environment keys before a web identity from the environment": Shape(
        "env", env={"KEYS": "env", "AWS_ROLE_ARN": "ROLE-admin", "AWS_WEB_IDENTITY_TOKEN_FILE": "FILE-token"}
    ),
    "keys before SSO": Shape("bob", OF_SESSION, "[p]\nKEYS-bob\n", "p", signed_in="corp"),
    "SSO before a process": Shape(
        "sso", OF_SESSION.replace("[profile p]\n", f"[profile p]\n{process(**GIVEN)}\n"), "", "p", signed_in="corp"
    ),
    "keys before a web identity, whose role they assume": Shape("admin", WEB, "[p]\nKEYS-alice\n", "p"),
    "keys that assume their own profile's role": Shape("admin", f"[profile p]\n{ADMIN}KEYS-alice\n", "", "p"),
    "a process whose keys assume their own profile's role": Shape("admin", f"[profile p]\n{GO_PROCESS}\n", "", "p"),
    "SSO that assumes its own profile's role": Shape(
        "deploy",
        OF_SESSION.replace("[profile p]\n", "[profile p]\nrole_arn = ROLE-deploy\n"),
        "",
        "p",
        signed_in="corp",
    ),
    "a container that assumes the profile's role": Shape(
        "admin", f"[profile p]\n{ADMIN}", "", "p", env={"CONTAINER": "guest"}
    ),
    "a source with keys and a role, which is assumed too": Shape(
        "second", f"[profile p]\nrole_arn = ROLE-second\nsource_profile = work\n[profile work]\n{ADMIN}", WORK, "p"
    ),
    "a profile with only settings, in a container": Shape(
        "guest", "[profile p]\nregion = eu-west-1\n", "", "p", env={"CONTAINER": "guest"}
    ),
    "a source with only settings, in a container": Shape(
        None, f"{ROLE}[profile work]\nregion = eu-west-1\n", "", "p", env={"CONTAINER": "guest"}
    ),
    "a source with only a role, in a container": Shape(
        None,
        f"[profile p]\nrole_arn = ROLE-second\nsource_profile = work\n[profile work]\n{ADMIN}",
        "",
        "p",
        env={"CONTAINER": "guest"},
    ),
    "a source before the profile's own keys": Shape("admin", f"{ROLE}KEYS-bob\n", WORK, "p"),
    "keys before a credential_source, whose role they assume": Shape(
        "admin", f"[profile p]\n{ADMIN}credential_source = Environment\nKEYS-alice\n", "", "p"
    ),
    "a credential_source that names the container": SHAPES["credential_source EcsContainer"],
    "a source and a process": Shape(None, f"{ROLE}{process(**GIVEN)}\n", WORK, "p"),
    "a source and a web identity": Shape(None, f"{ROLE}web_identity_token_file = FILE-token\n", WORK, "p"),
    "a source without a role": Shape(None, "[profile p]\nsource_profile = work\n", WORK, "p"),
    "a process in a shell": Shape(
        "alice", f"[profile p]\n{process(**GIVEN).replace('cat ', 'cat $NOTHING < ')}\n", "", "p"
    ),
    "a missing name": Shape(None, "", WORK, "p"),
    "a section that occurs twice": Shape("alice", "[profile p]\nKEYS-bob\n[profile p]\nKEYS-alice\n", "", "p"),
    "a section that occurs twice in the credentials file": Shape("alice", "", "[p]\nKEYS-bob\n[p]\nKEYS-alice\n", "p"),
    "a key that occurs twice": Shape("alice", "", "[p]\nKEYS-bob\nKEYS-alice\n", "p"),
}


class Container(HttpServer):
    """The server at AWS_CONTAINER_CREDENTIALS_FULL_URI, as in ECS and EKS Pod Identity."""

    def __init__(self, answers: Mapping[str, Mapping[str, str | None]]) -> None:
        super().__init__()
        self.answers = answers

    def reply(self, incoming: Incoming) -> Reply:
        answer = self.answers.get(incoming.path.removeprefix("/"))
        return Reply.json(200, answer) if answer else Reply.json(404, {"message": "no such role"})


class World:
    """The users, roles and servers that shapes refer to."""

    def __init__(self, home: Sandbox, moto: RecordingProxy, sso: SsoOidcServer, keys: Keys) -> None:
        self.home, self.moto, self.sso, self.keys = home, moto, sso, keys
        self.users: dict[str, tuple[str, str, str | None]] = {}
        for name in ("alice", "bob", "env"):
            self.users[name] = (f"AKIA{name.upper():0<16}", f"secret-of-{name}", None)
            keys.learn(*self.users[name][:2], f"arn:aws:iam::{ACCOUNT}:user/{name}")
        key_id, guest = keys.mint(f"arn:aws:sts::{ACCOUNT}:assumed-role/guest/guest", 3600)
        self.users["guest"] = (key_id, guest.secret, guest.session_token)
        moto.mfa_codes[mfa_serial("alice")] = CODE
        alice, of_sso = f"arn:aws:iam::{ACCOUNT}:user/alice", sso.assign(ACCOUNT, "Admin")
        self.arns = {"sso": test_login.role_of(of_sso), "guest": f"arn:aws:iam::{ACCOUNT}:role/guest"}
        # roles in another account exist only in the proxy, not in moto
        roles: dict[str, dict[str, Any]] = {
            "admin": {"trusted": [alice, self.arns["guest"]]},
            "second": {"trusted": [f"arn:aws:iam::{OTHER_ACCOUNT}:role/admin"]},
            "third": {"trusted": [f"arn:aws:iam::{OTHER_ACCOUNT}:role/second"]},
            "ext": {"trusted": [alice], "external_id": "ours"},
            "mfa": {"trusted": [alice], "mfa": True},
            "other": {"trusted": [alice]},
            "deploy": {"trusted": [self.arns["sso"]]},
        }
        for name, rules in roles.items():
            self.arns[name] = moto.create_role(name, account=OTHER_ACCOUNT, **rules)

    def fill(self, text: str) -> str:
        """The text with its placeholders replaced. Each FILE-hex is decoded, filled and written to a file."""
        values: list[tuple[str, Callable[[str], str]]] = [
            (r"FILE-((?:[0-9a-f]{2})+)\b", lambda content: str(self.file(self.fill(bytes.fromhex(content).decode())))),
            (r"FILE-(token)", lambda name: str(self.file("a-web-identity-token"))),
            (r"OLD-KEYS-(\w+)", lambda who: self.section(who).replace("session_token", "security_token")),
            (r"KEYS-(\w+)", self.section),
            (r"ID-(\w+)", lambda who: self.users[who][0]),
            (r"SECRET-(\w+)", lambda who: self.users[who][1]),
            (r"TOKEN-(\w+)", lambda who: str(self.users[who][2])),
            (r"ROLE-(\w+)", lambda name: self.arns[name]),
            (r"(SERIAL)", lambda _: mfa_serial("alice")),
            (r"(START-URL)", lambda _: self.sso.start_url),
            (r"(ENDPOINT)", lambda _: self.moto.url),
        ]
        for pattern, value in values:

            def filled(found: re.Match[str], value: Callable[[str], str] = value) -> str:
                return value(found[1])

            text = re.sub(rf"(?<![\w_-]){pattern}", filled, text)
        return text

    def section(self, who: str) -> str:
        key_id, secret, token = self.users[who]
        lines = [f"aws_access_key_id = {key_id}", f"aws_secret_access_key = {secret}"]
        return "\n".join([*lines, f"aws_session_token = {token}"] if token else lines)

    def file(self, content: str) -> Path:
        return self.home.write(f"given/{sha1(content.encode()).hexdigest()}", content)

    def environment(self, shape: Shape, container: Container) -> dict[str, str | None]:
        env: dict[str, str | None] = {**self.moto.environment, **self.sso.environment, "AWS_MAX_ATTEMPTS": "1"}
        for name, value in shape.env.items():
            if name == "KEYS":
                key_id, secret, token = self.users[value]
                env |= {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}
            elif name == "CONTAINER":
                env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{container.url}/{value}"
            else:
                env[name] = self.fill(value) or None
        return env

    def prepare(self, shape: Shape) -> None:
        """Writes the shape's files."""
        if shape.config:
            self.home.config(self.fill(shape.config))
        if shape.credentials:
            self.home.credentials(self.fill(shape.credentials))
        if shape.signed_in:
            self.sign_in(shape.signed_in)

    def sign_in(self, session: str) -> None:
        """Signs in as `aws sso login` does."""
        name = self.sso.start_url if session == "legacy" else session
        access_token, _ = self.sso.new_session()
        token = {
            "startUrl": self.sso.start_url,
            "region": SSO_REGION,
            "accessToken": access_token,
            "expiresAt": utc(3600),
        }
        self.home.write(f".aws/sso/cache/{sha1(name.encode()).hexdigest()}.json", json.dumps(token))

    def container(self) -> Container:
        key_id, secret, token = self.users["guest"]
        answer = {"AccessKeyId": key_id, "SecretAccessKey": secret, "Token": str(token), "Expiration": utc(3600)}
        return Container({"guest": answer, "endless": {**answer, "Expiration": None}})

    def principal(self, arn: str) -> str:
        """The name that a shape expects, with the session's name if somebody chose it."""
        seen = identity(arn, "", "", 0)
        (name,) = [name for name, known in self.named().items() if known == seen.canonical_arn]
        chosen = seen.session_name if name not in ("sso", "guest") else ""
        return name if re.match("botocore-session-|$", chosen) else f"{name}/{chosen}"

    def named(self) -> dict[str, str]:
        return self.arns | {name: f"arn:aws:iam::{ACCOUNT}:user/{name}" for name in ("alice", "bob", "env")}


@pytest.fixture
def world(home: Sandbox, moto: RecordingProxy, sso: SsoOidcServer, keys: Keys) -> World:
    return World(home, moto, sso, keys)


def run(home: Sandbox, command: list[str | Path], env: Mapping[str, str | None], prompt: str) -> Completed:
    if prompt:
        return home.run_pty(*command[1:], command=command[:1], env=env, steps=[(prompt, f"{CODE}\n")])
    return home.run(*command[1:], command=command[:1], env=env)


@pytest.mark.parametrize("shape", [pytest.param(shape, id=name) for name, shape in SHAPES.items()])
def test_aws_config_means_what_it_means_to_botocore(shape: Shape, world: World, program: Program) -> None:
    home = world.home
    world.prepare(shape)
    with world.container() as container:
        env = world.environment(shape, container)
        line = ["--region", REGION, "eks", "get-token", "--cluster-name", "demo"]
        line += ["--profile", shape.profile] if shape.profile else []
        ours = run(home, [home.executable, *line], env, "MFA code for " if shape.code else "")
        peer: list[str | Path] = [program.python, "-I", "-S", home.write("peer.py", PEER), shape.profile]
        # only botocore requires a region
        theirs = run(home, peer, {**env, "AWS_DEFAULT_REGION": REGION}, "MFA code for " if shape.code else "")
    their_key = theirs.stdout.strip()
    if agreed(world, shape, ours, theirs, their_key):
        token = json.loads(ours.stdout)["status"]["token"]
        assert world.principal(verify(token, cluster="demo", secrets=world.keys).arn) == shape.expected
        assert world.principal(world.keys[their_key].arn) == shape.expected


@pytest.mark.parametrize("shape", [pytest.param(shape, id=name) for name, shape in GO_SHAPES.items()])
def test_aws_config_means_what_it_means_to_aws_iam_authenticator(
    shape: Shape, world: World, authenticator: Path
) -> None:
    home = world.home
    world.prepare(shape)
    line: list[str | Path] = ["token", "-i", "demo", "--region", REGION, "--token-only"]
    with world.container() as container:
        profile = {"AWS_PROFILE": shape.profile} if shape.profile else {}
        # it looks for instance metadata even with AWS_EC2_METADATA_DISABLED
        nowhere = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}
        env = {**world.environment(shape, container), **nowhere, **profile}
        ours = run(home, [home.executable, *line], env, "MFA code for " if shape.code else "")
        # its clients that assume roles use neither --region nor AWS_ENDPOINT_URL
        for_roles = {"AWS_REGION": REGION, "AWS_ENDPOINT_URL_STS": world.moto.url}
        prompt = "Assume Role MFA token code: " if shape.code else ""
        theirs = run(home, [authenticator, *line], {**env, **for_roles}, prompt)
    their_key = key_id_of(theirs.stdout) if theirs.returncode == 0 else ""
    if agreed(world, shape, ours, theirs, their_key):
        assert world.principal(verify(ours.stdout.strip(), cluster="demo", secrets=world.keys).arn) == shape.expected
        assert world.principal(world.keys[their_key].arn).partition("/")[0] == shape.expected


WEB_IDENTITY = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/pod", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}
OTHER_NAME = "the role session is named {}, not {}; {} sets the name for both"
OF_PROFILE = OTHER_NAME.format("botocore-session-TIME", "aws-go-sdk-TIME", "role_session_name in the profile p")
OF_POD = OTHER_NAME.format("botocore-session-TIME", "TIME", "AWS_ROLE_SESSION_NAME")
ON_TOP = OTHER_NAME.format("EKSGetTokenAuth", "aws-go-sdk-TIME", "-s NAME")


@pytest.mark.parametrize(
    ("config", "more", "env", "expected"),
    [
        pytest.param("", "", {}, [], id="nothing"),
        pytest.param("[profile p]\nKEYS-alice\n", "", {}, [], id="keys"),
        pytest.param(ROLE, "", {}, [OF_PROFILE], id="a role"),
        pytest.param(f"{ROLE}role_session_name = me\n", "", {}, [], id="a role with a session name"),
        pytest.param(ROLE, "", {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s"}, [], id="environment keys"),
        pytest.param(ROLE, "", WEB_IDENTITY, [OF_POD], id="a pod"),
        pytest.param("", "-r arn:aws:iam::111122223333:role/x", {}, [ON_TOP], id="a role on top"),
        pytest.param("", "-r arn:aws:iam::111122223333:role/x -s me", {}, [], id="a role on top with a session name"),
        pytest.param(
            "[profile p]\nlogin_session = arn:aws:iam::1:user/a\n",
            "",
            {},
            ["the login_session of p is used, which aws-iam-authenticator does not know"],
            id="aws login",
        ),
    ],
)
def test_differences_from_aws_iam_authenticator_are_explained(
    config: str, more: str, env: Mapping[str, str], expected: list[str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.home.config(world.fill(config or "[profile p]\nregion = us-east-2\n"))
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in world.home.environment({"AWS_PROFILE": "p", **env}).items():
        monkeypatch.setenv(name, value)
    line = ["token", "-i", "demo", *more.split()]
    request = eks_token.parse_request(line, os.environ, "v1beta1")
    resolver = eks_token.Resolver(invocation(*line), None, interactive=False)
    assert eks_token.unlike_authenticator(resolver, request) == expected


def key_id_of(token: str) -> str:
    """The id of the access key that signed a token."""
    query = parse_qs(urlsplit(decoded_url(token.strip())).query)
    return query["X-Amz-Credential"][0].partition("/")[0]


def agreed(world: World, shape: Shape, ours: Completed, theirs: Completed, their_key: str) -> bool:
    """Whether both got credentials. A shape without an expected principal must be refused by both, or by STS."""
    if shape.expected is not None:
        assert ours.returncode == theirs.returncode == 0, ours.stderr + theirs.stderr
        return True
    assert (ours.returncode, ours.stdout) == (1, ""), ours.stdout
    assert ours.stderr.startswith("eks-token: error: ") and "is a bug" not in ours.stderr
    key = world.keys.get(their_key)
    assert theirs.returncode != 0 or key is None or (key.expires is not None and key.expires <= time.time())
    return False
