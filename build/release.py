"""Makes dist/release: the program, and what its users and their package managers need of it.

    python build/release.py [--repository OWNER/NAME] [--tag TAG] [PROGRAM]

    eks-token, eks-token.exe          the program, and the same for Windows
    eks-token-VERSION.zip             the program and its licences, for Homebrew and krew
    eks-token-VERSION-windows.zip     the same for Windows
    eks-token.cdx.json                its bill of materials (SBOM) in CycloneDX
    eks-token.exe.cdx.json            the same for Windows, where a wrapper is in it too
    LICENSES.txt                      the licences of everything in them
    eks-token.rb                      a Homebrew formula
    eks-token.yaml                    a krew manifest
    SHA256SUMS                        the hashes of all of these
    NOTES.md                          what is new, from CHANGELOG.md, and how to check a download

All of it comes from the program, the templates in this directory and the changelog, so that two releases of one commit
are identical byte for byte.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from package import HERE, ROOT, BuildError, value_of, zip_member
from wrapper import wrapped

ABOUT = ("LICENSES", value_of("SBOM"))  # members of the program

CHECKS = """\
## Check a download

```sh
# The download is complete. (On macOS: shasum -a 256 --check --ignore-missing SHA256SUMS)
sha256sum --check --ignore-missing SHA256SUMS
# The release workflow of this repository built it.
gh attestation verify eks-token --repo @REPOSITORY@
# It is what the source code builds: in a checkout of v@VERSION@, with the path of the download.
make reproduce FILE=eks-token
```
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes dist/release.")
    parser.add_argument("program", nargs="?", type=Path, default=ROOT / "dist" / "eks-token")
    parser.add_argument("--repository", default="", help="where on GitHub it is published; git's origin by default")
    parser.add_argument("--tag", default="", help="fail if this is not the tag of the program's version")
    arguments = parser.parse_args(argv)
    try:
        files = release_files(arguments.program, arguments.repository or origin(ROOT), arguments.tag)
    except BuildError as error:
        print(f"release.py: {error}", file=sys.stderr)
        return 1
    target = ROOT / "dist" / "release"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name, content in files.items():
        (target / name).write_bytes(content)
        print(f"{target / name}: {len(content):,} bytes")
    (target / "eks-token").chmod(0o755)
    return 0


def release_files(program: Path, repository: str, tag: str = "") -> dict[str, bytes]:
    """The files of a release by their names. Raises BuildError if tag or changelog are not of the program's version."""
    programs = {"eks-token": program.read_bytes(), "eks-token.exe": wrapped(program)}
    licences, bills = ({name: read_from(content, member) for name, content in programs.items()} for member in ABOUT)
    version = str(json.loads(bills["eks-token"])["metadata"]["component"]["version"])
    if tag not in ("", f"v{version}"):
        raise BuildError(f"the tag is {tag}, but the program's version is {version}")

    files = programs | {f"{name}.cdx.json": bill for name, bill in bills.items()}
    files["LICENSES.txt"] = licences["eks-token.exe"]  # the program's, and its wrapper's
    values = {"VERSION": version, "REPOSITORY": repository}
    for name, of, hash_of in (("eks-token", "", "SHA256"), ("eks-token.exe", "-windows", "WINDOWS")):
        packed = packed_with({name: programs[name], "LICENSES.txt": licences[name]})
        files[f"eks-token-{version}{of}.zip"] = packed
        values[hash_of] = hashlib.sha256(packed).hexdigest()
    for name in ("eks-token.rb", "eks-token.yaml"):
        files[name] = filled((HERE / name).read_text(encoding="utf-8"), values).encode()
    files["SHA256SUMS"] = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())
    ).encode()
    changes = section_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    files["NOTES.md"] = f"# eks-token {changes}\n{filled(CHECKS, values)}".encode()
    return files


def origin(checkout: Path) -> str:
    """OWNER/NAME of the checkout's repository on GitHub. Raises BuildError if its remote `origin` is elsewhere."""
    command = ["git", "-C", str(checkout), "config", "--get", "remote.origin.url"]
    try:
        address = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        address = ""
    found = re.fullmatch(r"(?:https://|ssh://git@|git@)github\.com[/:]([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if found is None:
        raise BuildError("git's remote origin is not on GitHub: make release REPOSITORY=OWNER/NAME")
    return found[1]


def read_from(program: bytes, member: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        return archive.read(member)


def packed_with(files: Mapping[str, bytes]) -> bytes:
    """A zip archive of files. The program is compressed already, and without compression zlib makes no difference."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        for name, content in files.items():
            made.writestr(zip_member(name, 0o644 if name.endswith(".txt") else 0o755), content)
    return archive.getvalue()


def filled(template: str, values: Mapping[str, str]) -> str:
    """template with each @NAME@ replaced by its value. Raises KeyError for a name that has none."""
    return re.sub("@([A-Z0-9]+)@", lambda found: values[found[1]], template)


def section_of(changelog: str, version: str) -> str:
    """A version's number, date and changes. Raises BuildError if the changelog has none, or no date."""
    found = re.search(
        rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise BuildError(f"CHANGELOG.md has no section with the heading ## [{version}] - YYYY-MM-DD")
    changes = re.sub("^###", "##", found[2].strip("\n"), flags=re.MULTILINE)
    return f"{version} ({found[1]})\n\n{changes}\n"


if __name__ == "__main__":
    sys.exit(main())
