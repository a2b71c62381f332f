"""How the executable is made (build/package.py), and what is in it."""

import ast
import hashlib
import inspect
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import package
import pytest
import release
import reproduce
import shiv
import wrapper
from conftest import Sandbox, need
from ruamel.yaml import YAML

import eks_token

ROOT = Path(package.ROOT)


@pytest.fixture(scope="module")
def members(executable: Path) -> dict[str, bytes]:
    """The members of the executable's archive."""
    with zipfile.ZipFile(executable) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small archive that shiv has made."""
    path = tmp_path / "archive"
    packages = tmp_path / "packages"
    write(packages, {"eks_token.py": b"def main(): pass\n", "botocore/data/sts.json": b"{}"})
    package.call_shiv(packages, path)
    return path


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def pins(name: str = "requirements.txt") -> list[str]:
    """The lines of a file in build/, with continued lines joined, and without comments."""
    text = (ROOT / "build" / name).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


# The wheels


@pytest.mark.parametrize(
    "pin", [pytest.param(pin, id=pin.partition("==")[0]) for pin in pins("tools.txt") + pins("requirements.txt")]
)
def test_a_wheel_is_pinned_by_its_hash_for_every_platform(pin: str) -> None:
    assert re.fullmatch(r"[\w.-]+==[\w.]+ +--hash=sha256:[0-9a-f]{64}", pin)


def test_the_tests_run_with_the_versions_that_are_bundled() -> None:
    bundled = {pin.split()[0] for pin in pins()}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {name for name in extras["dev"] if name.split("==")[0] in {pin.split("==")[0] for pin in bundled}}
    assert wanted <= bundled
    assert {name.split("==")[0] for name in wanted} == {"botocore", "jeepney", "keyring", "platformdirs", "ruamel.yaml"}


def test_the_oldest_python_is_the_same_everywhere() -> None:
    """A shell script and what an old Python compiles have to repeat it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = project["project"]["requires-python"].removeprefix(">=")
    minor = oldest.removeprefix("3.")
    assert project["tool"]["ruff"]["target-version"] == f"py3{minor}"
    texts = {
        "build/launcher.sh": [f">= (3, {minor})", f" python{oldest};", f"Python {oldest} or newer"],
        "build/__main__.py": [f"< (3, {minor})", f"Python {oldest} or newer"],
        "build/package.py": [f"--python-version {oldest}"],
        "eks_token.py": [f"the Python to run: {oldest} or newer"],
        "README.md": [f"needs Python {oldest} or newer", f"`python{oldest}` on `PATH`,"],
        "Makefile": [f"mypy --python-version {oldest} "],
    }
    missing = {
        name: [text for text in wanted if text not in (ROOT / name).read_text()] for name, wanted in texts.items()
    }
    assert missing == {name: [] for name in texts}


# The file


def test_the_file_is_executable_and_not_too_large(executable: Path) -> None:
    state = executable.stat()
    assert stat.S_IMODE(state.st_mode) == 0o755
    assert state.st_size <= 1_500_000


def test_the_members_say_nothing_of_the_machine_that_packed_them(executable: Path) -> None:
    with zipfile.ZipFile(executable) as archive:
        infos = archive.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {(info.date_time, info.external_attr, info.create_system) for info in infos} == {
        ((1980, 1, 1, 0, 0, 0), (stat.S_IFREG | 0o644) << 16, 3)
    }


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"(^|/)bin/", id="scripts, whose first line is a path of the machine that built them"),
        pytest.param(r"\.dist-info/", id="metadata, RECORDs and SBOMs among it"),
        pytest.param(r"\.py[cod]$|__pycache__", id="bytecode, which is for one version of Python"),
        pytest.param(r"/tests?/", id="the wheels' tests"),
        pytest.param(r"/(examples-1|paginators-1|waiters-2)", id="descriptions that no call reads"),
        pytest.param(r"botocore/data/(?!(eks|sso|sso-oidc|sts)/)[^/]*/", id="services that are not called"),
    ],
)
def test_what_is_not_needed_is_not_in_the_file(members: dict[str, bytes], pattern: str) -> None:
    assert [name for name in members if re.search(pattern, name)] == []


