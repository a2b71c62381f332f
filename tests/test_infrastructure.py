"""The tests' own instruments, shown to tell right from wrong before anything is measured with them."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import servers
import verifier
from conftest import Completed, KeyringDaemon, Sandbox, kubectls, missing, need
from servers import ACCESS_SCOPE, DEVICE_GRANT, AccessKey, ApiServer, Keys, RecordingProxy, SsoOidcServer
from verifier import Key, Refused

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ALICE = "arn:aws:iam::123456789012:user/alice"
NOW = 1_700_000_000.0


def botocore_error(call: Callable[[], object]) -> tuple[str, int]:
    """The code and HTTP status of the error that a botocore client raises."""
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError) as caught:
        call()
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


# --- the verifier -------------------------------------------------------------------------------------------


def signed_url(
    changes: Mapping[str, str | None] | None = None,
    *,
    host: str = "sts.eu-west-1.amazonaws.com",
    region: str = "eu-west-1",
    cluster: str = "demo",
    signed_headers: str = "host;x-k8s-aws-id",
) -> str:
    """A presigned URL as it should be but for `changes` (None leaves a parameter out), rightly signed."""
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(NOW))
    parameters = {
        "Action": "GetCallerIdentity",
        "Version": "2011-06-15",
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{KEY_ID}/{date[:8]}/{region}/sts/aws4_request",
        "X-Amz-Date": date,
        "X-Amz-Expires": "60",
        "X-Amz-SignedHeaders": signed_headers,
    }
    query = [(k, v) for k, v in (parameters | dict(changes or {})).items() if v is not None]
    signature = verifier.signature(
        SECRET,
        date=date,
        scope=f"{date[:8]}/{region}/sts/aws4_request",
        method="GET",
        path="/",
        query=query,
        headers={"host": host, "x-k8s-aws-id": cluster},
        signed_headers=signed_headers.split(";"),
        payload_hash="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    )
    return f"https://{host}/?{urlencode([*query, ('X-Amz-Signature', signature)])}"


def as_token(url: str) -> str:
    return verifier.PREFIX + base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")


def verified(token: str, *, now: float = NOW, partition: str = "aws", **known: Any) -> verifier.Identity:
    return verifier.verify(
        token, cluster="demo", secrets={KEY_ID: Key(SECRET, ALICE, **known)}, now=now, partition=partition
    )


def test_the_verifier_computes_the_signature_of_the_aws_documentation() -> None:
    # "Authenticating Requests: Using Query Parameters" in the Amazon S3 API reference
    date, scope = "20130524T000000Z", "20130524/us-east-1/s3/aws4_request"
    query = [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", f"{KEY_ID}/{scope}"),
        ("X-Amz-Date", date),
        ("X-Amz-Expires", "86400"),
        ("X-Amz-SignedHeaders", "host"),
    ]
    signature = verifier.signature(
        SECRET,
        date=date,
        scope=scope,
        method="GET",
        path="/test.txt",
        query=query,
        headers={"host": "examplebucket.s3.amazonaws.com"},
        signed_headers=["host"],
        payload_hash="UNSIGNED-PAYLOAD",
    )
    assert signature == "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"


def test_the_verifier_names_the_principal_and_the_role_of_a_session() -> None:
    arn = "arn:aws:sts::123456789012:assumed-role/dev/me@example.com"
    assert verified(as_token(signed_url()))[:3] == (ALICE, ALICE, "123456789012")
    identity = verifier.verify(as_token(signed_url()), cluster="demo", secrets=lambda _: (SECRET, arn), now=NOW)
    assert identity.canonical_arn == "arn:aws:iam::123456789012:role/dev"
    assert identity.session_name == "me@example.com"


@pytest.mark.parametrize(
    ("partition", "region", "host", "accepted"),
    [
        pytest.param("aws", "us-east-1", "sts.amazonaws.com", True, id="global"),
        pytest.param("aws", "us-east-2", "sts-fips.us-east-2.amazonaws.com", True, id="fips"),
        pytest.param("aws", "eu-west-1", "sts.eu-west-1.api.aws", True, id="dual-stack"),
        pytest.param("aws", "us-west-2", "sts-fips.us-west-2.api.aws", True, id="fips-dual-stack"),
        pytest.param("aws", "xx-new-7", "sts.xx-new-7.amazonaws.com", True, id="region-nobody-knows"),
        pytest.param("aws-cn", "cn-north-1", "sts.cn-north-1.amazonaws.com.cn", True, id="china"),
        pytest.param("aws-us-gov", "us-gov-west-1", "sts.us-gov-west-1.amazonaws.com", True, id="govcloud"),
        pytest.param("aws-eusc", "eusc-de-east-1", "sts.eusc-de-east-1.amazonaws.eu", True, id="european"),
        pytest.param("aws-iso", "us-iso-east-1", "sts.us-iso-east-1.c2s.ic.gov", True, id="iso"),
        pytest.param("aws-iso-b", "us-isob-east-1", "sts.us-isob-east-1.sc2s.sgov.gov", True, id="iso-b"),
        pytest.param("aws-cn", "us-east-1", "sts.amazonaws.com", False, id="global-host-elsewhere"),
        pytest.param("aws", "eu-west-1", "sts.amazonaws.com", False, id="global-host-signed-for-a-region"),
        pytest.param("aws", "us-east-1", "sts.eu-west-1.amazonaws.com", False, id="regional-host-signed-for-another"),
        pytest.param("aws", "cn-north-1", "sts.cn-north-1.amazonaws.com.cn", False, id="other-partition"),
        pytest.param("aws", "cn-north-1", "sts.cn-north-1.amazonaws.com", False, id="region-of-another-partition"),
        pytest.param("aws-us-gov", "us-gov-west-1", "sts-fips.us-gov-west-1.amazonaws.com", False, id="govcloud-fips"),
        pytest.param("aws-iso", "us-iso-east-1", "sts.us-iso-east-1.api.aws.ic.gov", False, id="iso-dual-stack"),
        pytest.param("aws", "us-east-1", "127.0.0.1:8080", False, id="endpoint-url"),
        pytest.param("aws", "eu-west-1", "sts.eu-west-1.amazonaws.com:443", False, id="port"),
        pytest.param("aws", "eu-west-1", "sts.eu-west-1.amazonaws.com.evil.example", False, id="foreign-domain"),
        pytest.param("aws", "eu-west-1", "eks.eu-west-1.amazonaws.com", False, id="other-service"),
    ],
)
def test_the_verifier_knows_the_hosts_of_a_partition(partition: str, region: str, host: str, accepted: bool) -> None:
    token = as_token(signed_url(host=host, region=region))
    with nullcontext() if accepted else pytest.raises(Refused):
        assert verified(token, partition=partition).host == host


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        pytest.param(signed_url(cluster="other"), "signature", id="another-cluster"),
        pytest.param(signed_url({"Action": "GetSessionToken"}), "Action", id="another-action"),
        pytest.param(signed_url({"Action": None}), "Action", id="no-action"),
        pytest.param(signed_url({"Version": None}), "Version", id="no-version"),
        pytest.param(signed_url({"X-Amz-Expires": "901"}), "Expires", id="expires-too-late"),
        pytest.param(signed_url({"X-Amz-Expires": "-1"}), "Expires", id="expires-negative"),
        pytest.param(signed_url({"X-Amz-Expires": None}), "Expires", id="no-expires"),
        pytest.param(signed_url({"X-Amz-Date": "2023-11-14"}), "X-Amz-Date", id="odd-date"),
        pytest.param(signed_url({"X-Amz-User-Agent": "x"}), "non-whitelisted", id="foreign-parameter"),
        pytest.param(signed_url({"action": "GetCallerIdentity"}), "duplicate", id="same-name-other-case"),
        pytest.param(signed_url() + "&Action=GetCallerIdentity", "duplicate", id="twice"),
        pytest.param(signed_url({"X-Amz-Security-Token": "x"}), "Security-Token", id="unknown-session-token"),
        pytest.param(signed_url(signed_headers="host"), "x-k8s-aws-id", id="header-not-signed"),
        pytest.param(signed_url().replace("https:", "http:"), "scheme", id="http"),
        pytest.param(signed_url().replace("/?", "/x?"), "path", id="path"),
        pytest.param(signed_url().replace("X-Amz-Expires=60", "X-Amz-Expires=61"), "signature", id="tampered"),
    ],
)
def test_the_verifier_refuses_a_url(url: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        verified(as_token(url))


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        pytest.param("", "begin", id="empty"),
        pytest.param(as_token(signed_url()).removeprefix("k8s-"), "begin", id="no-prefix"),
        pytest.param(as_token(signed_url()) + "=", "base64url", id="padding"),
        pytest.param(as_token(signed_url()) + "\n", "base64url", id="newline"),
        pytest.param(as_token(signed_url({"X-Amz-Security-Token": "x" * 3000})), "large", id="too-large"),
    ],
)
def test_the_verifier_refuses_a_token(token: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        verified(token)


def test_the_verifier_keeps_to_the_time_a_token_is_valid() -> None:
    token = as_token(signed_url())
    for accepted in (NOW - 60, NOW + 900):
        assert verified(token, now=accepted)
    for refused, reason in ((NOW - 61, "future"), (NOW + 901, "expired")):
        with pytest.raises(Refused, match=reason):
            verified(token, now=refused)
    with pytest.raises(Refused, match="credentials"):
        verified(token, expires=NOW)


def test_the_verifier_wants_the_session_token_of_the_key() -> None:
    token = as_token(signed_url({"X-Amz-Security-Token": "one+/="}))
    assert verified(token, session_token="one+/=")
    with pytest.raises(Refused, match="Security-Token"):
        verified(token, session_token="another")


# --- the AWS CLI, kubectl and the API server ----------------------------------------------------------------


@pytest.mark.parametrize("temporary", [False, True], ids=["user", "session"])
def test_the_verifier_accepts_the_aws_clis_token(aws: str, home: Sandbox, keys: Keys, temporary: bool) -> None:
    keys.learn(KEY_ID, SECRET, ALICE)
    key_id, key = keys.mint(ALICE, 3600) if temporary else (KEY_ID, keys[KEY_ID])
    env = {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": key.secret}
    if key.session_token:
        env["AWS_SESSION_TOKEN"] = key.session_token
    done = home.run("eks", "get-token", "--cluster-name", "demo", "--region", "eu-west-1", command=[aws], env=env)
    assert done.returncode == 0, done.stderr
    token = json.loads(done.stdout)["status"]["token"]

    assert verifier.verify(token, cluster="demo", secrets=keys).arn == ALICE
    with pytest.raises(Refused, match="signature"):
        verifier.verify(token, cluster="other", secrets=keys)
    with pytest.raises(Refused, match="expired"):
        verifier.verify(token, cluster="demo", secrets=keys, now=time.time() + 1000)


def namespaces(kubectl: Path, home: Sandbox) -> Completed:
    return home.run("--kubeconfig", home.home / "kubeconfig", "get", "namespaces", command=[kubectl])


@pytest.mark.parametrize("kubectl", kubectls() or [None], ids=lambda path: path.name if path else "none")
def test_kubectl_is_let_in_with_the_aws_clis_token_for_this_cluster_only(
    kubectl: Path | None, aws: str, home: Sandbox, keys: Keys, api_server: ApiServer
) -> None:
    kubectl = kubectl or missing("kubectl")
    keys.learn(KEY_ID, SECRET, ALICE)
    home.credentials(AccessKey(KEY_ID, SECRET, ALICE).profile())
    for cluster in ("demo", "other"):
        arguments = ["eks", "get-token", "--cluster-name", cluster, "--region", "eu-west-1", "--output", "json"]
        home.write("kubeconfig", api_server.kubeconfig({"command": aws, "args": arguments}))
        done = namespaces(kubectl, home)
        if cluster == "demo":
            assert done.returncode == 0, done.stderr
            assert "kube-system" in done.stdout and "Active" in done.stdout
            assert set(api_server.principals) == {ALICE}
        else:
            assert done.returncode != 0
            assert "You must be logged in to the server" in done.stderr
            assert "signature" in str(api_server.verdicts[-1].reason)


def test_the_api_server_takes_a_static_token(kubectl: Path, home: Sandbox, api_server: ApiServer) -> None:
    api_server.static_token = "for-benchmarks"
    home.write("kubeconfig", api_server.kubeconfig(token="for-benchmarks"))
    assert namespaces(kubectl, home).returncode == 0
    assert set(api_server.principals) == {"static"}


# --- AWS ----------------------------------------------------------------------------------------------------


def assumed(sts: Any, role: str, **more: Any) -> tuple[str, str, str]:
    credentials = sts.assume_role(RoleArn=role, RoleSessionName="me", **more)["Credentials"]
    return credentials["AccessKeyId"], credentials["SecretAccessKey"], credentials["SessionToken"]


def test_aws_mints_for_a_role_what_the_verifier_then_knows(moto: RecordingProxy, keys: Keys) -> None:
    alice = moto.create_user("alice")
    first = moto.create_role("first", trusted=[alice.arn])
    second = moto.create_role("second", trusted=[first], account="210987654321")
    session = assumed(moto.client("sts", alice), first)
    chained = assumed(moto.client("sts", session), second)
    assert moto.calls[0].principal == alice.arn == ALICE
    caller = moto.client("sts", chained).get_caller_identity()
    assert caller["Arn"] == keys[chained[0]].arn == "arn:aws:sts::210987654321:assumed-role/second/me"
    assert caller["UserId"].endswith(":me")
    assert keys[chained[0]][0::2] == chained[1:]
    assert moto.count("AssumeRole") == 2


def test_aws_takes_web_identities(moto: RecordingProxy, keys: Keys) -> None:
    from botocore import UNSIGNED
    from botocore.config import Config

    role = moto.create_role("runner")
    sts = servers.client(moto.url, "sts", config=Config(signature_version=UNSIGNED))
    minted = sts.assume_role_with_web_identity(RoleArn=role, RoleSessionName="ci", WebIdentityToken="a JWT")
    arn = "arn:aws:sts::123456789012:assumed-role/runner/ci"
    assert keys[minted["Credentials"]["AccessKeyId"]].arn == arn


def test_aws_checks_who_signed(moto: RecordingProxy) -> None:
    alice = moto.create_user("alice")
    role = moto.create_role("dev")
    session = assumed(moto.client("sts", alice), role)
    for wrong, code in (
        ((alice.id, "another secret"), "SignatureDoesNotMatch"),
        (("AKIAUNKNOWN", "secret"), "InvalidClientTokenId"),
        (session[:2], "InvalidClientTokenId"),
    ):
        assert botocore_error(moto.client("sts", wrong).get_caller_identity) == (code, 403)
    moto.lifetime = -1
    expired = assumed(moto.client("sts", alice), role)
    assert botocore_error(moto.client("sts", expired).get_caller_identity) == ("ExpiredToken", 403)


def test_aws_checks_trust(moto: RecordingProxy) -> None:
    alice, bob = moto.create_user("alice"), moto.create_user("bob")
    role = moto.create_role("dev", trusted=[alice.arn], external_id="secret handshake")
    as_alice, as_bob = moto.client("sts", alice), moto.client("sts", bob)
    assert assumed(as_alice, role, ExternalId="secret handshake")
    denied = ("AccessDenied", 403)
    assert botocore_error(lambda: assumed(as_alice, role)) == denied
    assert botocore_error(lambda: assumed(as_bob, role, ExternalId="secret handshake")) == denied
    assert botocore_error(lambda: assumed(as_alice, role + "x")) == denied


def test_aws_wants_the_right_mfa_code(moto: RecordingProxy) -> None:
    alice = moto.create_user("alice", mfa_code="123456")
    role = moto.create_role("dev", trusted=[alice.arn], mfa=True)
    sts, serial = moto.client("sts", alice), servers.mfa_serial("alice")
    denied = ("AccessDenied", 403)
    assert botocore_error(lambda: assumed(sts, role)) == denied
    assert botocore_error(lambda: assumed(sts, role, SerialNumber=serial, TokenCode="654321")) == denied
    assert assumed(sts, role, SerialNumber=serial, TokenCode="123456")

    session = sts.get_session_token(SerialNumber=serial, TokenCode="123456")["Credentials"]
    key = session["AccessKeyId"], session["SecretAccessKey"], session["SessionToken"]
    assert moto.client("sts", key).get_caller_identity()["Arn"] == alice.arn
    assert assumed(moto.client("sts", key), role)
    assert botocore_error(moto.client("sts", key).get_session_token) == denied


def test_aws_can_be_made_to_fail_and_to_hold(moto: RecordingProxy) -> None:
    sts = moto.client("sts", moto.create_user("alice"))
    moto.fail("GetCallerIdentity", "Throttling", "Rate exceeded", times=1)
    assert botocore_error(sts.get_caller_identity) == ("Throttling", 400)
    assert sts.get_caller_identity()
    with ThreadPoolExecutor() as pool, moto.hold("GetCallerIdentity") as hold:
        waiting = pool.submit(sts.get_caller_identity)
        hold.wait()
        assert not waiting.done()
        hold.release.set()
        assert waiting.result(30)


def test_aws_answers_fifty_at_once(moto: RecordingProxy) -> None:
    sts = moto.client("sts", moto.create_user("alice"))
    role = moto.create_role("dev")
    with ThreadPoolExecutor(50) as pool:
        minted = list(pool.map(lambda _: assumed(sts, role)[0], range(50)))
    assert len(set(minted)) == moto.count("AssumeRole") == 50


def test_aws_has_clusters(moto: RecordingProxy, api_server: ApiServer) -> None:
    moto.create_cluster("demo", region="eu-west-1", server=api_server)
    eks = moto.client("eks", moto.create_user("alice"), "eu-west-1")
    assert eks.list_clusters()["clusters"] == ["demo"]
    assert eks.describe_cluster(name="demo")["cluster"]["endpoint"] == api_server.url
    assert moto.counts == {"ListClusters": 1, "DescribeCluster": 1}


# --- IAM Identity Center ------------------------------------------------------------------------------------


def registered(oidc: Any, scopes: list[str]) -> dict[str, str]:
    made = oidc.register_client(clientName="tests", clientType="public", scopes=scopes)
    return {"clientId": made["clientId"], "clientSecret": made["clientSecret"]}


def test_sso_logs_in_once_the_person_has_answered(sso: SsoOidcServer, keys: Keys) -> None:
    arn = sso.assign("123456789012", "Developer")
    oidc, portal = servers.client(sso.url, "sso-oidc"), servers.client(sso.url, "sso")
    client = registered(oidc, [ACCESS_SCOPE])
    started = oidc.start_device_authorization(**client, startUrl=sso.start_url)
    assert started["userCode"] in started["verificationUriComplete"]
    grant = {**client, "grantType": DEVICE_GRANT, "deviceCode": started["deviceCode"]}
    sso.device_answers.extend(["AuthorizationPendingException", "SlowDownException"])
    for awaited in ("AuthorizationPendingException", "SlowDownException"):
        with pytest.raises(getattr(oidc.exceptions, awaited)):
            oidc.create_token(**grant)
    token = oidc.create_token(**grant)
    assert token["refreshToken"]
    with pytest.raises(oidc.exceptions.InvalidGrantException):
        oidc.create_token(**grant)

    access = token["accessToken"]
    assert portal.list_accounts(accessToken=access)["accountList"][0]["accountId"] == "123456789012"
    roles = portal.list_account_roles(accessToken=access, accountId="123456789012")["roleList"]
    assert [role["roleName"] for role in roles] == ["Developer"]
    granted = portal.get_role_credentials(accessToken=access, accountId="123456789012", roleName="Developer")
    assert keys[granted["roleCredentials"]["accessKeyId"]].arn == arn
    wrong = {"accountId": "123456789012", "roleName": "Admin"}
    refused = botocore_error(lambda: portal.get_role_credentials(accessToken=access, **wrong))
    assert refused == ("ForbiddenException", 403)

    portal.logout(accessToken=access)
    with pytest.raises(portal.exceptions.UnauthorizedException):
        portal.list_accounts(accessToken=access)


@pytest.mark.parametrize("error", ["ExpiredTokenException", "AccessDeniedException"])
def test_sso_errors_are_the_modelled_ones(sso: SsoOidcServer, error: str) -> None:
    oidc = servers.client(sso.url, "sso-oidc")
    client = registered(oidc, [ACCESS_SCOPE])
    code = oidc.start_device_authorization(**client, startUrl=sso.start_url)["deviceCode"]
    sso.device_answers.append(error)
    with pytest.raises(getattr(oidc.exceptions, error)):
        oidc.create_token(**client, grantType=DEVICE_GRANT, deviceCode=code)
    with pytest.raises(oidc.exceptions.InvalidClientException):
        oidc.start_device_authorization(clientId="x", clientSecret="y", startUrl=sso.start_url)


def test_sso_rotates_refresh_tokens_and_gives_none_without_the_scope(sso: SsoOidcServer) -> None:
    oidc = servers.client(sso.url, "sso-oidc")
    client = registered(oidc, [ACCESS_SCOPE])
    _, refresh = sso.new_session()
    grant = {**client, "grantType": "refresh_token"}
    renewed = oidc.create_token(**grant, refreshToken=refresh)
    with pytest.raises(oidc.exceptions.InvalidGrantException):
        oidc.create_token(**grant, refreshToken=refresh)
    assert oidc.create_token(**grant, refreshToken=renewed["refreshToken"])

    without = registered(oidc, [])
    code = oidc.start_device_authorization(**without, startUrl=sso.start_url)["deviceCode"]
    assert "refreshToken" not in oidc.create_token(**without, grantType=DEVICE_GRANT, deviceCode=code)


# --- the suite, the home and the keyring --------------------------------------------------------------------


SKIPPING = """
import pytest
from conftest import need

