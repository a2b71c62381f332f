"""KWallet and KeePassXC, really running on a display that nobody looks at: `make system-keyrings`.

That target installs them. Elsewhere these tests are skipped, so that `make test` does not need a desktop's programs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import Completed, Sandbox, missing, need
from desktops import ROOT, SECRETS, desktop_in_a_directory, running
from servers import RecordingProxy, wait_for
from test_keyring import SecretTool

import eks_token

if os.environ.get("EKS_TOKEN_SYSTEM_KEYRINGS") != "1":
    pytest.skip("only on a machine that runs `make system-keyrings`", allow_module_level=True)


class Screen:
    """A desktop with a display, whose keyring service is (re)started by `start`."""

    def __init__(self, stack: ExitStack) -> None:
        self.desktop = stack.enter_context(desktop_in_a_directory())
        (server,) = need("Xvfb")
        command = [server, "-displayfd", "1", "-screen", "0", "640x480x24", "-nolisten", "tcp"]
        xvfb = stack.enter_context(running(command, stdout=subprocess.PIPE))
        assert xvfb.stdout is not None
        display = f":{xvfb.stdout.readline().strip()}"
        # KeePassXC runs once for each temporary directory
        own = {"DISPLAY": display, "LANG": "C.UTF-8", "TMPDIR": str(self.desktop.root)}
        self.environ = {**self.desktop.environ, **own}
        self.service = stack.enter_context(ExitStack())

    def has(self, name: str) -> bool:
        return bool(self.desktop.call_bus("NameHasOwner", "s", name))

    def replace(self, command: list[str], stdin: str = "", files: Sequence[int] = (), **environ: str) -> None:
        self.kill()
        self.service.enter_context(running(command, stdin, self.environ | environ, files=files))
        wait_for(lambda: self.has(SECRETS), command[0])

    def kill(self) -> None:
        self.service.close()
        wait_for(lambda: not self.has(SECRETS), "the old service to go")

    def collections(self) -> list[str]:
        return list(self.desktop.get(ROOT, "Service", "Collections"))

    def locked(self, path: str) -> bool:
        return bool(self.desktop.get(path, "Collection", "Locked"))


class Laptop:
    """The executable in a home whose keyring is the screen's, and AWS."""

    def __init__(self, screen: Screen, home: Sandbox, moto: RecordingProxy) -> None:
        self.home, self.key = home, moto.create_user("alice")
        home.env |= {**moto.environment, "DBUS_SESSION_BUS_ADDRESS": screen.desktop.address}

    def run(self, *words: str, stdin: str | None = None) -> Completed:
        return self.home.run(*words, stdin=stdin)

    def login(self) -> None:
        access, secret = self.key[:2]
        keys = json.dumps({"Version": 1, "AccessKeyId": access, "SecretAccessKey": secret})
        assert "dev" in self.done("login", "dev", "--stdin", stdin=keys)

    def done(self, *words: str, stdin: str | None = None) -> str:
        ran = self.run(*words, stdin=stdin)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout + ran.stderr

    def refused(self, *words: str) -> str:
        ran = self.run(*words)
        assert (ran.returncode, ran.stdout) == (1, ""), ran
        return ran.stderr

    def token(self) -> str:
        return self.done(*TOKEN)


TOKEN = ("--cluster-name", "demo", "--region", "us-east-2", "-i", "dev", "--refresh")


def dismissed(screen: Screen, vault: eks_token.Vault, title: str) -> str:
    """The error of a read, while a person presses Escape in the dialog that has this title."""
    (xdotool,) = need("xdotool")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(vault.get, "identity:dev")
        while not reading.done():
            search = [xdotool, "search", "--onlyvisible", "--name", title]
            if subprocess.run(search, env=screen.environ, stdout=subprocess.DEVNULL, check=False).returncode == 0:
                subprocess.run([xdotool, "key", "Escape"], env=screen.environ, check=True)
            wait([reading], timeout=0.3)
    problem = reading.exception()
    assert isinstance(problem, eks_token.KeyringUnavailable)
    return problem.message


# --- KWallet ------------------------------------------------------------------------------------------------


KWALLETS = {  # each program, newest first, with its own name on the bus, object and interface
    "ksecretd": ("org.kde.secretservicecompat", "/ksecretd", "org.kde.kwalletcompat"),  # KDE Frameworks 6.13 and newer
    "kwalletd6": ("org.kde.kwalletd6", "/modules/kwalletd6", "org.kde.KWallet"),
    "kwalletd5": ("org.kde.kwalletd5", "/modules/kwalletd5", "org.kde.KWallet"),
}


