"""What an EKS cluster does with a token: the rules of aws-iam-authenticator and of STS behind it.

The authenticator looks at the presigned URL and then sends it to STS; here the second step is to compute the
signature again. This module does not use botocore, so that mistakes in its signer or in our use of it show.

Sources: kubernetes-sigs/aws-iam-authenticator, pkg/token/token.go and pkg/endpoints/partitions.go; "Create a
signed AWS API request" and "Common errors" in the AWS documentation.
"""

import base64
import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

PREFIX = "k8s-aws-v1."
MAX_BYTES = 4096
LIFETIME = 15 * 60
# STS itself tolerates five minutes, but a token dated so far ahead would still be our bug
MAX_AHEAD = 60
CLUSTER_HEADER = "x-k8s-aws-id"
ALGORITHM = "AWS4-HMAC-SHA256"
ALLOWED = {"action", "version", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires"} | {
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
}


class Domains(NamedTuple):
    """The STS domains of a partition, and the pattern of its regions."""

    regions: str
    domain: str
    dual_stack: str | None = None


PARTITIONS = {
    "aws-cn": Domains(r"cn-", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    "aws-us-gov": Domains(r"us-gov-", "amazonaws.com", "api.aws"),
    "aws-eusc": Domains(r"eusc-", "amazonaws.eu", "api.amazonwebservices.eu"),
    "aws-iso": Domains(r"us-iso-", "c2s.ic.gov"),
    "aws-iso-b": Domains(r"us-isob-", "sc2s.sgov.gov"),
    "aws-iso-e": Domains(r"eu-isoe-", "cloud.adc-e.uk"),
    "aws-iso-f": Domains(r"us-isof-", "csp.hci.ic.gov"),
    # last: a region that matches no other partition gets the commercial names, as in AWS's SDK for Go
    "aws": Domains(r"", "amazonaws.com", "api.aws"),
}


class Refused(Exception):
    """The cluster would answer 401; the message says why."""


class Key(NamedTuple):
    """What STS knows about an access key id. `expires` is in seconds since the epoch."""

    secret: str
    arn: str
    session_token: str | None = None
    expires: float | None = None


class Identity(NamedTuple):
    """Who signed the token. `arn` is STS's, `canonical_arn` what aws-auth entries and access entries name."""

    arn: str
    canonical_arn: str
    account: str
    session_name: str
    access_key_id: str
    host: str
    signed_at: float


Secrets = Mapping[str, tuple[str, str] | Key] | Callable[[str], tuple[str, str] | Key | None]


def verify(
    token: str,
    *,
    cluster: str,
    secrets: Secrets,
    now: float | None = None,
    partition: str = "aws",
) -> Identity:
    """Returns the principal that `cluster` would see, or raises Refused."""
    now = time.time() if now is None else now
    url = urlsplit(decoded_url(token))
    if url.scheme != "https":
        raise Refused(f"unexpected scheme {url.scheme!r}")
    region = region_of(url.netloc, partition)
    if url.path != "/" or url.fragment:
        raise Refused("unexpected path or fragment")
    query = parse_query(url.query)
    parameters = whitelisted(query)
    if parameters.get("action") != "GetCallerIdentity":
        raise Refused("unexpected Action")
    signed_headers = parameters.get("x-amz-signedheaders", "").split(";")
    if CLUSTER_HEADER not in signed_headers:
        raise Refused(f"{CLUSTER_HEADER} is not among the signed headers")
    if not re.fullmatch(r"[0-9]{1,4}", expires := parameters.get("x-amz-expires", "")) or int(expires) > 900:
        raise Refused(f"invalid X-Amz-Expires {expires!r}")
    date = parameters.get("x-amz-date", "")
    signed_at = seconds(date)
    if now > signed_at + LIFETIME:
        raise Refused("X-Amz-Date is more than 15 minutes ago: expired")
    if signed_at > now + MAX_AHEAD:
        raise Refused("X-Amz-Date is in the future")

    # from here on, these are the rules of STS
    if parameters.get("version") != "2011-06-15" or parameters.get("x-amz-algorithm") != ALGORITHM:
        raise Refused("unknown Version or X-Amz-Algorithm")
    access_key_id, _, scope = parameters.get("x-amz-credential", "").partition("/")
    if scope != f"{date[:8]}/{region}/sts/aws4_request":
        raise Refused(f"the credential's scope {scope!r} is not that of {url.netloc} on {date[:8]}")
    key = look_up(secrets, access_key_id)
    if key.expires is not None and now >= key.expires:
        raise Refused("the credentials that signed the token are expired")
    if parameters.get("x-amz-security-token") != key.session_token:
        raise Refused("X-Amz-Security-Token is not the one of this access key")
    expected = signature(
        key.secret,
        date=date,
        scope=scope,
        method="GET",
        path="/",
        query=[pair for pair in query if pair[0].lower() != "x-amz-signature"],
        headers={"host": url.netloc, CLUSTER_HEADER: cluster},
        signed_headers=signed_headers,
        payload_hash=hashlib.sha256().hexdigest(),
    )
    if not hmac.compare_digest(expected.encode(), parameters.get("x-amz-signature", "").encode()):
        raise Refused("the signature is not that of this URL, key and cluster")
    return identity(key.arn, access_key_id, url.netloc, signed_at)


def decoded_url(token: str) -> str:
    if len(token.encode()) > MAX_BYTES:
        raise Refused("the token is too large")
    if not token.startswith(PREFIX):
        raise Refused(f"the token does not begin with {PREFIX}")
    encoded = token.removeprefix(PREFIX)
    # Python's decoder skips other characters and ignores the unused bits at the end
    if not re.fullmatch(r"[A-Za-z0-9_-]+", encoded):
        raise Refused("the token is not base64url without padding")
    try:
        decoded = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        url = decoded.decode("ascii")
    except ValueError as error:
        raise Refused(f"the token is not base64url of a URL: {error}") from None
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != encoded.encode():
        raise Refused("the token is not canonical base64url")
    return url


def region_of(host: str, partition: str) -> str:
    """The signing region of an STS host that a cluster in `partition` accepts."""
    if host == "sts.amazonaws.com":
        if partition != "aws":
            raise Refused(f"the global host is not supported in {partition}")
        return "us-east-1"
    labels = host.split(".")
    region = labels[1] if len(labels) > 3 else ""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", region):
        raise Refused(f"{host!r} is not an STS host")
    if host not in sts_hosts(region):
        raise Refused(f"{host!r} is not an STS host of {region}")
    own = PARTITIONS[partition]
    if ".".join(labels[2:]) not in (own.domain, own.dual_stack):
        raise Refused(f"{host!r} is not an STS host of the partition {partition}")
    return region


def sts_hosts(region: str) -> set[str]:
    name, domains = next((name, d) for name, d in PARTITIONS.items() if re.match(d.regions, region))
    # GovCloud's plain STS hosts are its FIPS hosts
    hosts = {f"sts.{region}.{domains.domain}"}
    if name != "aws-us-gov":
        hosts.add(f"sts-fips.{region}.{domains.domain}")
    if domains.dual_stack:
        hosts |= {f"{service}.{region}.{domains.dual_stack}" for service in ("sts", "sts-fips")}
    return hosts


def parse_query(query: str) -> list[tuple[str, str]]:
    """The pairs of a query string, as strict as Go: no `;` and no broken percent escape."""
    if ";" in query or re.search(r"%(?![0-9A-Fa-f]{2})", query):
        raise Refused("malformed query")
    pairs = [part.partition("=") for part in query.split("&") if part]
    try:
        return [(form_decoded(name), form_decoded(value)) for name, _, value in pairs]
    except UnicodeDecodeError:
        raise Refused("malformed query") from None


def form_decoded(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ")).decode()


def whitelisted(query: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The values by lower-case name. Each name must be allowed and occur once."""
    values: dict[str, str] = {}
    for name, value in query:
        if name.lower() not in ALLOWED:
            raise Refused(f"non-whitelisted query parameter {name!r}")
        if name.lower() in values:
            raise Refused(f"duplicate query parameter {name!r}")
        values[name.lower()] = value
    return values


def seconds(date: str) -> float:
    try:
        return calendar.timegm(time.strptime(date, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        raise Refused(f"invalid X-Amz-Date {date!r}") from None


def look_up(secrets: Secrets, access_key_id: str) -> Key:
    entry = secrets(access_key_id) if callable(secrets) else secrets.get(access_key_id)
    if entry is None:
        raise Refused(f"unknown access key id {access_key_id!r}")
    return Key(*entry)


def signature(
    secret: str,
    *,
    date: str,
    scope: str,
    method: str,
    path: str,
    query: Iterable[tuple[str, str]],
    headers: Mapping[str, str],
    signed_headers: Iterable[str],
    payload_hash: str,
) -> str:
    """The hexadecimal SigV4 signature. `query` is decoded; `headers` are those received, in lower case."""
    signed_headers = list(signed_headers)
    if signed_headers != sorted(signed_headers) or "host" not in signed_headers:
        raise Refused("the signed headers are not sorted, or host is not among them")
    if missing := [name for name in signed_headers if name not in headers]:
        raise Refused(f"signed, but not sent: {', '.join(missing)}")
    canonical_request = "\n".join(
        [
            method,
            quote(path, safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in sorted((encoded(n), encoded(v)) for n, v in query)),
            *(f"{name}:{' '.join(headers[name].split())}" for name in signed_headers),
            "",
            ";".join(signed_headers),
            payload_hash,
        ]
    )
    hashed_request = hashlib.sha256(canonical_request.encode()).hexdigest()
    string_to_sign = f"{ALGORITHM}\n{date}\n{scope}\n{hashed_request}"
    key = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, string_to_sign.encode(), "sha256").hex()


def encoded(text: str) -> str:
    return quote(text, safe="-_.~")


def identity(arn: str, access_key_id: str, host: str, signed_at: float) -> Identity:
    _, partition, service, _, account, resource = arn.split(":", 5)
    canonical, session_name = arn, ""
    if service == "sts" and resource.startswith("assumed-role/"):
        _, role, session_name = resource.split("/", 2)
        canonical = f"arn:{partition}:iam::{account}:role/{role}"
    return Identity(arn, canonical, account, session_name, access_key_id, host, signed_at)
