"""Servers for the tests, all on 127.0.0.1 and free ports.

ApiServer         a Kubernetes API server that accepts tokens as an EKS cluster does
MotoServer        moto in a separate process: IAM, STS and EKS
RecordingProxy    a proxy in front of moto (AWS_ENDPOINT_URL): checks signatures, trust and MFA, which moto leaves
                  out, and records, holds, fails or counts calls
SsoOidcServer     IAM Identity Center: device authorization and the access portal

They share a `Keys`, so that the API server's verifier knows what any of them mints.
"""

import base64
import functools
import hashlib
import http.client
import ipaddress
import json
import re
import secrets
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

import verifier
from verifier import Key, Refused

T = TypeVar("T")

WAIT = 30.0
"""The seconds to wait for a server to start, or for a held call to be released."""


class Keys(dict[str, Key]):
    """Access key ids and what STS knows about them."""

    def learn(
        self,
        access_key_id: str,
        secret: str,
        arn: str,
        session_token: str | None = None,
        expires: float | None = None,
    ) -> None:
        self[access_key_id] = Key(secret, arn, session_token, expires)

    def mint(self, arn: str, lifetime: float) -> tuple[str, Key]:
        """New temporary credentials for `arn`, with the length and alphabet that AWS uses."""
        access_key_id = "ASIA" + base64.b32encode(secrets.token_bytes(10)).decode()
        key = Key(
            secret=base64.b64encode(secrets.token_bytes(30)).decode(),
            arn=arn,
            session_token="IQoJb3JpZ2luX2Vj" + base64.b64encode(secrets.token_bytes(480)).decode() + "==",
            expires=time.time() + lifetime,
        )
        self[access_key_id] = key
        return access_key_id, key


# --- a small HTTP server ------------------------------------------------------------------------------------


class Incoming(NamedTuple):
    """A request as a server sees it; header names are in lower case."""

    method: str
    target: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str] = {}

    @classmethod
    def json(cls, status: int, value: object, **headers: str) -> Self:
        names = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | names)


class HttpServer:
    """Answers each request with what `reply` returns, in one thread for each connection."""

    scheme = "http"

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # headers and body are two writes; without this, each answer would wait for a delayed ACK
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                url = urlsplit(self.path)
                incoming = Incoming(
                    self.command,
                    self.path,
                    url.path,
                    parse_qsl(url.query, keep_blank_values=True),
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(length),
                )
                reply = outer.reply(incoming)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            # fifty processes may call at once
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                # tests kill clients, and kubectl closes connections; anything else is a bug in a server
                if not isinstance(sys.exception(), OSError):
                    super().handle_error(request, client_address)  # type: ignore[arg-type]

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self._server.server_address[1]}"

    def reply(self, incoming: Incoming) -> Reply:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


# --- Kubernetes ---------------------------------------------------------------------------------------------


class Certificate(NamedTuple):
    pem: bytes
    context: ssl.SSLContext


@functools.cache
def certificate() -> Certificate:
    """A self-signed certificate for 127.0.0.1 and a TLS context that serves it, made once in each process."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "eks-token tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # tests set the clocks of clients only within this range
        .not_valid_before(now - timedelta(days=365))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "server.pem"
        path.write_bytes(pem + key_pem)
        context.load_cert_chain(path)
    return Certificate(pem, context)


class Verdict(NamedTuple):
    """What the API server thought of a request: `principal` is an ARN, or None and `reason` says why."""

    path: str
    token: str | None
    principal: str | None
    reason: str | None


class ApiServer(HttpServer):
    """As much of a Kubernetes API server as `kubectl get namespaces` needs."""

    scheme = "https"

    def __init__(self, keys: Keys, *, cluster: str = "demo", partition: str = "aws") -> None:
        super().__init__()
        # the connection's thread does the handshake, so that a slow client does not block the others
        self._server.socket = certificate().context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.keys = keys
        self.cluster = cluster
        self.partition = partition
        self.clock_offset = 0.0
        """How many seconds this server's clock is ahead."""
        self.static_token: str | None = None
        """A bearer token that is accepted without checks, for measurements."""
        self.verdicts: list[Verdict] = []

    @property
    def principals(self) -> list[str | None]:
        return [verdict.principal for verdict in self.verdicts]

    @property
    def ca_data(self) -> str:
        return base64.b64encode(certificate().pem).decode()

    def kubeconfig(self, exec_entry: Mapping[str, Any] | None = None, **user: object) -> str:
        """A kubeconfig for this server, as JSON. `exec_entry` needs a `command`; the rest has defaults."""
        if exec_entry is not None:
            defaults = {
                "apiVersion": "client.authentication.k8s.io/v1beta1",
                "interactiveMode": "IfAvailable",
                "provideClusterInfo": False,
            }
            user["exec"] = defaults | dict(exec_entry)
        cluster = {"server": self.url, "certificate-authority-data": self.ca_data}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "demo", "cluster": cluster}],
                "users": [{"name": "demo", "user": user}],
                "contexts": [{"name": "demo", "context": {"cluster": "demo", "user": "demo"}}],
                "current-context": "demo",
            }
        )

    def judge(self, path: str, authorization: str) -> Verdict:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            return Verdict(path, None, None, "no bearer token")
        if self.static_token is not None and token == self.static_token:
            return Verdict(path, token, "static", None)
        try:
            identity = verifier.verify(
                token,
                cluster=self.cluster,
                secrets=self.keys,
                now=time.time() + self.clock_offset,
                partition=self.partition,
            )
        except Refused as error:
            return Verdict(path, token, None, str(error))
        return Verdict(path, token, identity.arn, None)

    def reply(self, incoming: Incoming) -> Reply:
        verdict = self.judge(incoming.path, incoming.headers.get("authorization", ""))
        self.verdicts.append(verdict)
        if verdict.principal is None:
            return Reply.json(401, status(401, "Unauthorized", "Unauthorized"))
        document = DOCUMENTS.get(incoming.path)
        if document is None:
            message = "the server could not find the requested resource"
            return Reply.json(404, status(404, "NotFound", message))
        if incoming.path == "/api/v1/namespaces" and "as=Table" in incoming.headers.get("accept", ""):
            document = NAMESPACE_TABLE
        return Reply.json(200, document)