class KWallet(Screen):
    NAME = "kdewallet"

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack)
        self.program = next(filter(shutil.which, KWALLETS), "") or missing(" or ".join(KWALLETS))
        with open(f"{self.environ['XDG_CONFIG_HOME']}/kwalletrc", "w") as file:
            file.write("[Wallet]\nEnabled=true\nFirst Use=false\nLeave Open=true\nPrompt on Open=false\n")
            file.write(f"Default Wallet={self.NAME}\n")
        self.log_in()  # makes the wallet

    def own(self, method: str, signature: str, *body: object) -> Any:
        name, path, interface = KWALLETS[self.program]
        return self.desktop.call_bus(method, signature, *body, name=name, path=path, interface=interface)

    def log_in(self, pam: bool = True) -> None:
        """A new session of the desktop; with `pam`, KWallet knows the password. It is closed for programs anyway."""
        if self.has(SECRETS):
            self.close()
        if self.program == "ksecretd" and pam:
            return self.start_as_pam_does()
        self.replace([self.program])
        wait_for(lambda: self.has(KWALLETS[self.program][0]), "KWallet's own interface")
        if pam:
            self.own("pamOpen", "sayi", self.NAME, bytes(56), 0)  # what PAM derives from the password has 56 bytes
            wait_for(lambda: self.own("isOpen", "s", self.NAME), "the wallet")

    def start_as_pam_does(self) -> None:
        """ksecretd reads the password's hash from a pipe, and the session's environment from a socket."""
        path = self.desktop.root / "pam"
        path.unlink(missing_ok=True)
        reader, writer = os.pipe()
        with open(reader) as pipe, socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as session:
            os.write(writer, bytes(56))
            os.close(writer)
            server.bind(str(path))
            server.listen()
            session.connect(str(path))
            session.sendall(b"LANG=C.UTF-8\n")
            session.shutdown(socket.SHUT_RDWR)
            files = (pipe.fileno(), server.fileno())
            command = [self.program, "--pam-login", *map(str, files)]
            self.replace(command, files=files, PAM_KWALLET5_LOGIN=str(path))
        wait_for(lambda: self.collections() and not self.locked(self.collections()[0]), "the wallet")

    def close(self) -> None:
        if self.program == "ksecretd":
            self.desktop.call("Lock", "ao", [path for path in self.collections() if not self.locked(path)])
        else:
            self.own("close", "sb", self.NAME, True)


@pytest.fixture(scope="module")
def kwallet() -> Iterator[KWallet]:
    with ExitStack() as stack:
        yield KWallet(stack)


def test_a_wallet_that_is_closed_after_each_login_keeps_the_keys(
    kwallet: KWallet, home: Sandbox, moto: RecordingProxy
) -> None:
    laptop = Laptop(kwallet, home, moto)
    kwallet.log_in()
    laptop.login()
    for _ in range(2):
        kwallet.log_in()
        assert "k8s-aws-v1." in laptop.token()
        kwallet.log_in()
        laptop.login()
    kwallet.log_in()
    assert "KWallet is unlocked" in laptop.run("doctor").stdout
    kwallet.log_in()
    laptop.done("logout", "dev")
    kwallet.log_in()
    assert kwallet.desktop.vault().users() == []


@pytest.mark.parametrize("after", ["closed", "no password from PAM"])
def test_a_wallet_that_nobody_opens_is_locked(
    kwallet: KWallet, home: Sandbox, moto: RecordingProxy, after: str
) -> None:
    laptop = Laptop(kwallet, home, moto)
    kwallet.log_in()
    laptop.login()
    if after == "closed":
        kwallet.close()
    else:
        kwallet.log_in(pam=False)
    assert "the keyring is locked: nobody can be asked to unlock it" in laptop.refused(*TOKEN)
    assert "the keyring is locked" in laptop.refused("logout", "dev")
    kwallet.log_in()
    assert "k8s-aws-v1." in laptop.token()
    laptop.done("logout", "--all")


def test_a_dialog_of_kwallet_can_be_dismissed(kwallet: KWallet) -> None:
    kwallet.log_in()
    kwallet.desktop.vault().set("identity:dev", "x")
    kwallet.log_in(pam=False)
    vault = kwallet.desktop.vault(DISPLAY=kwallet.environ["DISPLAY"])
    assert "the keyring is locked: the request to unlock it was dismissed" in dismissed(kwallet, vault, "KDE Wallet")
    kwallet.log_in()
    assert kwallet.desktop.vault().delete("identity:dev") is True


