"""Section 7: a token that clusters accept, made from credentials. botocore, the verifier and the AWS CLI check it."""

import functools
import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from conftest import Completed, KeyringDaemon, Sandbox, assert_fails
from servers import AccessKey, Keys
from verifier import decoded_url, verify

import eks_token
from eks_token import Credentials, Endpoint, Problem, Vault

ALICE = "arn:aws:iam::123456789012:user/alice"
KEY = AccessKey("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ALICE)
BARE = ["--cluster-name", "demo", "--region", "eu-west-1"]
GET_TOKEN = ["eks", "get-token", "--cluster-name", "demo"]
TOKEN = ["token", "-i", "demo"]


def token_of(done: Completed) -> str:
    assert done.returncode == 0, done.stderr
    token: str = json.loads(done.stdout)["status"]["token"]
    return token


def parameters(url: str) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(urlsplit(url).query).items()}


def host_of(done: Completed) -> str:
    return urlsplit(decoded_url(token_of(done))).netloc


# --- hosts --------------------------------------------------------------------------------------------------


@functools.cache
def partitions() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = botocore.session.Session().get_data("partitions")["partitions"]
    return found


def partition_of(region: str) -> str:
    return next(str(each["id"]) for each in partitions() if region in each["regions"])


@functools.cache
def judge(legacy: bool) -> botocore.session.Session:
    """A session whose clients show where botocore would send the call."""
    session = botocore.session.Session(session_vars={"profile": (None, [], None, None)})
    session.set_config_variable("sts_regional_endpoints", "legacy" if legacy else "regional")
    return session


def botocores_endpoint(region: str, fips: bool, dual_stack: bool, legacy: bool) -> Endpoint | None:
    """The host and region that botocore's own client presigns for; None if it refuses."""
    try:
        client = judge(legacy).create_client(
            "sts",
            region_name=region,
            config=Config(use_fips_endpoint=fips, use_dualstack_endpoint=dual_stack),
            aws_access_key_id=KEY.id,
            aws_secret_access_key=KEY.secret,
        )
        url = client.generate_presigned_url("get_caller_identity")
    except BotoCoreError:
        return None
    scope = parameters(url)["X-Amz-Credential"].split("/")
    return Endpoint(urlsplit(url).netloc, scope[2])


def our_endpoint(region: str, fips: bool, dual_stack: bool, legacy: bool) -> Endpoint | None:
    try:
        return eks_token.sts_endpoint(region, "aws", fips, dual_stack, legacy)
    except Problem:
        return None


