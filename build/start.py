"""The start of the executable: a safe place for the program, the program whole in it, and then the program.

It is run in one of two places:

- in CACHE/app/BUILD, the directory that the archive was unpacked to, by the launcher, for every request that
  the launcher has no answer to. There it stands in the way of a kubectl command, so it does little: it sees
  whether directory and files are as they were made, and calls eks_token.main. Where they are not, it hands over
  to the archive;
- in the archive: before the first unpacking, after damage, where no cache directory can be used, and always on
  Windows. It makes the place, unpacks, and calls shiv's bootstrap.
"""

from __future__ import annotations

import _signal  # signal without its names for numbers, which take 2 ms to import
import gc
import os
import sys
import time

# build/package.py puts the text of these here, since eks_token cannot be imported before it is unpacked.
from eks_token import PROGRAM, Refused, cache_home, make_private, make_trusted

TYPE_CHECKING = False  # typing itself takes longer to import than all of this to run
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import NoReturn

BUILD = "@BUILD@"
VERSION = "@VERSION@"

# The cache directory, seen to be the user's own; None while there is none to use.
cache: str | None = None

MANIFEST = "manifest"
CHECKED_FIRST = ("__main__.py", "start.py", "site-packages/eks_token.py")  # all that a cached answer needs
DAY = 24 * 60 * 60  # seconds, as all times here
KEPT_UNUSED = 14 * DAY  # another process may be running from an old build
LOCK_PATIENCE = 60
HEXADECIMAL = "0123456789abcdef"


class Failure(Exception):
    """What ends the start: one line for the user, and a hint at what to do about it."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


def unpack_again() -> None:
    """Has the program unpacked again at the next start, without the bytecode of this one.

    For a failure that nothing explains: a mistake, or bytecode that lost its end in a crash, which Python does not
    compile again by itself.
    """
    if cache is not None:
        remove(os.path.join(cache, "app", BUILD, MANIFEST))


def say(text: str) -> None:
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # closed, or none
        pass


# The start in the directory


def from_directory(app: str, archive: str, arguments: list[str]) -> NoReturn:
    """Runs the program that was unpacked to app, or archive where that is not to be trusted or not whole."""
    global cache
    apps = os.path.dirname(app)
    directory = os.path.dirname(apps)
    try:
        make_trusted(directory, os.environ)
        make_trusted(apps, os.environ)
    except (OSError, Refused):
        run_again(archive, arguments)
    if not is_whole(app, CHECKED_FIRST):
        run_again(archive, arguments)

    cache = directory
    note_use(app)
    remember_python(directory)
    sys.argv = [os.path.abspath(archive), *arguments]
    sys.path[0] = os.path.join(app, "site-packages")
    try:
        import eks_token
    except Exception:
        unpack_again()
        run_again(archive, arguments)

    def check_files() -> None:
        if not is_whole(app):
            try:
                run_again(archive, arguments)
            except Failure as failure:
                raise eks_token.Problem(str(failure), failure.hint) from None

    sys.exit(run(check_files))


def run(check_files: Callable[[], None] = lambda: None) -> int:
    """Runs the program, which is on sys.path now, and returns its status. This is shiv's entry point too."""
    import eks_token

    return eks_token.main(started=eks_token.Started(sys.argv[0], BUILD, cache, check_files, unpack_again))


def is_whole(app: str, only: Collection[str] = ()) -> bool:
    """Whether app is the user's own, and each file unpacked to it (or only some) is there and as long as it was."""
    try:
        make_private(app)
        path = os.path.join(app, MANIFEST)
        if os.stat(path).st_size == 0:  # a FIFO, for example, which could not be read to its end
            return False
        with open(path, encoding="utf-8") as file:
            entries = file.read().split("\n")
        if entries.pop() != BUILD:  # the manifest's own last line
            return False
        for entry in entries:
            size, _, name = entry.partition(" ")
            if only and name not in only:
                continue
            if os.stat(f"{app}/{name}").st_size != int(size):
                return False
    except (OSError, Refused, ValueError):
        return False
    return True


def run_again(archive: str, arguments: list[str]) -> NoReturn:
    """Starts Python anew, on archive, isolated from PYTHON* variables and from what is installed there."""
    import zipimport

    try:
        zipimport.zipimporter(archive)
    except zipimport.ZipImportError:  # Python would take it for a script
        raise damaged(archive) from None
    command = [sys.executable, "-I", "-S", archive, *arguments]
    if os.name == "posix":
        try:
            os.execv(sys.executable, command)
        except OSError as error:
            hint = "name a Python that can be run in EKS_TOKEN_PYTHON"
            raise Failure(f"cannot start {sys.executable}: {error.strerror}", hint) from None

    # Windows' exec starts another process and ends this one at once: kubectl would not wait for the token.
    import subprocess

    sys.exit(subprocess.call(command))


