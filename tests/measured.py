"""A Python that measures what it runs of eks_token.py: how `make coverage` sees into the executable.

The executable starts Python with -I -S, so coverage's own start-up file is not read, and no variable helps. Instead the
tests name a script that stands for a Python, as EKS_TOKEN_PYTHON. It has coverage started in front of the file that
Python is to run. The executable is the product as it is.
"""

from __future__ import annotations

import atexit
import os
import re
import runpy
import shlex
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "pyproject.toml"

SCRIPT = """#!/bin/sh
if [ "${1-} ${2-}" = "-I -S" ] && [ -e "${3-}" ]; then
	shift 2
	exec @MEASURED@ "$@"
elif [ "${1-} ${2-}" = "-IS -c" ]; then
	shift
	exec @MEASURED@ "$@"
fi
exec @PYTHON@ "$@"
"""


def measuring(python: str) -> str:
    """A script that stands for this Python, which has the version of the running one; itself if nothing is measured."""
    data = os.environ.get("COVERAGE_FILE")
    if data is None:
        return python
    script = Path(data).with_name(Path(python).name)
    command = [python, "-I", "-S", __file__, sysconfig.get_path("platlib"), data, str(script)]
    beside = script.with_name(f"{script.name}.{os.getpid()}")
    beside.write_text(
        SCRIPT.replace("@MEASURED@", shlex.join(command)).replace("@PYTHON@", shlex.quote(python)), encoding="utf-8"
    )
    beside.chmod(0o755)
    beside.replace(script)  # in one step, because every worker of pytest-xdist writes it
    return str(script)


def measure(packages: str, data: str) -> None:
    """Measures this process from now on, and what it forks. Each saves what it ran when it ends, or before an exec."""
    sys.path.append(packages)
    import coverage

    sys.path.remove(packages)  # what the program imports must be its own
    measurement = coverage.Coverage(data_file=data, data_suffix=True, config_file=str(CONFIG))
    exec_file = os.execv

    def save() -> None:
        try:
            measurement.stop()
            measurement.save()
        except Exception:  # a test took the disk or the rights away; its output must not change
            pass

    def save_and_exec(path: str, arguments: list[str]) -> None:
        save()
        try:
            exec_file(path, arguments)
        finally:
            measurement.start()  # it failed

    atexit.register(save)
    os.execv = save_and_exec  # type: ignore[assignment]
    measurement.start()


def report() -> int:
    """Adds up what was measured, prints it, and returns 2 if it is less than pyproject.toml wants.

    The executable's start.py has other lines than build/start.py, because it contains some of eks_token.py. So its own
    text is what the lines are counted in. It runs in the archive, and in the directory that it is unpacked to.
    """
    import coverage

    measured = ROOT / "dist/coverage"
    with zipfile.ZipFile(ROOT / "dist/eks-token") as archive:
        text = archive.read("start.py").decode()
    (measured / "start.py").write_text(text, encoding="utf-8")
    build = re.search('^BUILD = "(.+)"', text, re.MULTILINE)
    assert build
    for file in measured.glob("data.*"):
        if file.stat().st_size == 0:  # a test filled the disk
            file.unlink()
    found = coverage.Coverage(config_file=str(CONFIG))
    start = [str(measured), f"*/app/{build[1]}", "*/eks-token"]
    found.set_option("paths", {"program": [str(ROOT), "*/site-packages"], "start": start})
    found.combine([str(measured)])
    found.save()
    total = found.report(include=[str(ROOT / "eks_token.py"), str(measured / "start.py")])  # and no changed copies
    wanted = found.get_option("report:fail_under")
    return 2 if isinstance(wanted, (int, float)) and total < wanted else 0


def main() -> None:
    """Runs a file, or code after -c, as `python -IS ARGUMENT...` does, and measures it."""
    packages, data, script, *sys.argv = sys.argv[1:]
    # The program starts the Python that it runs in again, and remembers it for the launcher.
    vars(sys).update(executable=script, _base_executable=script)
    measure(packages, data)
    if sys.argv[0] == "-c":
        exec(sys.argv.pop(1), {"__name__": "__main__"})
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:] == ["report"]:
        sys.exit(report())
    main()
