"""The startup code of the executable: it makes sure that all of the program is in a safe place, and runs it there.

Python runs it in one of two places:

- In the directory CACHE/app/BUILD, to which the archive was unpacked earlier. The launcher starts it there for every
  request without a cached answer. kubectl is waiting, so it only checks what it must and calls eks_token.main. If
  anything is wrong with the directory, it runs the archive instead.
- In the archive: the first time, after damage, if there is no safe cache directory, and always on Windows. It unpacks
  the program, to a temporary directory if it has to, and calls shiv's bootstrap.

It also tells the launcher which Python to start the next time (`remember_python`).
"""

from __future__ import annotations

import _signal  # like signal, but without its enums, which take 2 ms to import
import gc
import os
import sys
import time

# build/package.py puts the source of these here, because eks_token cannot be imported before it is unpacked.
from eks_token import (
    PROGRAM,
    Refused,
    cache_home,
    lock_file,
    make_private,
    make_trusted,
    printable,
    shortened,
    write_file,
)

TYPE_CHECKING = False  # importing typing takes longer than running all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, NoReturn

BUILD = "@BUILD@"
VERSION = "@VERSION@"

cache: str | None = None  # the cache directory, once it is known to be safe

MANIFEST = "manifest"  # in CACHE/app/BUILD: the size and name of each file, and the build ID on the last line
CHECKED_FIRST = ("__main__.py", "start.py", "site-packages/eks_token.py")  # all that a cached answer needs
DAY = 24 * 60 * 60  # seconds, like the next two
KEPT_UNUSED = 14 * DAY  # another process may still be running an old build
LOCK_PATIENCE = 60


class Failure(Exception):
    """The program cannot be started. The text and the hint become two lines on stderr."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def run(check_files: Callable[[], None] = lambda: None, start_again: Callable[[], None] = lambda: None) -> int:
    """Run the program, which can be imported now, and return its status. shiv's bootstrap calls this too."""
    import eks_token

    started = eks_token.Started(sys.argv[0], BUILD, cache, check_files, unpack_again, start_again)
    return eks_token.main(started=started)


def unpack_again() -> None:
    """Unpack the program again at the next start, and drop the bytecode that Python has compiled.

    This is for errors that nothing explains. Bytecode that was cut short by a crash is one: Python does not notice.
    """
    if cache is not None:
        remove(os.path.join(cache, "app", BUILD, MANIFEST))


def end(status: object) -> None:
    """End the process without taking its modules apart, which takes 2 ms, and 8 ms after a token was signed.

    Returns if the status is not a number, because Python would print it.
    """
    import atexit

    if not isinstance(status, int):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # it is missing or closed; eks_token.show has reported that
            pass
    os._exit(status)


