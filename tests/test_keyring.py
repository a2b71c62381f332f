"""The vault, against GNOME Keyring with stock keyring and secret-tool as judges, and against keyrings gone wrong."""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import keyring.backend
import keyring.errors
import pytest
from conftest import missing, need
from desktops import Desktop, desktop_in_a_directory
from servers import wait_for

import eks_token
from eks_token import Vault

# --- desktops -----------------------------------------------------------------------------------------------


def need_module(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        missing(f"the Python module {name}")


@pytest.fixture(scope="session")
def shared_desktop() -> Iterator[Desktop]:
    with desktop_in_a_directory() as desktop:
        desktop.start_keyring()
        yield desktop


@pytest.fixture
def desktop(shared_desktop: Desktop) -> Iterator[Desktop]:
    """An unlocked GNOME Keyring with no item of ours in it."""
    yield shared_desktop
    shared_desktop.clear()


@pytest.fixture
def own_desktop() -> Iterator[Desktop]:
    """A desktop for one test alone, which may lock, restart or never start its keyring."""
    with desktop_in_a_directory() as desktop:
        yield desktop


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """keyring reads its own configuration from os.environ: none of this machine's, a directory for the test's."""
    for name in [*os.environ]:
        if name.startswith(("PYTHON_KEYRING_", "KEYRING_PROPERTY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = tmp_path / "config" / "python_keyring"
    directory.mkdir(parents=True)
    return directory / "keyringrc.cfg"


# --- the judges ---------------------------------------------------------------------------------------------

STOCK = """
import json, sys
from keyring.backends.SecretService import Keyring
method, *arguments = json.load(sys.stdin)
print(json.dumps(getattr(Keyring(), method)(*arguments)))
"""


class StockKeyring:
    """keyring's own backend, on secretstorage and cryptography, in a process of its own."""

    def __init__(self, desktop: Desktop) -> None:
        need_module("secretstorage")
        self.desktop = desktop

    def ask(self, *request: str) -> str | None:
        answer: str | None = json.loads(self.desktop.run(sys.executable, "-c", STOCK, stdin=json.dumps(request)))
        return answer

    def get(self, user: str) -> str | None:
        return self.ask("get_password", "eks-token", user)

    def set(self, user: str, value: str) -> None:
        self.ask("set_password", "eks-token", user, value)


class SecretTool:
    """libsecret's command."""

    def __init__(self, desktop: Desktop) -> None:
        (self.command,) = need("secret-tool")
        self.desktop = desktop

    def get(self, user: str) -> str | None:
        return self.desktop.run(self.command, "lookup", "service", "eks-token", "username", user) or None

    def set(self, user: str, value: str) -> None:
        words = ("store", "--label", "by hand", "service", "eks-token", "username", user)
        self.desktop.run(self.command, *words, stdin=value)


Judge = StockKeyring | SecretTool


@pytest.fixture(params=[StockKeyring, SecretTool])
def judge(request: pytest.FixtureRequest, desktop: Desktop) -> Judge:
    chosen: Judge = request.param(desktop)
    return chosen


VALUES = [
    pytest.param("s3cret", id="plain"),
    pytest.param('{"aws_secret_access_key":"wJalr/+="}', id="json"),
    pytest.param("Zürich \U0001f511", id="beyond ASCII"),
    pytest.param("x" * 8000, id="longer than any token, and as long as secret-tool reads"),
]


@pytest.mark.parametrize("value", VALUES)
def test_what_we_store_the_judge_reads(desktop: Desktop, judge: Judge, value: str) -> None:
    desktop.vault().set("identity:dev", value)
    assert judge.get("identity:dev") == value


@pytest.mark.parametrize("value", VALUES)
def test_what_the_judge_stores_we_read(desktop: Desktop, judge: Judge, value: str) -> None:
    judge.set("identity:dev", value)
    assert desktop.vault().get("identity:dev") == value


def test_an_item_of_the_judge_is_updated_in_its_place(desktop: Desktop, judge: Judge) -> None:
    judge.set("identity:dev", "old")
    before = desktop.items(service="eks-token")
    desktop.vault().set("identity:dev", "new")
    assert judge.get("identity:dev") == "new"
    assert desktop.items(service="eks-token") == before


def test_an_item_of_ours_is_updated_in_its_place_by_the_judge(desktop: Desktop, judge: Judge) -> None:
    desktop.vault().set("identity:dev", "old")
    judge.set("identity:dev", "new")
    assert desktop.vault().get("identity:dev") == "new"
    assert len(desktop.items(service="eks-token")) == 1


def test_an_item_of_secret_tool_that_we_updated_is_updated_by_stock_keyring(desktop: Desktop) -> None:
    SecretTool(desktop).set("identity:dev", "by hand")
    desktop.vault().set("identity:dev", "ours")
    StockKeyring(desktop).set("identity:dev", "stock")
    assert desktop.vault().get("identity:dev") == "stock"
    assert len(desktop.items(service="eks-token")) == 1


def test_an_item_of_ours_looks_like_one_of_stock_keyring(desktop: Desktop) -> None:
    StockKeyring(desktop).set("stock", "x")
    desktop.vault().set("ours", "x")
    (theirs,) = desktop.items(username="stock")
    (ours,) = desktop.items(username="ours")
    assert desktop.attributes(ours) == desktop.attributes(theirs) | {"username": "ours"}
    assert desktop.get(ours, "Item", "Label") == "Password for 'ours' on 'eks-token'"
    assert desktop.get(theirs, "Item", "Label") == "Password for 'stock' on 'eks-token'"


@pytest.fixture
def duplicates(desktop: Desktop) -> Desktop:
    """Two items of one name: stock keyring makes its own next to secret-tool's, and here the first is written last."""
    SecretTool(desktop).set("identity:dev", "newer")
    StockKeyring(desktop).set("identity:dev", "older")
    older, newer = sorted(
        desktop.items(service="eks-token"), key=lambda item: "application" not in desktop.attributes(item)
    )

    def newer_is_newer() -> bool:  # GNOME Keyring counts whole seconds, and takes no notice of an unchanged value
        for value in (b"new", b"newer"):
            desktop.set_secret(newer, value)
        modified: list[int] = [desktop.get(item, "Item", "Modified") for item in (older, newer)]
        return modified[0] < modified[1]

    wait_for(newer_is_newer, "the next second")
    return desktop


def test_the_newest_of_duplicates_is_read(duplicates: Desktop) -> None:
    assert duplicates.vault().get("identity:dev") == "newer"


def test_a_write_leaves_one_of_duplicates(duplicates: Desktop) -> None:
    duplicates.vault().set("identity:dev", "one")
    assert len(duplicates.items(service="eks-token")) == 1
    assert StockKeyring(duplicates).get("identity:dev") == SecretTool(duplicates).get("identity:dev") == "one"


def test_deleting_removes_all_duplicates(duplicates: Desktop) -> None:
    assert duplicates.vault().delete("identity:dev") is True
    assert duplicates.items(service="eks-token") == []


def test_deleting_what_is_not_there_says_so(desktop: Desktop) -> None:
    assert desktop.vault().delete("identity:dev") is False


def test_an_item_of_another_collection_is_found_and_updated_there(desktop: Desktop) -> None:
    session = "/org/freedesktop/secrets/collection/session"
    attributes = {"service": "eks-token", "username": "identity:dev", "more": "kept"}
    properties = {"org.freedesktop.Secret.Item.Attributes": ("a{ss}", attributes)}
    secret = (desktop.open_session(), b"", b"old", "text/plain")
    arguments = (properties, secret, False)
    item = desktop.call("CreateItem", "a{sv}(oayays)b", *arguments, path=session, interface="Collection")
    vault = desktop.vault()
    assert (vault.get("identity:dev"), vault.users()) == ("old", ["identity:dev"])
    vault.set("identity:dev", "new")
    assert vault.get("identity:dev") == "new"
    assert desktop.attributes(item) == attributes | {"application": "Python keyring library"}
    assert desktop.items(service="eks-token") == []
    assert vault.delete("identity:dev") is True
    assert vault.users() == []


def test_a_preferred_collection_that_does_not_exist_is_named(desktop: Desktop) -> None:
    with refused("no collection nowhere, which KEYRING_PROPERTY_PREFERRED_COLLECTION names") as caught:
        desktop.vault(KEYRING_PROPERTY_PREFERRED_COLLECTION="nowhere").set("identity:dev", "x")
    assert "Login" in caught.value.hint


def test_the_users_of_our_service_are_listed(desktop: Desktop) -> None:
    vault = desktop.vault()
    for user in ("identity:b", "identity:a", "sso:1"):
        vault.set(user, "x")
    eks_token.SecretStore(desktop.environ, False).set("other", "identity:c", "x")
    assert vault.users() == ["identity:a", "identity:b", "sso:1"]


def test_a_json_object_comes_back(desktop: Desktop) -> None:
    value = {"aws_access_key_id": "AKIDEXAMPLE", "n": [1, None, "ü"]}
    desktop.vault().set_json("identity:dev", value)
    assert desktop.vault().get_json("identity:dev") == value
    assert desktop.vault().get_json("identity:other") is None


@pytest.mark.parametrize("text", ['{"aws_secret_access_key": "TOPSECRET', '"TOPSECRET"', "", "TOPSECRET"])
def test_broken_json_is_named_and_not_shown(desktop: Desktop, text: str) -> None:
    desktop.vault().set("identity:dev", text)
    with pytest.raises(eks_token.DamagedEntry) as caught:
        desktop.vault().get_json("identity:dev")
    assert "identity:dev" in caught.value.message
    assert "`eks-token login dev`" in caught.value.hint
    assert "`eks-token logout dev`" in caught.value.hint
    assert "TOPSECRET" not in caught.value.message + caught.value.hint


def test_bytes_that_are_not_text_are_an_error_and_can_be_deleted(desktop: Desktop) -> None:
    desktop.vault().set("identity:dev", "x")
    (item,) = desktop.items(service="eks-token")
    desktop.set_secret(item, b"\xff\xfe")
    with pytest.raises(eks_token.Problem, match="not text"):
        desktop.vault().get("identity:dev")
    assert desktop.vault().delete("identity:dev") is True


def test_one_vault_keeps_one_connection(desktop: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = desktop.vault()
    vault.set("identity:dev", "x")
    with monkeypatch.context() as patch:
        patch.setattr(eks_token, "session_bus_addresses", lambda environ: pytest.fail("connected again"))
        assert vault.get("identity:dev") == "x"
        assert vault.get_foreign("atmos_x", "atmos-auth") is None


def test_a_restarted_keyring_is_used_again(own_desktop: Desktop) -> None:
    own_desktop.start_keyring()
    vault = own_desktop.vault()
    vault.set("identity:dev", "x")
    own_desktop.start_keyring()
    assert vault.get("identity:dev") == "x"


def test_many_processes_at_once_do_not_abort_gnome_keyring(own_desktop: Desktop) -> None:
    own_desktop.start_keyring()
    own_desktop.vault().set("identity:dev", "x")
    values = []

    def read_often() -> None:
        for _ in range(300):
            store = eks_token.SecretStore(own_desktop.environ, False)
            values.append(store.get("eks-token", "identity:dev"))
            store.bus.close()

    threads = [threading.Thread(target=read_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == ["x"] * 1200


def test_a_read_imports_neither_keyring_nor_a_compiled_library(desktop: Desktop) -> None:
    program = (
        "import os, sys, eks_token; eks_token.Vault(os.environ).get('identity:dev');"
        "print(sorted({'cryptography', 'secretstorage', 'keyring', 'jeepney'} & set(sys.modules)))"
    )
    desktop.environ["PYTHONPATH"] = str(Path(eks_token.__file__).parent)
    assert desktop.run(sys.executable, "-c", program).strip() == "['jeepney']"


# --- locked -------------------------------------------------------------------------------------------------

QUESTIONS = [
    pytest.param(lambda vault: vault.get("identity:dev"), id="read"),
    pytest.param(lambda vault: vault.get("identity:absent"), id="read what is not there"),
    pytest.param(lambda vault: vault.set("identity:dev", "TOPSECRET"), id="update"),
    pytest.param(lambda vault: vault.set("identity:new", "TOPSECRET"), id="store"),
    pytest.param(lambda vault: vault.delete("identity:dev"), id="delete"),
]


@contextmanager
def refused(message: str, seconds: float = 2.0) -> Iterator[pytest.ExceptionInfo[eks_token.KeyringUnavailable]]:
    """The block ends soon with a KeyringUnavailable, in two lines that show no secret."""
    begin = time.monotonic()
    with pytest.raises(eks_token.KeyringUnavailable, match=message) as caught:
        yield caught
    assert time.monotonic() - begin < seconds
    assert caught.value.status == 1
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    assert "TOPSECRET" not in caught.value.message + caught.value.hint


@pytest.fixture(scope="module", params=["locked", "never unlocked"])
def locked_desktop(request: pytest.FixtureRequest) -> Iterator[Desktop]:
    with desktop_in_a_directory() as desktop:
        desktop.start_keyring()
        desktop.vault().set("identity:dev", "x")
        if request.param == "locked":
            desktop.lock()
        else:
            desktop.start_keyring("wrong")
        yield desktop


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    ("interactive", "display"),
    [
        pytest.param(False, {"DISPLAY": ":0"}, id="kubectl says that nobody is there"),
        pytest.param(True, {}, id="no desktop"),
        pytest.param(True, {"DISPLAY": "", "WAYLAND_DISPLAY": ""}, id="no desktop, empty variables"),
    ],
)
def test_a_locked_keyring_is_refused_soon_where_nobody_can_be_asked(
    locked_desktop: Desktop, question: Callable[[Vault], object], interactive: bool, display: Mapping[str, str]
) -> None:
    vault = locked_desktop.vault(interactive, **display)
    with refused("the keyring is locked: nobody can be asked to unlock it", 6.0):
        question(vault)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_dialog_that_cannot_be_shown_is_a_locked_keyring(
    locked_desktop: Desktop, question: Callable[[Vault], object]
) -> None:
    with refused("the keyring is locked: .* dismissed or could not be shown", 10.0):
        question(locked_desktop.vault(WAYLAND_DISPLAY="wayland-0"))


@pytest.mark.parametrize("locked_desktop", ["never unlocked"], indirect=True)
def test_the_users_of_a_keyring_that_was_never_unlocked_are_not_none(locked_desktop: Desktop) -> None:
    with refused("the keyring is locked"):
        locked_desktop.vault().users()


def test_a_keyring_without_a_collection_is_empty_and_takes_nothing(own_desktop: Desktop) -> None:
    own_desktop.start_keyring(password="")
    assert own_desktop.vault().get("identity:dev") is None
    assert own_desktop.vault().users() == []
    assert own_desktop.vault().delete("identity:dev") is False
    with refused("no keyring: nobody can be asked to create a keyring", 6.0):
        own_desktop.vault().set("identity:dev", "TOPSECRET")


# --- a bus that does as it is told --------------------------------------------------------------------------


Reply = tuple[()] | tuple[str, tuple[object, ...]] | str | bytes | None
"""The signature and values of a return, if it has values; an error's name; bytes that are not a message, where none
are the end of the connection; None for silence."""

ERROR = "org.freedesktop.DBus.Error."


class FakeBus:
    """A session bus with a Secret Service of one item, which a person unlocks. `instead` has other replies.

    It sends `Completed` to whoever has asked for it, as services other than GNOME Keyring do.
    """

    def __init__(self, path: str) -> None:
        self.environ = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={path}", "DISPLAY": ":0"}
        self.greeting = b"OK 1234567890abcdef1234567890abcdef\r\n"
        self.instead: dict[str, Iterator[Reply]] = {}
        self.answer, self.shows_locked, self.has_collection = "unlock", True, True
        self.locked, self.secret, self.hesitation, self.delay = True, b"stored", 0.0, 0.0
        self.collection = "/org/freedesktop/secrets/collection/one"
        self.attributes = {"application": "Python keyring library"}
        self.calls: list[str] = []  # methods, and properties that were read
        self.serials = itertools.count(1)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen()
        self.connections: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def vault(self) -> Vault:
        return Vault(self.environ)

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                self.connections.append(self.server.accept()[0])
                with suppress(OSError):
                    self.converse(self.connections[-1])

    def close(self) -> None:
        for each in [self.server, *self.connections]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.thread.join(10)

    def converse(self, connection: socket.socket) -> None:
        from jeepney import MessageType, Parser

        with connection.makefile("rb") as stream:
            stream.readline()
            connection.sendall(self.greeting)
            stream.readline()
            parser = Parser()
            while data := stream.read1(65536):
                for message in parser.feed(data):
                    if message.header.message_type is MessageType.method_call:
                        self.handle(connection, message)

    def handle(self, connection: socket.socket, message: Any) -> None:
        from jeepney import DBusAddress, HeaderFields, new_error, new_method_return, new_signal

        def send(answer: Any) -> None:
            connection.sendall(answer.serialise(serial=next(self.serials)))

        method = message.header.fields[HeaderFields.member]
        self.calls.append(message.body[1] if method == "Get" else method)
        time.sleep(self.delay)
        try:
            reply = next(self.instead.get(self.calls[-1], iter(())))
        except StopIteration:
            reply = self.reply(method, message.body)
        if isinstance(reply, bytes):
            connection.sendall(reply) if reply else connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(reply, str):
            error = new_error(message, reply, "s", ("the secret is TOPSECRET",))
            if not reply:
                del error.header.fields[HeaderFields.error_name]
            send(error)
        elif reply is not None:
            send(new_method_return(message, *reply))
            if method == "Prompt" and self.answer != "nobody" and "AddMatch" in self.calls:
                time.sleep(self.hesitation)
                self.locked = self.answer != "unlock"
                self.has_collection = not self.locked
                prompt = DBusAddress("/prompt/1", interface="org.freedesktop.Secret.Prompt")
                send(new_signal(prompt, "Completed", "bv", (self.locked, ("s", ""))))

    def reply(self, method: str, body: Any) -> Reply:
        found = [f"{self.collection}/1"] if self.shows_locked or not self.locked else []
        properties = {
            "Collections": ("ao", [self.collection] if self.has_collection else []),
            "Locked": ("b", self.locked),
            "Attributes": ("a{ss}", self.attributes),
            "Label": ("s", "one"),
        }
        if method in ("GetSecret", "SetSecret") and self.locked:
            return "org.freedesktop.Secret.Error.IsLocked"
        if method == "CreateItem":
            self.secret = body[1][2]
        if method == "SetSecret":
            self.secret = body[0][2]
        returns: dict[str, Reply] = {
            "Hello": ("s", (":1.1",)),
            "OpenSession": ("vo", (("s", ""), "/session/1")),
            "ReadAlias": ("o", (self.collection if self.has_collection else "/",)),
            "SearchItems": ("aoao", ([], found) if self.locked else (found, [])),
            "Unlock": ("aoo", ([], "/prompt/1")),
            "CreateCollection": ("oo", ("/", "/prompt/1")),
            "CreateItem": ("oo", (f"{self.collection}/1", "/")),
            "GetSecret": ("(oayays)", (("/session/1", b"", self.secret, "text/plain"),)),
            "GetNameOwner": ERROR + "NameHasNoOwner",
        }
        return ("v", (properties[body[1]],)) if method == "Get" else returns.get(method, ())


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with tempfile.TemporaryDirectory(prefix="ekt") as directory:
        bus = FakeBus(f"{directory}/bus")
        yield bus
        bus.close()


SHOWN = pytest.mark.parametrize(
    "shows_locked", [True, False], ids=["as GNOME Keyring", "locked shows nothing, as KeePassXC"]
)


@SHOWN
def test_a_person_unlocks_the_keyring(bus: FakeBus, shows_locked: bool) -> None:
    bus.shows_locked = shows_locked
    vault = bus.vault()
    assert vault.get("identity:dev") == "stored"
    vault.set("identity:dev", "new")
    assert bus.secret == b"new"
    assert bus.calls.count("Prompt") == 1


def test_few_messages_make_a_read(bus: FakeBus) -> None:
    bus.locked = False
    vault = bus.vault()
    assert vault.get("identity:dev") == vault.get("identity:dev") == "stored"
    # the second is what GNOME Keyring can be asked before it knows the client
    introduction = ["Hello", "Collections", "OpenSession"]
    read = ["Collections", "Locked", "SearchItems", "GetSecret"]
    assert bus.calls == [*introduction, *read, *read]


@SHOWN
def test_a_dismissed_dialog_is_shown_once(bus: FakeBus, shows_locked: bool) -> None:
    bus.answer, bus.shows_locked = "dismiss", shows_locked
    vault = bus.vault()
    for _ in range(3):
        with refused("the keyring is locked: the request to unlock it was dismissed"):
            vault.get("identity:dev")
    assert bus.calls.count("Prompt") == 1


def test_a_dialog_that_nobody_answers_is_given_up(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eks_token, "PROMPT_SECONDS", 0.2)
    bus.answer = "nobody"
    with refused("the keyring is locked: nobody answered the request to unlock it"):
        bus.vault().get("identity:dev")
    assert bus.calls[-1] == "Dismiss"


def test_the_time_a_person_takes_is_not_the_services(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eks_token, "BUS_SECONDS", 0.5)
    bus.hesitation, bus.delay = 0.8, 0.02
    assert bus.vault().get("identity:dev") == "stored"


def test_a_person_creates_the_default_collection(bus: FakeBus) -> None:
    bus.has_collection = False
    bus.vault().set("identity:dev", "new")
    assert (bus.secret, bus.calls.count("Prompt")) == (b"new", 1)


GARBAGE = [
    pytest.param(None, id="silence"),
    pytest.param(b"", id="the end of the connection"),
    pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
    pytest.param(bytes(64), id="zeros"),
    pytest.param(b"l\2\1\1" + b"\xff\xff\xff\x7f" * 3, id="a message without end"),
    pytest.param("", id="an error without a name"),
    pytest.param("org.example.Error." + "Odd" * 80, id="an error of its own"),
]
NO_VALUES, NUMBER = pytest.param((), id="no values"), pytest.param(("u", (1,)), id="a number")
ANSWERS = [*GARBAGE, NO_VALUES, NUMBER]
# What a read calls, and what is wrong as an answer to it.
NONSENSE = {
    "Hello": [*GARBAGE, NO_VALUES],
    "AddMatch": [*GARBAGE, NUMBER],
    "Prompt": [*GARBAGE, NUMBER],
    **dict.fromkeys(("Collections", "OpenSession", "Locked", "ReadAlias", "Unlock", "SearchItems"), ANSWERS),
    "GetSecret": ANSWERS,
}


@pytest.mark.parametrize(
    ("call", "garbage"),
    [
        pytest.param(call, *each.values, id=f"{call}: {each.id}")
        for call, answers in NONSENSE.items()
        for each in answers
    ],
)
def test_nonsense_from_the_bus_or_the_service_is_one_line(
    bus: FakeBus, call: str, garbage: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eks_token, "BUS_SECONDS", 0.3)
    bus.instead[call] = itertools.repeat(garbage)
    with pytest.raises(eks_token.Problem) as caught:
        bus.vault().get("identity:dev")
    said = caught.value.message
    assert said.startswith(("no keyring: ", "the keyring could not read identity:dev: "))
    assert len(said) < 200 and "\n" not in said
    assert not any(word in said for word in ("None", "TOPSECRET", "Traceback", "()"))


def test_a_collection_that_vanishes_is_looked_for_once_more(bus: FakeBus) -> None:
    vault = bus.vault()
    bus.instead["Locked"] = iter([ERROR + "UnknownObject"])
    assert vault.get("identity:dev") == "stored"
    bus.instead["Locked"] = itertools.repeat(ERROR + "UnknownObject")
    with pytest.raises(eks_token.Problem, match="could not read identity:dev: an entry or collection vanished"):
        vault.get("identity:dev")


# --- no keyring at all --------------------------------------------------------------------------------------


def test_a_bus_without_a_keyring_service_is_reported(own_desktop: Desktop) -> None:
    with refused(r"no keyring: no service \(org\.freedesktop\.secrets\)") as caught:
        own_desktop.vault().get("identity:dev")
    assert "PYTHON_KEYRING_BACKEND" in caught.value.hint


@pytest.mark.parametrize(
    ("address", "message"),
    [
        pytest.param("unix:path=/nonexistent/bus", r"cannot be reached \(No such file or directory", id="no socket"),
        pytest.param(f"unix:path=/{'x' * 200}", r"cannot be reached \(AF_UNIX path too long", id="too long"),
        pytest.param("unix:path=/a%00b", "cannot be reached", id="a zero byte"),
        pytest.param("tcp:host=localhost,port=1", "is not the address of a Unix socket", id="another transport"),
        pytest.param("nonsense", "is not the address of a Unix socket", id="no address"),
        pytest.param(";;", "is not the address of a Unix socket", id="nothing but separators"),
    ],
)
def test_a_bus_that_cannot_be_reached_is_reported(address: str, message: str) -> None:
    with refused(f"no keyring: .*{message}"):
        Vault({"DBUS_SESSION_BUS_ADDRESS": address}).get("identity:dev")


@pytest.mark.parametrize("environ", [{}, {"DBUS_SESSION_BUS_ADDRESS": ""}], ids=["unset", "empty"])
def test_no_bus_at_all_is_reported(environ: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    with refused("no keyring: no session bus"):
        Vault({**environ, "XDG_RUNTIME_DIR": str(tmp_path)}).get("identity:dev")


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        pytest.param(b"", "did not answer", id="mute"),
        pytest.param(b"REJECTED KERBEROS\r\n", "it refused the authentication", id="refuses"),
        pytest.param(b"x" * 9000, "it refused the authentication", id="another protocol"),
    ],
)
def test_a_bus_that_does_not_let_us_in_is_asked_once_for_all(
    bus: FakeBus, greeting: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eks_token, "BUS_SECONDS", 0.4)
    bus.greeting = greeting
    vault = Vault({"DBUS_SESSION_BUS_ADDRESS": ";".join([bus.environ["DBUS_SESSION_BUS_ADDRESS"]] * 2)})
    with refused(message, 1.0):
        vault.get("identity:dev")
    with refused(message, 0.1):
        vault.set("identity:dev", "TOPSECRET")


# --- where the bus is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("unix:path=/run/user/1000/bus", [b"/run/user/1000/bus"], id="systemd"),
        pytest.param("unix:path=/tmp/b,guid=0123", [b"/tmp/b"], id="with a guid"),
        pytest.param("unix:guid=0123,path=/tmp/b", [b"/tmp/b"], id="guid first"),
        pytest.param("unix:abstract=/tmp/dbus-x", [b"\0/tmp/dbus-x"], id="abstract"),
        pytest.param("unix:path=/tmp/a%20b%c3%bc", [b"/tmp/a b\xc3\xbc"], id="escaped bytes"),
        pytest.param("tcp:host=h;unix:path=/a;unix:path=/b", [b"/a", b"/b"], id="several"),
        pytest.param("unix:path=/a;", [b"/a"], id="a separator at the end"),
        pytest.param("unix:runtime=yes", [b"/run/me/bus"], id="the runtime directory"),
    ],
)
def test_a_bus_address_is_understood(address: str, expected: list[bytes]) -> None:
    environ = {"DBUS_SESSION_BUS_ADDRESS": address, "XDG_RUNTIME_DIR": "/run/me"}
    assert eks_token.session_bus_addresses(environ) == expected


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("{bus}", id="path"),
        pytest.param("unix:path=/nonexistent;{bus}", id="the second of two"),
        pytest.param("", id="the well-known path"),
    ],
)
def test_the_keyring_is_found_at(desktop: Desktop, address: str, tmp_path: Path) -> None:
    desktop.vault().set("identity:dev", "x")
    runtime = Path(desktop.environ["XDG_RUNTIME_DIR"], "bus")
    runtime.unlink(missing_ok=True)
    runtime.symlink_to(desktop.root / "bus")
    vault = desktop.vault(DBUS_SESSION_BUS_ADDRESS=address.format(bus=desktop.address))
    assert vault.get("identity:dev") == "x"


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux, which has abstract sockets")
def test_the_keyring_is_found_at_an_abstract_socket() -> None:
    with desktop_in_a_directory(f"unix:abstract=/tmp/ekt-{os.getpid()}") as desktop:
        assert desktop.address.startswith("unix:abstract=")
        desktop.start_keyring()
        desktop.vault().set("identity:dev", "x")
        assert desktop.vault().get("identity:dev") == "x"


