"""The executable on a real CPython for Windows, under Wine: `make test-windows PLATFORMS=DIR`.

DIR has `windows-python`, which starts a Python file, or kubectl.exe, with the environment it is given. Wine takes a
second and more for each start, so these are a few scenes of one user of one Windows.
"""

import importlib.resources
import io
import json
import os
import re
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import wrapper
from conftest import Completed
from servers import ApiServer, Keys, RecordingProxy

import eks_token

TOKEN = ("--cluster-name", "demo", "--region", "us-east-1", "--identity", "dev")
TIMEOUT = 300  # seconds


class Windows:
    """One user of one Windows."""

    def __init__(self, program: Path, home: Path, executable: Path) -> None:
        self.program, self.home = program, home
        self.variables: dict[str, str] = {"AWS_EC2_METADATA_DISABLED": "true"}
        drive, profile, self.python = self.call("--where").stdout.splitlines()
        self.drive, self.profile = Path(drive), Path(profile)
        self.file = self.drive / "Tools/eks-token"
        self.file.parent.mkdir()
        self.file.write_bytes(executable.read_bytes())

    def call(self, *words: str, stdin: str | None = None) -> Completed:
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        where = ["--where"] if words == ("--where",) else []
        command = [str(self.program), "--user", str(self.home), *where, *([] if where else [*variables, *words])]
        return subprocess.run(
            command,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "WINDOWS_TIMEOUT": str(TIMEOUT)},
            timeout=TIMEOUT + 60,
            check=False,
        )

    def run(self, *words: str, stdin: str | None = None) -> Completed:
        return self.call(r"C:\Tools\eks-token", *words, stdin=stdin)

    def ok(self, *words: str, stdin: str | None = None) -> str:
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def code(self, text: str) -> Completed:
        return self.call("--python", "-I", "-S", "-c", text)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory, executable: Path) -> Iterator[Windows]:
    program = Path(os.environ["PLATFORMS"], "windows-python")
    home = tmp_path_factory.mktemp("windows")
    yield Windows(program.resolve(strict=True), home, executable)
    subprocess.run([program, "--user", home, "--stop"], check=False)


def test_it_starts(windows: Windows) -> None:
    for _ in range(2):
        assert windows.ok("--version") == f"eks-token {eks_token.__version__}\n"


def test_keys_live_in_the_credential_manager(windows: Windows, moto: RecordingProxy) -> None:
    """From nothing to a token, the same one again, new keys, and nothing."""
    windows.variables |= moto.environment
    keys = moto.create_user("alice")
    given = {"Version": 1, "AccessKeyId": keys.id, "SecretAccessKey": keys.secret}
    windows.ok("login", "dev", "--stdin", stdin=json.dumps(given))
    token = json.loads(windows.ok(*TOKEN))["status"]["token"]
    assert token.startswith("k8s-aws-v1.")
    assert "dev" in windows.ok("identities")
    secret = keys.secret.encode()
    assert [path for path in windows.profile.rglob("*") if path.is_file() and secret in path.read_bytes()] == []
    stored = windows.code(
        "import sys; sys.path.insert(0, r'C:\\Tools\\eks-token\\site-packages'); "
        "from win32ctypes.pywin32 import win32cred as w; print(w.CredEnumerate('eks-token*', 0)[0]['Persist'])"
    )
    assert stored.stdout.strip() == "2", stored.stderr  # CRED_PERSIST_LOCAL_MACHINE

    report = windows.run("doctor", "-o", "json")
    found = {check["check"]: check["found"] + check["hint"] for check in json.loads(report.stdout)}
    assert "keyring.backends.Windows" in found["keyring"]
    assert "mode" not in found["cache"] and "XDG_CACHE_HOME" not in str(found)

    windows.ok("logout", "dev")
    done = windows.run(*TOKEN)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) <= 2 and "dev" in done.stderr


def test_a_scanner_that_holds_a_file_is_waited_for(windows: Windows) -> None:
    """Windows does not replace a file while anybody has it open."""
    held = windows.profile / "held"
    held.write_text("old")
    windows.code(
        "import sys, subprocess; sys.path.insert(0, r'C:\\Tools\\eks-token\\site-packages'); import eks_token, time;"
        "path = r'C:\\users\\root\\held'; scanner = subprocess.Popen([sys.executable, '-c',"
        " 'import sys, time; file = open(sys.argv[1]); print(flush=True); time.sleep(0.2)', path],"
        " stdout=subprocess.PIPE); scanner.stdout.read(1); eks_token.write_file(path, 'new'); scanner.wait()"
    )
    assert held.read_text() == "new"


def test_text_in_a_pipe_is_utf_8(windows: Windows) -> None:
    (windows.profile / ".aws").mkdir(exist_ok=True)
    config = "[profile köln]\nrole_arn = arn:aws:iam::111122223333:role/x\n"
    (windows.profile / ".aws/config").write_text(config, "cp1252")  # as the AWS CLI writes there
    assert "köln" in windows.ok("identities")


@pytest.fixture
def installed(windows: Windows, executable: Path) -> str:
    """eks-token.exe in a directory on PATH, and a stand-in for the launcher of python.org's installer."""
    launcher = io.BytesIO()
    with zipfile.ZipFile(launcher, "w") as file:
        file.writestr(
            "__main__.py", "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[2:]]))"
        )
    start = importlib.resources.files("distlib").joinpath("t64.exe").read_bytes() + f"#!{windows.python}\r\n".encode()
    (windows.drive / "windows/py.exe").write_bytes(start + launcher.getvalue())
    windows.file.with_name("eks-token.exe").write_bytes(wrapper.wrapped(executable))
    windows.variables["PATH"] = r"C:\windows\system32;C:\windows;C:\Tools"
    return r"C:\Tools\eks-token.exe"


@pytest.mark.parametrize("through", ["python.exe", "eks-token.exe"])
def test_kubectl_starts_it(
    windows: Windows, installed: str, moto: RecordingProxy, keys: Keys, api_server: ApiServer, through: str
) -> None:
    windows.variables |= moto.environment
    alice = moto.create_user("alice")
    keys.learn(alice.id, alice.secret, alice.arn)
    given = {"Version": 1, "AccessKeyId": alice.id, "SecretAccessKey": alice.secret}
    windows.ok("login", "dev", "--stdin", stdin=json.dumps(given))
    exec_entry = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "interactiveMode": "Never",
        "command": "aws",
        "args": ["eks", "get-token", "--cluster-name", "demo", "--region", "eu-west-1", "--profile", "dev"],
    }
    (windows.profile / ".kube").mkdir(exist_ok=True)
    (windows.profile / ".kube/config").write_text(api_server.kubeconfig(exec_entry))
    if through == "eks-token.exe":
        done = windows.call("--exe", installed, "adopt", "--all")
        assert done.returncode == 0, done.stderr
    else:
        windows.ok("adopt", "--all")
    config = json.loads((windows.profile / ".kube/config").read_text())
    entry = config["users"][0]["user"]["exec"]
    if through == "eks-token.exe":
        assert (entry["command"], entry["args"]) == ("eks-token", exec_entry["args"])
    else:
        assert re.fullmatch(r"[A-Z]:/[^\\]+/python\.exe", entry["command"])
        assert entry["args"] == ["-I", "-S", "C:/Tools/eks-token", *exec_entry["args"]]

    began = time.monotonic()
    done = windows.call("--exe", "kubectl.exe", "get", "namespaces")
    assert "kube-system" in done.stdout, done.stderr
    assert set(api_server.principals) == {alice.arn}
    print(f"kubectl.exe get namespaces, through {through}, took {time.monotonic() - began:.1f} s")
