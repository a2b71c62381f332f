"""Makes dist/release: the program, and what its users and their package managers need of it.

    python build/release.py [--repository OWNER/NAME] [--tag TAG] [PROGRAM]

    eks-token                  the program
    eks-token-VERSION.zip      the program and its licences, for Homebrew and krew
    eks-token.cdx.json         its bill of materials (SBOM) in CycloneDX
    LICENSES.txt               the licences of everything in it
    eks-token.rb               a Homebrew formula
    eks-token.yaml             a krew manifest
    SHA256SUMS                 the hashes of all of these
    NOTES.md                   what is new, from CHANGELOG.md, and how to check a download

All of it comes from the program, the templates in this directory and the changelog, so that two releases of one commit
are identical byte for byte.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from package import HERE, ROOT, BuildError, value_of, zip_member

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
    parser.add_argument("--repository", default="eks-token/eks-token", help="where it is published on GitHub")
    parser.add_argument("--tag", default="", help="fail if this is not the tag of the program's version")
    arguments = parser.parse_args(argv)
    try:
        files = release_files(arguments.program, arguments.repository, arguments.tag)
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
    with zipfile.ZipFile(program) as archive:
        licences = archive.read("LICENSES")
        bill = archive.read(value_of("SBOM"))
    version = str(json.loads(bill)["metadata"]["component"]["version"])
    if tag not in ("", f"v{version}"):
        raise BuildError(f"the tag is {tag}, but the program's version is {version}")

    packed = packed_with({"eks-token": program.read_bytes(), "LICENSES.txt": licences})
    files = {
        "eks-token": program.read_bytes(),
        f"eks-token-{version}.zip": packed,
        "eks-token.cdx.json": bill,
        "LICENSES.txt": licences,
    }
    values = {"VERSION": version, "REPOSITORY": repository, "SHA256": hashlib.sha256(packed).hexdigest()}
    for name in ("eks-token.rb", "eks-token.yaml"):
        files[name] = filled((HERE / name).read_text(encoding="utf-8"), values).encode()
    files["SHA256SUMS"] = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())
    ).encode()
    changes = section_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    files["NOTES.md"] = f"# eks-token {changes}\n{filled(CHECKS, values)}".encode()
    return files


def packed_with(files: Mapping[str, bytes]) -> bytes:
    """A zip archive of files. The program is compressed already, and without compression zlib makes no difference."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        for name, content in files.items():
            made.writestr(zip_member(name, 0o755 if name == "eks-token" else 0o644), content)
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