# --- values over the limit of Windows -----------------------------------------------------------------------


Items = dict[tuple[str, str], str]


class LimitedBackend(keyring.backend.KeyringBackend):
    """A store that takes no more than Windows does, and fails at the change (write or deletion) it is told to."""

    priority = 1

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.items: Items = {}
        self.changes, self.fail_at = 0, fail_at

    def change(self) -> None:
        self.changes += 1
        if self.changes == self.fail_at:
            raise keyring.errors.PasswordSetError("disk full: TOPSECRET")

    def get_password(self, service: str, username: str) -> str | None:
        return self.items.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.change()
        assert len(password.encode("utf-16-le")) <= 2560
        self.items[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self.change()
        if self.items.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError("not found")


def windows_vault(backend: keyring.backend.KeyringBackend) -> Vault:
    return Vault({}, keyring=eks_token.WindowsKeyring(backend))


def stock_vault(backend: keyring.backend.KeyringBackend) -> Vault:
    return Vault({}, keyring=eks_token.StockKeyring(backend))


LENGTHS = [
    pytest.param("x" * 1280, 1, id="just fits"),
    pytest.param("x" * 1281, 3, id="one too long"),
    pytest.param("x" * 2560, 3, id="two full parts"),
    pytest.param("".join(map(str, range(5000))), 16, id="many parts"),
    pytest.param("\U0001f511" * 640, 1, id="surrogate pairs that fit"),
    pytest.param("x" + "\U0001f511" * 640, 3, id="a pair across the cut"),
    pytest.param("eks-token-parts a 1 0", 2, id="looks like a head"),
    pytest.param("", 1, id="empty"),
]


@pytest.mark.parametrize(("value", "items"), LENGTHS)
@pytest.mark.parametrize("before", ["short", "y" * 6000, "z" * 1300], ids=["short", "long", "two parts"])
def test_a_long_value_is_split_and_joined_and_leaves_no_parts(before: str, value: str, items: int) -> None:
    backend = LimitedBackend()
    vault = windows_vault(backend)
    for text in (value, before, value, before, value):
        vault.set("identity:dev", text)
        assert vault.get("identity:dev") == text
    assert len(backend.items) == items


@pytest.mark.parametrize("before", ["short", "y" * 6000], ids=["short before", "long before"])
@pytest.mark.parametrize("after", ["other", "z" * 4000], ids=["short after", "long after"])
def test_a_write_that_fails_anywhere_leaves_the_old_value_or_the_new(before: str, after: str) -> None:
    clean = LimitedBackend()
    vault = windows_vault(clean)
    vault.set("identity:dev", before)
    clean.changes = 0
    vault.set("identity:dev", after)
    left, failures = len(clean.items), 0
    for fail_at in range(1, clean.changes + 1):
        backend = LimitedBackend()
        vault = windows_vault(backend)
        vault.set("identity:dev", before)
        backend.changes, backend.fail_at = 0, fail_at
        try:
            vault.set("identity:dev", after)
        except eks_token.Problem as problem:
            failures += 1
            assert "TOPSECRET" not in problem.message
            assert vault.get("identity:dev") == before
        else:
            assert vault.get("identity:dev") == after
        vault.set("identity:dev", after)
        assert vault.get("identity:dev") == after
        assert len(backend.items) == left, "parts of the failed write are still there"
    assert failures >= 1


@pytest.mark.parametrize("fail_at", range(1, 7))
def test_a_deletion_that_fails_can_be_repeated(fail_at: int) -> None:
    backend = LimitedBackend()
    vault = windows_vault(backend)
    vault.set("identity:dev", "y" * 6000)
    backend.changes, backend.fail_at = 0, fail_at
    with pytest.raises(eks_token.Problem):
        vault.delete("identity:dev")
    vault.delete("identity:dev")
    assert backend.items == {}


def torn_by_loss(items: Items) -> None:
    del items["eks-token", "part:a2:identity:dev"]


def torn_by_mixture(items: Items) -> None:
    items["eks-token", "part:a2:identity:dev"] = "w" * 1280


def torn_at_the_head(items: Items) -> None:
    items["eks-token", "identity:dev"] = "eks-token-parts a many"


@pytest.mark.parametrize("tear", [torn_by_loss, torn_by_mixture, torn_at_the_head])
def test_a_torn_value_is_noticed(tear: Callable[[Items], None]) -> None:
    backend = LimitedBackend()
    vault = windows_vault(backend)
    vault.set("identity:dev", "y" * 6000)
    tear(backend.items)
    with pytest.raises(eks_token.DamagedEntry, match="incomplete") as caught:
        vault.get("identity:dev")
    assert "`eks-token login dev`" in caught.value.hint
    vault.set("identity:dev", "z" * 6000)
    assert vault.get("identity:dev") == "z" * 6000
    assert vault.delete("identity:dev") is True


def test_a_reader_sees_one_value_or_the_other_while_a_writer_writes() -> None:
    class RewrittenBackend(LimitedBackend):
        """Another process replaces the value after the first read of its head."""

        rewritten = True

        def get_password(self, service: str, username: str) -> str | None:
            value = super().get_password(service, username)
            if username == "identity:dev" and not self.rewritten:
                self.rewritten = True
                windows_vault(self).set("identity:dev", "z" * 6000)
            return value

    backend = RewrittenBackend()
    vault = windows_vault(backend)
    vault.set("identity:dev", "y" * 6000)
    backend.rewritten = False
    assert vault.get("identity:dev") == "z" * 6000


def test_nothing_is_split_where_there_is_no_limit() -> None:
    class UnlimitedBackend(LimitedBackend):
        def set_password(self, service: str, username: str, password: str) -> None:
            self.items[service, username] = password

    backend = UnlimitedBackend()
    vault = stock_vault(backend)
    vault.set("identity:dev", "x" * 6000)
    assert backend.items == {("eks-token", "identity:dev"): "x" * 6000}


# --- keyring's Windows backend on a stand-in for the Credential Manager -------------------------------------


WIN32CRED = "win32ctypes.pywin32.win32cred"
Credential = dict[str, object]


class CredentialError(Exception):
    """pywintypes.error; what keyring reads of it."""

    __module__ = "pywintypes"

    def __init__(self, number: int, function: str, text: str) -> None:
        super().__init__(number, function, text)
        self.winerror, self.funcname, self.strerror = number, function, text


class CredentialManager:
    """CredRead, CredWrite and CredDelete as keyring calls them: names without case, at most 2560 bytes."""

    CRED_TYPE_GENERIC, CRED_PERSIST_LOCAL_MACHINE, CRED_PERSIST_ENTERPRISE = 1, 2, 3

    def __init__(self) -> None:
        self.credentials: dict[str, Credential] = {}

    def CredRead(self, TargetName: str, Type: int) -> Credential:
        try:
            return self.credentials[TargetName.lower()]
        except KeyError:
            raise CredentialError(1168, "CredRead", "Element not found.") from None

    def CredWrite(self, credential: Credential, flags: int) -> None:
        blob = str(credential["CredentialBlob"]).encode("utf-16-le")
        if len(blob) > 2560:
            raise CredentialError(1783, "CredWrite", "The stub received bad data.")
        self.credentials[str(credential["TargetName"]).lower()] = credential | {"CredentialBlob": blob}

    def CredDelete(self, TargetName: str, Type: int) -> None:
        if self.credentials.pop(TargetName.lower(), None) is None:
            raise CredentialError(1168, "CredDelete", "Element not found.")


def stand_in(name: str, contents: Mapping[str, object]) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(contents)
    return module


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[CredentialManager]:
    manager = CredentialManager()
    names = [name for name in dir(manager) if name.startswith("C")]
    win32cred = stand_in(WIN32CRED, {name: getattr(manager, name) for name in names})
    pywintypes = stand_in("win32ctypes.pywin32.pywintypes", {"error": CredentialError})
    pywin32 = stand_in("win32ctypes.pywin32", {"win32cred": win32cred, "pywintypes": pywintypes})
    package = stand_in("win32ctypes", {"pywin32": pywin32})
    for module in (package, pywin32, win32cred, pywintypes):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "keyring.backends.Windows", raising=False)
    yield manager
    sys.modules.pop("keyring.backends.Windows", None)


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        pytest.param({}, 2, id="on this machine"),
        pytest.param({"KEYRING_PROPERTY_PERSIST": "enterprise"}, 3, id="as set"),
    ],
)
def test_what_is_stored_on_windows_does_not_roam(
    windows: CredentialManager, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], where: int
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    Vault(environ, platform="win32").set("identity:dev", "TOPSECRET")
    assert {credential["Persist"] for credential in windows.credentials.values()} == {where}


