"""Makes dist/eks-token.exe, which kubectl for Windows can start by its name. It cannot start a shell script.

    python build/wrapper.py [PROGRAM]

The file is distlib's script wrapper, which pip puts in front of the scripts that it installs on Windows, a line that
names a Python, and the archive of dist/eks-token. The wrapper starts that Python with the file and the arguments, ends
it if it is ended itself, and passes its status on.

The Python is py.exe, its launcher, where python.org's installer puts it for all users. The line has its whole path: the
wrapper looks for a bare name, also after /usr/bin/env, in the working directory before PATH (as seen under Wine), and
people run kubectl in directories with other people's files.
"""

import argparse
import importlib.resources
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from package import ROOT, component, licence_texts, pinned_hashes, value_of, zip_member

PYTHON = rb"#!C:\Windows\py.exe -3 -I -S" + b"\r\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes the executable for Windows.")
    parser.add_argument("program", nargs="?", type=Path, default=ROOT / "dist" / "eks-token")
    program: Path = parser.parse_args(argv).program
    target = program.with_name(f"{program.name}.exe")
    target.write_bytes(wrapped(program))
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


def wrapped(program: Path) -> bytes:
    """The wrapper and the archive, to which the wrapper's licence and its line in the bill of materials are added."""
    with zipfile.ZipFile(program) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    distlib = metadata.distribution("distlib")
    bill = json.loads(members[value_of("SBOM")])
    bill["components"].append(component(distlib, pinned_hashes()))
    members[value_of("SBOM")] = (json.dumps(bill, indent=1) + "\n").encode()
    rule = "=" * 80
    for text in licence_texts([Path(str(distlib.locate_file(path))) for path in distlib.files or []]):
        members["LICENSES"] += f"\n{rule}\ndistlib {distlib.version}\n{rule}\n\n{text}\n".encode()

    # The wrapper finds the line by the archive's own offsets, so they must not count what is in front of it.
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in sorted(members.items()):
            file.writestr(zip_member(name, 0o644), content, zipfile.ZIP_DEFLATED, 9)
    return importlib.resources.files("distlib").joinpath("t64.exe").read_bytes() + PYTHON + packed.getvalue()


if __name__ == "__main__":
    sys.exit(main())