def test_missing(): need("no-such-command")
def test_skips(): pytest.skip("not today")
def test_documented(): pytest.skip("only on Windows")
@pytest.mark.xfail
def test_known(): assert False
"""


@pytest.mark.parametrize(
    ("required", "summary"),
    [("0", "3 skipped, 1 xfailed"), ("1", "2 failed, 1 skipped, 1 xfailed")],
    ids=["optional", "required"],
)
def test_a_skip_is_a_failure_where_everything_is_required(home: Sandbox, required: str, summary: str) -> None:
    home.write("test_skipping.py", SKIPPING)
    env = {"EKS_TOKEN_TESTS_REQUIRED": required, "PYTHONPATH": str(Path(__file__).parent)}
    options = ["-p", "conftest", "-p", "no:cacheprovider", f"--rootdir={home.home}", str(home.home)]
    assert summary in home.run("-m", "pytest", *options, command=[sys.executable], env=env).stdout


def test_a_test_gets_each_python_by_its_own_path(python: str, request: pytest.FixtureRequest) -> None:
    probe = "import sys; print('py%d.%d' % sys.version_info[:2], sys.prefix == sys.base_prefix)"
    done = subprocess.run([python, "-I", "-S", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [request.node.callspec.id, "True"]


def test_a_home_has_nothing_of_the_outside(home: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of whoever runs the tests")
    done = home.run(command=["env"], env={"LANG": None, "ADDED": "yes"})
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert {"AWS_PROFILE", "LANG"}.isdisjoint(names)
    assert {"HOME", "TMPDIR", "ADDED"} <= names


def test_a_terminal_asks_and_is_answered(home: Sandbox) -> None:
    program = "read -r a; printf 'MFA code: ' >/dev/tty; read -r b </dev/tty; echo $a-$b; test -t 2 && ! test -t 1"
    done = home.run_pty(
        command=["sh", "-c", f"printf 'Name: ' >&2; {program}"], steps=[("Name: ", "x\n"), ("code: ", "y\n")]
    )
    assert (done.returncode, done.stdout) == (0, "x-y\n")
    assert "MFA code: " in done.stderr


def test_a_terminals_program_may_leave_children_behind(home: Sandbox) -> None:
    started = time.monotonic()
    done = home.run_pty(command=["sh", "-c", "sleep 20 & echo $!; exit 3"], steps=[])
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 3
    assert time.monotonic() - started < 15


def test_ctrl_c_at_a_terminal_interrupts(home: Sandbox) -> None:
    # no shell, which may lose what arrives between its own command and the next
    program = "import sys, time; print('ready', file=sys.stderr, flush=True); time.sleep(60)"
    done = home.run_pty(command=[sys.executable, "-c", program], steps=[("ready", "\x03")])
    assert done.returncode == -signal.SIGINT


def test_secrets_are_found_behind_any_encoding(home: Sandbox) -> None:
    secret = "top/secret+value=="
    encoded = base64.urlsafe_b64encode(b"https://x/?token=top%2Fsecret%2Bvalue%3D%3D").decode().rstrip("=")
    home.write("plain", f"x{secret}y")
    home.write("percent", "top%2fsecret%2Bvalue%3D%3D")
    home.write("token", f'{{"token":"k8s-aws-v1.{encoded}"}}')
    home.write("harmless", "top secret")
    assert [path.name for path, _ in home.secrets_found([secret])] == ["percent", "plain", "token"]


def test_the_keyring_is_empty_and_takes_items(home: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    (tool,) = need("secret-tool")
    assert keyring_daemon.stored() == []
    store = home.run("store", "--label=x", "service", "s", "username", "u", command=[tool], stdin="hidden")
    assert store.returncode == 0, store.stderr
    assert [item["username"] for item in keyring_daemon.stored()] == ["u"]
    assert home.run("lookup", "service", "s", command=[tool]).stdout == "hidden"
    with keyring_daemon.locked():
        assert home.run("lookup", "service", "s", command=[tool]).returncode != 0
    assert home.run("lookup", "service", "s", command=[tool]).stdout == "hidden"