REGIONS = [region for each in partitions() for region in each["regions"] if "global" not in region]
VARIANTS = [(False, False), (True, False), (False, True), (True, True)]  # FIPS, dual-stack
SAMPLES = [
    *("us-east-1", "us-east-2", "eu-west-1", "cn-north-1", "us-gov-west-1", "eusc-de-east-1"),
    *("us-iso-east-1", "us-isob-east-1", "eu-isoe-west-1", "us-isof-south-1"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("region", REGIONS)
def test_a_regions_host_is_the_one_that_botocore_uses(region: str, variant: tuple[bool, bool]) -> None:
    fips, dual_stack = variant
    # the verifier does not know a dual-stack domain for the ISO partitions, so the setting is ignored there
    known = dual_stack and "-iso" not in region
    for legacy in (False, True):
        assert our_endpoint(region, fips, dual_stack, legacy) == botocores_endpoint(region, fips, known, legacy)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("region", SAMPLES)
def test_clusters_in_the_partition_accept_the_token(region: str, variant: tuple[bool, bool]) -> None:
    for legacy in (False, True):
        endpoint = eks_token.sts_endpoint(region, "", *variant, legacy)
        url, issued = eks_token.presign(Credentials(*KEY[:2], None, None), endpoint, "demo")
        token = eks_token.bearer_token(url)
        secrets = {KEY.id: (KEY.secret, KEY.arn)}
        who = verify(token, cluster="demo", secrets=secrets, partition=partition_of(region))
        assert (who.host, who.signed_at) == (endpoint.host, issued)
        assert parameters(url)["X-Amz-Expires"] == "60"


@pytest.mark.parametrize("region", ["us-east-1-fips", "fips-us-east-1"])
def test_an_old_pseudo_region_is_the_fips_endpoint_of_its_region(region: str) -> None:
    assert eks_token.sts_endpoint(region) == eks_token.sts_endpoint("us-east-1", fips=True)


@pytest.mark.parametrize(
    ("region", "nearest", "host"),
    [
        ("us-east-9", "us-east-", "sts.us-east-9.amazonaws.com"),
        ("eu-atlantis-1", "eu-", "sts.eu-atlantis-1.amazonaws.com"),
        ("cn-north-9", "cn-north-1", "sts.cn-north-9.amazonaws.com.cn"),
        ("us-gov-east-9", "us-gov-east-1", "sts.us-gov-east-9.amazonaws.com"),
        ("us-isob-east-9", "us-isob-east-1", "sts.us-isob-east-9.sc2s.sgov.gov"),
    ],
)
def test_a_region_that_botocore_does_not_know_is_used_with_a_warning(
    region: str, nearest: str, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eks_token.sts_endpoint(region) == Endpoint(host, region)
    (line,) = capsys.readouterr().err.splitlines()
    warning = f"eks-token: warning: the region {region} is not known here; the nearest known one is {nearest}"
    assert line.startswith(warning)


@pytest.mark.parametrize(
    "region",
    [
        pytest.param("mars-1", id="not on Earth"),
        pytest.param("us-east", id="cut off"),
        pytest.param("us-east-1a", id="an availability zone"),
        pytest.param("US-EAST-1", id="capital letters"),
        pytest.param("us-east-1.example.com", id="a host"),
        pytest.param("us-east-1/", id="a path"),
        pytest.param("us-east-1\n", id="a line break"),
        pytest.param("us-eàst-1", id="a letter beyond ASCII"),
        pytest.param("us-east-\N{ARABIC-INDIC DIGIT ONE}", id="a digit beyond ASCII"),
    ],
)
def test_what_is_not_a_region_is_rejected(region: str) -> None:
    with pytest.raises(Problem, match="is not an AWS region") as caught:
        eks_token.sts_endpoint(region)
    assert caught.value.status == 2


def test_endpoint_url_settings_do_not_change_the_host(home: Sandbox) -> None:
    home.credentials(KEY.profile())
    home.config(
        "[default]\nendpoint_url = https://a.example\nservices = own\n"
        "[services own]\nsts =\n  endpoint_url = https://b.example\n"
    )
    env = {"AWS_ENDPOINT_URL": "https://c.example", "AWS_ENDPOINT_URL_STS": "https://d.example"}
    assert host_of(home.run(*BARE, env=env)) == "sts.eu-west-1.amazonaws.com"
    endpoint = ["--endpoint-url", "https://e.example"]
    assert host_of(home.run(*GET_TOKEN, "--region", "eu-west-1", *endpoint)) == "sts.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("line", "env", "config", "host"),
    [
        pytest.param(GET_TOKEN, {}, "", "sts.amazonaws.com", id="aws: no region, so the global host"),
        pytest.param(TOKEN, {}, "", "sts.us-east-1.amazonaws.com", id="authenticator: no region, so us-east-1"),
        pytest.param(GET_TOKEN, {}, "region = eu-west-2", "sts.eu-west-2.amazonaws.com", id="aws: the profile's"),
        pytest.param(TOKEN, {}, "region = eu-west-2", "sts.eu-west-2.amazonaws.com", id="authenticator: the profile's"),
        pytest.param(
            GET_TOKEN,
            {"AWS_REGION": "eu-west-3", "AWS_DEFAULT_REGION": "eu-west-1"},
            "region = eu-west-2",
            "sts.eu-west-3.amazonaws.com",
            id="AWS_REGION first",
        ),
        pytest.param(
            GET_TOKEN,
            {"AWS_DEFAULT_REGION": "eu-west-1"},
            "region = eu-west-2",
            "sts.eu-west-1.amazonaws.com",
            id="AWS_DEFAULT_REGION before the profile",
        ),
        pytest.param(
            [*GET_TOKEN, "--region=cn-north-1"], {"AWS_REGION": "x"}, "", "sts.cn-north-1.amazonaws.com.cn", id="option"
        ),
        pytest.param(
            [*GET_TOKEN, "--region", "us-west-2"],
            {"AWS_USE_FIPS_ENDPOINT": "true"},
            "",
            "sts-fips.us-west-2.amazonaws.com",
            id="FIPS from a variable",
        ),
        pytest.param(
            [*GET_TOKEN, "--region", "us-west-2"],
            {},
            "use_fips_endpoint = true\nuse_dualstack_endpoint = true",
            "sts-fips.us-west-2.api.aws",
            id="FIPS and dual-stack from the config",
        ),
        pytest.param(BARE, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "", "sts.eu-west-1.api.aws", id="dual-stack"),
        pytest.param(BARE, {}, "sts_regional_endpoints = legacy", "sts.amazonaws.com", id="legacy from the config"),
        pytest.param(
            BARE, {"AWS_STS_REGIONAL_ENDPOINTS": "legacy"}, "", "sts.amazonaws.com", id="legacy from a variable"
        ),
        pytest.param(
            BARE,
            {"AWS_STS_REGIONAL_ENDPOINTS": "regional"},
            "sts_regional_endpoints = legacy",
            "sts.eu-west-1.amazonaws.com",
            id="the variable before the config",
        ),
    ],
)
def test_the_region_and_the_variant_of_the_host_come_from_where_aws_documents_them(
    line: Sequence[str], env: Mapping[str, str], config: str, host: str, home: Sandbox, keys: Keys
) -> None:
    keys.learn(*KEY)
    home.credentials(KEY.profile())
    home.config(f"[default]\n{config}\n")
    done = home.run(*line, env=env)
    assert host_of(done) == host
    partition = "aws-cn" if host.endswith(".cn") else "aws"
    assert verify(token_of(done), cluster="demo", secrets=keys, partition=partition).arn == KEY.arn


def test_a_stored_identitys_region_is_used(home: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    bus = {"DBUS_SESSION_BUS_ADDRESS": keyring_daemon.address}
    given = json.dumps({"Version": 1, "AccessKeyId": KEY.id, "SecretAccessKey": KEY.secret})
    stored = home.run("login", "dev", "--stdin", "--no-verify", "--region", "ap-south-1", stdin=given, env=bus)
    assert stored.returncode == 0, stored.stderr
    for line in (GET_TOKEN, TOKEN):
        assert host_of(home.run(*line, env=bus)) == "sts.ap-south-1.amazonaws.com"
        assert host_of(home.run(*line, env={**bus, "AWS_REGION": "eu-west-1"})) == "sts.eu-west-1.amazonaws.com"


# --- how long it is valid -----------------------------------------------------------------------------------


def timestamps(done: Completed) -> tuple[int, int]:
    """When the token was signed, and its expirationTimestamp."""
    date = parameters(decoded_url(token_of(done)))["X-Amz-Date"]
    issued = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    ends = json.loads(done.stdout)["status"]["expirationTimestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", ends)
    return int(issued), int(datetime.fromisoformat(ends).timestamp())


def session(lifetime: float) -> dict[str, str]:
    """Temporary credentials that expire in this many seconds, as a tool exports them."""
    return {
        **KEY.environment,
        "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2Vj" + "x" * 400,
        "AWS_CREDENTIAL_EXPIRATION": eks_token.rfc3339(time.time() + lifetime),
    }


@pytest.mark.parametrize(
    ("lifetime", "cached"),
    [
        pytest.param(3600, True, id="the token expires first"),
        pytest.param(600, True, id="the credentials expire first"),
        pytest.param(100, False, id="about to expire"),
        pytest.param(30, False, id="in their last minute"),
    ],
)
def test_a_token_expires_after_14_minutes_or_a_minute_before_its_credentials(
    lifetime: int, cached: bool, home: Sandbox
) -> None:
    env = session(lifetime)
    done = home.run(*BARE, env=env)
    issued, ends = timestamps(done)
    credentials_end = int(datetime.fromisoformat(env["AWS_CREDENTIAL_EXPIRATION"]).timestamp())
    assert ends == min(issued + 14 * 60, credentials_end - 60)
    assert any((home.cache / "tokens").rglob("%answer")) == cached


def test_credentials_that_do_not_expire_make_tokens_of_14_minutes(home: Sandbox) -> None:
    issued, ends = timestamps(home.run(*BARE, env=KEY.environment))
    assert ends - issued == 14 * 60
    assert abs(issued - time.time()) < 60


def test_expired_credentials_are_an_error(home: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    assert_fails(home.run(*BARE, env=session(-5)), "expired")

    bus = {"DBUS_SESSION_BUS_ADDRESS": keyring_daemon.address}
    given = {"Version": 1, "AccessKeyId": KEY.id, "SecretAccessKey": KEY.secret, "SessionToken": "x" * 100}
    given["Expiration"] = eks_token.rfc3339(time.time() + 600)
    stored = home.run("login", "dev", "--stdin", "--no-verify", stdin=json.dumps(given), env=bus)
    assert stored.returncode == 0, stored.stderr
    issued, ends = timestamps(home.run(*BARE, env=bus))
    assert issued + 9 * 60 - 60 < ends <= issued + 9 * 60

    vault = Vault(home.environment(bus))
    entry = vault.get_json("identity:dev")
    assert entry is not None
    vault.set_json("identity:dev", {**entry, "expiration": eks_token.rfc3339(time.time() - 5)})
    done = home.run(*BARE, "--refresh", env=bus)
    assert_fails(done, "expired")
    assert "eks-token login dev" in done.stderr


TIMES = [
    ("2026-11-25T12:00:00Z", 0),
    ("2026-11-25t12:00:00z", 0),
    ("2026-11-25T12:00:00", 0),
    ("2026-11-25 12:00", 0),
    ("2026-11-25T12:00:00UTC", 0),
    ("2026-11-25T12:00:00.5Z", 0.5),
    ("2026-11-25T12:00:00.123456789+00:00", 0.123457),
    ("2026-11-25T13:30:00+01:30", 0),
    ("2026-11-25T13:30:00+0130", 0),
    ("2026-11-25T09:00:00-03", 0),
    ("20261125T120000Z", 0),
    ("2026-11-25", -12 * 3600),
    ("2026-11-25T11:59:60Z", 0),
]
"""Times as AWS, old and new AWS CLIs, Go and botocore write them, in seconds after 12:00."""


@pytest.mark.parametrize(("text", "seconds"), TIMES)
def test_every_spelling_of_a_time_is_read(text: str, seconds: float) -> None:
    noon = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
    assert eks_token.parse_time(text) - noon == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "12:00:00Z", "2026-02-30", "0000-01-01", "2026-13-01T00:00:00Z", "2026-11-25T25:00:00Z"),
        *("2026-11-25T12:00:00+25:00", "2026-11-25T12:00:99Z", "2026-11-25T12:00:00ZZ", "2026-11-25T12:00:00Z\n"),
        "٢٠٢٦-11-25T12:00:00Z",
    ],
)
def test_what_is_not_a_time_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        eks_token.parse_time(text)


# --- its format ---------------------------------------------------------------------------------------------


def test_the_answer_is_one_line_of_an_exec_credential(home: Sandbox) -> None:
    done = home.run(*BARE, env=KEY.environment)
    assert done.stdout.count("\n") == 1
    assert done.stdout.endswith("}\n")
    answer = json.loads(done.stdout)
    assert answer | {"status": {}} == {
        "kind": "ExecCredential",
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "spec": {},
        "status": {},
    }
    assert answer["status"].keys() == {"token", "expirationTimestamp"}


def test_the_session_token_is_part_of_the_token(home: Sandbox, keys: Keys) -> None:
    key_id, key = keys.mint("arn:aws:sts::123456789012:assumed-role/admin/alice+/=", 3600)
    env = {**AccessKey(key_id, key.secret, "").environment, "AWS_SESSION_TOKEN": str(key.session_token)}
    who = verify(token_of(home.run(*BARE, env=env)), cluster="demo", secrets=keys)
    assert (who.access_key_id, who.session_name) == (key_id, "alice+/=")


def test_a_token_that_is_too_long_for_a_cluster_is_an_error(home: Sandbox) -> None:
    assert_fails(home.run(*BARE, env={**KEY.environment, "AWS_SESSION_TOKEN": "x" * 4096}), "accept at most 4096")
    assert not (home.cache / "tokens").exists()


def test_the_longest_token_has_4096_bytes() -> None:
    assert len(eks_token.bearer_token("x" * 3063)) == 4095  # base64 never has one character more
    with pytest.raises(Problem, match="4097"):
        eks_token.bearer_token("x" * 3064)


def test_a_token_is_only_for_its_cluster(home: Sandbox, keys: Keys) -> None:
    keys.learn(*KEY)
    for option, cluster in (("--cluster-name", "demo"), ("--cluster-id", "0a1b2c3d-4e5f"), ("--cluster-id", "x y/é")):
        token = token_of(home.run(option, cluster, "--region", "eu-west-1", env=KEY.environment))
        assert verify(token, cluster=cluster, secrets=keys).arn == KEY.arn


# --- --output, --query, --token-only ------------------------------------------------------------------------


ODD_NAMES = {
    "dots": "a.b",
    "an ARN": "arn:aws:eks:us-east-2:111122223333:cluster/demo",
    "Greek": "δοκιμή",
    "200 characters": "a" * 200,
    "like an option": "--role-arn=x",
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES.keys())
def test_aws_eks_get_token_signs_any_name_that_the_aws_cli_signs(
    name: str, home: Sandbox, keys: Keys, aws: str
) -> None:
    keys.learn(*KEY)
    line = ["eks", "get-token", f"--cluster-name={name}", "--region", "us-east-2"]
    for command in (None, [aws]):
        token = token_of(home.run(*line, command=command, env=KEY.environment))
        assert verify(token, cluster=name, secrets=keys).arn == KEY.arn


def masked(text: str) -> str:
    text = re.sub(r"k8s-aws-v1\.[\w-]+", "TOKEN", text)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME", text)


@pytest.mark.parametrize(
    "options",
    [
        ["--output", "text"],
        ["--output", "json"],
        ["--query", "status.token", "--output", "text"],
        ["--query", "status.token"],
        ["--query", "status", "--output", "text"],
        ["--query", "[kind, apiVersion]", "--output", "text"],
        ["--query", "[status, status]", "--output", "text"],
        ["--query", "{Kind: kind, All: [{a: kind}, {a: apiVersion}], None: `[]`}", "--output", "text"],
        ["--query", "{a: [kind, kind], b: {c: {d: kind}}, e: `[[1, 2], [3], 4]`}", "--output", "text"],
        ["--query", "[[kind, kind], [apiVersion]]", "--output", "text"],
        ["--query", "spec", "--output", "text"],
        ["--query", "nothing", "--output", "text"],
        ["--query", "length(kind)", "--output", "text"],
        ["--query", "kind == 'x'", "--output", "text"],
        ["--query", "nothing"],
    ],
    ids=" ".join,
)
def test_output_and_query_print_what_the_aws_cli_prints(options: list[str], home: Sandbox, aws: str) -> None:
    line = [*GET_TOKEN, "--region", "eu-west-1", *options]
    ours = home.run(*line, env=KEY.environment)
    theirs = home.run(*line, env=KEY.environment, command=[aws])
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr + theirs.stderr
    if "text" in options:
        assert masked(ours.stdout).rstrip("\n") == masked(theirs.stdout).rstrip("\n")
    else:
        assert json.loads(masked(ours.stdout) or "null") == json.loads(masked(theirs.stdout) or "null")


@pytest.mark.parametrize("query", ["status.", "[", "'", "nofunction(kind)", "length(spec.x)"])
def test_a_query_that_is_not_jmespath_is_rejected(query: str, home: Sandbox) -> None:
    assert_fails(
        home.run(*GET_TOKEN, "--region", "eu-west-1", "--query", query, env=KEY.environment), "--query", status=2
    )


def test_token_only_prints_the_bare_token(home: Sandbox, keys: Keys) -> None:
    keys.learn(*KEY)
    for _ in range(2):  # minted, then cached
        done = home.run(*TOKEN, "--token-only", "--region", "eu-west-1", env=KEY.environment)
        assert (done.returncode, done.stdout.count("\n")) == (0, 1)
        assert verify(done.stdout.rstrip("\n"), cluster="demo", secrets=keys).arn == KEY.arn
