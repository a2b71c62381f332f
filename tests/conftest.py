"""What the tests stand on: an isolated home, the executable, Pythons, a real keyring, and the servers.

A test that needs something this machine lacks is skipped with the reason; under EKS_TOKEN_TESTS_REQUIRED=1
(CI) that is a failure, so that no test goes missing unnoticed. EKS_TOKEN_EXECUTABLE names an executable to be
tested as it is.
"""

import base64
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes

import pytest
from desktops import KeyringDaemon as KeyringDaemon
from measured import measuring
from preloaded import PreloadedPython
from servers import ApiServer, Keys, MotoServer, RecordingProxy, SsoOidcServer

from eks_token import Invocation

ROOT = Path(__file__).resolve().parent.parent
# What is ignored where the tests are started (a run in the background, nohup) would be ignored by all that they start.
for _signal in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.SIG_DFL)

REQUIRED = os.environ.get("EKS_TOKEN_TESTS_REQUIRED") == "1"

DOCUMENTED_SKIPS = ("only on ", "not as root")
"""How a skip's reason begins that is right even where everything is required: another platform, or user."""

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
posix = pytest.mark.skipif(os.name != "posix", reason="only on POSIX")
as_root = pytest.mark.skipif(not IS_ROOT, reason="only on POSIX, as root")
not_as_root = pytest.mark.skipif(IS_ROOT, reason="not as root, who may write everything")


if sys.platform == "win32":
    # What asks for POSIX's files, signals, terminals and shells. The others skip what starts the executable.
    FOR_POSIX = ("cache", "doctor", "infrastructure", "keyring", "launcher", "package", "start", "steps")
    collect_ignore = [f"test_{name}.py" for name in FOR_POSIX]


# --- skips --------------------------------------------------------------------------------------------------


def missing(what: str) -> NoReturn:
    """Skips the test for want of `what`, or fails it where everything is required."""
    if REQUIRED:
        pytest.fail(f"required, but missing: {what}", pytrace=False)
    pytest.skip(f"missing: {what}")


def need(*commands: str) -> list[str]:
    """The paths of these commands; a test that lacks one is skipped."""
    found = [shutil.which(command) for command in commands]
    for command, path in zip(commands, found, strict=True):
        if path is None:
            missing(command)
    return [path for path in found if path]


def as_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where everything is required, an undocumented skip is a failure, however it came about."""
    if not REQUIRED or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith(DOCUMENTED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped where everything is required: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    report = yield
    as_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    report = yield
    as_failure(report)
    return report


# --- what is tested -----------------------------------------------------------------------------------------


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Keeps the other xdist workers out."""
    with path.open("a") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/eks-token, built from the sources here unless it is newer than all of them."""
    if sys.platform == "win32":
        pytest.skip("only on POSIX: Windows cannot start the file itself")
    if given := os.environ.get("EKS_TOKEN_EXECUTABLE"):
        return Path(given).resolve(strict=True)
    built = ROOT / "dist/eks-token"
    sources = [ROOT / "eks_token.py", ROOT / "pyproject.toml", *(ROOT / "build").glob("*.*")]

    def is_fresh() -> bool:
        newest = max(source.stat().st_mtime for source in sources if source.exists())
        return built.exists() and built.stat().st_mtime >= newest

    # the parent of a worker's own directory is the one that the workers share
    with file_lock(tmp_path_factory.getbasetemp().parent / "executable.lock"):
        if not is_fresh():
            command = [sys.executable, str(ROOT / "build/package.py"), str(built)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.fail(f"build/package.py failed:\n{done.stdout}{done.stderr}", pytrace=False)
    return built


class Program(NamedTuple):
    """The executable after a first run."""

    app: Path  # what it has unpacked itself to, compiled
    python: str  # what EKS_TOKEN_PYTHON is to name: a Python that has imported the program and botocore


@pytest.fixture(scope="session")
def program(executable: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Made once, for all homes: a first run takes half a second, and every import of botocore another tenth."""
    home = Sandbox(tmp_path_factory.mktemp("program") / "sandbox", lambda: executable)
    assert home.run("--version").returncode == 0
    (unpacked,) = (home.cache / "app").glob("[0-9a-f]*")
    with PreloadedPython(os.path.realpath(sys.executable), unpacked / "site-packages") as preloaded:
        yield Program(home.cache / "app", preloaded.script)


