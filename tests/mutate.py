"""Changes one thing at a time in eks_token.py, and tells which changes no test notices.

    make mutate [MUTANTS=20] [SEED=1] [SECTIONS="cache token"]      MUTANTS=0: all

mutmut and cosmic-ray change a module that the tests import. Most tests here run the executable, which has a copy of the
module, so each mutant is also put into a copy of dist/eks-token. It is run against the tests of its section, those in
this process first, and stops at the first failure. What survives, and why, is in CONTRIBUTING.md.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {
    "cache": ["test_cache.py"],
    "identities": ["test_identities.py", "test_atmos.py"],
    "token": ["test_token.py"],
}
OPPOSITES: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv},
}
WORDING = {"debug", "warn", "say", "Problem", "usage", "sign_in_problem", "damaged"}  # what only a person reads
SECONDS = 600  # a mutant that takes longer hangs


class Mutant(NamedTuple):
    section: str
    line: int
    old: str
    new: str
    text: str  # of the whole module


def section_lines(text: str) -> dict[str, range]:
    """The lines of each section, by what its heading calls it."""
    lines = text.splitlines()
    heads = [(line.split(" ")[3], number) for number, line in enumerate(lines, 1) if line.startswith("# -- ")]
    ends = [number for _, number in heads[1:]] + [len(lines) + 1]
    return {name: range(start, end) for (name, start), end in zip(heads, ends, strict=True)}


def expressions(node: ast.AST) -> Iterator[ast.AST]:
    """What may be changed below a node: neither docstrings, annotations and messages, nor the parts of f-strings."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or name in ("annotation", "returns", "decorator_list"):
                continue
            inner = child.value if isinstance(child, ast.Expr) else child
            called = inner.func if isinstance(inner, ast.Call) else None
            worded = isinstance(called, ast.Name) and called.id in WORDING
            if worded or isinstance(child, ast.JoinedStr) or (child is not inner and isinstance(inner, ast.Constant)):
                continue
            yield child
            yield from expressions(child)


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may become."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OPPOSITES:
        yield ast.Compare(node.left, [OPPOSITES[type(node.ops[0])]()], node.comparators)  # type: ignore[list-item]
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OPPOSITES[type(node.op)](), node.values)  # type: ignore[arg-type]
        yield from node.values
    elif isinstance(node, ast.BinOp) and type(node.op) in OPPOSITES:
        yield ast.BinOp(node.left, OPPOSITES[type(node.op)](), node.right)  # type: ignore[arg-type]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, str)):
        value = node.value
        yield ast.Constant(not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else "odd")
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(None)
    elif isinstance(node, (ast.Continue, ast.Raise, ast.Expr)):
        yield ast.Pass()


def mutants(text: str, sections: Sequence[str]) -> Iterator[Mutant]:
    where = section_lines(text)
    lines = text.encode().split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    content = text.encode()
    for node in expressions(ast.parse(text)):
        if not isinstance(node, (ast.expr, ast.stmt)) or node.end_lineno is None or node.end_col_offset is None:
            continue
        for section in (name for name in sections if node.lineno in where[name]):
            start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            for new in changed(node):
                written = ast.unparse(ast.fix_missing_locations(new))
                written = f"({written})" if isinstance(new, ast.expr) else written
                whole = (content[:start] + written.encode() + content[end:]).decode()
                yield Mutant(section, node.lineno, content[start:end].decode(), written, whole)


def with_module(executable: Path, text: str, target: Path) -> None:
    """A copy of the executable that has this module."""
    with zipfile.ZipFile(executable) as old:
        start = min(info.header_offset for info in old.infolist())
        target.write_bytes(executable.read_bytes()[:start])
        with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as new:  # behind the launcher
            for info in old.infolist():
                new.writestr(info, text if info.filename == "site-packages/eks_token.py" else old.read(info))
    target.chmod(0o755)


def failure(text: str, tests: Sequence[str], directory: Path) -> str:
    """What pytest prints if these tests fail with this text of the module. Directory has a copy of the project."""
    (directory / "eks_token.py").write_text(text, encoding="utf-8")
    with_module(ROOT / "dist/eks-token", text, directory / "dist/eks-token")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "mutate"]
    environ = {**os.environ, "PYTHONPATH": "tests", "EKS_TOKEN_EXECUTABLE": str(directory / "dist/eks-token")}
    try:
        done = subprocess.run(
            [*command, *(f"tests/{name}" for name in tests)],
            cwd=directory,
            env=environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {SECONDS} s"
    return done.stdout + done.stderr if done.returncode else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick tests first."""
    items.sort(key=lambda item: bool({"home", "executable", "program"} & set(getattr(item, "fixturenames", ()))))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutants", type=int, default=20, help="how many, or 0 for all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("sections", nargs="*", default=[*SECTIONS])
    wanted = parser.parse_args()
    text = (ROOT / "eks_token.py").read_text(encoding="utf-8")
    chosen = list(mutants(text, wanted.sections))
    print(f"{len(chosen)} mutants are possible in {', '.join(wanted.sections)}", flush=True)
    random.Random(wanted.seed).shuffle(chosen)
    if wanted.mutants:
        chosen = chosen[: wanted.mutants]
    counted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for part in ("tests", "build", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, directory / part)
        (directory / "dist").mkdir()
        for section in wanted.sections:
            if found := failure(text, SECTIONS[section], directory):
                print(f"{found[-3000:]}\nmutate.py: the tests of {section} fail without any change", file=sys.stderr)
                return 1
        for mutant in chosen:
            started = time.monotonic()
            left = not failure(mutant.text, SECTIONS[mutant.section], directory)
            counted["survived" if left else "killed"] += 1
            verdict = f"{'SURVIVED' if left else 'killed'} after {time.monotonic() - started:.0f} s"
            print(f"{verdict}: {mutant.section}, line {mutant.line}: {mutant.old!r} -> {mutant.new!r}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in counted.items()))
    return bool(counted["survived"])


if __name__ == "__main__":
    sys.exit(main())