def status(code: int, reason: str, message: str) -> dict[str, object]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


CREATED = "2024-01-01T00:00:00Z"
NAMESPACES = ("default", "kube-system")


def namespace(name: str) -> dict[str, object]:
    return {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": CREATED},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


# aggregated discovery is optional: a client that asks for it also accepts these older documents
DOCUMENTS: dict[str, dict[str, object]] = {
    "/version": {"major": "1", "minor": "31", "gitVersion": "v1.31.0", "platform": "linux/amd64"},
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "namespaces",
                "singularName": "namespace",
                "namespaced": False,
                "kind": "Namespace",
                "verbs": ["get", "list"],
                "shortNames": ["ns"],
            }
        ],
    },
    "/api/v1/namespaces": {
        "kind": "NamespaceList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "1"},
        "items": [namespace(name) for name in NAMESPACES],
    },
}
NAMESPACE_TABLE: dict[str, object] = {
    "kind": "Table",
    "apiVersion": "meta.k8s.io/v1",
    "metadata": {"resourceVersion": "1"},
    "columnDefinitions": [
        {"name": name, "type": "string", "format": "", "description": "", "priority": 0}
        for name in ("Name", "Status", "Age")
    ],
    "rows": [{"cells": [name, "Active", "1y"], "object": namespace(name)} for name in NAMESPACES],
}


# --- AWS ----------------------------------------------------------------------------------------------------

ACCOUNT = "123456789012"
ROOT_KEY = ("AKIAROOTROOTROOTROOT", "root-secret-for-the-tests-own-calls")
"""The keys that the helpers use to prepare moto. The program never gets them."""


class MotoServer:
    """moto's server, in a separate process because its state is global in a process."""

    def __enter__(self) -> Self:
        # not NamedTemporaryFile, because Windows does not open a file again that is deleted when it is closed
        self._directory = tempfile.TemporaryDirectory(prefix="moto-", ignore_cleanup_errors=True)
        self._log = Path(self._directory.name, "log").open("w")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        # port 0 lets the kernel choose, so that no other worker can take the port in between
        self.port = int(wait_for(self._find_port, "moto's server to name its port"))
        return self

    def _find_port(self) -> str | None:
        if self._process.poll() is not None:
            raise RuntimeError(f"moto's server ended: {self.log()}")
        found = re.search(r"Running on http://127\.0\.0\.1:(\d+)", self.log())
        return found and found[1]

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(WAIT)
        self._log.close()
        self._directory.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        self.forward("POST", "/moto-api/reset", {}, b"")

    def forward(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        try:
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            kept = {k: v for k, v in response.getheaders() if k.lower() not in HOP_BY_HOP}
            return Reply(response.status, response.read(), kept)
        finally:
            connection.close()

    def client(self, service: str, region: str = "us-east-1") -> Any:
        """A botocore client that goes directly to moto, for preparations."""
        return client(self.url, service, region)


HOP_BY_HOP = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}