def test_a_wallet_that_restarts_is_used_again(kwallet: KWallet) -> None:
    kwallet.log_in()
    vault = kwallet.desktop.vault()
    vault.set("identity:dev", "x")
    kwallet.log_in()
    assert vault.get("identity:dev") == "x"
    kwallet.log_in()
    assert vault.delete("identity:dev") is True


def test_a_wallet_that_was_killed_is_no_keyring(kwallet: KWallet) -> None:
    kwallet.kill()
    vault = kwallet.desktop.vault()
    with pytest.raises(eks_token.KeyringUnavailable, match="no keyring: no service"):
        vault.get("identity:dev")
    kwallet.log_in()
    assert vault.get("identity:dev") is None


# --- KeePassXC ----------------------------------------------------------------------------------------------


WINDOW = "org.keepassxc.KeePassXC.MainWindow"
GROUP = "11111111-2222-3333-4444-555555555555"
# The custom data is what "Expose entries under this group", in the settings of a database, writes.
DATABASE = f"""<?xml version="1.0" encoding="utf-8"?>
<KeePassFile><Meta><DatabaseName>NAME</DatabaseName><RecycleBinEnabled>True</RecycleBinEnabled><CustomData>
<Item><Key>FDO_SECRETS_EXPOSED_GROUP</Key><Value>{{{GROUP}}}</Value></Item></CustomData></Meta>
<Root><Group><UUID>ERERESIiMzNERFVVVVVVVQ==</UUID><Name>Root</Name></Group></Root></KeePassFile>
"""
PASSPHRASE = "pw"


class KeePassXC(Screen):
    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack)
        self.program, self.tool = need("keepassxc", "keepassxc-cli")
        self.make("laptop")
        self.open_program()

    def cli(self, *words: str, stdin: str) -> str:
        done = subprocess.run(
            [self.tool, *words], input=stdin, capture_output=True, text=True, env=self.desktop.environ, check=True
        )
        return done.stdout

    def file(self, name: str, kind: str = "kdbx") -> str:
        return str(self.desktop.root / f"{name}.{kind}")

    def make(self, name: str) -> None:
        with open(self.file(name, "xml"), "w") as file:
            file.write(DATABASE.replace("NAME", name))
        self.cli("import", "-p", self.file(name, "xml"), self.file(name), stdin=f"{PASSPHRASE}\n{PASSPHRASE}\n")

    def open_program(self, **settings: str) -> None:
        chosen = {"Enabled": "true", "ShowNotification": "false", "ConfirmDeleteItem": "false", **settings}
        chosen = {"ConfirmAccessItem": "false", "UnlockBeforeSearch": "true", **chosen}
        config = f"{self.environ['XDG_CONFIG_HOME']}/keepassxc/keepassxc.ini"
        os.makedirs(os.path.dirname(config), exist_ok=True)
        with open(config, "w") as file:
            file.write("[General]\nConfigVersion=2\nUpdateCheckMessageShown=true\nRememberLastDatabases=false\n")
            file.write("OpenPreviousDatabasesOnStartup=false\n[GUI]\nCheckForUpdates=false\n[FdoSecrets]\n")
            file.writelines(f"{name}={value}\n" for name, value in chosen.items())
        self.replace([self.program, "--pw-stdin", self.file("laptop")], f"{PASSPHRASE}\n")
        wait_for(lambda: self.is_open("laptop"), "the database")

    def window(self, method: str, signature: str = "", *body: object) -> None:
        self.desktop.call_bus(method, signature, *body, name=WINDOW, path="/keepassxc", interface=WINDOW)

    def is_open(self, name: str) -> bool:
        return any(path.endswith(f"/{name}") and not self.locked(path) for path in self.collections())

    def open(self, name: str) -> None:
        self.window("openDatabase", "ss", self.file(name), PASSPHRASE)
        wait_for(lambda: self.is_open(name), f"the database {name}")

    def lock(self) -> None:
        self.window("lockAllDatabases")
        wait_for(lambda: all(map(self.locked, self.collections())), "the lock")

    def close(self) -> None:
        self.window("closeAllDatabases")
        wait_for(lambda: not self.collections(), "the end of the collections")

    def content(self, name: str = "laptop") -> str:
        return self.cli("export", "-q", "-f", "csv", self.file(name), stdin=f"{PASSPHRASE}\n")