class Interpreter(NamedTuple):
    """A Python's minor version ("3.12") and its own executable: no shim, no virtual environment's link."""

    version: str
    path: str


def inspected(python: str) -> Interpreter | None:
    probe = "import sys; print('%d.%d' % sys.version_info[:2], getattr(sys, '_base_executable', sys.executable))"
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", probe], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version, _, path = done.stdout.strip().partition(" ")
    # pyenv's shims exist, and fail, for versions that are not chosen
    return Interpreter(version, os.path.realpath(path)) if done.returncode == 0 else None


@functools.cache
def interpreters() -> tuple[Interpreter, ...]:
    """One Python of each minor version from 3.10 up that this machine has; of its own, the running one."""
    names = [f"python3.{minor}" for minor in range(10, 20)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [
        sys.executable,
        *(path for name in names for path in [shutil.which(name)] if path),
        *(str(path) for path in sorted(pyenv.glob("3.1[0-9]*/bin/python"))),
    ]
    by_version: dict[str, Interpreter] = {}
    for candidate in candidates:
        if found := inspected(candidate):
            if found.version == f"3.{sys.version_info[1]}":
                found = found._replace(path=measuring(found.path))
            by_version.setdefault(found.version, found)
    return tuple(sorted(by_version.values(), key=lambda found: int(found.version.partition(".")[2])))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `python` runs once with each Python found here."""
    marks = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "python" in metafunc.fixturenames and "python" not in marks:
        found = interpreters()
        metafunc.parametrize("python", [one.path for one in found], ids=[f"py{one.version}" for one in found])


@functools.cache
def kubectls() -> tuple[Path, ...]:
    """Every kubectl here: those that Google Cloud's SDK keeps beside its dispatcher, else the one on PATH."""
    command = shutil.which("kubectl")
    if command is None:
        return ()
    path = Path(command).resolve()
    return tuple(sorted(path.parent.glob("kubectl.1.*"))) or (path,)


AUTHENTICATOR = "sigs.k8s.io/aws-iam-authenticator"
AUTHENTICATOR_VERSION = "v0.7.8"


def built_authenticator(go: str) -> Path:
    """aws-iam-authenticator from Go's module proxy, built once, which takes minutes.

    It is built in a module of the tests' own, because `go install` refuses a module that has replace directives.
    Raises RuntimeError.
    """
    kept = ROOT / ".venv/bench"
    kept.mkdir(parents=True, exist_ok=True)
    built = kept / f"aws-iam-authenticator-{AUTHENTICATOR_VERSION}"
    with file_lock(kept / "lock"):
        if not built.exists():
            with tempfile.TemporaryDirectory(dir=kept) as directory:
                module = f"module tests\n\nrequire {AUTHENTICATOR} {AUTHENTICATOR_VERSION}\n"
                Path(directory, "go.mod").write_text(module)
                command = [go, "build", "-mod=mod", "-o", "built", f"{AUTHENTICATOR}/cmd/aws-iam-authenticator"]
                done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"go build failed: {done.stderr.strip().splitlines()[-1]}")
                Path(directory, "built").rename(built)
    return built


@pytest.fixture(scope="session")
def authenticator() -> Path:
    """aws-iam-authenticator itself."""
    (go,) = need("go")
    try:
        return built_authenticator(go)
    except RuntimeError as error:
        missing(f"{AUTHENTICATOR} {AUTHENTICATOR_VERSION}: {error}")


