"""Tells whether a file is what these sources build.

    python build/reproduce.py FILE

Exits with 0 if it is: byte for byte, or with the same content compressed by another zlib. Otherwise prints what differs
and exits with 1.
"""

import argparse
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from package import BuildError, build
from wrapper import wrapped

LOCAL_HEADER, CENTRAL_HEADER, END = 30, 46, 22  # bytes, without names: APPNOTE.TXT, 4.3.7, 4.3.12 and 4.3.16


class Parts(NamedTuple):
    """What an executable consists of."""

    launcher: bytes
    members: dict[str, bytes]
    unaccounted: int  # bytes that are neither the launcher's nor the archive's


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tells whether a file is what these sources build.")
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args(argv).file
    try:
        found = parts_of(file)
        with tempfile.TemporaryDirectory() as name:
            built = Path(name, "eks-token")
            build(built)
            if found.launcher.startswith(b"MZ"):  # a program of Windows
                built.write_bytes(wrapped(built))
            same = file.read_bytes() == built.read_bytes()
            differences = compare(found, parts_of(built))
    except BuildError as error:
        print(f"reproduce.py: {error}", file=sys.stderr)
        return 1
    if differences:
        print("\n".join([f"{file} is not what these sources build:", *(f"  {line}" for line in differences)]))
        return 1
    print(f"{file} is what these sources build, " + ("byte for byte" if same else "compressed by another zlib"))
    return 0


def parts_of(file: Path) -> Parts:
    """Takes an executable apart. Raises BuildError if it is not one."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            members = {info.filename: archive.read(info) for info in infos}
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BuildError(f"{file} is not an executable of eks-token: {reason}") from None
    size = file.stat().st_size
    start = min((info.header_offset for info in infos), default=size)
    headers = sum(LOCAL_HEADER + CENTRAL_HEADER + 2 * len(info.filename.encode()) for info in infos) + END
    packed = sum(info.compress_size for info in infos)
    return Parts(file.read_bytes()[:start], members, size - start - headers - packed)


def compare(found: Parts, built: Parts) -> list[str]:
    """What differs, a line each; empty if both run the same program."""
    lines = []
    if found.launcher != built.launcher:
        lines.append("the launcher is another one")
    for name in sorted(found.members.keys() | built.members.keys()):
        if name not in built.members:
            lines.append(f"{name} is not in the build")
        elif name not in found.members:
            lines.append(f"{name} is missing")
        elif found.members[name] != built.members[name]:
            lines.append(f"{name} has another content")
    if found.unaccounted != built.unaccounted:
        lines.append(f"{found.unaccounted} bytes belong to neither the launcher nor a member of the archive")
    return lines


if __name__ == "__main__":
    sys.exit(main())