def test_a_value_of_any_length_comes_and_goes_on_windows(windows: CredentialManager) -> None:
    vault = Vault({}, platform="win32")
    for user in ("identity:dev", "identity:prod"):
        for value in ("short", "x" * 6000, "y" * 6000):
            vault.set(user, value)
            assert Vault({}, platform="win32").get(user) == value
    assert vault.users() is None
    assert [vault.delete(user) for user in ("identity:dev", "identity:prod", "identity:dev")] == [True, True, False]
    assert windows.credentials == {}


def test_on_windows_names_that_differ_in_case_stay_apart(windows: CredentialManager) -> None:
    vault = Vault({}, platform="win32")
    vault.set("identity:Dev", "upper")
    vault.set("identity:other", "x")
    assert vault.get("identity:dev") is None
    vault.set("identity:dev", "lower")
    assert (vault.get("identity:Dev"), vault.get("identity:dev")) == ("upper", "lower")


@pytest.mark.parametrize("padding", ["", " "], ids=["an even number of bytes", "an odd one"])
def test_on_windows_an_item_of_a_go_program_is_read(
    windows: CredentialManager, padding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # as in the program, where keyring's warning goes to stderr
    text = '{"type":"aws"}' + padding
    windows.credentials["atmos_dev:atmos-auth"] = {"UserName": "atmos-auth", "CredentialBlob": text.encode()}
    assert Vault({}, platform="win32").get_foreign("atmos_dev", "atmos-auth") == text
    assert Vault({}, platform="win32").get_foreign("atmos_x", "atmos-auth") is None
    assert capsys.readouterr().err == ""


def failing(error: Exception) -> Callable[..., NoReturn]:
    def fail(*args: object, **named: object) -> NoReturn:
        raise error

    return fail


def test_a_windows_error_is_one_line(windows: CredentialManager, monkeypatch: pytest.MonkeyPatch) -> None:
    error = CredentialError(8, "CredWrite", "Not enough memory.")
    monkeypatch.setattr(sys.modules[WIN32CRED], "CredWrite", failing(error))
    with pytest.raises(eks_token.Problem, match=r"could not store identity:dev: Not enough memory\."):
        Vault({}, platform="win32").set("identity:dev", "TOPSECRET")


def test_a_windows_logon_without_a_credential_store_has_no_keyring(
    windows: CredentialManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = CredentialError(1312, "CredRead", "A specified logon session does not exist.")
    monkeypatch.setattr(sys.modules[WIN32CRED], "CredRead", failing(error))
    with refused("no keyring: A specified logon session does not exist"):
        Vault({}, platform="win32").get("identity:dev")


# --- which backend ------------------------------------------------------------------------------------------

THIRD_PARTY = """
from keyring.backend import KeyringBackend
class Fine(KeyringBackend):
    priority = 1
    def get_password(self, service, username): return "third party"
    def set_password(self, service, username, password): raise RuntimeError(password)
class HidesPlaintext(Fine): pass
class PlaintextKeyring(Fine): pass
class Disguised(PlaintextKeyring): pass
class Unable(Fine):
    @property
    def priority(cls): raise RuntimeError
class NoBackend: priority = 1
class Broken(Fine):
    def __init__(self): raise OSError("no device\\nattached")
Function = print
Blank = Disguised
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a module `third_party_backend`, not on the path."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    directory = tmp_path / "third party"
    directory.mkdir()
    (directory / "third_party_backend.py").write_text(THIRD_PARTY)
    yield directory
    sys.modules.pop("third_party_backend", None)


def backend_name(environ: Mapping[str, str], platform: str = "linux") -> str:
    chosen = eks_token.choose_keyring({**os.environ, **environ}, platform, False)
    return type(chosen.backend if isinstance(chosen, eks_token.StockKeyring) else chosen).__name__


@pytest.mark.parametrize("platform", ["linux", "freebsd14", "openbsd7"])
def test_a_platform_without_a_keyring_library_of_its_own_has_ours(platform: str) -> None:
    assert backend_name({}, platform) == "SecretStore"


def test_windows_has_its_own(windows: CredentialManager) -> None:
    assert backend_name({}, "win32") == "WinVaultKeyring"


@pytest.mark.skipif(sys.platform == "darwin", reason="only on other systems: on macOS it works")
def test_macos_has_its_own_which_says_that_this_is_not_a_mac() -> None:
    with refused(r"keyring\.backends\.macOS\.Keyring cannot be loaded: macOS required"):
        backend_name({}, "darwin")


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("name", ["keyring.backends.SecretService.Keyring", "keyring.backends.libsecret.Keyring"])
@pytest.mark.parametrize("where", ["environment", "file"])
def test_the_secret_service_by_name_is_ours(configuration: Path, name: str, where: str, platform: str) -> None:
    if where == "file":
        configuration.write_text(f"[backend]\ndefault-keyring={name}\n")
        windows = configuration.parent.parent / "Python Keyring"
        windows.symlink_to(configuration.parent)
    environ = {"PYTHON_KEYRING_BACKEND": name} if where == "environment" else {}
    environ["LOCALAPPDATA"] = str(configuration.parent.parent)
    assert backend_name(environ, platform) == "SecretStore"


@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_third_party_is_loaded_through_keyring_path(configuration: Path, third_party: Path, where: str) -> None:
    name = "third_party_backend.Fine"
    configured = name if where == "file" else "keyring.backends.null.Keyring"
    configuration.write_text(f"[backend]\ndefault-keyring = {configured}\nkeyring-path = {third_party}\n")
    environ = {"PYTHON_KEYRING_BACKEND": name} if where == "environment" else {}
    assert Vault({**os.environ, **environ}).get("identity:dev") == "third party"
    assert sys.path[-1] == str(third_party)


def test_a_tilde_in_keyring_path_is_home(
    configuration: Path, third_party: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(third_party.parent))
    configuration.write_text("[backend]\ndefault-keyring=third_party_backend.Fine\nkeyring-path=~/third party\n")
    assert Vault(os.environ).get("identity:dev") == "third party"


@pytest.mark.parametrize(
    "text", ["", "[other]\nx=1\n", "[backend]\n", "[backend]\nkeyring-path=/nonexistent\n"], ids=repr
)
def test_a_configuration_that_names_no_backend_changes_nothing(configuration: Path, text: str) -> None:
    configuration.write_text(text)
    assert backend_name({"PYTHON_KEYRING_BACKEND": ""}) == "SecretStore"


@pytest.mark.parametrize("content", [b"default-keyring=x\n", b"\xff\xfe\n", b"[backend]\n[backend]\n"])
def test_a_broken_configuration_is_one_line(configuration: Path, content: bytes) -> None:
    configuration.write_bytes(content)
    with refused("keyringrc.cfg is not a configuration file"):
        Vault(os.environ).get("identity:dev")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("keyring.backends.null.Keyring", "is refused: it stores nothing", id="null"),
        pytest.param("keyring.backends.fail.Keyring", "is refused: it stores nothing", id="fail"),
        pytest.param("keyrings.alt.file.PlaintextKeyring", "is refused: it stores secrets in plain text", id="plain"),
        pytest.param("third_party_backend.HidesPlaintext", "plain text", id="plain text in the name"),
        pytest.param("third_party_backend.Blank", "plain text", id="an alias of a subclass of a plain one"),
        pytest.param("keyring.backends.chainer.ChainerBackend", "name one of them", id="chainer"),
        pytest.param("nonexistent_module.Keyring", "cannot be loaded: No module named", id="no such module"),
        pytest.param("third_party_backend.Missing", "cannot be loaded: .*no attribute", id="no such class"),
        pytest.param("third_party_backend.Broken", "cannot be loaded: no device attached", id="fails to start"),
        pytest.param(
            "third_party_backend.NoBackend", "cannot be loaded: it is not a KeyringBackend", id="another class"
        ),
        pytest.param("third_party_backend.Function", "cannot be loaded", id="no class"),
        pytest.param("Keyring", "cannot be loaded", id="no module named"),
        pytest.param("..", "cannot be loaded", id="nonsense"),
    ],
)
def test_a_backend_that_is_unsafe_or_absent_is_refused(
    configuration: Path, third_party: Path, name: str, message: str
) -> None:
    configuration.write_text(f"[backend]\nkeyring-path={third_party}\n")
    with refused(f"the keyring backend {name} .*{message}"):
        Vault({**os.environ, "PYTHON_KEYRING_BACKEND": name}).get("identity:dev")


def test_the_words_of_a_third_party_are_not_repeated(configuration: Path, third_party: Path) -> None:
    configuration.write_text(f"[backend]\ndefault-keyring=third_party_backend.Fine\nkeyring-path={third_party}\n")
    with pytest.raises(eks_token.Problem, match="could not store identity:dev: RuntimeError") as caught:
        Vault(os.environ).set("identity:dev", "TOPSECRET")
    assert "TOPSECRET" not in caught.value.message + caught.value.hint


class KeychainError(Exception):
    """keyring.backends.macOS.api.Error, which can be imported on macOS only."""

    __module__ = "keyring.backends.macOS.api"


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (-25300, eks_token.Problem, "could not read identity:dev: there is no such entry"),
        (-25308, eks_token.KeyringUnavailable, "the keyring is locked: it cannot show its dialog here"),
        (-25293, eks_token.KeyringUnavailable, "the keyring is locked: the password was wrong"),
        (-128, eks_token.KeyringUnavailable, "the keyring is locked: the dialog was cancelled"),
        (-25307, eks_token.KeyringUnavailable, "no keyring: there is no default keychain"),
        (-25294, eks_token.KeyringUnavailable, "no keyring: the keychain does not exist"),
        (-25291, eks_token.KeyringUnavailable, "no keyring: macOS offers no keychain here"),
        (-34018, eks_token.Problem, "could not read identity:dev: the Keychain's status -34018"),
    ],
)
def test_an_error_of_the_macos_keychain_is_one_line(status: int, kind: type[eks_token.Problem], message: str) -> None:
    class Keychain(LimitedBackend):
        __module__ = "keyring.backends.macOS"

        def get_password(self, service: str, username: str) -> str | None:
            raise keyring.errors.KeyringError("Can't get password") from KeychainError(status, "Unknown Error")

    with pytest.raises(eks_token.Problem, match=message) as caught:
        Vault({}, keyring=eks_token.StockKeyring(Keychain())).get("identity:dev")
    assert type(caught.value) is kind


def test_a_keyring_that_cannot_list_its_entries_gets_a_list_of_ours(tmp_path: Path) -> None:
    backend, path = LimitedBackend(), tmp_path / "data" / "entries.json"

    def vault() -> Vault:
        return Vault({}, keyring=eks_token.StockKeyring(backend), entries=str(path))

    vault().set("identity:dev", "TOPSECRET")
    backend.changes, backend.fail_at = 0, 1
    with pytest.raises(eks_token.Problem):
        vault().set("identity:new", "TOPSECRET")
    assert vault().users() is None
    assert vault().everyone() == ["identity:dev", "identity:new"]
    assert "TOPSECRET" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    vault().delete("identity:dev")
    assert vault().everyone() == ["identity:new"]


@pytest.mark.parametrize("content", ["", "{", "1", '{"a": 1}', "[1, null]"])
def test_a_damaged_list_of_entries_is_started_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "entries.json"
    path.write_text(content)
    vault = Vault({}, keyring=eks_token.StockKeyring(LimitedBackend()), entries=str(path))
    vault.set("identity:dev", "x")
    assert "identity:dev" in vault.everyone()


class ForgetfulBackend(LimitedBackend):
    """It accepts changes and does not make them, as a closed KWallet, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forgets(self) -> bool:
        self.times -= 1
        return self.times >= 0

    def set_password(self, service: str, username: str, password: str) -> None:
        if not self.forgets():
            super().set_password(service, username, password)

    def delete_password(self, service: str, username: str) -> None:
        if not self.forgets():
            super().delete_password(service, username)


def test_a_keyring_that_keeps_nothing_is_an_error() -> None:
    with pytest.raises(eks_token.Problem, match="the keyring did not store identity:dev"):
        stock_vault(ForgetfulBackend(9)).set("identity:dev", "TOPSECRET")
    backend = ForgetfulBackend(1)
    stock_vault(backend).set("identity:dev", "x")
    assert stock_vault(backend).get("identity:dev") == "x"


def test_a_keyring_that_removes_nothing_is_an_error() -> None:
    backend = ForgetfulBackend(0)
    stock_vault(backend).set("identity:dev", "x")
    backend.times = 1
    assert stock_vault(backend).delete("identity:dev") is True
    assert backend.items == {}
    stock_vault(backend).set("identity:dev", "x")
    backend.times = 9
    with pytest.raises(eks_token.Problem, match="the keyring did not remove identity:dev"):
        stock_vault(backend).delete("identity:dev")


def test_properties_from_the_environment_are_those_of_keyring(desktop: Desktop) -> None:
    vault = desktop.vault(KEYRING_PROPERTY_SCHEME="KeePassXC", KEYRING_PROPERTY_APPID="mine")
    vault.set("identity:dev", "x")
    (item,) = desktop.items(Title="eks-token")
    assert desktop.attributes(item) == {"Title": "eks-token", "UserName": "identity:dev", "application": "mine"}
    assert vault.users() == ["identity:dev"]
    with refused("no scheme odd, which KEYRING_PROPERTY_SCHEME names"):
        desktop.vault(KEYRING_PROPERTY_SCHEME="odd").users()
