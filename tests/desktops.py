"""Desktops: a session bus of their own, and GNOME Keyring on it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from servers import wait_for

import eks_token

PASSWORD = "correct horse"
SECRETS, ROOT = "org.freedesktop.secrets", "/org/freedesktop/secrets"


@contextmanager
def running(
    command: list[str],
    password: str = "",
    env: Mapping[str, str] | None = None,
    stdout: int = subprocess.DEVNULL,
    files: Sequence[int] = (),
) -> Iterator[subprocess.Popen[str]]:
    """A child process that is stopped, by its own handle, when the block ends."""
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        command, env=env, stdin=pipe, stdout=stdout, stderr=null, text=True, pass_fds=files
    ) as process:
        assert process.stdin is not None
        try:
            process.stdin.write(password)
            process.stdin.close()
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>{address}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
<allow own="*"/></policy></busconfig>"""


class Desktop:
    """A session bus of its own (nothing is activated on it), a home of its own, and perhaps a keyring daemon."""

    def __init__(self, root: Path, stack: ExitStack, listen: str = "") -> None:
        self.root, self._stack, self._daemon = root, stack, ExitStack()
        self._connection: Any = None  # jeepney has no types
        self._session = ""
        directories = {
            name: str(root / name.lower())
            for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
        }
        for directory in directories.values():
            os.mkdir(directory, 0o700)
        from conftest import need

        config = root / "bus.conf"
        config.write_text(BUS_CONFIG.format(address=listen or f"unix:path={root}/bus"))
        bus = stack.enter_context(
            running(
                [*need("dbus-daemon"), f"--config-file={config}", "--nofork", "--print-address=1"],
                stdout=subprocess.PIPE,
            )
        )
        assert bus.stdout is not None
        self.address = bus.stdout.readline().strip()
        self.environ = {"PATH": os.environ["PATH"], "DBUS_SESSION_BUS_ADDRESS": self.address, **directories}
        stack.enter_context(self._daemon)

    def start_keyring(self, password: str = PASSWORD) -> None:
        """(Re)start GNOME Keyring; a wrong password leaves the login keyring as it was, locked."""
        from conftest import need

        self._daemon.close()
        wait_for(lambda: not self.call_bus("NameHasOwner", "s", SECRETS), "the old keyring to go")
        command = [*need("gnome-keyring-daemon"), "--foreground", "--components=secrets"]
        self._daemon.enter_context(running([*command, "--unlock"] if password else command, password, self.environ))
        wait_for(lambda: self.call_bus("NameHasOwner", "s", SECRETS), "GNOME Keyring")
        self.get(ROOT, "Service", "Collections")
        if password:
            wait_for(lambda: self.call("ReadAlias", "s", "default") != "/", "its login keyring")

    def vault(self, interactive: bool = True, **environ: str) -> eks_token.Vault:
        return eks_token.Vault({**self.environ, **environ}, interactive=interactive)

    def run(self, *command: str, stdin: str | None = None) -> str:
        done = subprocess.run(command, env=self.environ, input=stdin, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def call_bus(
        self,
        method: str,
        signature: str = "",
        *body: object,
        name: str = "org.freedesktop.DBus",
        path: str = "",
        interface: str = "",
        index: int = 0,
    ) -> Any:
        """The first value (or the one at `index`) of the reply to one D-Bus call.

        All calls share a connection: GNOME Keyring can abort on the first message of a new one.
        """
        from jeepney import DBusAddress, new_method_call
        from jeepney.io.blocking import DBusConnection, prep_socket
        from jeepney.wrappers import unwrap_msg

        if self._connection is None:
            bus = eks_token.session_bus_addresses(self.environ)[0]
            self._connection = self._stack.enter_context(DBusConnection(prep_socket(bus)))
        path = path or "/" + name.replace(".", "/")
        message = new_method_call(DBusAddress(path, name, interface or name), method, signature or None, body)
        values = unwrap_msg(self._connection.send_and_get_reply(message, timeout=10))
        return values[index] if values else None

    def call(
        self,
        method: str,
        signature: str,
        *body: object,
        path: str = ROOT,
        interface: str = "Service",
        index: int = 0,
    ) -> Any:
        interface = "org.freedesktop.Secret." + interface
        return self.call_bus(method, signature, *body, name=SECRETS, path=path, interface=interface, index=index)

    def clear(self) -> None:
        for item in self.call("SearchItems", "a{ss}", {}):  # of every collection
            self.call("Delete", "", path=item, interface="Item")

    def lock(self) -> None:
        self.call("Lock", "ao", [self.call("ReadAlias", "s", "default")])

    def items(self, **attributes: str) -> list[str]:
        collection = self.call("ReadAlias", "s", "default")
        return list(self.call("SearchItems", "a{ss}", attributes, path=collection, interface="Collection"))

    def attributes(self, item: str) -> dict[str, str]:
        """Without the schema, which GNOME Keyring adds to an item once it has written it to its file."""
        return {name: value for name, value in self.get(item, "Item", "Attributes").items() if name != "xdg:schema"}

    def set_secret(self, item: str, value: bytes) -> None:
        self._session = self._session or self.open_session()
        self.call("SetSecret", "(oayays)", (self._session, b"", value, "text/plain"), path=item, interface="Item")

    def open_session(self) -> str:
        self.get(ROOT, "Service", "Collections")
        return str(self.call("OpenSession", "sv", "plain", ("s", ""), index=1))

    def get(self, path: str, interface: str, name: str) -> Any:
        """A property."""
        properties = "org.freedesktop.DBus.Properties"
        arguments = ("org.freedesktop.Secret." + interface, name)
        return self.call_bus("Get", "ss", *arguments, name=SECRETS, path=path, interface=properties)[1]


@contextmanager
def desktop_in_a_directory(listen: str = "") -> Iterator[Desktop]:
    # not tmp_path: the address of a Unix socket has at most 107 bytes
    with tempfile.TemporaryDirectory(prefix="ekt") as directory, ExitStack() as stack:
        yield Desktop(Path(directory), stack, listen)


class KeyringDaemon(Desktop):
    """A desktop with an unlocked keyring, until it is told to stop."""

    def __init__(self) -> None:
        with ExitStack() as stack:
            super().__init__(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ekt"))), stack)
            self.start_keyring()
            self.stop = stack.pop_all().close

    def stored(self) -> list[dict[str, str]]:
        """The attributes of every item."""
        return [self.attributes(item) for item in self.call("SearchItems", "a{ss}", {})]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """With a locked keyring: reading needs a prompt then, which nobody here can answer."""
        self.lock()
        try:
            yield
        finally:
            # GNOME's own way for its tools to unlock without a prompt
            interface = "org.gnome.keyring.InternalUnsupportedGuiltRiddenInterface"
            arguments = (
                self.call("ReadAlias", "s", "default"),
                (self.open_session(), b"", PASSWORD.encode(), "text/plain"),
            )
            method = "UnlockWithMasterPassword"
            self.call_bus(method, "o(oayays)", *arguments, name=SECRETS, path=ROOT, interface=interface)