def say(text: str) -> None:
    try:
        sys.stderr.write(shortened(printable(text)) + "\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # it is missing or closed
        pass


# In the directory


def run_in_directory(app: str, archive: str, arguments: list[str]) -> NoReturn:
    """Run the program in CACHE/app/BUILD, or the archive if something is wrong with the directory."""
    global cache
    apps = os.path.dirname(app)
    directory = os.path.dirname(apps)
    try:
        make_trusted(directory)
        make_trusted(apps)
    except (OSError, Refused):
        run_archive(archive, arguments)
    if not is_whole(app, CHECKED_FIRST):
        run_archive(archive, arguments)

    cache = directory
    note_use(app)
    remember_python(directory)
    sys.argv = [os.path.abspath(archive), *arguments]
    sys.path[0] = os.path.join(app, "site-packages")
    try:
        import eks_token
    except Exception:
        unpack_again()
        run_archive(archive, arguments)

    def check_files() -> None:
        if not is_whole(app):
            try:
                run_archive(archive, arguments)
            except Failure as failure:
                raise eks_token.Problem(str(failure), failure.hint) from None

    sys.exit(run(check_files, lambda: run_archive(archive, arguments)))


def is_whole(app: str, only: Collection[str] = ()) -> bool:
    """Whether the directory is private, and its files (or only these) exist and have the sizes in the manifest."""
    try:
        make_private(app)
        path = os.path.join(app, MANIFEST)
        if os.stat(path).st_size == 0:  # perhaps a pipe, which would be read forever
            return False
        with open(path, encoding="utf-8") as file:
            *entries, build = file.read().split("\n")
        if build != BUILD:
            return False
        for entry in entries:
            size, _, name = entry.partition(" ")
            if only and name not in only:  # write_program lists the first ones first
                break
            if os.stat(f"{app}/{name}").st_size != int(size):
                return False
    except (OSError, Refused, ValueError):
        return False
    return True


def run_archive(archive: str, arguments: list[str]) -> NoReturn:
    """Replace this process by a new Python that runs the archive, isolated from PYTHON* variables and user packages."""
    import zipimport

    try:
        zipimport.zipimporter(archive)
    except zipimport.ZipImportError:  # Python would run it as a script
        raise damaged(archive) from None
    command = [sys.executable, "-I", "-S", archive, *arguments]
    if os.name == "posix":
        try:
            os.execv(sys.executable, command)
        except OSError as error:
            hint = "set EKS_TOKEN_PYTHON to the path of a Python that runs"
            raise Failure(f"cannot start {sys.executable}: {error.strerror}", hint) from None

    # On Windows, exec starts another process and ends this one, so kubectl would not wait for the token.
    import subprocess

    sys.exit(subprocess.call(command))


def damaged(archive: str) -> Failure:
    return Failure(f"{archive} cannot be read, or is damaged", "install it again")


def note_use(app: str) -> None:
    """Once a day, date the directory, so that no other build removes it as unused."""
    try:
        if time.time() - os.stat(app).st_mtime > DAY:
            os.utime(app)
    except OSError:
        pass


def remember_python(directory: str) -> None:
    """Tell the launcher which Python to start the next time, and that this one has started.

    CACHE/python has the path of this Python, below any virtual environment or shim. The file has the date of the Python
    itself, so the launcher sees when that changes. The launcher then starts it without trying it first. Before it does,
    it writes its process ID to CACHE/starting. We remove that file here. If it is still there at the next call, and the
    process is not, then Python did not start (a library may be missing), and the launcher looks for one that does.
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
        # A file of another size is not opened: it may be a pipe or a device.
        found = os.lstat(path)
        if (found.st_mtime_ns, found.st_size) == (modified, len(line)):
            with open(path, "rb") as file:
                if file.read() == line:
                    return
    except OSError:
        pass
    try:
        write_file(path, line, modified)
    except OSError:
        pass


# In the archive


def run_in_archive(archive: str, arguments: list[str]) -> None:
    """Unpack the program to the cache directory, unless that was done before, or to a temporary one, and run it."""
    global cache
    if not (sys.flags.isolated and sys.flags.no_site):
        run_archive(archive, arguments)

    # They make shiv's bootstrap run other code, or unpack elsewhere.
    for name in [name for name in os.environ if name.startswith("SHIV_")]:
        del os.environ[name]
    sys.argv = [archive, *arguments]

    try:
        directory = cache_home(os.environ, sys.platform)
        if directory is not None:
            apps = os.path.join(directory, "app")
            make_trusted(directory)
            make_trusted(apps)
            cache = directory
            app = unpacked(archive, apps)
            note_use(app)
            remember_python(directory)
    except Refused as refused:
        say(f"{PROGRAM}: warning: nothing is cached: {refused}")
        cache = None
    except OSError:  # a read-only or full disk is not worth a warning at every call
        cache = None
    if cache is None:
        run_in_temporary_directory(archive)
    else:
        bootstrap(app)


def bootstrap(app: str) -> None:
    """Call shiv's bootstrap for this directory. By itself it would use one that is named after the archive."""
    import pathlib

    import _bootstrap

    _bootstrap.cache_path = lambda *_: pathlib.Path(app)
    _bootstrap.bootstrap()


def run_in_temporary_directory(archive: str) -> None:
    """Run the program in a private directory, which is removed when the program ends or is ended."""
    import shutil
    import signal
    import tempfile

    sys.dont_write_bytecode = True
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
        "free some space there, or set XDG_CACHE_HOME or TMPDIR to a directory that has some",
    )