def client(
    endpoint: str, service: str, region: str = "us-east-1", key: Sequence[str] = ROOT_KEY, config: Any = None
) -> Any:
    """A botocore client that ignores the profiles and proxies of the developer who runs the tests.

    `key`: an AccessKey, or an access key id, its secret and perhaps a session token.
    """
    import botocore.session
    from botocore.config import Config

    if isinstance(key, AccessKey):
        key = key[:2]
    session = botocore.session.Session(session_vars={"profile": (None, [], None, None)})
    return session.create_client(
        service,
        region_name=region,
        endpoint_url=endpoint,
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
        aws_session_token=key[2] if len(key) > 2 else None,
        config=Config(retries={"total_max_attempts": 1}, proxies={}).merge(config or Config()),
    )


class AccessKey(NamedTuple):
    """A user's long-term key, which tests write into a profile or store."""

    id: str
    secret: str
    arn: str

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.id, "AWS_SECRET_ACCESS_KEY": self.secret}

    def profile(self, name: str = "default") -> str:
        """A section of ~/.aws/credentials."""
        return f"[{name}]\naws_access_key_id = {self.id}\naws_secret_access_key = {self.secret}\n"


class Role(NamedTuple):
    """The part of a role's trust policy that the proxy enforces. `trusted`: who may assume it; None for anyone."""

    arn: str
    trusted: frozenset[str] | None
    external_id: str | None
    mfa: bool
    max_duration: int


class Call(NamedTuple):
    """A call that the proxy or the SSO server received. `at` is in seconds of time.monotonic()."""

    operation: str
    params: dict[str, Any]
    access_key_id: str | None
    principal: str | None
    host: str
    at: float


class Hold:
    """Calls of one operation wait here. The first one sets `arrived`; `release` lets them all continue."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.release = threading.Event()

    def wait(self) -> None:
        """Waits until a call has arrived."""
        if not self.arrived.wait(WAIT):
            raise TimeoutError("no such call arrived")

    def pause(self) -> None:
        self.arrived.set()
        self.release.wait(WAIT)


class Failure(NamedTuple):
    """An AWS error to answer with. `times`: how many calls get it; None for all."""

    code: str
    message: str
    status: int
    times: int | None


class Recorder:
    """Records, counts, holds, delays or fails calls by operation name."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self._holds: dict[str, Hold] = {}
        self._delays: dict[str, float] = {}
        self._failures: dict[str, Failure] = {}
        self._answers: dict[str, Reply] = {}

    def count(self, operation: str) -> int:
        return sum(call.operation == operation for call in self.calls)

    @property
    def counts(self) -> Counter[str]:
        return Counter(call.operation for call in self.calls)

    def last(self, operation: str) -> Call:
        return [call for call in self.calls if call.operation == operation][-1]

    @contextmanager
    def hold(self, operation: str) -> Iterator[Hold]:
        """Holds every call of `operation` until `release` is set, or the block ends."""
        hold = self._holds[operation] = Hold()
        try:
            yield hold
        finally:
            del self._holds[operation]
            hold.release.set()

    def delay(self, operation: str, seconds: float) -> None:
        self._delays[operation] = seconds

    def fail(self, operation: str, code: str, message: str = "", status: int = 400, times: int | None = None) -> None:
        self._failures[operation] = Failure(code, message, status, times)

    def answer(self, operation: str, status: int, value: object) -> None:
        """Answers `operation` with this JSON (as the REST services do) or with these bytes."""
        self._answers[operation] = Reply(status, value) if isinstance(value, bytes) else Reply.json(status, value)

    def forget(self) -> None:
        """Removes all records, failures, delays and answers."""
        self.calls.clear()
        for scripted in (self._delays, self._failures, self._answers):
            scripted.clear()

    def intervene(self, call: Call) -> Failure | Reply | None:
        """Records the call, delays or holds it if a test wants that, and returns the answer to give instead, if any."""
        self.calls.append(call)
        if hold := self._holds.get(call.operation):
            hold.pause()
        if seconds := self._delays.get(call.operation):
            time.sleep(seconds)
        with self._lock:
            failure = self._failures.get(call.operation)
            if failure and failure.times is not None:
                self._failures[call.operation] = failure._replace(times=failure.times - 1)
                if failure.times <= 1:
                    del self._failures[call.operation]
        return failure or self._answers.get(call.operation)