def damaged(archive: str) -> Failure:
    return Failure(f"{archive} cannot be read, or is damaged", "install it again")


def note_use(app: str) -> None:
    """Notes, once a day, that app is in use, for other builds' remove_unused."""
    try:
        if time.time() - os.stat(app).st_mtime > DAY:
            os.utime(app)
    except OSError:
        pass


def remember_python(directory: str) -> None:
    """Tells the launcher that Python has started, and which one to start next time: this one, below any virtual
    environment or shim. The record has the date of that program, so that the launcher sees when it changes.
    """
    if os.name != "posix":
        return
    starting = os.path.join(directory, "starting")
    try:
        os.unlink(starting)
    except FileNotFoundError:
        pass
    except OSError:
        remove(starting)
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    if "\n" in python or not os.access(python, os.X_OK):
        return
    line = os.fsencode(python) + b"\n"
    path = os.path.join(directory, "python")
    modified = os.stat(python).st_mtime_ns
    try:
        # A record is as long as its line. To read anything else would take time, or hang.
        found = os.lstat(path)
        if (found.st_mtime_ns, found.st_size) == (modified, len(line)):
            with open(path, "rb") as file:
                if file.read() == line:
                    return
    except OSError:
        pass
    beside = f"{path}.{os.getpid()}"
    try:
        with open(beside, "xb") as file:
            file.write(line)
        os.utime(beside, ns=(modified, modified))
        os.replace(beside, path)
    except OSError:
        remove(beside)


# The start in the archive


def from_archive(archive: str, arguments: list[str]) -> None:
    """Runs the program from the cache directory, unpacked there first if need be, or from a temporary one."""
    global cache
    if not (sys.flags.isolated and sys.flags.no_site):
        run_again(archive, arguments)

    # With these shiv's bootstrap runs other code, or looks for this in other places.
    for name in [name for name in os.environ if name.startswith("SHIV_")]:
        del os.environ[name]
    sys.argv = [archive, *arguments]

    try:
        directory = cache_home(os.environ, sys.platform)
        if directory is not None:
            apps = os.path.join(directory, "app")
            make_trusted(directory, os.environ)
            make_trusted(apps, os.environ)
            cache = directory
            app = unpacked(archive, apps)
            note_use(app)
            remember_python(directory)
    except Refused as refused:
        say(f"{PROGRAM}: warning: nothing is cached: {refused}")
        cache = None
    except OSError:  # read-only, or full: not worth a line at every call
        cache = None
    if cache is None:
        from_temporary(archive)
    else:
        bootstrap(app)


def bootstrap(app: str) -> None:
    """Calls shiv's bootstrap on app; left alone it would look in a directory named after the archive's file."""
    import pathlib

    import _bootstrap

    _bootstrap.cache_path = lambda *_: pathlib.Path(app)
    _bootstrap.bootstrap()


def from_temporary(archive: str) -> None:
    """Runs the program from a private directory that goes when the program ends."""
    import shutil
    import signal
    import tempfile

    sys.dont_write_bytecode = True
    # Also when whoever waits for the token gives up.
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        app = tempfile.mkdtemp(prefix=f"{PROGRAM}-")
    except OSError as error:
        raise no_room("a temporary directory", error) from None
    try:
        try:
            write_program(archive, app)
        except OSError as error:
            raise no_room(app, error) from None
        bootstrap(app)
    finally:
        shutil.rmtree(app, ignore_errors=True)


def no_room(where: str, error: OSError) -> Failure:
    return Failure(
        f"cannot unpack the program to {where}: {error.strerror or error}",
        "make room there, or name a directory that has some in XDG_CACHE_HOME or TMPDIR",
    )


# Unpacking


def unpacked(archive: str, apps: str) -> str:
    """The directory apps/BUILD with all of the program in it, unpacked from archive if need be.

    It comes into being by one rename: whoever finds it finds all of it. Raises OSError, Failure.
    """
    app = os.path.join(apps, BUILD)
    if is_whole(app):
        return app

    import shutil
    import tempfile

    lock = locked(os.path.join(apps, ".lock"))
    try:
        if is_whole(app):  # another process was faster
            return app
        if sys.stderr is not None and sys.stderr.isatty():
            say(f"{PROGRAM}: unpacking {VERSION}, once")
        fresh = tempfile.mkdtemp(prefix=f".{BUILD}.", dir=apps)
        try:
            write_program(archive, fresh)
            put_in_place(fresh, app)
            if not is_whole(app):  # a file system that loses what was renamed, as some overlays do
                raise OSError(f"{app} is not there")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        remove_unused(apps)
    finally:
        if lock is not None:
            os.close(lock)
    return app