def unpacked(archive: str, apps: str) -> str:
    """The directory CACHE/app/BUILD, after all of the program was unpacked to it. Raises OSError, Failure.

    One rename puts it in place, so whoever finds it finds all of it.
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
            if not is_whole(app):  # some overlay file systems lose a directory that is renamed
                raise OSError(f"{app} is not there")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        remove_unused(apps)
    finally:
        if lock is not None:
            os.close(lock)
    return app


def locked(path: str) -> int | None:
    """A file descriptor that holds the lock until it is closed. None if locks do not work or another process hangs.

    The lock only spares fifty processes that start at once from all unpacking. `put_in_place` is safe without it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_PATIENCE
    try:
        while time.monotonic() < deadline:
            if lock_file(descriptor):
                return descriptor
            time.sleep(0.02)
    except OSError:
        pass
    os.close(descriptor)
    return None


def write_program(archive: str, app: str) -> None:
    """Write the program's files to an empty directory, and the manifest last. Raises OSError, and Failure if the
    archive is damaged.

    Python compiles each module when it is first imported. Compiling all of them here would take 0.4 s, twice as long as
    the rest of a first start, and would only serve one version of Python.
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
                if name == "__main__.py":  # flushed to disk, because nothing checks it before Python runs it
                    write_file(path, content)
                else:
                    with open(path, "xb") as file:
                        file.write(content)
                entries.append(f"{len(content)} {name}")
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise damaged(archive) from None
    entries.sort(key=lambda entry: entry.partition(" ")[2] not in CHECKED_FIRST)
    write_file(os.path.join(app, MANIFEST), "\n".join([*entries, BUILD]))


def put_in_place(fresh: str, app: str) -> None:
    """Rename one directory to the other, unless another process has put a good one there."""
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
    """Remove builds that were not used for two weeks, and what is left of processes that died while they unpacked."""
    now = time.time()
    for name in os.listdir(apps):
        hidden = name.startswith(".")
        build = name.removeprefix(".").partition(".")[0] if hidden else name
        if name == BUILD or len(build) != 16 or build.strip("0123456789abcdef"):
            continue
        path = os.path.join(apps, name)
        try:
            if now - os.lstat(path).st_mtime <= (DAY if hidden else KEPT_UNUSED):
                continue
            if not hidden:  # rename it first, so that nobody finds half of it
                aside = os.path.join(apps, f".{name}.{os.getpid()}")
                os.rename(path, aside)
                path = aside
        except OSError:
            continue
        remove(path)


def remove(path: str) -> None:
    """Remove a file or a directory, as far as possible."""
    import shutil

    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    except OSError:
        pass


def end_if_interrupted(ignored: Any) -> None:
    """sys.unraisablehook: end on a Ctrl-C that Python only reports, as in a callback of the importer."""
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        say(f"{PROGRAM}: error: interrupted")
        os._exit(130)
    sys.__unraisablehook__(ignored)


# At the end, so that a copy of this file that was cut short does not have it, which build/__main__.py notices.


def main() -> None:
    """Run the program and exit with its status."""
    here = os.path.dirname(__file__)
    gc.disable()  # eks_token.main does this too, but collecting garbage while it is imported takes 0.6 ms
    try:
        # Until here, Ctrl-C was ignored (by the launcher) or ended the process (in __main__.py), because Python would
        # print a traceback. From here on it is an exception that we catch.
        sys.unraisablehook = end_if_interrupted
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        if os.path.isdir(here):
            run_in_directory(here, archive=sys.argv[1], arguments=sys.argv[2:])
        else:
            run_in_archive(os.path.abspath(sys.argv[0]), sys.argv[1:])
    except SystemExit as ended:
        end(ended.code)
    except Failure as failure:
        say(f"{PROGRAM}: error: {failure}")
        say(f"hint: {failure.hint}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        unpack_again()
        if os.environ.get("EKS_TOKEN_DEBUG"):
            raise
        say(f"{PROGRAM}: error: {type(error).__name__}: {error}")
        say("hint: EKS_TOKEN_DEBUG=1 shows where")
        sys.exit(1)
    finally:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
