"""Builds dist/eks-token, the whole program in one file: resolve, prune, call shiv, repack, prepend the launcher.

    python build/package.py [FILE]

The file is the launcher script followed by a zip archive, which Python finds from the end of the file:

    __main__.py, start.py      the startup code, from this directory
    _bootstrap/                shiv's bootstrap, which start.py calls; environment.json has its settings
    site-packages/             eks_token.py and what it imports; only these and the startup code are ever unpacked
    LICENSES                   the licences of everything in the archive
    eks-token.cdx.json         its bill of materials (SBOM), which --version --verbose reads

Two builds of one commit with the same zlib are identical byte for byte. With another zlib their members still are.
Nothing in the file depends on the machine, the clock, the umask, the locale or the order of a directory.
"""

import argparse
import ast
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

from shiv import builder
from shiv.bootstrap.environment import Environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROGRAM = ROOT / "eks_token.py"

SIZE_LIMIT = 1_500_000  # bytes
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can express

# What is dropped, in the order of the wheels. These are fnmatch patterns, in which * also matches slashes.
DROPPED = (
    "bin/*",
    "*.pyc",
    "*.pyi",
    "*/py.typed",
    "*/__main__.py",
    "*/tests/*",
    # Metadata. Nothing here reads versions or entry points. (keyring would, to find backends, but eks_token chooses
    # the backend itself.) The licences are gathered before this is dropped.
    "*.dist-info/*",
    # 400 services. KEPT has the ones we call.
    "botocore/data/*/*",
    # Time zones for systems without their own. AWS's times are in UTC.
    "dateutil/zoneinfo/*.tar.gz",
    "dateutil/zoneinfo/rebuild.py",
    "dateutil/easter.py",
    # D-Bus connections other than jeepney.io.blocking.
    "jeepney/bindgen.py",
    "jeepney/io/asyncio.py",
    "jeepney/io/threading.py",
    "jeepney/io/trio.py",
    # keyring's own command line, and the backend that eks_token replaces.
    "keyring/backend_complete.*",
    "keyring/backends/SecretService.py",
    "keyring/cli.py",
    "keyring/completion.py",
    "keyring/devpi_client.py",
    "keyring/http.py",
    "keyring/testing/*",
    "platformdirs/pytest_plugin.py",
    "platformdirs/testing.py",
    # Builds a compiled parser.
    "ruamel/yaml/clibz/*",
    # HTTP/2, which urllib3 speaks only if told to. Without them urllib3.http2 still has what HTTP/1 asks of it, and
    # nothing imports importlib.metadata, which takes 7 ms of a new token's 90.
    "urllib3/http2/__init__.py",
    "urllib3/http2/connection.py",
    # For Python in a browser.
    "urllib3/contrib/emscripten/*",
    # pywin32-ctypes uses ctypes if there is no cffi, which is compiled.
    "win32ctypes/core/cffi/*",
)

# What is kept although a pattern above matches it.
KEPT = tuple(
    f"botocore/data/{service}/*/{name}"
    for service in ("eks", "sso", "sso-oidc", "sts")
    for name in ("service-2.json.gz", "service-2.sdk-extras.json", "endpoint-rule-set-1.json.gz")
)

# Other projects' files in the wheels, which the wheels' metadata does not name, and their licences.
VENDORED = {
    "botocore/cacert.pem": "MPL-2.0",
    "botocore/vendored/requests/exceptions.py": "Apache-2.0",
    "botocore/vendored/requests/packages/urllib3/exceptions.py": "MIT",
    "botocore/vendored/six.py": "MIT",
}

PIN = re.compile(r"^([\w.-]+==\S+) \\\n +--hash=sha256:([0-9a-f]{64})$", re.MULTILINE)
LICENCE = re.compile(r"(licen[cs]e|notice|copying)[^/]*", re.IGNORECASE)

COMPILED_NAME = re.compile(r"\.(so(\.\d+)*|pyd|dylib|dll|exe|a|o|lib|obj|node|wasm)$", re.IGNORECASE)
COMPILED_START = (
    b"\x7fELF",
    b"MZ",
    b"\xca\xfe\xba\xbe",  # Mach-O, for several processors or for one
    b"\xcf\xfa\xed\xfe",
    b"\xce\xfa\xed\xfe",
    b"!<arch>",
    b"\0asm",
)


