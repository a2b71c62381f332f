"""kubectl against a TLS API server that accepts tokens as EKS does. The identity is stored in a real GNOME Keyring."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Completed, KeyringDaemon, Sandbox, kubectls, missing
from servers import ApiServer, Keys
from verifier import PREFIX, decoded_url

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ALICE = "arn:aws:iam::123456789012:user/alice"
ARGS = ["--cluster-name", "demo", "--region", "eu-west-1", "--identity", "dev"]


@pytest.fixture
def kubectl() -> Path:
    """The newest kubectl here."""
    return kubectls()[-1] if kubectls() else missing("kubectl")


@pytest.fixture
def dev(home: Sandbox, keyring_daemon: KeyringDaemon, keys: Keys) -> Sandbox:
    """A home whose identity `dev`, Alice's keys, was stored by login."""
    keys.learn(KEY_ID, SECRET, ALICE)
    given = {"Version": 1, "AccessKeyId": KEY_ID, "SecretAccessKey": SECRET}
    done = home.run("login", "dev", "--stdin", "--no-verify", stdin=json.dumps(given))
    assert done.returncode == 0, done.stderr
    assert SECRET not in (home.data / "identities.json").read_text()
    (home.home / ".kube").mkdir()  # or kubectl makes it
    # nothing is cached against a file that has just changed, or below a directory that has
    home.settle(home.data / "identities.json")
    return home


def namespaces(kubectl: Path, home: Sandbox) -> Completed:
    return home.run("--kubeconfig", home.home / "kubeconfig", "get", "namespaces", command=[kubectl])


def entry(home: Sandbox, *args: str, **more: Any) -> dict[str, Any]:
    return {"command": str(home.executable), "args": list(args or ARGS), **more}


def is_let_in(done: Completed) -> bool:
    assert done.returncode == 0, done.stderr
    return "kube-system" in done.stdout and "Active" in done.stdout


def test_a_token_for_another_cluster_is_rejected(kubectl: Path, dev: Sandbox, api_server: ApiServer) -> None:
    other = ["other" if word == "demo" else word for word in ARGS]
    dev.write("kubeconfig", api_server.kubeconfig(entry(dev, *other)))
    done = namespaces(kubectl, dev)
    assert done.returncode != 0
    assert "You must be logged in to the server" in done.stderr
    assert "signature" in str(api_server.verdicts[-1].reason)


def test_a_token_is_rejected_after_15_minutes(kubectl: Path, dev: Sandbox, api_server: ApiServer) -> None:
    dev.write("kubeconfig", api_server.kubeconfig(entry(dev)))
    assert is_let_in(namespaces(kubectl, dev))
    api_server.clock_offset = 15 * 60 + 30
    assert namespaces(kubectl, dev).returncode != 0
    assert "expired" in str(api_server.verdicts[-1].reason)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        pytest.param("X-Amz-Expires=60", "X-Amz-Expires=61", id="a longer lifetime"),
        pytest.param("eu-west-1.amazonaws.com", "eu-west-2.amazonaws.com", id="another region's host"),
        pytest.param("GetCallerIdentity", "GetSessionToken", id="another action"),
        pytest.param("host%3Bx-k8s-aws-id", "host", id="no cluster"),
    ],
)
def test_a_forged_token_is_rejected(was: str, becomes: str, kubectl: Path, dev: Sandbox, api_server: ApiServer) -> None:
    url = decoded_url(json.loads(dev.run(*ARGS).stdout)["status"]["token"])
    assert was in url
    forged = base64.urlsafe_b64encode(url.replace(was, becomes).encode()).decode().rstrip("=")
    dev.write("kubeconfig", api_server.kubeconfig(token=PREFIX + forged))
    assert namespaces(kubectl, dev).returncode != 0
    assert api_server.principals
    assert not any(api_server.principals)


@pytest.mark.parametrize(
    ("more", "tty"),
    [
        pytest.param({"apiVersion": "client.authentication.k8s.io/v1"}, False, id="API version v1"),
        pytest.param({"interactiveMode": "Never"}, False, id="never interactive"),
        pytest.param({"interactiveMode": "Always"}, True, id="always interactive, at a terminal"),
        pytest.param({"provideClusterInfo": True}, False, id="with the cluster's address and certificate"),
        pytest.param({"installHint": "copy it to your PATH"}, False, id="with an installation hint"),
        pytest.param({"env": [{"name": "EKS_TOKEN_DEBUG", "value": "1"}]}, False, id="with environment variables"),
    ],
)
def test_an_exec_entry_works_with_any_of_its_options(
    more: dict[str, Any], tty: bool, kubectl: Path, dev: Sandbox, api_server: ApiServer
) -> None:
    dev.write("kubeconfig", api_server.kubeconfig(entry(dev, **more)))
    arguments = ["--kubeconfig", str(dev.home / "kubeconfig"), "get", "namespaces"]
    for _ in range(2):
        assert is_let_in(dev.run(*arguments, command=[kubectl], tty=tty))
    assert set(api_server.principals) == {ALICE}
    assert len({verdict.token for verdict in api_server.verdicts}) == 1


def test_kubectl_shows_why_there_is_no_token(kubectl: Path, home: Sandbox, api_server: ApiServer) -> None:
    home.write("kubeconfig", api_server.kubeconfig(entry(home)))
    # one raw request: the discovery before `get` would try five times
    done = home.run("--kubeconfig", home.home / "kubeconfig", "get", "--raw", "/version", command=[kubectl])
    assert done.returncode != 0
    assert "eks-token: error: there is no identity or AWS profile named 'dev'" in done.stderr
    assert "hint: store it with `eks-token login dev`" in done.stderr
    assert api_server.verdicts == []


def test_twenty_kubectls_at_once_share_one_token(kubectl: Path, dev: Sandbox, api_server: ApiServer) -> None:
    kubeconfig = dev.write("kubeconfig", api_server.kubeconfig(entry(dev)))
    arguments = ["--kubeconfig", str(kubeconfig), "get", "namespaces"]
    started = [dev.start(*arguments, command=[kubectl]) for _ in range(20)]
    for process in started:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert "kube-system" in stdout
    assert set(api_server.principals) == {ALICE}
    assert len({verdict.token for verdict in api_server.verdicts}) == 1