def test_the_file_carries_the_licence_of_everything_in_it(members: dict[str, bytes]) -> None:
    text = members["LICENSES"].decode()
    headings = re.findall(r"^=+\n(.+)\n=+$", text, re.MULTILINE)
    owners = {normalized(owner) for heading in headings for owner in heading.split(", ")}
    assert owners == {normalized(pin.split()[0]) for pin in pins()} | {"eks-token", f"shiv-{shiv.__version__}"}
    assert "The eks-token authors" in text
    assert re.search(r"CA Root Certificates\n=+\n+.*\n.*\nMozilla Public License, v\. 2\.0", text)


def test_the_file_for_windows_is_the_same_program(executable: Path, members: dict[str, bytes], tmp_path: Path) -> None:
    """There is a wrapper in front of it, which finds its line for Python by the offsets in the archive."""
    shutil.copy(executable, tmp_path / "eks-token")
    assert wrapper.main([str(tmp_path / "eks-token")]) == 0
    file = tmp_path / "eks-token.exe"
    with zipfile.ZipFile(file) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    differ = {name for name in found.keys() | members.keys() if found.get(name) != members.get(name)}
    assert differ == {"LICENSES", "eks-token.cdx.json"}
    assert b"distlib 0" in found["LICENSES"] and b"pkg:pypi/distlib@" in found["eks-token.cdx.json"]
    head, line, _ = file.read_bytes().partition(wrapper.PYTHON)
    assert head.startswith(b"MZ") and line
    command = [sys.executable, "-I", "-S", str(file), "--version"]
    done = subprocess.run(command, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"eks-token {eks_token.__version__}\n", "")


def test_the_bill_of_materials_names_every_package_by_its_hash(members: dict[str, bytes]) -> None:
    bill = json.loads(members["eks-token.cdx.json"])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == eks_token.__version__
    found = {f"{one['name']}=={one['version']} sha256:{one['hashes'][0]['content']}" for one in bill["components"]}
    wanted = {re.sub(r" +--hash=", " ", pin) for pin in pins("requirements.txt") + pins("tools.txt")}
    assert found == {pin for pin in wanted if not pin.startswith(("click=", "distlib=", "setuptools="))}
    assert all(
        one["licenses"][0].get("expression") or one["licenses"][0]["license"]["name"] for one in bill["components"]
    )


def test_the_bill_of_materials_names_other_projects_files_in_a_wheel(members: dict[str, bytes]) -> None:
    bill = json.loads(members["eks-token.cdx.json"])
    files = [each for one in bill["components"] for each in one.get("components", [])]
    assert [(each["name"], each["licenses"][0]["expression"]) for each in files] == [*package.VENDORED.items()]
    for each in files:
        content = members[f"site-packages/{each['name']}"]
        assert each["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]
    vendored = [name for name in members if re.search(r"/vendored/.*\.py|\.pem$", name) and len(members[name]) > 300]
    assert sorted(vendored) == [f"site-packages/{name}" for name in package.VENDORED]


def test_the_verbose_version_names_build_python_and_packages(home: Sandbox, members: dict[str, bytes]) -> None:
    done = home.run("--version", "--verbose")
    assert (done.returncode, done.stderr) == (0, "")
    version, build, python, *packages = done.stdout.splitlines()
    assert version == f"eks-token {eks_token.__version__}"
    assert build == f"build {json.loads(members['environment.json'])['build_id']}"
    assert re.fullmatch(r"Python 3\.\d+\.\S+, /.+", python)
    bundled = json.loads(members["eks-token.cdx.json"])["components"]
    assert packages == [f"{one['name']} {one['version']}" for one in bundled]


def normalized(name: str) -> str:
    return re.sub(r"==| |_|(?<=jaraco)\.|(?<=backports)\.|(?<=ruamel)\.", "-", name)


def test_a_wheel_without_a_licence_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"six-1.0.dist-info/METADATA": b""})
    with pytest.raises(package.BuildError, match=r"six 1\.0 has no licence file"):
        package.gather_licences(tmp_path)


def test_launcher_start_and_shivs_settings_name_one_build(executable: Path, members: dict[str, bytes]) -> None:
    build = re.search(rb'^BUILD = "([0-9a-f]{16})"$', members["start.py"], re.MULTILINE)
    assert build is not None
    assert json.loads(members["environment.json"])["build_id"] == build[1].decode()
    launcher = executable.read_bytes().partition(b"PK\x03\x04")[0]
    assert b"et_build=%s\n" % build[1] in launcher
    assert b"@BUILD@" not in launcher
    assert b"@VERSION@" not in launcher + members["start.py"]