class BuildError(Exception):
    """Why the file cannot be built, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds the executable.")
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "dist" / "eks-token")
    file: Path = parser.parse_args(argv).file
    try:
        build(file)
    except BuildError as error:
        print(f"package.py: {error}", file=sys.stderr)
        return 1
    print(f"{file}: {file.stat().st_size:,} bytes")
    return 0


def build(target: Path) -> None:
    """Builds target. Raises BuildError."""
    begun = time.time()
    with tempfile.TemporaryDirectory() as name:
        packages = Path(name, "site-packages")
        archive = Path(name, "archive")
        resolve(packages)
        added = {"LICENSES": gather_licences(packages), value_of("SBOM"): bill_of_materials(packages)}
        prune(packages)
        shutil.copyfile(PROGRAM, packages / PROGRAM.name)
        call_shiv(packages, archive)
        target.parent.mkdir(parents=True, exist_ok=True)
        repack(archive, target, added)
    os.utime(target, (begun, begun))  # a source saved during the build is then newer, so make builds again


def resolve(target: Path) -> None:
    """Installs the wheels pinned in requirements.txt into target: the same ones on every machine."""
    options = (
        "--quiet --disable-pip-version-check --no-compile --no-deps --require-hashes "
        "--only-binary :all: --platform any --abi none --implementation py --python-version 3.10"
    )
    command = [sys.executable, "-m", "pip", "install", *options.split()]
    command += ["--target", str(target), "--requirement", str(HERE / "requirements.txt")]
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError("pip could not install the wheels of build/requirements.txt")


def gather_licences(packages: Path) -> bytes:
    """The text of every licence (ours, shiv's and the wheels') with the names and versions of what it covers.

    Everyone who gets a copy of the program must get them too. They are one member of the archive, which takes little
    space and is not read when the program starts. Raises BuildError if one is missing.
    """
    shiv = metadata.distribution("shiv")
    owners = {
        "eks-token": [ROOT / "LICENSE"],
        f"shiv {shiv.version}": [Path(str(shiv.locate_file(path))) for path in shiv.files or []],
    }
    for information in packages.glob("*.dist-info"):
        owners[information.stem.replace("-", " ")] = sorted(files(information))

    names_by_text: dict[str, list[str]] = {}
    for name, paths in sorted(owners.items()):
        texts = licence_texts(paths)
        if not texts:
            raise BuildError(f"{name} has no licence file")
        for text in texts:
            names_by_text.setdefault(text, []).append(name)
    rule = "=" * 80
    chapters = (f"{rule}\n{', '.join(names)}\n{rule}\n\n{text}\n" for text, names in names_by_text.items())
    return "\n".join(chapters).encode()


def licence_texts(paths: Iterable[Path]) -> list[str]:
    return [path.read_text(encoding="utf-8").strip("\n") for path in paths if LICENCE.fullmatch(path.name)]


def bill_of_materials(packages: Path) -> bytes:
    """The SBOM in CycloneDX 1.6: the packages, with the hashes of their wheels, and the VENDORED files in them.

    It has neither a serial number nor a time, which the specification allows, so that one commit has one SBOM.
    """
    hashes = pinned_hashes()
    bundled = [metadata.distribution("shiv"), *metadata.distributions(path=[str(packages)])]

    def vendored(name: str, licence: str) -> dict[str, Any]:
        digest = hashlib.sha256((packages / name).read_bytes()).hexdigest()
        return {"type": "file", "bom-ref": name, "name": name, "licenses": [{"expression": licence}]} | sha256(digest)

    program = {"type": "application", "bom-ref": "eks-token", "name": "eks-token", "version": value_of("__version__")}
    components = sorted((component(found, hashes) for found in bundled), key=lambda found: str(found["purl"]))
    for name, licence in VENDORED.items():
        owner = next(found for found in components if found["name"] == name.partition("/")[0])
        owner.setdefault("components", []).append(vendored(name, licence))
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": program | {"licenses": [{"expression": "MIT"}]}},
        "components": components,
    }
    return (json.dumps(bill, indent=1) + "\n").encode()


def component(package: metadata.Distribution, hashes: Mapping[str, str]) -> dict[str, Any]:
    """A package as the SBOM names it."""
    purl = f"pkg:pypi/{re.sub('[-_.]+', '-', package.name).lower()}@{package.version}"
    about = {"type": "library", "bom-ref": purl, "name": package.name, "version": package.version, "purl": purl}
    return about | sha256(hashes[f"{package.name}=={package.version}"]) | licences_of(package)


def sha256(digest: str) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": digest}]}


def pinned_hashes() -> dict[str, str]:
    """The hashes of the wheels that are built with and bundled, by NAME==VERSION."""
    pins = "".join((HERE / name).read_text(encoding="utf-8") for name in ("tools.txt", "requirements.txt"))
    return dict(PIN.findall(pins))


def licences_of(package: metadata.Distribution) -> dict[str, Any]:
    """A package's licences as it names them: an SPDX expression if it is new enough, or in words."""
    about = package.metadata
    if "License-Expression" in about:
        return {"licenses": [{"expression": about["License-Expression"]}]}
    named = [each.rpartition(" :: ")[2] for each in about.get_all("Classifier") or [] if each.startswith("License ::")]
    return {"licenses": [{"license": {"name": name}} for name in named or [about["License"]]]}


