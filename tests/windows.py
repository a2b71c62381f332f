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
import textwrap
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import wrapper
from conftest import Completed
from servers import AccessKey, ApiServer, Keys, RecordingProxy

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

    def code(self, text: str, stdin: str | None = None) -> str:
        """What a Python program prints that can import what the executable has unpacked."""
        unpacked = next(self.profile.glob("AppData/Local/eks-token/**/site-packages")).relative_to(self.drive)
        path = f"import sys; sys.path.insert(0, 'C:/{unpacked.as_posix()}')"
        done = self.call("--python", "-I", "-S", "-c", f"{path}\n{textwrap.dedent(text)}", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def login(self, key: AccessKey) -> None:
        self.ok("login", "dev", "--stdin", stdin=given(key))


def given(key: AccessKey) -> str:
    return json.dumps({"Version": 1, "AccessKeyId": key.id, "SecretAccessKey": key.secret})


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory, executable: Path) -> Iterator[Windows]:
    program = Path(os.environ["PLATFORMS"], "windows-python")
    home = tmp_path_factory.mktemp("windows")
    yield Windows(program.resolve(strict=True), home, executable)
    subprocess.run([program, "--user", home, "--stop"], check=False)


# A login that fails at the write of this number to the Credential Manager. Its stderr is printed.
FAILING_LOGIN = """
    import io, itertools
    from win32ctypes.pywin32 import win32cred
    import eks_token
    write, numbers = win32cred.CredWrite, itertools.count(1)
    def fail(*arguments):
        if next(numbers) == %d:
            raise OSError(8, "Not enough memory.")
        return write(*arguments)
    win32cred.CredWrite = fail
    sys.stderr = io.StringIO()
    assert eks_token.main(["login", "dev", "--stdin"]) == 1
    print(sys.stderr.getvalue())
    """
# Values of several parts: whichever write fails, what is read is the old value.
FAILING_PARTS = """
    import itertools, os
    from win32ctypes.pywin32 import win32cred
    import eks_token
    write, vault = win32cred.CredWrite, eks_token.Vault(os.environ)
    old, new = "old " * 1000, "new " * 1000
    for failing in range(1, 5):
        win32cred.CredWrite = write
        vault.set("test", old)
        numbers = itertools.count(1)
        def fail(*arguments):
            if next(numbers) == failing:
                raise OSError(8, "Not enough memory.")
            return write(*arguments)
        win32cred.CredWrite = fail
        try:
            vault.set("test", new)
        except eks_token.Problem:
            print("long value", vault.get("test") == old)
    win32cred.CredWrite = write
    vault.delete("test")
    """


def test_it_starts(windows: Windows) -> None:
    for _ in range(2):
        assert windows.ok("--version") == f"eks-token {eks_token.__version__}\n"


def test_keys_live_in_the_credential_manager(windows: Windows, moto: RecordingProxy) -> None:
    """From nothing to a token, the same one again, new keys, and nothing."""
    windows.variables |= moto.environment
    alice, bob = moto.create_user("alice"), moto.create_user("bob")
    windows.login(alice)
    began = time.monotonic()
    answer = windows.ok(*TOKEN)
    minted = time.monotonic()
    assert json.loads(answer)["status"]["token"].startswith("k8s-aws-v1.")
    assert windows.ok(*TOKEN) == answer
    print(f"a new token took {minted - began:.1f} s, the cached one {time.monotonic() - minted:.1f} s")
    assert "dev" in windows.ok("identities")
    secret = alice.secret.encode()
    assert [path for path in windows.profile.rglob("*") if path.is_file() and secret in path.read_bytes()] == []
    stored = """
        from win32ctypes.pywin32 import win32cred
        print(win32cred.CredEnumerate("eks-token*", 0)[0]["Persist"])
        """
    assert windows.code(stored).strip() == "2"  # CRED_PERSIST_LOCAL_MACHINE

    for write in (1, 2):
        assert "error: the keyring could not store identity:dev" in windows.code(FAILING_LOGIN % write, given(bob))
        assert json.loads(windows.ok("credentials", "-i", "dev"))["AccessKeyId"] == alice.id
    windows.login(bob)
    assert json.loads(windows.ok("credentials", "-i", "dev"))["AccessKeyId"] == bob.id
    assert windows.code(FAILING_PARTS) == "long value True\n" * 4

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
    windows.code(r"""
        import subprocess, eks_token
        path = r"C:\users\root\held"
        scanner = "import sys, time; file = open(sys.argv[1]); print(flush=True); time.sleep(0.2)"
        with subprocess.Popen([sys.executable, "-c", scanner, path], stdout=subprocess.PIPE) as process:
            process.stdout.read(1)
            eks_token.write_file(path, "new")
        """)
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


def test_kubectl_reads_what_kubeconfig_writes(
    windows: Windows, moto: RecordingProxy, keys: Keys, api_server: ApiServer
) -> None:
    windows.variables |= moto.environment
    moto.create_cluster("demo", server=api_server)
    alice = moto.create_user("alice")
    keys.learn(alice.id, alice.secret, alice.arn)
    windows.login(alice)
    file = windows.profile / ".kube/config"
    file.unlink(missing_ok=True)
    windows.ok("kubeconfig", *TOKEN, "--alias", "demo")
    view = windows.call("--exe", "kubectl.exe", "config", "view", "-o", "json")
    exec_entry = json.loads(view.stdout)["users"][0]["user"]["exec"]
    assert exec_entry["args"] == ["-I", "-S", "C:/Tools/eks-token", *TOKEN]
    done = windows.call("--exe", "kubectl.exe", "--context", "demo", "get", "namespaces")
    assert "kube-system" in done.stdout, done.stderr
    assert set(api_server.principals) == {alice.arn}
    written = file.read_bytes()
    windows.ok("kubeconfig", *TOKEN, "--alias", "demo")
    assert file.read_bytes() == written


@pytest.mark.parametrize("through", ["python.exe", "eks-token.exe"])
def test_kubectl_starts_it(
    windows: Windows, installed: str, moto: RecordingProxy, keys: Keys, api_server: ApiServer, through: str
) -> None:
    windows.variables |= moto.environment
    alice = moto.create_user("alice")
    keys.learn(alice.id, alice.secret, alice.arn)
    windows.login(alice)
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
