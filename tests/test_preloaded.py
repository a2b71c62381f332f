"""The Python that most tests run the executable with has imported its modules before, and differs in nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
from conftest import Program, Sandbox
from servers import wait_for

OWN = os.path.realpath(sys.executable)  # not one that measures
SCRIPT = """
import atexit, os, sys
print(sys.argv[1:], os.getcwd(), oct(os.umask(0o77)), dict(os.environ), sys.flags)
print(sys.stdin.read(), sys.stdout.encoding)
print(sys.stdout.errors, "caf\\udce9", file=sys.stderr)
atexit.register(print, "the end")
"""


@pytest.mark.parametrize(
    "end",
    ["", "sys.exit(3)", "sys.exit('why')", "1 / 0", "os.kill(os.getpid(), 15)", "os._exit(4)"],
)
def test_a_file_runs_as_in_a_python_of_its_own(end: str, home: Sandbox, program: Program) -> None:
    script = home.write("script.py", SCRIPT + end)
    env = home.environment({"ODD": "caf\udce9", "TZ": "Asia/Kolkata"})
    ends = []
    for python in (OWN, program.python):
        done = home.run("-I", "-S", script, "a b", "", "\udce9", command=[python], stdin="typed\n", env=env)
        ends.append((done.returncode, done.stdout, done.stderr.partition("Traceback")[0], done.stderr[-20:]))
    assert ends[0] == ends[1]


def test_a_run_ends_with_who_waits_for_it(home: Sandbox, program: Program) -> None:
    noted = home.home / "pid"
    text = f"import os, time; open({str(noted)!r}, 'w').write(str(os.getpid()) + '.'); time.sleep(60)"
    script = home.write("script.py", text)
    with pytest.raises(subprocess.TimeoutExpired):
        home.run("-I", "-S", script, command=[program.python], timeout=1)
    wait_for(lambda: not Path("/proc", noted.read_text().rstrip(".")).exists(), "the end of the run")


def test_a_run_that_does_not_end_keeps_nothing_alive(
    home: Sandbox, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preloaded, "PATIENCE", 1)
    script = home.write("script.py", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    with preloaded.PreloadedPython(OWN, next(program.app.glob("[0-9a-f]*")) / "site-packages") as python:
        waiting = home.start("-I", "-S", script, command=[python.script])
        assert waiting.stdout
        run = int(waiting.stdout.readline())
    assert waiting.wait(30) == 255
    waiting.communicate()
    wait_for(lambda: not Path(f"/proc/{run}").exists(), "the end of the run")


def test_the_executable_answers_as_with_a_python_of_its_own(home: Sandbox, program: Program) -> None:
    for line in (
        ["--version"],
        ["--help"],
        [],
        ["idntities"],
        ["identities"],
        ["--cluster-name", "demo", "--region", "x y"],
    ):
        ours, real = (home.run(*line, python=python) for python in (program.python, OWN))
        assert (ours.returncode, ours.stdout, ours.stderr) == (real.returncode, real.stdout, real.stderr)
