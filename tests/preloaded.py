"""A Python that has already imported what eks-token imports: most of what a run of the executable costs.

The tests run the executable some three thousand times, and each time Python needs 0.1 s to import the same modules. So
each worker has one process that imports them once, and forks for every run. The executable is the product as it is: its
launcher starts what EKS_TOKEN_PYTHON names, which is a script that hands its arguments, environment, directory, umask
and descriptors to that process, waits, and ends as the run ended. The fork runs the file that Python was to run, so
start.py and the rest run as always. How the program starts, what it imports and what signals do to it is tested with
Pythons of its own.

What a module computes from the environment when it is imported (botocore's directories of SSO tokens, which eks-token
does not use) sees an empty directory as HOME.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import marshal
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

# What the commands import. A run that needs another module imports it.
MODULES = """
argparse base64 calendar concurrent.futures configparser contextlib datetime difflib email.utils fcntl getpass glob
hashlib jmespath json logging platformdirs random shlex shutil stat tempfile traceback urllib.parse webbrowser zipfile
botocore.auth botocore.awsrequest botocore.client botocore.config botocore.configloader botocore.credentials
botocore.endpoint_provider botocore.exceptions botocore.handlers botocore.httpsession botocore.loaders botocore.parsers
botocore.session botocore.signers botocore.tokens botocore.utils botocore.waiter jeepney jeepney.auth
jeepney.io.blocking jeepney.wrappers keyring keyring.backend keyring.errors keyring.util.platform_ eks_token
"""

PATIENCE = 10.0  # seconds for runs that have not ended

CLIENT = """#!{python} -IS
import _socket, marshal, os, sys
if sys.argv[1:3] == ["-IS", "-c"]:
    del sys.argv[1]
elif sys.argv[1:3] == ["-I", "-S"] and sys.argv[3:4] != ["-c"]:
    del sys.argv[1:3]
else:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
umask = os.umask(0)
os.umask(umask)
request = marshal.dumps((sys.argv[1:], dict(os.environ), os.getcwd(), umask))
descriptors = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
server = _socket.socket(_socket.AF_UNIX)
server.connect({socket!r})
sent = server.sendmsg([len(request).to_bytes(4, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)])
server.sendall(request)
status = int(server.recv(16) or 255)
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class PreloadedPython:
    """The process that forks, and the script that stands for a Python."""

    def __init__(self, python: str, packages: Path) -> None:
        """`packages` is where the program is unpacked to."""
        # a socket's path may have 107 bytes, and pytest's directories are long
        self._directory = tempfile.TemporaryDirectory(prefix="eks-token-python-")
        address = f"{self._directory.name}/socket"
        self.script = f"{self._directory.name}/python"
        Path(self.script).write_text(CLIENT.format(python=python, socket=address))
        Path(self.script).chmod(0o755)
        # It ends with this process at the latest: it waits for the end of its stdin.
        self._process = subprocess.Popen(
            [python, "-I", "-S", __file__, str(packages), address, *measurement()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": self._directory.name},
            start_new_session=True,  # so that a signal reaches it and all runs, and nothing else
        )

    def __enter__(self) -> PreloadedPython:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:  # a test gave a run up, but what it had started still waits for it
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._directory.cleanup()


def measurement() -> list[str]:
    """What `measure` is to be called with, if `make coverage` runs the tests."""
    data = os.environ.get("COVERAGE_FILE")
    return [sysconfig.get_path("platlib"), data] if data else []


def main() -> None:
    packages, address, *measured = sys.argv[1:]
    if measured:
        sys.path.insert(0, str(Path(__file__).parent))
        from measured import measure

        sys.path.pop(0)
        measure(*measured)
    sys.path.insert(0, packages)
    for name in MODULES.split():
        importlib.import_module(name)
    sys.path.remove(packages)  # a run adds its own
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(128)
        print("ready", flush=True)
        connection = accept(listener)
    if connection is not None:
        run(*become(connection))


def accept(listener: socket.socket) -> socket.socket | None:
    """Forks for each connection, which this returns there; in the first process it returns None at the end."""
    children = 0
    while True:
        ready, _, _ = select.select([listener.fileno(), 0], [], [])
        # their times are counted as this process's once it has waited for them
        while children and os.waitpid(-1, 0 if 0 in ready else os.WNOHANG)[0]:
            children -= 1
        if 0 in ready:
            return None
        connection, _ = listener.accept()
        if not os.fork():
            return connection
        children += 1
        connection.close()


def become(connection: socket.socket) -> list[str]:
    """Forks again, and returns in the child, as the client in all that a Python takes over; the parent waits for it."""
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    length, request = int.from_bytes(size, "big"), b""
    while len(request) < length:
        request += connection.recv(length - len(request))
    arguments, environment, directory, umask = marshal.loads(request)
    if pid := os.fork():
        for number in (0, *descriptors):
            os.close(number)
        threading.Thread(target=kill_without_client, args=[pid, connection], daemon=True).start()
        _, status = os.waitpid(pid, 0)
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    os.umask(umask)
    time.tzset()
    return [*arguments]


def kill_without_client(pid: int, connection: socket.socket) -> None:
    """What has a time limit kills the client; the run ends with it."""
    connection.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run(*arguments: str) -> NoReturn:
    """Runs a file, or code after -c, as `python -IS ARGUMENT...` does, without the taking apart of all modules."""
    sys.argv = [*arguments]
    status: object = 0
    try:
        if sys.argv[0] == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 120
    os._exit(status & 255)


if __name__ == "__main__":
    main()