@pytest.fixture
def kubectl() -> Path:
    """The newest kubectl here."""
    return kubectls()[-1] if kubectls() else missing("kubectl")


@pytest.fixture
def aws() -> str:
    """The AWS CLI: the one beside the Python that runs the tests, else the one on PATH."""
    found = shutil.which("aws", path=str(Path(sys.executable).parent)) or shutil.which("aws")
    return found or missing("aws (the AWS CLI)")


# --- an isolated home ---------------------------------------------------------------------------------------

# makes the terminal on stdin the controlling one (getpass opens /dev/tty) and becomes the program; done here,
# after exec, since code between fork and exec may deadlock in a process with threads
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""

Completed = subprocess.CompletedProcess[str]


def assert_fails(done: Completed, error: str, hint: str = "", status: int = 1) -> None:
    """Nothing is on stdout. One line on stderr says what is wrong, and a second one may say what to do."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.startswith("eks-token: error: ") and error in first
    assert len(rest) <= 1 and all(line.startswith("hint: ") for line in rest)
    assert hint in "".join(rest)


class Sandbox:
    """A separate home, and an environment that has only PATH in common with the one outside.

    Where a program is given, it counts as unpacked here before, and its Python answers each `run` for which a test
    does not name another one. A run on a terminal and one that is not waited for have a Python of their own.
    """

    def __init__(
        self, root: Path, executable: Callable[[], Path], program: Callable[[], Program] | None = None
    ) -> None:
        self._executable, self._get_program = executable, program
        self._program: Program | None = None
        self.root = root
        self.home = root / "home"
        self.tmp = root / "tmp"
        self.runtime = root / "runtime"
        for directory in (self.home, self.tmp, self.runtime):
            directory.mkdir(parents=True, mode=0o700)
        # no XDG_CACHE_HOME and the like: their defaults, below HOME, are what most users have
        self.env: dict[str, str] = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "XDG_RUNTIME_DIR": str(self.runtime),
            # nothing may look for instance metadata or a bus that is not the test's
            "AWS_EC2_METADATA_DISABLED": "true",
            # tests of the refresh switch it on, and wait for its process
            "EKS_TOKEN_REFRESH": "off",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.runtime}/no-bus",
            "EKS_TOKEN_PYTHON": next(
                (one.path for one in interpreters() if one.version == f"3.{sys.version_info[1]}"),
                sys.executable,
            ),
        }

    @property
    def executable(self) -> Path:
        """The executable; built when first asked for."""
        if self._program is None and self._get_program is not None:
            self._program = self._get_program()
            self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self.cache / "app").exists():
                shutil.copytree(self._program.app, self.cache / "app", copy_function=os.link)
        return self._executable()

    @property
    def python(self) -> str:
        """The program's Python; a home without a program has its own."""
        assert self.executable
        return self._program.python if self._program else self.env["EKS_TOKEN_PYTHON"]

    @property
    def cache(self) -> Path:
        caches = self.home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        return caches / "eks-token"

    @property
    def data(self) -> Path:
        shares = self.home / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
        return shares / "eks-token"

    def config(self, text: str) -> Path:
        return self.write(".aws/config", text)

    def credentials(self, text: str) -> Path:
        return self.write(".aws/credentials", text)

    def write(self, name: str, text: str, *, age: float = 10) -> Path:
        """Writes a file of the home, modified `age` seconds ago, like the directories above: new ones are never cached
        against."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        self.settle(path, age=age)
        return path

    def settle(self, path: Path, *, age: float = 10) -> None:
        """Makes a file of the home, and the directories above, as old as that."""
        modified = time.time_ns() - int(age * 1e9)
        for changed in (path, *path.parents):
            os.utime(changed, ns=(modified, modified))
            if changed == self.home:
                break

    def environment(self, env: Mapping[str, str | None] | None = None, python: str | None = None) -> dict[str, str]:
        """This home's environment with `env` laid over it; None there unsets a variable."""
        changes = dict(env or {})
        if python is not None:
            changes["EKS_TOKEN_PYTHON"] = python
        return {name: value for name, value in (self.env | changes).items() if value is not None}

    def run(
        self,
        *args: str | Path,
        stdin: str | None = None,
        env: Mapping[str, str | None] | None = None,
        python: str | None = None,
        tty: bool = False,
        timeout: float = 60,
        command: Sequence[str | Path] | None = None,
    ) -> Completed:
        """Runs the executable (or `command`) with `args`. With `tty`, stdin and stderr are one terminal."""
        if tty:
            steps = [("", stdin)] if stdin is not None else []
            return self.run_pty(*args, steps=steps, env=env, python=python, timeout=timeout, command=command)
        words = [*map(str, command or [self.executable]), *map(str, args)]
        if python is None and self._program and "EKS_TOKEN_PYTHON" not in (env or {}):
            python = self._program.python
        return subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=self.environment(env, python),
            cwd=self.home,
            timeout=timeout,
            check=False,
        )

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str | None] | None = None,
        python: str | None = None,
        command: Sequence[str | Path] | None = None,
    ) -> subprocess.Popen[str]:
        """Starts the executable and does not wait; stdout and stderr are pipes, stdin is empty."""
        return subprocess.Popen(
            [*map(str, command or [self.executable]), *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(env, python),
            cwd=self.home,
        )

    def run_pty(
        self,
        *args: str | Path,
        steps: Sequence[tuple[str, str]],
        env: Mapping[str, str | None] | None = None,
        python: str | None = None,
        timeout: float = 60,
        command: Sequence[str | Path] | None = None,
    ) -> Completed:
        """Runs the executable as kubectl does for a person: a terminal on stdin and stderr, a pipe on stdout.

        Each step waits until the terminal has shown a text after what the step before waited for, then types
        the other ("\\n" is Enter, "\\x03" Ctrl-C). `stderr` of the result is all that the terminal showed.
        """
        try:
            master, terminal = os.openpty()
        except OSError:  # no devpts, as in a bare chroot
            missing("a pseudo-terminal")
        process = subprocess.Popen(
            [
                *[sys.executable, "-I", "-S", "-c", TAKE_TERMINAL],
                *map(str, command or [self.executable]),
                *map(str, args),
            ],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=terminal,
            start_new_session=True,
            env=self.environment(env, python),
            cwd=self.home,
        )
        os.close(terminal)
        try:
            shown, output = converse(process, master, steps, timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(master)
            if process.stdout:
                process.stdout.close()
        return subprocess.CompletedProcess(args, process.returncode, output.decode(), shown.decode())

    def secrets_found(self, values: Sequence[str | bytes]) -> list[tuple[Path, str]]:
        """Which of these values a file in the sandbox holds, plain or behind base64 and percent encoding."""
        wanted = [value.encode() if isinstance(value, str) else value for value in values]
        found = []
        for path in sorted(self.root.rglob("*")):
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            shown = list(disguises(os.fsencode(path.name) + b"\n" + content))
            found += [(path, value.decode()) for value in wanted if any(value in text for text in shown)]
        return found


def converse(
    process: subprocess.Popen[bytes], master: int, steps: Sequence[tuple[str, str]], timeout: float
) -> tuple[bytes, bytes]:
    """Plays the person at the terminal; returns what it showed, and stdout."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    shown, output, position = b"", b"", 0
    remaining, reading = list(steps), {master, pipe}
    deadline = time.monotonic() + timeout
    while reading:
        if remaining and (at := shown.find(remaining[0][0].encode(), position)) >= 0:
            awaited, answer = remaining.pop(0)
            position = at + len(awaited.encode())
            os.write(master, answer.encode())
            continue
        # what the program started, a browser say, may keep the terminal open after its end
        ended = process.poll() is not None
        ready, _, _ = select.select(reading, [], [], 0 if ended else 0.1)
        if ended and not ready:
            break
        if time.monotonic() > deadline:
            raise AssertionError(f"no end within {timeout:g} s; still to come: {remaining}; shown: {shown!r}")
        for descriptor in ready:
            try:
                data = os.read(descriptor, 65536)
            except OSError:
                # Linux's way to say that nobody has the terminal open any more
                data = b""
            if not data:
                reading.discard(descriptor)
            elif descriptor == master:
                shown += data
            else:
                output += data
    process.wait(max(1, deadline - time.monotonic()))
    if remaining:
        raise AssertionError(f"the program ended before {remaining}; shown: {shown!r}")
    return shown, output


def disguises(data: bytes) -> Iterator[bytes]:
    """The data, and what is inside its base64 runs (either alphabet), each also percent-decoded."""
    for text in (data, unquote_to_bytes(data)):
        yield text
        for run in re.findall(rb"[A-Za-z0-9+/_-]{16,}", text):
            plain = run.translate(bytes.maketrans(b"-_", b"+/"))
            # the run may have begun before the encoded value does; one character over is half a byte
            for part in (plain[skipped:] for skipped in range(4)):
                whole = part[:-1] if len(part) % 4 == 1 else part
                decoded = base64.b64decode(whole + b"=" * (-len(whole) % 4))
                yield decoded
                yield unquote_to_bytes(decoded)


def invocation(
    *argv: str,
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
    file: str = "/usr/bin/eks-token",
    build: str = "",
    cache: str | None = None,
) -> Invocation:
    """What a command in this process is told, without a terminal."""
    return Invocation(argv, environ, platform, False, file, build, cache, lambda: None)


@pytest.fixture
def home(tmp_path: Path, request: pytest.FixtureRequest) -> Sandbox:
    """An isolated home. The executable is built only for tests that run it.

    It has been run here before, but for tests that are marked `first_run`.
    """
    first_run = request.node.get_closest_marker("first_run")
    return Sandbox(
        tmp_path / "sandbox",
        lambda: request.getfixturevalue("executable"),
        None if first_run else lambda: request.getfixturevalue("program"),
    )


# --- the keyring --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _keyring_daemon() -> Iterator[KeyringDaemon]:
    daemon = KeyringDaemon()
    yield daemon
    daemon.stop()


@pytest.fixture
def keyring_daemon(_keyring_daemon: KeyringDaemon, request: pytest.FixtureRequest) -> KeyringDaemon:
    """A real, empty, unlocked Secret Service; in a test that takes `home` too, that home's bus."""
    _keyring_daemon.clear()
    if "home" in request.fixturenames:
        sandbox: Sandbox = request.getfixturevalue("home")
        sandbox.env["DBUS_SESSION_BUS_ADDRESS"] = _keyring_daemon.address
    return _keyring_daemon


# --- servers ------------------------------------------------------------------------------------------------


@pytest.fixture
def keys() -> Keys:
    """The access keys that this test's servers know."""
    return Keys()


@pytest.fixture
def api_server(keys: Keys) -> Iterator[ApiServer]:
    """A Kubernetes API server of the cluster `demo`."""
    with ApiServer(keys) as server:
        yield server


@pytest.fixture(scope="session")
def _moto_server() -> Iterator[MotoServer]:
    if sys.version_info >= (3, 15):
        pytest.skip("only on Python 3.14 and older: moto does not install on 3.15")
    with MotoServer() as server:
        yield server


@pytest.fixture
def moto(_moto_server: MotoServer, keys: Keys) -> Iterator[RecordingProxy]:
    """AWS: an emptied moto behind a recording proxy."""
    _moto_server.reset()
    with RecordingProxy(_moto_server, keys) as proxy:
        yield proxy


@pytest.fixture
def sso(keys: Keys) -> Iterator[SsoOidcServer]:
    """IAM Identity Center."""
    with SsoOidcServer(keys) as server:
        yield server