@pytest.fixture
def keepassxc() -> Iterator[KeePassXC]:
    with ExitStack() as stack:
        yield KeePassXC(stack)


def test_keys_in_keepassxc_from_login_to_logout(keepassxc: KeePassXC, home: Sandbox, moto: RecordingProxy) -> None:
    laptop = Laptop(keepassxc, home, moto)
    laptop.login()
    assert "k8s-aws-v1." in laptop.token()
    laptop.login()
    assert keepassxc.desktop.vault().users() == ["identity:dev"]
    found = laptop.run("doctor").stdout
    assert "KeePassXC is unlocked" in found and "recycle bin" in found

    keepassxc.lock()
    assert "the keyring is locked" in laptop.refused(*TOKEN)
    assert "the keyring is locked" in laptop.refused("logout", "dev")
    keepassxc.close()
    for words in (TOKEN, ("logout", "dev")):
        assert "no keyring: the keyring service has no open collection" in laptop.refused(*words)

    keepassxc.open("laptop")
    laptop.done("logout", "dev")
    assert keepassxc.desktop.vault().users() == []
    wait_for(lambda: "Recycle Bin" in keepassxc.content(), "the database to be saved")


def test_a_dialog_of_keepassxc_can_be_dismissed(keepassxc: KeePassXC) -> None:
    keepassxc.desktop.vault().set("identity:dev", "x")
    keepassxc.lock()
    vault = keepassxc.desktop.vault(DISPLAY=keepassxc.environ["DISPLAY"])
    assert "the keyring is locked: the request to unlock it was dismissed" in dismissed(
        keepassxc, vault, "Unlock Database"
    )


def test_the_database_that_has_an_item_keeps_it(keepassxc: KeePassXC) -> None:
    keepassxc.desktop.vault().set("identity:dev", "old")
    keepassxc.make("second")
    keepassxc.open("second")  # which is the default collection now
    vault = keepassxc.desktop.vault()
    assert vault.get("identity:dev") == "old"
    vault.set("identity:dev", "new")
    vault.set("identity:other", "x")
    wait_for(lambda: "identity:other" in keepassxc.content("second"), "the second database to be saved")
    assert "identity:dev" not in keepassxc.content("second")

    named = eks_token.Vault(keepassxc.desktop.environ)
    keepassxc.lock()
    keepassxc.open("laptop")
    assert named.get("identity:dev") == "new"
    with pytest.raises(eks_token.KeyringUnavailable, match="second is locked and may have it"):
        named.get("identity:other")


@pytest.mark.parametrize("chosen", ["laptop", f"{ROOT}/collection/laptop"])
def test_a_collection_can_be_preferred(keepassxc: KeePassXC, chosen: str) -> None:
    keepassxc.make("second")
    keepassxc.open("second")
    keepassxc.desktop.vault(KEYRING_PROPERTY_PREFERRED_COLLECTION=chosen).set("identity:dev", "x")
    wait_for(lambda: "identity:dev" in keepassxc.content("laptop"), "the database to be saved")


def test_an_item_made_by_hand_keeps_its_attributes(keepassxc: KeePassXC) -> None:
    words = ("store", "--label", "by hand", "service", "eks-token", "username", "identity:dev", "more", "kept")
    tool = SecretTool(keepassxc.desktop)
    keepassxc.desktop.run(tool.command, *words, stdin="old")
    vault = keepassxc.desktop.vault()
    for value in ("new", "newer"):
        vault.set("identity:dev", value)
        assert tool.get("identity:dev") == value
    (item,) = keepassxc.desktop.items(service="eks-token")
    attributes = keepassxc.desktop.attributes(item)
    assert (attributes["more"], attributes["application"]) == ("kept", "Python keyring library")


def test_a_question_for_each_access_is_named(keepassxc: KeePassXC, home: Sandbox, moto: RecordingProxy) -> None:
    laptop = Laptop(keepassxc, home, moto)
    laptop.login()
    keepassxc.open_program(ConfirmAccessItem="true")
    for said in (laptop.refused(*TOKEN), laptop.run("doctor").stdout):
        assert "KeePassXC is unlocked, but asks about each access" in said
        assert "Confirm when passwords are retrieved by clients" in said


def test_keepassxc_that_restarts_is_used_again(keepassxc: KeePassXC) -> None:
    vault = keepassxc.desktop.vault()
    vault.set("identity:dev", "x")
    wait_for(lambda: "identity:dev" in keepassxc.content(), "the database to be saved")
    keepassxc.open_program()
    assert vault.get("identity:dev") == "x"