def test_the_startup_code_has_the_modules_functions_and_does_not_need_the_module(members: dict[str, bytes]) -> None:
    text = members["start.py"].decode()
    for rule in (eks_token.cache_home, eks_token.make_trusted, eks_token.check_above, eks_token.make_private):
        assert inspect.getsource(rule) in text
    assert [node for node in ast.parse(text).body if getattr(node, "module", "") == "eks_token"] == []


def test_the_version_is_the_modules() -> None:
    assert package.value_of("__version__") == eks_token.__version__


BUNDLE_WORKS = """
import sys
sys.path.insert(0, sys.argv[1])
import jeepney.io.blocking, jmespath, keyring, keyring.backends.chainer, keyring.backends.null
import keyring.backends.fail, platformdirs, dateutil.parser, eks_token
import botocore.session
session = botocore.session.Session()
session.set_credentials("AKIAIOSFODNN7EXAMPLE", "secret")
for service in ("eks", "sso", "sso-oidc", "sts"):
    client = session.create_client(service, region_name="eu-central-1")
    print(client.meta.endpoint_url, len(client.meta.service_model.operation_names) > 0)
"""


def test_every_python_finds_all_that_it_imports_in_the_bundle(executable: Path, python: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(executable) as archive:
        archive.extractall(tmp_path)
    packages = str(tmp_path / "site-packages")
    command = [python, "-I", "-S", "-c", BUNDLE_WORKS, packages]
    done = subprocess.run(command, capture_output=True, text=True, env={"HOME": str(tmp_path)}, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"https://{host}.eu-central-1.amazonaws.com True" for host in ("eks", "portal.sso", "oidc", "sts")
    ]


# As an installed package


@pytest.fixture(scope="module", params=["pip", "pipx"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command that this tool installs from the sources."""
    directory = tmp_path_factory.mktemp(request.param)
    scripts = directory / ("Scripts" if os.name == "nt" else "bin")
    if request.param == "pip":
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        command = [str(scripts / "python"), "-m", "pip", "install", "--quiet", str(ROOT)]
    else:
        command = [sys.executable, "-m", "pipx", "install", str(ROOT)]
    places = {"PIPX_HOME": str(directory), "PIPX_BIN_DIR": str(scripts), "PIPX_MAN_DIR": str(directory / "man")}
    done = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return scripts / "eks-token"


def test_an_installed_package_prints_a_token_and_caches_it(installed: Path, home: Sandbox) -> None:
    words = ["--cluster-name", "sample", "--region", "us-east-2"]
    keys = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "of nobody"}
    signed = home.run(*words, env=keys, command=[installed])
    assert (signed.returncode, signed.stderr) == (0, "")
    cached = home.run(*words, "--debug", env=keys, command=[installed])
    assert cached.stdout == signed.stdout
    assert "answered from the cache" in cached.stderr


def test_an_installed_package_names_what_it_uses(installed: Path, home: Sandbox) -> None:
    done = home.run("--version", "--verbose", command=[installed])
    version, build, python, *packages = done.stdout.splitlines()
    assert (version, build) == (f"eks-token {eks_token.__version__}", "build none: an installed package")
    assert python.startswith("Python 3.")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [name.split()[0] for name in packages] == sorted(re.split("[<>=]", name)[0] for name in needed)


# Byte for byte


def test_another_build_makes_the_same_bytes(executable: Path, python: str, tmp_path: Path) -> None:
    """With another Python, modes of the sources, umask, clock, locale, directory and hash seed."""
    if "EKS_TOKEN_EXECUTABLE" in os.environ:
        pytest.skip("only on an executable that was built from these sources")
    sources = tmp_path / "elsewhere"
    (sources / "build").mkdir(parents=True)
    for name in ("eks_token.py", "pyproject.toml", "LICENSE", *(f"build/{path.name}" for path in build_sources())):
        shutil.copyfile(ROOT / name, sources / name)
        (sources / name).chmod(0o600)
    other = {
        "PYTHONPATH": str(Path(shiv.__file__).parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "7",
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": "1700000000",
    }
    target = tmp_path / "again"
    subprocess.run(
        ["/bin/sh", "-c", 'umask 027; exec "$@"', "sh", python, str(sources / "build/package.py"), str(target)],
        env={name: value for name, value in os.environ.items() if not name.startswith("LC_")} | other,
        cwd=tmp_path,
        check=True,
    )
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    if zlib_of(python) == zlib.ZLIB_RUNTIME_VERSION:
        assert target.read_bytes() == executable.read_bytes()
    with zipfile.ZipFile(target) as made, zipfile.ZipFile(executable) as first:
        assert [(one.filename, one.CRC) for one in made.infolist()] == [
            (one.filename, one.CRC) for one in first.infolist()
        ]


def build_sources() -> list[Path]:
    return [path for path in (ROOT / "build").iterdir() if path.is_file()]


def zlib_of(python: str) -> str:
    command = [python, "-I", "-S", "-c", "import zlib; print(zlib.ZLIB_RUNTIME_VERSION)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("members", "launcher"),
    [
        pytest.param({"a": b"1", "b": b"2"}, b"exec\n", id="another launcher"),
        pytest.param({"a": b"1", "b": b"3"}, b"exit\n", id="another content"),
        pytest.param({"a": b"1", "c": b"2"}, b"exit\n", id="another name"),
        pytest.param({"a": b"1b", "": b"2"}, b"exit\n", id="the same bytes, divided in another way"),
    ],
)
def test_a_build_is_named_after_everything_in_it(members: dict[str, bytes], launcher: bytes) -> None:
    named = package.build_id({"a": b"1", "b": b"2"}, b"exit\n")
    assert re.fullmatch(rb"[0-9a-f]{16}", named)
    assert package.build_id(members, launcher) != named
    assert package.build_id({"b": b"2", "a": b"1"}, b"exit\n") == named


# A release


def test_a_release_has_the_program_and_what_belongs_to_it(executable: Path, tmp_path: Path) -> None:
    files = release.release_files(executable, "someone/eks-token", f"v{eks_token.__version__}")
    write(tmp_path, files)
    windows = tmp_path / "eks-token.exe"
    assert files["eks-token"] == executable.read_bytes()
    assert windows.read_bytes() == wrapper.wrapped(executable)

    packed, for_windows = (f"eks-token-{eks_token.__version__}{of}.zip" for of in ("", "-windows"))
    texts = {"LICENSES.txt", "eks-token.rb", "eks-token.yaml", "SHA256SUMS", "NOTES.md"}
    bills = {"eks-token.cdx.json", "eks-token.exe.cdx.json"}
    assert set(files) == {"eks-token", "eks-token.exe", packed, for_windows} | bills | texts
    for name, archive_name in (("eks-token", packed), ("eks-token.exe", for_windows)):
        with zipfile.ZipFile(tmp_path / name) as program, zipfile.ZipFile(tmp_path / archive_name) as archive:
            assert files[f"{name}.cdx.json"] == program.read("eks-token.cdx.json")
            assert archive.read("LICENSES.txt") == program.read("LICENSES")
            assert archive.read(name) == files[name]
            modes = {info.filename: stat.filemode(info.external_attr >> 16) for info in archive.infolist()}
            assert modes == {name: "-rwxr-xr-x", "LICENSES.txt": "-rw-r--r--"}
    assert b"distlib" in files["LICENSES.txt"]  # the wrapper of Windows, and the program's too

    sums = {line[66:]: line[:64] for line in files["SHA256SUMS"].decode().splitlines()}
    hashed = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert sums == {name: hashed[name] for name in files.keys() - {"SHA256SUMS", "NOTES.md"}}
    address = f"https://github.com/someone/eks-token/releases/download/v{eks_token.__version__}/"
    formula, manifest = (files[name].decode() for name in ("eks-token.rb", "eks-token.yaml"))
    assert address + packed in formula and hashed[packed] in formula
    assert re.findall(r"@[A-Z0-9]+@", formula + manifest) == []
    platforms = [
        (expression["values"], platform["uri"].removeprefix(address), platform["sha256"], platform["bin"])
        for platform in YAML(typ="safe").load(manifest)["spec"]["platforms"]
        for expression in platform["selector"]["matchExpressions"]
    ]
    assert platforms == [
        (["linux", "darwin"], packed, hashed[packed], "eks-token"),
        (["windows"], for_windows, hashed[for_windows], "eks-token.exe"),
    ]


@pytest.mark.parametrize(
    ("address", "repository"),
    [
        ("https://github.com/someone/eks-token.git", "someone/eks-token"),
        ("https://github.com/someone/eks-token", "someone/eks-token"),
        ("git@github.com:some-one/eks.token.git", "some-one/eks.token"),
        ("ssh://git@github.com/someone/eks-token.git", "someone/eks-token"),
        ("https://github.com.example/someone/eks-token", None),
        ("../eks-token", None),
        ("", None),
    ],
)
def test_a_release_is_of_the_repository_that_git_names(address: str, repository: str | None, tmp_path: Path) -> None:
    (git,) = need("git")
    subprocess.run([git, "init", "-q", str(tmp_path)], check=True)
    if address:
        subprocess.run([git, "-C", str(tmp_path), "remote", "add", "origin", address], check=True)
    if repository:
        assert release.origin(tmp_path) == repository
    else:
        with pytest.raises(package.BuildError, match="make release REPOSITORY=OWNER/NAME"):
            release.origin(tmp_path)


def test_the_notes_are_the_changelogs_section() -> None:
    changelog = "# Changelog\n\n## [1.1.0] - 2030-01-02\n\n### Added\n\n- b\n\n## [1.0.0] - 2030-01-01\n\n- a\n"
    assert release.section_of(changelog, "1.1.0") == "1.1.0 (2030-01-02)\n\n## Added\n\n- b\n"
    assert release.section_of(changelog, "1.0.0") == "1.0.0 (2030-01-01)\n\n- a\n"
    for version in ("1.2.0", "1x1.0", "1.1"):
        with pytest.raises(package.BuildError, match="no section with the heading"):
            release.section_of(changelog, version)


def test_a_release_under_another_tag_is_refused(executable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main([str(executable), "--repository", "a/b", "--tag", "v0.0.1"]) == 1
    assert capsys.readouterr().err == (
        f"release.py: the tag is v0.0.1, but the program's version is {eks_token.__version__}\n"
    )


def test_a_file_is_recognized_as_built_from_the_sources(
    executable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "EKS_TOKEN_EXECUTABLE" in os.environ:
        pytest.skip("only on an executable that was built from these sources")
    for_windows = tmp_path / "eks-token.exe"
    for_windows.write_bytes(wrapper.wrapped(executable))
    for file in (executable, for_windows):
        assert reproduce.main([str(file)]) == 0
        assert capsys.readouterr().out == f"{file} is what these sources build, byte for byte\n"


@pytest.mark.parametrize(
    ("launcher", "changes", "hidden", "differences"),
    [
        pytest.param(b"exit\n", {}, b"", [], id="only compressed in another way"),
        pytest.param(b"exit 1\n", {}, b"", ["the launcher is another one"], id="another launcher"),
        pytest.param(b"exit\n", {"a": b"1"}, b"", ["a has another content"], id="another content"),
        pytest.param(b"exit\n", {"a": None}, b"", ["a is missing"], id="a member less"),
        pytest.param(b"exit\n", {"b": b""}, b"", ["b is not in the build"], id="a member more"),
        pytest.param(
            b"exit\n",
            {},
            b"more",
            ["4 bytes belong to neither the launcher nor a member of the archive"],
            id="bytes between the members",
        ),
    ],
)
def test_what_differs_from_the_build_is_named(
    tmp_path: Path, launcher: bytes, changes: dict[str, bytes | None], hidden: bytes, differences: list[str]
) -> None:
    def written(name: str, launcher: bytes, members: Mapping[str, bytes | None], hidden: bytes, level: int) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(launcher)
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as packed:
                for member, content in members.items():
                    if content is not None:
                        packed.writestr(member, content)
                file.write(hidden)
                packed.start_dir = file.tell()
        return path

    members = {"a": b"abc" * 1000, "z": os.urandom(10)}
    built = written("built", b"exit\n", members, b"", 9)
    found = written("found", launcher, members | changes, hidden, 1)
    assert found.read_bytes() != built.read_bytes()
    assert reproduce.compare(reproduce.parts_of(found), reproduce.parts_of(built)) == differences


@pytest.mark.parametrize(
    "content",
    [pytest.param(None, id="missing"), pytest.param(b"", id="empty"), pytest.param(b"#!/bin/sh\n", id="a script")],
)
def test_a_file_that_is_not_an_archive_is_one_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert reproduce.main([str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"reproduce.py: {path} is not an executable of eks-token: ")


# The workflows


WORKFLOWS = "".join(path.read_text() for path in sorted((ROOT / ".github/workflows").iterdir()))


def test_a_workflow_uses_actions_by_their_commits() -> None:
    used = re.findall(r"^ +(?:- )?uses: (.+)$", WORKFLOWS, re.MULTILINE)
    assert len(used) > 5
    pinned = r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\./\.github/workflows/ci\.yml"
    assert [each for each in used if not re.fullmatch(pinned, each)] == []
    assert len({each.partition("@")[0] for each in used}) == len(set(used))  # each action in one version


def test_a_step_of_a_workflow_is_a_make_target() -> None:
    steps = re.findall(r"^ +(?:- )?run: (.+)$", WORKFLOWS, re.MULTILINE)
    made = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text().replace("\\\n", ""), re.MULTILINE)
    assert made and len(steps) > 3
    for step in " && ".join(steps).split(" && "):
        command, *targets = [word for word in step.removeprefix("sudo ").split() if "=" not in word]
        assert command == "make" and targets and set(targets) <= set(made[1].split())


# What is refused


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("site-packages/_cffi.abi3.so", b"", id="a library of Linux and macOS"),
        pytest.param("site-packages/libffi.so.8", b"", id="a library with its version"),
        pytest.param("site-packages/_cffi.cp313-win_amd64.PYD", b"", id="a library of Windows"),
        pytest.param("site-packages/libffi.dylib", b"", id="a library of macOS"),
        pytest.param("site-packages/ffi.dll", b"", id="another of Windows"),
        pytest.param("site-packages/libffi.a", b"", id="a library to link"),
        pytest.param("site-packages/tool", b"\x7fELF\x02\x01", id="a program of Linux, by how it begins"),
        pytest.param("site-packages/tool.dat", b"\xcf\xfa\xed\xfe", id="a program of macOS, by how it begins"),
        pytest.param("site-packages/wrapper", b"MZ\x90\0", id="a program of Windows, by how it begins"),
    ],
)
def test_a_compiled_file_fails_the_build(archive: Path, tmp_path: Path, name: str, content: bytes) -> None:
    target = tmp_path / "eks-token"
    with pytest.raises(package.BuildError, match=re.escape(f"{name} is compiled")):
        package.repack(archive, target, {name: content})
    assert not target.exists()


def test_a_file_over_the_limit_fails_the_build_and_keeps_the_last_one(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "eks-token"
    target.write_text("the last one")
    with pytest.raises(package.BuildError, match="the limit is 1,500,000"):
        package.repack(archive, target, {"LICENSES": os.urandom(1_500_000)})
    assert target.read_text() == "the last one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "eks-token", "packages"]


def test_a_build_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(package, "HERE", tmp_path)
    (tmp_path / "requirements.txt").write_text("six==1.17.0 --hash=sha256:" + "0" * 64)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert package.main([str(tmp_path / "eks-token")]) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("package.py: pip could not install the wheels")


def test_pruning_leaves_what_is_needed_and_no_empty_directory(tmp_path: Path) -> None:
    needed = {
        "botocore/docs/__init__.py",  # a session imports it
        "botocore/cacert.pem",
        "botocore/data/endpoints.json",
        "botocore/data/sts/2011-06-15/service-2.json.gz",
        "botocore/data/sts/2011-06-15/endpoint-rule-set-1.json.gz",
        "botocore/data/eks/2017-11-01/service-2.sdk-extras.json",
        "keyring/backends/macOS/__init__.py",
        "win32ctypes/core/ctypes/__init__.py",
    }
    other = {
        "bin/keyring",
        "botocore/data/ec2/2016-11-15/service-2.json.gz",
        "botocore/data/sts/2011-06-15/examples-1.json",
        "six-1.17.0.dist-info/RECORD",
        "platformdirs-4.12.4.dist-info/sboms/platformdirs.cdx.json",
        "keyring/__main__.py",
        "win32ctypes/core/cffi/__init__.py",
    }
    write(tmp_path, dict.fromkeys(needed | other, b""))
    package.prune(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in package.files(tmp_path)} == needed
    assert [path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir())] == []


def test_the_program_is_packed_by_the_pinned_shiv() -> None:
    assert f"shiv=={shiv.__version__}" in [pin.split()[0] for pin in pins("tools.txt")]