def files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def prune(packages: Path) -> None:
    """Removes what no command needs from packages, and the directories that are empty afterwards."""
    for path in list(files(packages)):
        name = path.relative_to(packages).as_posix()
        if matches(name, DROPPED) and not matches(name, KEPT):
            path.unlink()
    for path in sorted(packages.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def call_shiv(packages: Path, archive: Path) -> None:
    """Has shiv make an archive of packages, with start.py as the entry point and no time of the build."""
    environment = Environment(
        built_at="1980-01-01 00:00:00",
        shiv_version=metadata.version("shiv"),
        build_id="@BUILD@",
        entry_point="start:run",
        compile_pyc=False,
        reproducible=True,
    )
    builder.create_archive([packages], archive, "/usr/bin/env python3", "_bootstrap:bootstrap", environment)


def repack(archive: Path, target: Path, added: dict[str, bytes]) -> None:
    """Writes target with mode 0755: the launcher, then the members of shiv's archive, our startup code, and added.

    The build ID is a hash of all of that. It appears in the launcher, in start.py and in shiv's settings, which are
    hashed before it is filled in. Raises BuildError if the result does not run on every machine or is too large.
    """
    with zipfile.ZipFile(archive) as made:
        members = {name: made.read(name) for name in made.namelist()}
    # shiv writes its settings in the order of an object's attributes, so sort them.
    members["environment.json"] = json.dumps(json.loads(members["environment.json"]), sort_keys=True).encode()
    members |= {
        "__main__.py": (HERE / "__main__.py").read_bytes(),
        "start.py": self_contained("start.py").encode(),
    } | added
    refuse_compiled(members)

    launcher = launcher_text().encode()
    values = {b"@BUILD@": build_id(members, launcher), b"@VERSION@": value_of("__version__").encode()}
    for name in ("environment.json", "start.py"):
        members[name] = substitute(members[name], values)

    beside = target.with_name(f".{target.name}.new")
    with open(beside, "wb") as file:
        file.write(substitute(launcher, values))
        with zipfile.ZipFile(file, "w") as packed:
            for name, content in sorted(members.items()):
                packed.writestr(zip_member(name, 0o644), content, zipfile.ZIP_DEFLATED, 9)
    beside.chmod(0o755)
    size = beside.stat().st_size
    if size > SIZE_LIMIT:
        beside.unlink()
        raise BuildError(f"the file would be {size:,} bytes; the limit is {SIZE_LIMIT:,}")
    beside.replace(target)


def zip_member(name: str, mode: int) -> zipfile.ZipInfo:
    """A member's header, which says nothing of the machine that writes it."""
    member = zipfile.ZipInfo(name, DATE)
    member.create_system = 3  # Unix, so that external_attr is a Unix mode
    member.external_attr = (stat.S_IFREG | mode) << 16
    return member


def refuse_compiled(members: Mapping[str, bytes]) -> None:
    """Raises BuildError if a member only runs on one kind of machine, judging by its name or its first bytes."""
    for name, content in members.items():
        if COMPILED_NAME.search(name) or content.startswith(COMPILED_START):
            raise BuildError(f"{name} is compiled, but the file must run on every platform")


def build_id(members: Mapping[str, bytes], launcher: bytes) -> bytes:
    """16 hexadecimal digits. Each part is hashed after its length, so that no two bundles hash the same bytes."""
    digest = hashlib.sha256()
    for part in [launcher, *(part for name in sorted(members) for part in (name.encode(), members[name]))]:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:16].encode()