def locked(path: str) -> int | None:
    """A descriptor that holds a lock until it is closed; None where there are no locks or their holder hangs.

    The lock is there so that fifty processes that start at once unpack once; put_in_place needs none.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_PATIENCE
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            break
    os.close(descriptor)
    return None


def write_program(archive: str, app: str) -> None:
    """Writes what archive holds of the program to the empty directory app, the manifest last.

    Bytecode is left to Python, which keeps it for what a command imports. To compile everything takes twice as
    long as all the rest of a first start (0.4 and 0.2 s, measured), and serves one version of Python only. Raises
    OSError; Failure if the archive is damaged.
    """
    import zipfile
    import zlib

    entries = []
    directories = {app}
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                name = member.filename
                if not name.startswith("site-packages/") and name not in ("__main__.py", "start.py"):
                    continue
                content = members.read(member)
                path = os.path.join(app, *name.split("/"))
                parent = os.path.dirname(path)
                if parent not in directories:
                    os.makedirs(parent, exist_ok=True)
                    directories.add(parent)
                write_through(path, content, flush=name == "__main__.py")
                entries.append(f"{len(content)} {name}")
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise damaged(archive) from None
    write_through(os.path.join(app, MANIFEST), "\n".join([*entries, BUILD]).encode(), flush=True)


def write_through(path: str, content: bytes, flush: bool) -> None:
    """Writes a new file; with flush, it outlives a power failure.

    That is for the two files that nothing checks before they are used. An empty __main__.py would do nothing,
    and Python call it a success.
    """
    with open(path, "xb") as file:
        file.write(content)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def put_in_place(fresh: str, app: str) -> None:
    """Renames fresh to app. What stands there is left if it is whole, since another process put it there."""
    try:
        os.rename(fresh, app)
    except OSError:
        if is_whole(app):
            return
        aside = f"{fresh}.old"
        os.rename(app, aside)
        try:
            os.rename(fresh, app)
        finally:
            remove(aside)


def remove_unused(apps: str) -> None:
    """Removes builds that nobody has used for two weeks, and what processes that died while unpacking left."""
    now = time.time()
    for name in os.listdir(apps):
        hidden = name.startswith(".")
        build = name.removeprefix(".").partition(".")[0] if hidden else name
        if name == BUILD or len(build) != 16 or build.strip(HEXADECIMAL):
            continue
        path = os.path.join(apps, name)
        try:
            if now - os.lstat(path).st_mtime <= (DAY if hidden else KEPT_UNUSED):
                continue
            if not hidden:
                # Nobody is to find a directory that is half removed.
                aside = os.path.join(apps, f".{name}.{os.getpid()}")
                os.rename(path, aside)
                path = aside
        except OSError:
            continue
        remove(path)


def remove(path: str) -> None:
    """Removes what is at path, as far as that can be done."""
    import shutil

    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    except OSError:
        pass


def end(status: object) -> None:
    """Ends the process, but does not take all of its modules apart first, which takes 2 ms, and 8 after a signature.

    Returns if the status is not a number, which Python would print.
    """
    import atexit

    if not isinstance(status, int):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # none, or closed: eks_token.show has said so
            pass
    os._exit(status)


# The edge. It stands at the end so that a copy of this file that was cut short lacks it, which __main__.py notices.


def main() -> None:
    """Runs the program and exits with its status."""
    here = os.path.dirname(__file__)
    gc.disable()  # eks_token.main does so too, but collecting garbage while it is imported takes 0.6 ms
    try:
        # The launcher ignores Ctrl-C while Python starts, and __main__.py leaves it to the system, because Python
        # would answer with a traceback. Here, and no longer than here, it is an exception that somebody catches.
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        if os.path.isdir(here):
            from_directory(here, sys.argv[1], sys.argv[2:])
        else:
            from_archive(os.path.abspath(sys.argv[0]), sys.argv[1:])
    except SystemExit as ended:
        end(ended.code)
    except Failure as failure:
        say(f"{PROGRAM}: error: {failure}\nhint: {failure.hint}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        unpack_again()
        if os.environ.get("EKS_TOKEN_DEBUG"):
            raise
        say(f"{PROGRAM}: error: {type(error).__name__}: {error}\nhint: EKS_TOKEN_DEBUG=1 shows where")
        sys.exit(1)
    finally:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
