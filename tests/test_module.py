"""What holds for the module as a whole: the order of its sections, and its one way to stdout."""

import ast
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from conftest import Completed, Sandbox

import eks_token

SOURCE = Path(eks_token.__file__).read_text(encoding="utf-8")

STARTS = [number for number, line in enumerate(SOURCE.splitlines(), 1) if re.match(r"# -- \d+\. ", line)]
"""The line of each section's heading."""


def section_of(line: int) -> int:
    return sum(start <= line for start in STARTS)


def defined(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of the module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)]
    if isinstance(node, ast.Assign):
        return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return []


def own_names(node: ast.stmt) -> set[str]:
    """Parameters and variables of a function or class, which may be named as something further down is."""
    names = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
    names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return names | {each.name for each in ast.walk(node) if isinstance(each, (ast.FunctionDef, ast.ClassDef))}


def test_each_section_uses_only_those_above_it() -> None:
    body = ast.parse(SOURCE).body
    section = {name: section_of(node.lineno) for node in body for name in defined(node)}
    found = set()
    for node in body:
        own = own_names(node)
        for each in ast.walk(node):
            if not isinstance(each, ast.Name) or each.id in own or each.id not in section:
                continue
            if section[each.id] > section_of(node.lineno):
                found.add((getattr(node, "name", ""), each.id))
    assert found == set()


def test_the_front_page_names_the_sections_in_their_order() -> None:
    headings = re.findall(r"(?m)^# -- \d+\. ([a-z ]+?) -+$", SOURCE)
    listed = re.findall(r"(?m)^\d+\. ([a-z ]+?)  ", eks_token.__doc__ or "")
    assert len(headings) == 13
    assert listed == headings


COMMANDS = pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--help"], id="help"),
        pytest.param(["login", "--help"], id="a command's help"),
        pytest.param(["--version"], id="version"),
        pytest.param(["--version", "--verbose"], id="version and packages"),
        pytest.param(["identities"], id="identities"),
        pytest.param(["identities", "-o", "json"], id="identities as JSON"),
        pytest.param(["doctor"], id="doctor"),
        pytest.param(["doctor", "-o", "json"], id="doctor as JSON"),
        pytest.param(["completion", "bash"], id="completion"),
        pytest.param(["completion", "bash", "", ""], id="candidates"),
    ],
)


@pytest.fixture
def profiles(home: Sandbox) -> Sandbox:
    (home.home / ".aws").mkdir()
    (home.home / ".aws/config").write_text("[profile dev]\ncredential_process = true\n")
    assert home.run("--version").returncode == 0
    return home


def run_into(stdout: int | IO[str], home: Sandbox, arguments: list[str]) -> Completed:
    command, env = [str(home.executable), *arguments], home.environment()
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env=env, text=True, check=False
    )


@COMMANDS
def test_a_closed_pipe_ends_quietly(profiles: Sandbox, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_into(writer, profiles, arguments)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only on systems with /dev/full")
@COMMANDS
def test_a_full_stdout_is_one_error_line_and_no_bug(profiles: Sandbox, arguments: list[str]) -> None:
    manifest = next(profiles.home.glob(".cache/eks-token/app/*/manifest"))
    with open("/dev/full", "w") as full:
        done = run_into(full, profiles, arguments)
    assert (done.returncode, done.stderr) == (
        1,
        "eks-token: error: cannot write to stdout: No space left on device\n",
    )
    assert manifest.exists()  # nothing is unpacked again for it


def test_what_a_locale_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-1")
    monkeypatch.setattr(sys, "stdout", stdout)
    eks_token.set_encodings()
    eks_token.show("köln-→")
    assert stdout.buffer.getvalue() == "köln-\\u2192\n".encode("iso-8859-1")


@pytest.mark.parametrize(("system", "attempts"), [("nt", 3), ("posix", 1)])
def test_a_file_that_a_scanner_holds_is_replaced_when_it_lets_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, attempts: int
) -> None:
    calls = []

    def replace(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) < 3:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "name", system)
    monkeypatch.setattr(os, "replace", replace)
    try:
        eks_token.replace_file("new", "old")
    except PermissionError:
        assert system == "posix"
    finally:
        monkeypatch.undo()
    assert len(calls) == attempts


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([], ""),
        (["a", "b"], "a, b"),
        (
            [f"team-{number:03}" for number in range(2000)],
            f"{', '.join(f'team-{n:03}' for n in range(30))} and 1970 more",
        ),
        (["x" * 4000], "x" * 300),
        (["x" * 4000, "y"], "x" * 300 + " and 1 more"),
    ],
    ids=["none", "two", "many", "a long one", "a long one of two"],
)
def test_names_in_an_error_are_cut_to_a_line(names: list[str], shown: str) -> None:
    assert eks_token.listed(names) == shown


def test_every_line_of_the_security_page_names_a_test_that_exists() -> None:
    page = (Path(eks_token.__file__).parent / "SECURITY.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert [name for name in named if f"def {name}(" not in tests] == []
    shown = page[page.index("## What eks-token protects") : page.index("## Known and accepted risks")]
    assert [line for line in re.split(r"\n(?=- |\n)", shown) if line.startswith("- ") and "`test_" not in line] == []