def substitute(text: bytes, values: Mapping[bytes, bytes]) -> bytes:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def launcher_text() -> str:
    """launcher.sh with the variables of eks_token.py in it, by their kinds; the build's id and version come later."""
    kinds: dict[str, str] = value_of("REQUEST_VARIABLES")
    secrets = [name for name, kind in kinds.items() if kind == "secret"]
    others = {name: kind for name, kind in kinds.items() if kind not in ("secret", "windows") and name != "HOME"}
    values = {
        "@SECRETS@": expanded(secrets),
        "@OTHERS@": expanded(others),
        "@CHECK@": check_text(),
        "@VARIABLES@": "\n\t\t".join(
            f'[ -z "${{{name}-}}" ] || et_variable {name} {kind} "${name}" || return' for name, kind in others.items()
        ),
    }
    text = (HERE / "launcher.sh").read_text(encoding="utf-8")
    return re.sub("@[A-Z]+@", lambda found: values.get(found[0], found[0]), text)


def expanded(names: Iterable[str]) -> str:
    """The values of variables, one after the other, as sh writes them."""
    return "".join(f"${{{name}-}}" for name in names)


def self_contained(name: str) -> str:
    """start.py or check.py with the source of what it imports from eks_token.py, which is not there when it runs."""

    def texts(found: re.Match[str]) -> str:
        names = re.findall(r"\w+", found[1])
        for name in names:  # and then what that uses, which this adds
            used = [node.id for node in ast.walk(ast.parse(source_of(name))) if isinstance(node, ast.Name)]
            names += [one for one in dict.fromkeys(used) if one in definitions() and one not in names]
        return "\n\n\n".join(source_of(name) for name in reversed(names))

    text = (HERE / name).read_text(encoding="utf-8")
    return re.sub(f"(?m)^from {PROGRAM.stem} import (\\([^)]*\\)|.+)$", texts, text)


def check_text() -> str:
    """check.py and the end of __main__.py, without docstrings, as they stand in a shell's single quotes."""
    started = (HERE / "__main__.py").read_text(encoding="utf-8")
    started = started[started.index("import _signal") : started.index("\n# ")]
    text = self_contained("check.py") + started
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            for number in range(node.body[0].lineno - 1, node.body[0].end_lineno or 0):
                lines[number] = ""
    return "\n".join(line for line in lines if line).replace("'", "'\\''")


def value_of(name: str) -> Any:
    """The value of a constant of eks_token.py. Raises BuildError."""
    return ast.literal_eval(source_of(name).partition(" = ")[2])


def source_of(name: str) -> str:
    """What defines a name in eks_token.py: an assignment, a function or a class. Raises BuildError."""
    if name not in definitions():
        raise BuildError(f"{PROGRAM.name} has no {name}")
    return definitions()[name]


@functools.cache
def definitions() -> dict[str, str]:
    text = PROGRAM.read_text(encoding="utf-8")
    lines = text.split("\n")
    found = {}
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node
        name = str(getattr(target, "id", getattr(target, "name", "")))
        found[name] = "\n".join(lines[node.lineno - 1 : node.end_lineno])
    return found


if __name__ == "__main__":
    sys.exit(main())
