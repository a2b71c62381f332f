"""keyring's macOS backend on a stand-in for the Security framework: `make test-macos PLATFORMS=DIR`.

DIR has `macos-python`, a Python that says it is macOS's. What its Keychain answers, and where it fails, is set by
SECURITY_ variables; its log has a line for each call, and DIALOG where a person would be asked.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Completed, Sandbox
from servers import AccessKey, RecordingProxy

import eks_token

TOKEN = ("--cluster-name", "demo", "--region", "us-east-1", "--identity", "dev")
KUBECTL = '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","spec":{"interactive":false}}'


class Mac:
    """One user of one macOS."""

    def __init__(self, home: Sandbox, program: Path, moto: RecordingProxy) -> None:
        self.home, self.program = home, program
        self.log, self.keychain = home.root / "security.log", home.root / "keychain"
        self.keychain.mkdir()
        own = {"SECURITY_LOG": str(self.log), "SECURITY_KEYCHAIN": str(self.keychain)}
        home.env |= {**own, **moto.environment, "MACOS_HOME": str(home.root / "library")}

    def run(self, *words: str, stdin: str | None = None, **environ: str) -> Completed:
        return self.home.run(self.home.executable, *words, stdin=stdin, env=environ, command=[self.program])

    def ok(self, *words: str, stdin: str | None = None, **environ: str) -> str:
        done = self.run(*words, stdin=stdin, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *words: str, stdin: str | None = None, **environ: str) -> str:
        """Two lines on stderr at most, and nothing else."""
        done = self.run(*words, stdin=stdin, **environ)
        assert (done.returncode, done.stdout) == (1, "") and len(done.stderr.splitlines()) <= 2, done
        return done.stderr

    def login(self, key: AccessKey, **environ: str) -> Completed:
        given = {"Version": 1, "AccessKeyId": key.id, "SecretAccessKey": key.secret}
        return self.run("login", "dev", "--stdin", stdin=json.dumps(given), **environ)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def items(self) -> list[Path]:
        return list(self.keychain.iterdir())


@pytest.fixture
def mac(home: Sandbox, moto: RecordingProxy) -> Iterator[Mac]:
    yield Mac(home, Path(os.environ["PLATFORMS"], "macos-python").resolve(strict=True), moto)


def test_keys_live_in_the_keychain(mac: Mac, moto: RecordingProxy) -> None:
    """From nothing to a token, the same one again, new keys, and nothing."""
    assert mac.ok("--version") == f"eks-token {eks_token.__version__}\n"
    key = moto.create_user("alice")
    assert mac.login(key).returncode == 0
    token = mac.ok(*TOKEN)
    assert "k8s-aws-v1." in token
    seen = len(mac.calls())
    assert mac.ok(*TOKEN) == token
    assert mac.calls()[seen:] == []
    assert mac.login(key).returncode == 0
    assert not any(call.startswith("delete") for call in mac.calls())
    assert "the macOS Keychain is unlocked" in mac.run("doctor").stdout
    done = mac.run(*TOKEN, "--refresh", KEYCHAIN_PATH="/other")
    assert (done.returncode, done.stderr) == (0, "")
    mac.ok("logout", "dev")
    assert mac.items() == []


@pytest.mark.parametrize("status", [-128, -25308, -25293])
def test_an_update_that_fails_keeps_the_old_keys(mac: Mac, moto: RecordingProxy, status: int) -> None:
    key = moto.create_user("alice")
    mac.login(key)
    failed = mac.login(moto.create_user("bob"), SECURITY_UPDATE=str(status))
    assert failed.returncode == 1 and "the keyring is locked" in failed.stderr
    assert key.id in json.loads(mac.ok("credentials", "-i", "dev")).values()


@pytest.mark.parametrize("failure", [{"SECURITY_ADD": "-128"}, {"SECURITY_DIE": "1"}], ids=["cancelled", "killed"])
def test_what_a_failed_login_leaves_is_found_by_logout(mac: Mac, moto: RecordingProxy, failure: dict[str, str]) -> None:
    assert mac.login(moto.create_user("alice"), **failure).returncode != 0
    mac.ok("logout", "--all")
    assert mac.items() == []


def test_no_dialog_appears_where_nobody_may_be_asked(mac: Mac, moto: RecordingProxy) -> None:
    mac.login(moto.create_user("alice"))
    said = mac.refused(*TOKEN, SECURITY_LOCKED="1", KUBERNETES_EXEC_INFO=KUBECTL)
    assert "the keyring is locked" in said
    assert "DIALOG" not in mac.calls()


def test_the_stand_in_is_told_apart() -> None:
    """A mistake in DIR would make every scene above a test of Linux."""
    program = os.path.join(os.environ["PLATFORMS"], "macos-python")
    done = subprocess.run(
        [program, "-c", "import sys; print(sys.platform)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "darwin\n"