class AwsError(Exception):
    def __init__(self, code: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


# the paths of the EKS operations in use; other REST calls are named "METHOD /path"
EKS_OPERATIONS = (
    ("GET", r"/clusters", "ListClusters"),
    ("POST", r"/clusters", "CreateCluster"),
    ("GET", r"/clusters/[^/]+", "DescribeCluster"),
)


class RecordingProxy(HttpServer, Recorder):
    """The server that AWS_ENDPOINT_URL names. It adds to moto what AWS does and moto does not.

    Signatures and session tokens are checked; GetCallerIdentity is answered from `keys`; a role can only be
    assumed if it was made here, by those it trusts, with the MFA code of the serial number; GetSessionToken
    mints credentials (moto's are one constant); their lifetime can be below AWS's minimum.
    """

    def __init__(self, moto: MotoServer, keys: Keys) -> None:
        HttpServer.__init__(self)
        Recorder.__init__(self)
        self.moto = moto
        self.keys = keys
        self.mfa_codes: dict[str, str] = {}
        """The correct code by serial number."""
        self.lifetime: float | None = None
        """The lifetime of new credentials in seconds; None for DurationSeconds."""
        self.roles: dict[str, Role] = {}
        self._mfa_sessions: set[str] = set()
        keys.learn(*ROOT_KEY, f"arn:aws:iam::{ACCOUNT}:root")

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.url}

    def client(self, service: str, key: Sequence[str] = ROOT_KEY, region: str = "us-east-1") -> Any:
        return client(self.url, service, region, key)

    # preparing

    def create_user(self, name: str, *, mfa_code: str | None = None) -> AccessKey:
        """A user with an access key. With `mfa_code`, also an MFA device: `mfa_serial(name)`."""
        iam = self.moto.client("iam")
        arn = iam.create_user(UserName=name)["User"]["Arn"]
        key = iam.create_access_key(UserName=name)["AccessKey"]
        self.keys.learn(key["AccessKeyId"], key["SecretAccessKey"], arn)
        if mfa_code is not None:
            self.mfa_codes[mfa_serial(name)] = mfa_code
        return AccessKey(key["AccessKeyId"], key["SecretAccessKey"], arn)

    def create_role(
        self,
        name: str,
        *,
        trusted: Sequence[str] | None = None,
        external_id: str | None = None,
        mfa: bool = False,
        max_duration: int = 3600,
        account: str = ACCOUNT,
    ) -> str:
        """Creates a role and returns its ARN. `trusted`: ARNs of users, roles (not sessions) or account roots."""
        conditions = {
            "StringEquals": {"sts:ExternalId": external_id} if external_id else {},
            "Bool": {"aws:MultiFactorAuthPresent": "true"} if mfa else {},
        }
        policy = {
            "Version": "2012-10-17",
            "Statement": {
                "Effect": "Allow",
                "Action": "sts:AssumeRole",
                "Principal": {"AWS": list(trusted or ["*"])},
                "Condition": {name: test for name, test in conditions.items() if test},
            },
        }
        if account == ACCOUNT:
            self.moto.client("iam").create_role(
                RoleName=name, AssumeRolePolicyDocument=json.dumps(policy), MaxSessionDuration=max_duration
            )
        arn = f"arn:aws:iam::{account}:role/{name}"
        allowed = None if trusted is None else frozenset(trusted)
        self.roles[arn] = Role(arn, allowed, external_id, mfa, max_duration)
        return arn

    def create_cluster(self, name: str, *, region: str = "us-east-1", server: ApiServer | None = None) -> None:
        """Creates an EKS cluster. With `server`, DescribeCluster returns that server's address and certificate."""
        eks = self.moto.client("eks", region)
        role = f"arn:aws:iam::{ACCOUNT}:role/eks"
        cluster = eks.create_cluster(name=name, roleArn=role, resourcesVpcConfig={"subnetIds": ["subnet-1"]})
        if server is not None:
            described = cluster["cluster"] | {
                "endpoint": server.url,
                "certificateAuthority": {"data": server.ca_data},
                "status": "ACTIVE",
                "createdAt": 1704067200,
            }
            self.answer("DescribeCluster", 200, {"cluster": described})

    # answering

    def reply(self, incoming: Incoming) -> Reply:
        operation, params = described(incoming)
        access_key_id = signer(incoming)
        key = self.keys.get(access_key_id or "")
        call = Call(
            operation,
            params,
            access_key_id,
            key.arn if key else None,
            incoming.headers.get("host", ""),
            time.monotonic(),
        )
        instead = self.intervene(call)
        if isinstance(instead, Reply):
            return instead
        try:
            if instead:
                raise AwsError(instead.code, instead.message, instead.status)
            if operation != "AssumeRoleWithWebIdentity":
                self.check_signature(incoming, access_key_id)
            return self.perform(call, incoming)
        except AwsError as error:
            if any(operation == name for _, _, name in EKS_OPERATIONS):
                return Reply.json(error.status, {"message": error.message}, x_amzn_ErrorType=error.code)
            return query_error(error)

    def check_signature(self, incoming: Incoming, access_key_id: str | None) -> None:
        if access_key_id is None:
            raise AwsError("MissingAuthenticationToken", "Request is missing Authentication Token")
        key = self.keys.get(access_key_id)
        if key is None or incoming.headers.get("x-amz-security-token") != key.session_token:
            raise AwsError("InvalidClientTokenId", "The security token included in the request is invalid.")
        if key.expires is not None and time.time() >= key.expires:
            raise AwsError("ExpiredToken", "The security token included in the request is expired")
        fields = dict(re.findall(r"(\w+)=([^, ]+)", incoming.headers["authorization"]))
        try:
            expected = verifier.signature(
                key.secret,
                date=incoming.headers["x-amz-date"],
                scope=fields["Credential"].partition("/")[2],
                method=incoming.method,
                path=incoming.path,
                query=incoming.query,
                headers=incoming.headers,
                signed_headers=fields["SignedHeaders"].split(";"),
                payload_hash=hashlib.sha256(incoming.body).hexdigest(),
            )
        except Refused as error:
            raise AwsError("IncompleteSignature", str(error), 400) from None
        if expected != fields["Signature"]:
            raise AwsError("SignatureDoesNotMatch", "The request signature we calculated does not match")

    def perform(self, call: Call, incoming: Incoming) -> Reply:
        if call.operation == "GetCallerIdentity":
            arn = self.keys[call.access_key_id or ""].arn
            return query_result(call.operation, {"UserId": user_id(arn), "Account": arn.split(":")[4], "Arn": arn})
        if call.operation == "GetSessionToken":
            return self.get_session_token(call)
        if call.operation == "AssumeRole":
            self.check_trust(call)
        elif call.operation == "AssumeRoleWithWebIdentity" and call.params.get("RoleArn") not in self.roles:
            raise AwsError("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
        headers = {k: v for k, v in incoming.headers.items() if k not in HOP_BY_HOP}
        reply = self.moto.forward(incoming.method, incoming.target, headers, incoming.body)
        return self.learn_from(reply) if call.operation.startswith("AssumeRole") else reply

    def get_session_token(self, call: Call) -> Reply:
        key = self.keys[call.access_key_id or ""]
        if key.session_token:
            raise AwsError("AccessDenied", "Cannot call GetSessionToken with session credentials")
        with_mfa = self.check_mfa(call.params)
        lifetime = self.lifetime or int(call.params.get("DurationSeconds", 43200))
        access_key_id, minted = self.keys.mint(key.arn, lifetime)
        if with_mfa:
            self._mfa_sessions.add(access_key_id)
        return query_result(
            call.operation,
            {
                "Credentials": {
                    "AccessKeyId": access_key_id,
                    "SecretAccessKey": minted.secret,
                    "SessionToken": minted.session_token or "",
                    "Expiration": timestamp(minted.expires or 0),
                }
            },
        )

    def check_mfa(self, params: Mapping[str, str]) -> bool:
        """Whether a correct code was given. A wrong one is an error even if no code is needed."""
        code = params.get("TokenCode")
        if code is None:
            return False
        if code != self.mfa_codes.get(params.get("SerialNumber", "")):
            message = "MultiFactorAuthentication failed with invalid MFA one time pass code. "
            raise AwsError("AccessDenied", message)
        return True

    def check_trust(self, call: Call) -> None:
        """What IAM checks before AssumeRole; sources: "AssumeRole" in the STS API reference."""
        key = self.keys[call.access_key_id or ""]
        with_mfa = self.check_mfa(call.params) or call.access_key_id in self._mfa_sessions
        arn = call.params.get("RoleArn", "")
        role = self.roles.get(arn)
        if (
            role is None
            or (role.trusted is not None and not trusts(role.trusted, key.arn))
            or (role.external_id is not None and role.external_id != call.params.get("ExternalId"))
            or (role.mfa and not with_mfa)
        ):
            message = f"User: {key.arn} is not authorized to perform: sts:AssumeRole on resource: {arn}"
            raise AwsError("AccessDenied", message)
        duration = int(call.params.get("DurationSeconds", 3600))
        if ":assumed-role/" in key.arn and duration > 3600:
            message = "The requested DurationSeconds exceeds the 1 hour session limit for role chaining"
            raise AwsError("ValidationError", message, 400)
        if not 900 <= duration <= role.max_duration:
            message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
            raise AwsError("ValidationError", message, 400)

    def learn_from(self, reply: Reply) -> Reply:
        """Remembers the credentials in an AssumeRole answer, with the lifetime that is set here, if any."""
        if reply.status != 200:
            return reply
        text = reply.body.decode()
        if self.lifetime is not None:
            expiration = timestamp(time.time() + self.lifetime)
            text = re.sub(r"<Expiration>.*?</Expiration>", f"<Expiration>{expiration}</Expiration>", text)
        values = dict(re.findall(r"<(\w+)>([^<]*)</\1>", text))
        self.keys.learn(
            values["AccessKeyId"],
            values["SecretAccessKey"],
            values["Arn"],
            values["SessionToken"],
            datetime.fromisoformat(values["Expiration"]).timestamp(),
        )
        return reply._replace(body=text.encode())


def mfa_serial(user: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:mfa/{user}"


def described(incoming: Incoming) -> tuple[str, dict[str, Any]]:
    """The operation's name and its parameters."""
    if incoming.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        params = dict(parse_qsl(incoming.body.decode()))
        return params.pop("Action", "?"), params
    params = dict(incoming.query)
    if incoming.body[:1] == b"{":
        params |= json.loads(incoming.body)
    if target := incoming.headers.get("x-amz-target"):
        return target.rpartition(".")[2], params
    for method, path, operation in EKS_OPERATIONS:
        if incoming.method == method and re.fullmatch(path, incoming.path):
            return operation, params
    return f"{incoming.method} {incoming.path}", params


def signer(incoming: Incoming) -> str | None:
    found = re.search(r"Credential=([^/]+)/", incoming.headers.get("authorization", ""))
    return found and found[1]


def trusts(trusted: frozenset[str], arn: str) -> bool:
    """Whether a policy that names these principals allows `arn`: itself, its role or its account."""
    canonical = verifier.identity(arn, "", "", 0).canonical_arn
    account_root = f"arn:aws:iam::{arn.split(':')[4]}:root"
    return bool(trusted & {arn, canonical, account_root, "*"})


def user_id(arn: str) -> str:
    """The UserId of GetCallerIdentity: constant for a user or role, followed by the name of a role session."""
    resource = arn.split(":", 5)[5]
    kind, _, name = resource.partition("/")
    prefix = "AROA" if kind == "assumed-role" else "AIDA"
    role, _, session = name.partition("/") if kind == "assumed-role" else (name, "", "")
    unique = prefix + base64.b32encode(hashlib.sha256(role.encode()).digest()).decode()[:17]
    return f"{unique}:{session}" if session else unique


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def xml(value: str | Mapping[str, Any]) -> str:
    if isinstance(value, str):
        return escape(value)
    return "".join(f"<{name}>{xml(inner)}</{name}>" for name, inner in value.items())


STS_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"


def query_result(operation: str, result: Mapping[str, Any]) -> Reply:
    content = xml({f"{operation}Result": result, "ResponseMetadata": {"RequestId": "request"}})
    body = f'<{operation}Response xmlns="{STS_NAMESPACE}">{content}</{operation}Response>'
    return Reply(200, body.encode(), {"Content-Type": "text/xml"})


def query_error(error: AwsError) -> Reply:
    kind = "Sender" if error.status < 500 else "Receiver"
    content = xml({"Error": {"Type": kind, "Code": error.code, "Message": error.message}})
    body = f'<ErrorResponse xmlns="{STS_NAMESPACE}">{content}<RequestId>request</RequestId></ErrorResponse>'
    return Reply(error.status, body.encode(), {"Content-Type": "text/xml"})


# --- IAM Identity Center ------------------------------------------------------------------------------------

ACCESS_SCOPE = "sso:account:access"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# the status of each error in the service models of sso-oidc and sso; 400 if not listed. ForbiddenException
# is not in the model, but the portal answers it for a role that the user does not have
SSO_STATUS = {
    "InvalidClientException": 401,
    "UnauthorizedException": 401,
    "ForbiddenException": 403,
    "ResourceNotFoundException": 404,
    "TooManyRequestsException": 429,
    "InternalServerException": 500,
}
SSO_OPERATIONS = {
    ("POST", "/client/register"): "RegisterClient",
    ("POST", "/device_authorization"): "StartDeviceAuthorization",
    ("POST", "/token"): "CreateToken",
    ("GET", "/federation/credentials"): "GetRoleCredentials",
    ("GET", "/assignment/accounts"): "ListAccounts",
    ("GET", "/assignment/roles"): "ListAccountRoles",
    ("POST", "/logout"): "Logout",
}


class SsoSession:
    """One login: the expiry of each access token, and the only refresh token that is valid."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.access_tokens: dict[str, float] = {}
        self.refresh_token: str | None = None
        self.revoked = False


class SsoOidcServer(HttpServer, Recorder):
    """sso-oidc and sso of 2019-06-10, as their service models describe them."""

    def __init__(self, keys: Keys, *, user: str = "alice@example.com") -> None:
        HttpServer.__init__(self)
        Recorder.__init__(self)
        self.keys = keys
        self.user = user
        self.device_answers: deque[str] = deque()
        """The errors that CreateToken answers for a device code, one for each call, before it succeeds."""
        self.interval = 1
        self.device_lifetime = 600
        self.token_lifetime = 28800.0
        self.role_lifetime = 3600.0
        self.client_lifetime = 90 * 86400
        self.start_url = "https://example.awsapps.com/start"
        self.assignments: dict[str, list[str]] = {}
        """The names of the user's roles by account id."""
        self.sessions: list[SsoSession] = []
        self._clients: dict[str, tuple[str, bool]] = {}
        self._device_codes: dict[str, str] = {}

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL_SSO": self.url, "AWS_ENDPOINT_URL_SSO_OIDC": self.url}

    def assign(self, account: str, role: str) -> str:
        """Assigns a role to the user, and returns the ARN of its credentials."""
        self.assignments.setdefault(account, []).append(role)
        return self.role_arn(account, role)

    def role_arn(self, account: str, role: str, user: str = "") -> str:
        return f"arn:aws:sts::{account}:assumed-role/AWSReservedSSO_{role}_0123456789abcdef/{user or self.user}"

    def new_session(self) -> tuple[str, str]:
        """A login by another program: its access token and refresh token."""
        session = SsoSession(self.user)
        self.sessions.append(session)
        return self._access_token(session), self._rotate(session)

    def register_client(self) -> tuple[str, str]:
        """A client that another program registered: its id and secret."""
        made = self._register_client({"clientType": "public", "scopes": [ACCESS_SCOPE]})
        return made["clientId"], made["clientSecret"]

    def revoke_all(self) -> None:
        """Ends the user's sessions, as an administrator does."""
        for session in self.sessions:
            session.revoked = True

    def expire_access_tokens(self) -> None:
        """Expires all access tokens. Refresh tokens stay valid."""
        for session in self.sessions:
            session.access_tokens.clear()

    def reply(self, incoming: Incoming) -> Reply:
        operation = SSO_OPERATIONS.get((incoming.method, incoming.path), f"{incoming.method} {incoming.path}")
        params: dict[str, Any] = dict(incoming.query)
        if incoming.body[:1] == b"{":
            params |= json.loads(incoming.body)
        bearer = incoming.headers.get("x-amz-sso_bearer_token")
        if bearer is not None:
            params["accessToken"] = bearer
        host = incoming.headers.get("host", "")
        instead = self.intervene(Call(operation, params, signer(incoming), None, host, time.monotonic()))
        if isinstance(instead, Reply):
            return instead
        try:
            if instead:
                raise AwsError(instead.code, instead.message, instead.status)
            return Reply.json(200, self._perform(operation, params))
        except AwsError as error:
            oauth_name = re.sub(r"(?<!^)(?=[A-Z])", "_", error.code.removesuffix("Exception")).lower()
            body = {"error": oauth_name, "error_description": error.message, "message": error.message}
            return Reply.json(error.status, body, x_amzn_ErrorType=error.code)

    def _perform(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "RegisterClient": self._register_client,
            "StartDeviceAuthorization": self._start_device_authorization,
            "CreateToken": self._create_token,
            "GetRoleCredentials": self._get_role_credentials,
            "ListAccounts": self._list_accounts,
            "ListAccountRoles": self._list_account_roles,
            "Logout": self._logout,
        }
        if operation not in operations:
            raise sso_error("ResourceNotFoundException", f"no such operation: {operation}")
        return operations[operation](params)

    # sso-oidc

    def _register_client(self, params: dict[str, Any]) -> dict[str, Any]:
        if params.get("clientType") != "public":
            raise sso_error("InvalidClientMetadataException", "only public clients")
        scopes = params.get("scopes", [])
        if not set(scopes) <= {ACCESS_SCOPE}:
            raise sso_error("InvalidScopeException", f"unknown scope in {scopes}")
        client_id, client_secret = secrets.token_urlsafe(16), secrets.token_urlsafe(200)
        self._clients[client_id] = client_secret, ACCESS_SCOPE in scopes
        now = int(time.time())
        return {
            "clientId": client_id,
            "clientSecret": client_secret,
            "clientIdIssuedAt": now,
            "clientSecretExpiresAt": now + self.client_lifetime,
        }

    def _client_may_refresh(self, params: dict[str, Any]) -> bool:
        known_secret, may_refresh = self._clients.get(params.get("clientId", ""), (None, False))
        if known_secret is None or params.get("clientSecret") != known_secret:
            raise sso_error("InvalidClientException", "unknown client")
        return may_refresh

    def _start_device_authorization(self, params: dict[str, Any]) -> dict[str, Any]:
        self._client_may_refresh(params)
        if params.get("startUrl") != self.start_url:
            raise sso_error("InvalidRequestException", "unknown start URL")
        code = "-".join(secrets.token_hex(2).upper() for _ in range(2))
        device_code = secrets.token_urlsafe(64)
        self._device_codes[device_code] = params["clientId"]
        page = self.start_url.removesuffix("/") + "/#/device"
        return {
            "deviceCode": device_code,
            "userCode": code,
            "verificationUri": page,
            "verificationUriComplete": f"{page}?user_code={code}",
            "expiresIn": self.device_lifetime,
            "interval": self.interval,
        }

    def _create_token(self, params: dict[str, Any]) -> dict[str, Any]:
        may_refresh = self._client_may_refresh(params)
        with self._lock:
            if params.get("grantType") == DEVICE_GRANT:
                session = self._session_of_device(params)
            elif params.get("grantType") == "refresh_token":
                session = self._session_of_refresh_token(params)
            else:
                raise sso_error("UnsupportedGrantTypeException", str(params.get("grantType")))
            token: dict[str, Any] = {
                "accessToken": self._access_token(session),
                "tokenType": "Bearer",
                "expiresIn": int(self.token_lifetime),
            }
            # AWS gives a refresh token only to clients that registered the scope
            if may_refresh:
                token["refreshToken"] = self._rotate(session)
            return token

    def _session_of_device(self, params: dict[str, Any]) -> SsoSession:
        device_code = params.get("deviceCode", "")
        if self._device_codes.get(device_code) != params["clientId"]:
            raise sso_error("InvalidGrantException", "unknown or used device code")
        if self.device_answers:
            raise sso_error(self.device_answers.popleft(), "scripted")
        del self._device_codes[device_code]
        session = SsoSession(self.user)
        self.sessions.append(session)
        return session

    def _session_of_refresh_token(self, params: dict[str, Any]) -> SsoSession:
        for session in self.sessions:
            if not session.revoked and session.refresh_token == params.get("refreshToken"):
                return session
        raise sso_error("InvalidGrantException", "unknown, used or revoked refresh token")

    def _access_token(self, session: SsoSession) -> str:
        token = "aoaAAAAAG" + secrets.token_urlsafe(96)
        session.access_tokens[token] = time.time() + self.token_lifetime
        return token

    def _rotate(self, session: SsoSession) -> str:
        session.refresh_token = "aorAAAAAG" + secrets.token_urlsafe(96)
        return session.refresh_token

    # the access portal

    def _session(self, params: dict[str, Any]) -> SsoSession:
        token = params.get("accessToken", "")
        for session in self.sessions:
            if not session.revoked and time.time() < session.access_tokens.get(token, 0):
                return session
        raise sso_error("UnauthorizedException", "Session token not found or invalid")

    def _get_role_credentials(self, params: dict[str, Any]) -> dict[str, Any]:
        session = self._session(params)
        account, role = params.get("account_id", ""), params.get("role_name", "")
        if role not in self.assignments.get(account, []):
            raise sso_error("ForbiddenException", "No access")
        access_key_id, key = self.keys.mint(self.role_arn(account, role, session.user), self.role_lifetime)
        return {
            "roleCredentials": {
                "accessKeyId": access_key_id,
                "secretAccessKey": key.secret,
                "sessionToken": key.session_token,
                "expiration": int((key.expires or 0) * 1000),
            }
        }

    def _list_accounts(self, params: dict[str, Any]) -> dict[str, Any]:
        self._session(params)
        return {
            "accountList": [
                {"accountId": account, "accountName": f"account {account}", "emailAddress": "aws@example.com"}
                for account in self.assignments
            ]
        }

    def _list_account_roles(self, params: dict[str, Any]) -> dict[str, Any]:
        self._session(params)
        account = params.get("account_id", "")
        return {"roleList": [{"roleName": r, "accountId": account} for r in self.assignments.get(account, [])]}

    def _logout(self, params: dict[str, Any]) -> dict[str, Any]:
        self._session(params).revoked = True
        return {}


def sso_error(code: str, message: str) -> AwsError:
    return AwsError(code, message, SSO_STATUS.get(code, 400))


# --- waiting ------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], T | None], what: str, timeout: float = WAIT) -> T:
    """Polls `condition` and returns its first true value. Raises TimeoutError, which names what did not happen."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(0.01)
