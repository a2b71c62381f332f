"""eks-token: an EKS bearer token for kubectl, from credentials that stay in the OS keyring.

kubectl runs this program before it talks to a cluster, and reads an ExecCredential from its stdout. What happens
in between, in the order of the sections below:

1. command line       argv and the environment become one `Request`, in whichever program's grammar they are written
2. cache              a request looks for its fresh answer; on a miss, one process signs and the others wait for it
3. keyring            the vault: strings in the OS keyring, and the Secret Service backend for Linux and the BSDs
4. identities         what a name stands for: stored identities, merged with AWS profiles, and Atmos's entries
5. sessions           temporary credentials and SSO tokens, stored in the vault for botocore
6. credentials        a name becomes credentials, through botocore's providers
7. token              credentials and a `Request` become a presigned URL, a bearer token, an ExecCredential
8. kubeconfig         entries for clusters: reads kubeconfigs, and changes only the lines of an entry
9. adopt              switches other plugins' entries to this program, and back
10. sign in and out   login, logout, identities and whoami
11. doctor            finds what keeps kubectl from getting a token on this machine
12. completion        what can come next on a command line
13. main              the commands, and the one place where errors become two lines on stderr

Each section uses only the ones above it. The shell script at the start of the executable (build/launcher.sh) usually
prints a fresh answer without this module. A request that reaches Python looks in the cache before it imports anything
heavy. Only the functions that use botocore and keyring import them, because kubectl is waiting: botocore takes 60 ms to
import, keyring 10 ms more, and Python itself takes 6 ms to start.
"""

from __future__ import annotations

import os
import sys
import time
from io import TextIOWrapper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from contextlib import ExitStack
    from types import ModuleType
    from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

    from keyring.backend import KeyringBackend

    K = TypeVar("K")
    T = TypeVar("T")
    Botocore = Any  # an object of botocore's, or what is in one: botocore has no types
    Jeepney = Any  # an object of jeepney's, or the values of a D-Bus message, whose types SecretsBus checks
    Profile = Mapping[str, str]  # the settings of an AWS profile, or of an identity, which is laid over one
else:

    class NamedTuple(tuple):
        """What this module needs of typing.NamedTuple, whose import would add 7 ms to a cached answer."""

        def __init_subclass__(cls):
            if "_fields" in vars(cls.__base__):  # a subclass of one, which adds no fields
                return
            cls._fields = tuple(cls.__annotations__)
            cls._defaults = {name: vars(cls)[name] for name in cls._fields if name in vars(cls)}
            for index, name in enumerate(cls._fields):
                setattr(cls, name, property(lambda self, index=index: self[index]))

        def __new__(cls, *values, **named):
            fields = cls._defaults | dict(zip(cls._fields, values, strict=False)) | named
            if len(values) > len(cls._fields) or fields.keys() != set(cls._fields):
                raise TypeError(f"{cls.__name__} has the fields {', '.join(cls._fields)}")
            return super().__new__(cls, (fields[name] for name in cls._fields))

        def _replace(self, **named):
            return type(self)(**(dict(zip(self._fields, self, strict=True)) | named))


__version__ = "1.0.0"
PROGRAM = "eks-token"
SBOM = "eks-token.cdx.json"  # the executable's list of what is in it, in CycloneDX, which build/package.py makes


class Problem(Exception):
    """Something a user can act on: `message`, perhaps a `hint`, and the exit status (1 failure, 2 wrong usage)."""

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status


def usage(message: str, hint: str = "") -> Problem:
    return Problem(message, hint, status=2)


class Invocation(NamedTuple):
    """What the process was started with. `main` collects it and passes it on."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    platform: str  # like sys.platform
    terminal: bool  # whether stdin and stderr are a terminal, so a person may be there
    file: str  # the program's own path, absolute
    build: str  # the build ID of the executable, or "" if this is an installed package
    cache: str | None  # the cache directory, which is safe to use, or None if nothing can be cached
    check_files: Callable[[], None]  # starts again if a file of the program is missing; cached answers need not wait


class Started(NamedTuple):
    """What the executable finds out before it can import this module: the last four fields of an `Invocation`."""

    file: str
    build: str
    cache: str | None
    check_files: Callable[[], None]
    unpack_again: Callable[[], None]  # for an unexpected error, which a damaged file of the program may cause
    start_again: Callable[[], None]  # so that it is unpacked; returns if that was done already


# Messages

_secrets: set[str] = set()
_debugging = False


def keep_secret(value: str | None) -> None:
    """Never show this value in a message from now on."""
    if value and len(value) >= 4:
        _secrets.add(value)


def redacted(text: str) -> str:
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return text


def printable(text: str) -> str:
    """The text without line breaks and control characters, which could play tricks on a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def one_line(text: str) -> str:
    return printable(redacted(text))


LINE_BYTES = 500  # of an error, a hint or a warning, at most: a log or a terminal takes it whole


def shortened(text: str, most: int = LINE_BYTES) -> str:
    """The text in at most so many bytes, without its middle: it starts with what failed, and ends with the reason."""
    content = text.encode(errors="backslashreplace")
    if len(content) <= most:
        return text
    half = (most - len("...")) // 2
    return f"{content[:half].decode(errors='ignore')}...{content[-half:].decode(errors='ignore')}"


def say(text: str, most: int = 0) -> None:
    """Write a line to stderr, without secrets and control characters, and perhaps of at most so many bytes."""
    line = one_line(text)
    try:
        sys.stderr.write((shortened(line, most) if most else line) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # stderr is closed, so nobody would see it
        return


def warn(text: str) -> None:
    say(f"{PROGRAM}: warning: {text}", LINE_BYTES)


def debug(text: str) -> None:
    if _debugging:
        say(f"{PROGRAM}: debug: {text}")


def first_line(error: object) -> str:
    """The first line of an exception's text. In some errors of STS, the lines after it quote the whole request."""
    lines = str(error).strip().splitlines()
    return redacted(" ".join(lines[0].split()))[:300] if lines else type(error).__name__


# Times and words

LAST_SECOND = 253402300799  # of the year 9999, the last one that RFC 3339 can write


def rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(seconds, LAST_SECOND)))


ISO_TIME = r"""
    (\d{4}) -? (\d\d) -? (\d\d)
    (?: [Tt ] (\d\d) :? (\d\d) (?: :? ([0-5]\d|60) (?: [.,] (\d+) )? )? )?  # RFC 3339 has leap seconds
    ( [Zz] | UTC | ([+-]) (\d\d) (?: :? (\d\d) )? )?  # older AWS CLIs wrote UTC in ~/.aws/sso/cache
"""


def parse_time(text: str, zone_required: bool = False) -> float:
    """A time of ISO 8601 or RFC 3339 in seconds since the epoch; one without a zone is UTC. Raises ValueError.

    datetime.fromisoformat reads only what isoformat writes in Python 3.10: no Z, and no nanoseconds, which Go writes.
    """
    import re
    from datetime import datetime, timedelta, timezone

    found = re.fullmatch(ISO_TIME, text, re.ASCII | re.VERBOSE)
    if found is None or (zone_required and not found[8]):
        raise ValueError(f"not an ISO 8601 time: {text!r}")
    year, month, day, hour, minute, second, fraction, _, sign, hours, minutes = found.groups(default="0")
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    zone = timezone(-offset if sign == "-" else offset)
    moment = datetime(int(year), int(month), int(day), int(hour), int(minute), tzinfo=zone)
    return moment.timestamp() + int(second) + float(f"0.{fraction}")


def is_moment(value: object) -> bool:
    """Whether this is an ISO 8601 time with a time zone."""
    try:
        return isinstance(value, str) and bool(parse_time(value, zone_required=True))
    except (ValueError, OverflowError):
        return False


def sha256(text: str) -> str:
    """As hexadecimal digits. hashlib would load OpenSSL, and take 2.4 of a cached answer's 16 ms in Python."""
    try:
        if sys.version_info >= (3, 12):
            from _sha2 import sha256
        else:
            from _sha256 import sha256
    except ImportError:  # Fedora builds Python without it
        from hashlib import sha256

    return str(sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` was probably meant to be, or ""."""
    import difflib

    known = list(known)
    longer = [name for name in known if word and name.startswith(word)]
    return next(iter(longer or difflib.get_close_matches(word, known, 1, 0.5)), "")


def shell_word(text: str, platform: str = sys.platform) -> str:
    """A word as a person has to type it in a shell, with quotes only if it needs them."""
    if platform == "win32":
        import subprocess

        return subprocess.list2cmdline([text])
    import shlex

    return shlex.quote(text)


def option_words(options: Mapping[str, str]) -> list[str]:
    """Options with a value as words. A value that looks like an option is joined to its own, so it stays a value."""
    words: list[str] = []
    for option, value in options.items():
        if value:
            words += [f"{option}={value}"] if value.startswith("-") else [option, value]
    return words


def our_command(words: str, options: Mapping[str, str], platform: str) -> str:
    """A command of this program as a person has to type it, for a hint."""
    return " ".join([PROGRAM, words, *(shell_word(word, platform) for word in option_words(options))])


def json_text(value: object, indent: int | None = None) -> str:
    """A value as JSON for a person or a program. json.dumps leaves DEL as it is, which terminals take as a command."""
    import json

    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def listed(names: Iterable[str], most: int = 300) -> str:
    """As many of the names as fit in `most` characters, and how many more there are."""
    names = list(names)
    for count in range(1, len(names)):
        if len(", ".join(names[: count + 1])) > most:
            return f"{', '.join(names[:count])[:most]} and {len(names) - count} more"
    return ", ".join(names)[:most]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms"


# Programs and files


def on_path(command: str, invocation: Invocation) -> str | None:
    import shutil

    return shutil.which(command, path=invocation.environ.get("PATH", os.defpath))


def replace_file(source: str, target: str) -> None:
    """Like os.replace, but patient: on Windows it fails for a moment while a virus scanner has the target open."""
    for _ in range(REPLACE_ATTEMPTS):
        try:
            return os.replace(source, target)
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(0.02)
    os.replace(source, target)


REPLACE_ATTEMPTS = 25  # half a second


def write_file(path: str, content: str | bytes, modified: int | None = None) -> None:
    """Write a private file in one step: all of it, flushed to disk, or nothing. `modified` is in nanoseconds."""
    temporary = f"{path}.{os.getpid()}"
    try:
        os.unlink(temporary)  # left by a process that was killed
    except FileNotFoundError:
        pass
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with open(file, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            if content:
                os.fsync(stream.fileno())
        if modified is not None:
            os.utime(temporary, ns=(modified, modified))
        replace_file(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


PROGRAM_SECONDS = 60.0  # for a program that we run


def ask_program(command: Sequence[str], environ: Mapping[str, str]) -> tuple[str, float]:
    """What a program without any input prints, and how long it took (seconds).

    Raises Problem if it does not start or finish, or fails: with the first error that it reports.
    """
    import subprocess

    began = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            close_fds=False,  # one may be the kubeconfig: KUBECONFIG=<(…)
            encoding="utf-8",
            errors="replace",
            env=dict(environ),
            timeout=PROGRAM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Problem(f"{command[0]} did not finish within {PROGRAM_SECONDS:.0f} s") from error
    except (OSError, ValueError) as error:
        raise Problem(f"{command[0]} cannot be started: {getattr(error, 'strerror', None) or error}") from error
    took = time.perf_counter() - began
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line] or lines or [f"it exited with status {done.returncode}"]
        hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
        raise Problem(errors[0].removeprefix(f"{PROGRAM}: error: "), hints[0] if hints else "")
    return done.stdout, took


def shell_command(text: str, environ: Mapping[str, str], platform: str) -> list[str]:
    """How to run a command line that a person has written for a shell."""
    return [environ.get("COMSPEC", "cmd"), "/c", text] if platform == "win32" else ["/bin/sh", "-c", text]


def run_helper(command: Sequence[str], environ: Mapping[str, str], what: str) -> str:
    """Run a program that may talk to a person, and read its stdout. Its stdin is ours, and so is its stderr.

    Raises Problem, which begins with `what`, if it fails. The reason is the last thing it said.
    """
    import contextlib
    import subprocess
    import threading

    said = bytearray()
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=dict(environ)
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Problem(f"{what} failed: {command[0]} cannot be started: {reason}") from error
    with process.stdout as stdout, process.stderr as stderr:  # type: ignore[union-attr]

        def pass_on() -> None:
            while chunk := stderr.read(65536):
                said.extend(chunk)
                with contextlib.suppress(OSError, ValueError, AttributeError):  # our stderr is closed
                    sys.stderr.buffer.write(chunk)
                    sys.stderr.flush()

        listener = threading.Thread(target=pass_on, daemon=True)
        listener.start()
        try:
            output = stdout.read()
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        listener.join(1)  # seconds; a program that it left in the background may keep its stderr open
    if process.returncode == 0:
        return output.decode(errors="replace")
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    words = [line for line in lines if line and not line.startswith("hint: ")]
    reason = words[-1].removeprefix(f"{PROGRAM}: error: ")[:300] if words else f"exit status {process.returncode}"
    raise Problem(f"{what} failed: {reason}")


# Input and output


class ReaderGone(Exception):
    """Whoever read stdout has closed it, as `| head -1` does. There is nobody left to write to."""


def show(text: str, end: str = "\n") -> None:
    """Write to stdout. Everything that goes there goes through here.

    Raises ReaderGone if the pipe is closed, and Problem if stdout cannot be written for any other reason.
    """
    if sys.stdout is None:
        raise Problem("cannot write to stdout: it is closed")
    try:
        if sys.stdout.isatty():  # a kubeconfig or an answer of AWS must not control it
            text = "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except OSError as error:
        # Otherwise Python flushes the rest again when it exits, and prints an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        raise Problem(f"cannot write to stdout: {error.strerror}") from error


def ask(prompt: str, secret: bool = False) -> str:
    """A line that a person types. Raises Problem if the input ends."""
    prompt = printable(prompt)
    try:
        if secret:
            import getpass

            return getpass.getpass(prompt, sys.stderr).strip()
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.readline()
    except EOFError:
        line = ""
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise
    if not line:
        sys.stderr.write("\n")
        raise Problem("the input ended before there was an answer; nothing was stored")
    return line.strip()


def choose(prompt: str, choices: Sequence[str]) -> int:
    """The index of the choice that a person picks by its number."""
    for number, choice in enumerate(choices, 1):
        say(f"  {number}) {choice}")
    while True:
        answer = ask(f"{prompt} [1-{len(choices)}]: ")
        if answer.isdecimal() and 1 <= int(answer) <= len(choices):
            return int(answer) - 1
        say(f"{answer!r} is not one of them")


# -- 1. command line --------------------------------------------------------------------------------------------------
#
# Kubeconfig entries written for three other programs work after only their `command:` is changed. Each program has a
# `Grammar`, which is a table of the options it takes, and its own rules for what applies if an option is not given.
# argparse parses our own commands. It cannot parse the other programs' command lines: it does not support cobra's
# options that take a value only after an equals sign, or command words between options.

CLIENT_AUTHENTICATION = "client.authentication.k8s.io/"
API_VERSIONS = ("v1beta1", "v1", "v1alpha1")

# Exactly what kubectl 1.20 and later pass in KUBERNETES_EXEC_INFO (client-go, plugin/pkg/client/auth/exec), unless the
# entry asks for cluster information. Comparing with these saves importing json, which takes 6 ms.
KUBECTL_EXEC_INFO = {
    f'{{"kind":"ExecCredential","apiVersion":"{CLIENT_AUTHENTICATION}{version}"'
    f',"spec":{{"interactive":{interactive}}}}}\n': (version, interactive == "true")
    for version in ("v1beta1", "v1")
    for interactive in ("true", "false")
}


class ExecInfo(NamedTuple):
    """What the Kubernetes client passes in KUBERNETES_EXEC_INFO."""

    version: str  # of the client authentication API: v1beta1, v1 or v1alpha1
    interactive: bool  # false: nobody can answer a prompt


def exec_info(raw: str) -> ExecInfo:
    """Read KUBERNETES_EXEC_INFO ("Kubernetes API reference, Client Authentication").

    Raises Problem if the API version is not one of API_VERSIONS.
    """
    if not raw:
        return ExecInfo("v1beta1", True)
    if raw in KUBECTL_EXEC_INFO:
        return ExecInfo(*KUBECTL_EXEC_INFO[raw])
    import json

    try:
        info = json.loads(raw)
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        warn("KUBERNETES_EXEC_INFO is not a JSON object; answering in v1beta1")
        return ExecInfo("v1beta1", True)
    spec = info.get("spec")
    interactive = not (isinstance(spec, dict) and spec.get("interactive") is False)
    named = info.get("apiVersion", f"{CLIENT_AUTHENTICATION}v1beta1")
    version = named.removeprefix(CLIENT_AUTHENTICATION) if isinstance(named, str) else ""
    if version not in API_VERSIONS or named != CLIENT_AUTHENTICATION + version:
        raise Problem(
            f"KUBERNETES_EXEC_INFO asks for API version {json.dumps(named)}, which is not supported",
            f"in the kubeconfig, set apiVersion: {CLIENT_AUTHENTICATION}v1 in the user's exec section",
        )
    if version == "v1alpha1":
        warn(f"the kubeconfig asks for the deprecated {named}: change it to v1beta1 or v1")
    return ExecInfo(version, interactive)


class Grammar(NamedTuple):
    """How one program's token command is written. Each option maps to the field it sets, or to "" if it is ignored."""

    name: str
    words: tuple[str, ...]
    values: Mapping[str, str]
    flags: Mapping[str, str]
    joined: frozenset[str] = frozenset()  # take a value only after an equals sign


def ignored(options: str) -> dict[str, str]:
    return dict.fromkeys(options.split(), "")


def named_alike(options: str) -> dict[str, str]:
    """Options that set the field of their own name: --cluster-name sets cluster_name."""
    return {option: option.removeprefix("--").replace("-", "_") for option in options.split()}


OUR_FLAGS = named_alike("--refresh --debug")
CACHE_FLAG = named_alike("--cache")
BARE_VALUES = (
    ignored(
        "-C --chdir --base-path --config --config-path --logs-level --logs-file --redirect-stderr --profiler-host"
        " --profiler-port --profile-file --profile-type --heatmap-mode --skill --settings-list-merge-strategy --edition"
        " --use-version"
    )
    | named_alike("--cluster-name --cluster-id --region --identity --role-arn --external-id --session-name --profile")
    | {"-i": "identity"}
)
BARE_FLAGS = ignored(
    "--no-color --force-color --force-tty --mask --interactive --profiler-enabled --heatmap --ai -v --verbose"
)

# The AWS CLI's global options, of v1 and v2 ("AWS CLI Command Reference", Global Options).
AWS_GLOBALS = (
    ignored("--color --cli-binary-format --cli-error-format")
    | named_alike("--region --output --query --ca-bundle --cli-connect-timeout --cli-read-timeout --endpoint-url")
    | {"--profile": "identity"}
)
AWS_VALUES = AWS_GLOBALS | named_alike("--cluster-name --cluster-id --role-arn") | {"--role": "role_arn"}
AWS_FLAGS = ignored(
    "--no-paginate --no-sign-request --no-cli-pager --cli-auto-prompt --no-cli-auto-prompt --v2-debug"
) | named_alike("--no-verify-ssl")
AUTHENTICATOR_VALUES = (
    ignored("-c --config -l --log-format -v --log-verbosity --feature-gates")
    | named_alike("--cluster-id --external-id --session-name --region")
    | {"-i": "cluster_id", "-r": "role_arn", "--role": "role_arn", "-e": "external_id", "-s": "session_name"}
)
AUTHENTICATOR_FLAGS = named_alike("--forward-session-name --token-only")
BARE = Grammar(PROGRAM, (), BARE_VALUES, BARE_FLAGS | OUR_FLAGS | CACHE_FLAG, frozenset({"--pager", "--cast"}))
ATMOS = BARE._replace(name="atmos", words=("aws", "eks", "token"))
AWS = Grammar("aws", ("eks", "get-token"), AWS_VALUES, AWS_FLAGS | OUR_FLAGS | CACHE_FLAG)
AUTHENTICATOR = Grammar(
    "aws-iam-authenticator", ("token",), AUTHENTICATOR_VALUES, AUTHENTICATOR_FLAGS | OUR_FLAGS | CACHE_FLAG
)
GRAMMARS = (ATMOS, AWS, AWS._replace(words=("aws", *AWS.words)), AUTHENTICATOR, BARE)


class Request(NamedTuple):
    """A request for one token. An empty string means that the value was not given."""

    grammar: str  # eks-token, atmos, aws or aws-iam-authenticator
    cluster: str  # the cluster's name or ID: the value of the signed header
    region: str
    identity: str  # given by an option, so no environment variable overrides it
    role_arn: str = ""  # a role that the identity also assumes
    external_id: str = ""
    session_name: str = ""
    forward_session_name: bool = False
    version: str = "v1beta1"
    output: str = "json"  # json, text or token
    query: str = ""  # JMESPath
    ca_bundle: str = ""
    verify_tls: bool = True
    connect_timeout: str = ""  # seconds
    read_timeout: str = ""  # seconds
    cache: bool = False  # the token is stored even if its credentials may be others the next time


class Words(NamedTuple):
    """A command line, parsed by one grammar."""

    words: tuple[str, ...]
    options: dict[str, str]  # field -> value; for a flag, "true" or "false"
    unknown: tuple[str, ...]
    broken: str  # the first thing wrong with an option's value, or ""


def take_apart(grammar: Grammar, argv: Sequence[str]) -> Words:
    words: list[str] = []
    options: dict[str, str] = {}
    unknown: list[str] = []
    broken = ""
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("-"):
            words.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if not argument.startswith("--") and len(name) > 2:  # -iNAME
            name, equals, value = argument[:2], "=", argument[2:]
        if name in grammar.values:
            if not equals:
                # A word that looks like an option is never taken as a value. The cache relies on this: if --region
                # is given, a region follows.
                if not arguments or arguments[0].startswith("-"):
                    broken = broken or f"{name} expects a value"
                    continue
                value = arguments.pop(0)
            options[grammar.values[name]] = value
        elif name in grammar.flags:
            if equals and (value not in ("true", "false") or name in OUR_FLAGS):
                broken = broken or f"{name} does not take a value"
            options[grammar.flags[name]] = value or "true"
        elif name not in grammar.joined:
            unknown.append(name)
    return Words(tuple(words), options, tuple(unknown), broken)


def choose_grammar(argv: Sequence[str]) -> tuple[Grammar, Words]:
    """The grammar that matches the arguments, and how it parses them. Raises Problem if none matches."""
    words = take_apart(BARE, argv).words
    phrase = " ".join(words)
    for grammar in GRAMMARS:
        if words != grammar.words and sorted(words) == sorted(grammar.words):
            raise usage(f"{phrase!r} is not a command", f"did you mean {' '.join(grammar.words)!r}?")
    for grammar in GRAMMARS:
        taken = take_apart(grammar, argv)
        if taken.words[: len(grammar.words)] == grammar.words and (grammar.words or not taken.words):
            return grammar, taken
    if argv[0].startswith("-"):  # the first word may be the value of a misspelled option
        for grammar in GRAMMARS:
            taken = take_apart(grammar, argv)
            if taken.unknown and set(grammar.words) <= set(taken.words):
                return grammar, taken
    phrases = [" ".join(grammar.words) for grammar in (*GRAMMARS, UPDATE_KUBECONFIG) if grammar.words]
    close = nearest(words[0], COMMANDS) or nearest(phrase, phrases)
    raise usage(f"{phrase!r} is not a command", f"did you mean {close!r}?" if close else f"see {PROGRAM} --help")


def parse_request(argv: Sequence[str], environ: Mapping[str, str], version: str) -> Request:
    """Parse the arguments by the grammar that matches them. Raises Problem with status 2."""
    grammar, taken = choose_grammar(argv)
    # Go programs treat an empty value as not given. We do not for the region: if the cache sees --region, it assumes
    # that a region was given.
    may_be_empty = ["", "identity"]
    if grammar.name == AUTHENTICATOR.name:
        may_be_empty += ["role_arn", "external_id", "session_name"]
    check_words(grammar, taken, may_be_empty)
    options = taken.options
    if grammar.name == AWS.name:
        request = aws_request(options, environ)
    elif grammar.name == AUTHENTICATOR.name:
        request = authenticator_request(options, environ)
    else:
        request = bare_request(grammar, options)
    request = request._replace(version=version, cache=options.get("cache") == "true")
    check_request(request)
    return request


def check_words(grammar: Grammar, taken: Words, may_be_empty: Sequence[str] = ("",)) -> None:
    """Reject words and options that a grammar does not have, and values that are missing. Raises Problem."""
    if taken.broken:
        raise usage(taken.broken)
    if taken.unknown:
        option = taken.unknown[0]
        fields = {**grammar.values, **grammar.flags}
        known = [name for name, field in fields.items() if field not in ("", "profile")]
        close = nearest(option, known) if len(option) > 2 else ""
        raise usage(f"unknown option {option}", f"did you mean {close}?" if close else "")
    if len(taken.words) > len(grammar.words):
        raise usage(f"unexpected argument {taken.words[len(grammar.words)]!r}")
    for field, value in taken.options.items():
        if not value and field not in may_be_empty:
            option = next(name for name, filled in grammar.values.items() if filled == field)
            raise usage(f"{option} expects a value")


def named_cluster(options: Mapping[str, str], any_name: bool = False) -> str:
    """The value of --cluster-name or --cluster-id. Raises Problem unless exactly one of them is given.

    `aws eks get-token` signs any name, such as an ARN, for a verifier that knows its cluster by it.
    """
    name, identifier = options.get("cluster_name", ""), options.get("cluster_id", "")
    if name and identifier:
        raise usage("--cluster-name and --cluster-id cannot be used together")
    if not name and not identifier:
        raise usage("no cluster given", "pass --cluster-name")
    if name and not any_name and not is_cluster_name(name):
        raise usage(f"{name[:101]!r} is not an EKS cluster name", CLUSTER_NAMES)
    return name or identifier


CLUSTER_NAMES = "a name has at most 100 letters, digits, - and _, and starts with a letter or digit"


def is_cluster_name(name: str) -> bool:
    """Whether EKS would give a cluster this name ("CreateCluster", Amazon EKS API Reference)."""
    plain = name.replace("-", "").replace("_", "")
    return name.isascii() and name[:1].isalnum() and plain.isalnum() and len(name) <= 100


def in_all_grammars(grammar: Grammar, options: Mapping[str, str], cluster: str, region: str) -> Request:
    """A request with the options that mean the same in every grammar."""

    def given(field: str) -> str:
        return options.get(field, "")

    return Request(
        grammar.name, cluster, region, given("identity"), given("role_arn"), given("external_id"), given("session_name")
    )


def bare_request(grammar: Grammar, options: Mapping[str, str]) -> Request:
    if "profile" in options:
        raise usage("--profile does not select an AWS profile here", "use --identity with the name of the AWS profile")
    cluster = named_cluster(options)
    if not options.get("region"):
        raise usage("--region is missing", "pass the cluster's AWS region, for example --region us-east-2")
    return in_all_grammars(grammar, options, cluster, options["region"])


def aws_request(options: Mapping[str, str], environ: Mapping[str, str]) -> Request:
    output = options.get("output", "json")
    if output not in ("json", "text"):
        raise usage(f"--output {output} is not supported", "use json or text")
    timeouts = [options.get(f"cli_{kind}_timeout", "") for kind in ("connect", "read")]
    for kind, seconds in zip(("connect", "read"), timeouts, strict=True):
        if seconds and not seconds.isdecimal():
            raise usage(f"--cli-{kind}-timeout must be a whole number of seconds, not {seconds!r}")
    cluster = named_cluster(options, any_name=True)
    return in_all_grammars(AWS, options, cluster, options.get("region") or region_variable(environ))._replace(
        output=output,
        query=options.get("query", ""),
        ca_bundle=options.get("ca_bundle", ""),
        verify_tls=options.get("no_verify_ssl") != "true",
        connect_timeout=timeouts[0],
        read_timeout=timeouts[1],
    )


def authenticator_request(options: Mapping[str, str], environ: Mapping[str, str]) -> Request:
    cluster = options.get("cluster_id") or environ.get("KUBERNETES_AWS_AUTHENTICATOR_CLUSTER_ID", "")
    if not cluster:
        raise usage("no cluster given", "pass -i, or set KUBERNETES_AWS_AUTHENTICATOR_CLUSTER_ID")
    forward = options.get("forward_session_name") == "true"
    if forward and options.get("session_name"):
        raise usage("--forward-session-name and --session-name cannot be used together")
    request = in_all_grammars(AUTHENTICATOR, options, cluster, options.get("region") or region_variable(environ))
    return request._replace(
        role_arn=options.get("role_arn", environ.get("DEFAULT_ROLE", "")),
        forward_session_name=forward,
        output="token" if options.get("token_only") == "true" else "json",
    )


def region_variable(environ: Mapping[str, str]) -> str:
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or ""


def check_request(request: Request) -> None:
    """Reject what no cluster or API would accept, before anyone is asked for anything. Raises Problem."""
    if not request.cluster.isprintable() or request.cluster != request.cluster.strip():
        raise usage(f"{request.cluster!r} cannot be the name or ID of a cluster")
    if request.role_arn:
        check_role_arn(request.role_arn)
    elif request.external_id or (request.session_name and request.grammar != "aws-iam-authenticator"):
        raise usage("--external-id and --session-name require a role to assume")


def check_role_arn(role_arn: str) -> None:
    """Raise Problem unless it has the form of an IAM role's ARN ("IAM identifiers", IAM User Guide)."""
    parts = role_arn.split(":", 5)
    account = parts[4] if len(parts) == 6 else ""
    if (
        not role_arn.isascii()
        or not role_arn.startswith("arn:aws")
        or parts[2:4] != ["iam", ""]
        or not (len(account) == 12 and account.isdecimal())
        or not (parts[5].startswith("role/") and parts[5] > "role/")
    ):
        raise usage(f"{role_arn!r} is not a role ARN", "a role ARN looks like arn:aws:iam::111122223333:role/NAME")


# `aws eks update-kubeconfig` ("AWS CLI Command Reference", eks update-kubeconfig).
UPDATE_KUBECONFIG = Grammar(
    "aws",
    ("eks", "update-kubeconfig"),
    AWS_GLOBALS
    | named_alike("--role-arn --kubeconfig --alias --user-alias --proxy-url --assume-role-arn")
    | {"--name": "cluster_name"},
    AWS_FLAGS | named_alike("--debug --dry-run") | ignored("--verbose"),
)


def is_update_kubeconfig(argv: Sequence[str]) -> bool:
    if "update-kubeconfig" not in argv:
        return False
    words = take_apart(UPDATE_KUBECONFIG, argv).words
    return words[:2] == UPDATE_KUBECONFIG.words or words[:3] == ("aws", *UPDATE_KUBECONFIG.words)


SHELLS = ("bash", "zsh", "fish")


class Command(NamedTuple):
    """One of our own commands.

    Its options and arguments are (names, metavar or "" for a flag, help or "" to hide it, and maybe more for argparse).
    A string is the heading of those after it. They are plain tuples, because making values takes 0.1 ms at each start.
    """

    summary: str
    options: Sequence[str | tuple[str, str, str] | tuple[str, str, str, Mapping[str, object]]]
    examples: str


OUTPUT = ("-o --output", "", "the output format", {"action": "store", "choices": ("text", "json"), "default": "text"})
IDENTITY = ("-i --identity", "NAME", "the identity (default: as for a token)")
START = ("--command", "PATH", "how kubectl starts this program (default: its name if PATH has it, else its whole path)")

COMMANDS = {
    "login": Command(
        "sign in: store an identity, or use a stored one",
        (
            ("name", "NAME", "the identity (default: the default or only one)", {"nargs": "?"}),
            ("--default", "", "use this identity if none is given"),
            ("--region", "REGION", "the identity's AWS region"),
            ("--no-verify", "", "do not check the credentials with AWS"),
            "an access key",
            ("--stdin", "", "read the keys from stdin, in the JSON format of credential_process"),
            ("--new-keys", "", "ask for keys even if some are stored"),
            ("--import-profile", "PROFILE", "import the keys of an AWS profile"),
            "multi-factor authentication",
            ("--mfa-serial", "ARN", "the MFA device for the keys or the role"),
            ("--mfa-process", "COMMAND", "a command that prints the MFA code, instead of asking you"),
            ("--mfa-code-stdin", "", "read the MFA code from stdin, after any JSON"),
            "a role",
            ("--role-arn", "ARN", "the role to assume"),
            ("--source", "NAME", "the identity or AWS profile that assumes it"),
            ("--external-id", "ID", "the external ID that the role's trust policy requires"),
            ("--role-session-name", "NAME", "the name of the role session"),
            ("--duration-seconds", "N", "how long the role or MFA session lasts"),
            "AWS SSO (IAM Identity Center)",
            ("--sso-start-url", "URL", "the URL to sign in at"),
            ("--sso-region", "REGION", "the AWS region of the start URL"),
            ("--sso-session", "NAME", "an sso-session in the AWS config file, instead of both"),
            ("--sso-account-id", "ID", "the account (default: you choose)"),
            ("--sso-role-name", "NAME", "the role in that account (default: you choose)"),
            ("--no-browser", "", "only show the link, do not open a browser"),
            "a cluster",
            ("--cluster-name", "NAME", "also write a kubeconfig entry for this cluster"),
        ),
        f"""\
  {PROGRAM} login dev                               asks how dev signs in, or signs in again
  {PROGRAM} login dev --stdin < keys.json           keys in the JSON format of credential_process
  {PROGRAM} login dev --mfa-serial arn:aws:iam::111122223333:mfa/me
  {PROGRAM} login admin --role-arn arn:aws:iam::111122223333:role/Admin --source dev
  {PROGRAM} login work --sso-start-url https://example.awsapps.com/start --sso-region us-east-1
  {PROGRAM} login dev --import-profile dev          copies the profile's keys to the keyring""",
    ),
    "logout": Command(
        "remove an identity and everything stored for it",
        (
            ("name", "NAME", "the identity", {"nargs": "?"}),
            ("--all", "", "every identity, session and SSO token"),
            ("--keep-kubeconfig", "", "keep the identity's kubeconfig entries"),
            ("--kubeconfig", "PATH", "the file they are in (default: as for kubectl)"),
        ),
        f"""\
  {PROGRAM} logout dev      removes its keys, sessions, SSO token and kubeconfig entries
  {PROGRAM} logout --all    removes everything""",
    ),
    "identities": Command(
        "list identities and AWS profiles",
        (OUTPUT,),
        f"""\
  {PROGRAM} identities              does not open the keyring
  {PROGRAM} identities -o json      the same list as JSON""",
    ),
    "whoami": Command(
        "ask AWS who an identity is",
        (OUTPUT, IDENTITY, ("--region", "REGION", "the AWS region of the STS endpoint to ask")),
        f"""\
  {PROGRAM} whoami -i dev
  {PROGRAM} whoami -i dev -o json""",
    ),
    "credentials": Command(
        "print credentials for other AWS tools, as their credential_process",
        (("-i --identity", "NAME", "a stored identity or an AWS profile", {"required": True}),),
        f"""\
  in ~/.aws/config, for the AWS CLI, the AWS SDKs and Terraform:
    [profile dev]
    credential_process = {PROGRAM} credentials -i dev""",
    ),
    "kubeconfig": Command(
        "write a cluster's kubeconfig entry",
        (
            ("--cluster-name", "NAME", "the EKS cluster"),
            ("--all", "", "every cluster in the region; keeps the current context"),
            ("--region", "REGION", "the cluster's AWS region; with --all, `all` is every region", {"required": True}),
            ("--prune", "", "with --all, also remove the identity's entries whose cluster is gone"),
            IDENTITY,
            ("--role-arn", "ARN", "a role that the entry also assumes"),
            ("--external-id", "ID", "the external ID that the role requires"),
            ("--session-name", "NAME", "the name of the role session"),
            ("--alias", "NAME", "the context's name (default: the cluster's ARN)"),
            ("--user-alias", "NAME", "the kubeconfig user's name"),
            START,
            ("--kubeconfig", "PATH", "the file to write (default: as for kubectl)"),
            ("--dry-run", "", "show what would be written, without writing it"),
            ("--no-set-current", "", "do not change the current context"),
        ),
        f"""\
  {PROGRAM} kubeconfig --cluster-name main --region us-east-2 --identity dev
  {PROGRAM} kubeconfig --cluster-name main --region us-east-2 --alias main --no-set-current
  {PROGRAM} kubeconfig --all --region all --prune""",
    ),
    "adopt": Command(
        "switch other plugins' kubeconfig entries to eks-token",
        (
            (
                "--context",
                "NAME",
                "adopt the entries of these contexts",
                {"nargs": "+", "action": "extend", "default": []},
            ),
            ("--all", "", "adopt every entry (default: you are asked for each)"),
            ("--kubeconfig", "PATH", "the file (default: as for kubectl, and Atmos's own)"),
            ("--dry-run", "", "show what would change, without changing it"),
            ("--undo", "", "restore the files as they were before"),
            ("--unwrap", "", "also replace a wrapper that only chooses a profile, such as aws-vault"),
            START,
        ),
        f"""\
  {PROGRAM} adopt --all --dry-run
  {PROGRAM} adopt --context main
  {PROGRAM} adopt --undo""",
    ),
    "doctor": Command(
        "find what keeps kubectl from getting a token",
        (
            OUTPUT,
            ("--online", "", "also compare this machine's clock with AWS's"),
            ("--kubeconfig", "PATH", "the file to check (default: as for kubectl, and Atmos's own)"),
        ),
        f"""\
  {PROGRAM} doctor              exits with status 1 if a check fails
  {PROGRAM} doctor --online     also compares this machine's clock with AWS's
  {PROGRAM} doctor -o json      a list with check, status, found and hint""",
    ),
    "completion": Command(
        "print a shell completion script",
        (
            ("shell", "", "the shell to print the script for", {"action": "store", "choices": SHELLS}),
            ("words", "", "", {"action": "store", "nargs": "..."}),  # what is on a command line
        ),
        f"""\
  eval "$({PROGRAM} completion bash)"        in ~/.bashrc
  source <({PROGRAM} completion zsh)         in ~/.zshrc, after compinit
  {PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish""",
    ),
}


def command_parser(name: str) -> ArgumentParser:
    """The argparse parser for one of our own commands."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def print_help(self, file: object = None) -> None:
            show(self.format_help(), end="")

        def error(self, message: str) -> NoReturn:
            raise usage(message, f"see {PROGRAM} {name} --help")

    command = COMMANDS[name]
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        description=command.summary,
        epilog=f"examples:\n{command.examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group: argparse._ActionsContainer = parser
    for option in (("--debug", "", "show on stderr what is done"), *command.options):
        if isinstance(option, str):
            group = parser.add_argument_group(option)
            continue
        names, metavar, about, *more = option
        kind: Mapping[str, object] = {"default": "", "metavar": metavar} if metavar else {"action": "store_true"}
        kind = {**kind, **more[0]} if more else kind
        group.add_argument(*names.split(), help=about or argparse.SUPPRESS, **kind)  # type: ignore[arg-type]
    return parser


# -- 2. cache ---------------------------------------------------------------------------------------------------------
#
# 1. A request becomes a `Key`: a line that contains everything that decides the token, and a directory named after it.
# 2. The `Answer` is stored there, in one file that says until when it is fresh and which files it depends on.
# 3. If there is none, a `Lock` lets one process sign a token, while the others wait for its answer.
# 4. Half-way through its life an answer is still used, but one process signs the next token in the background.
#
# build/launcher.sh does the first two steps by itself, with tests that Python wrote into the answer
# (`conditions_for_sh`), and relies on this layout:
#
#     tokens/PART|/PART|/…/|/NAME=VALUE|/…/   one directory for each part of the request line; slashes in a part nest
#         %answer                             the answer, a sh script; its modification time is FRESH_UNTIL
#         %MTIME                              a stamp: an empty file with the modification time that a file had
#         %refresh                            an empty file; its modification time is when to sign the next token
#         %claim                              an empty file; whoever makes it starts the process that does so
#     tokens/%HASH/                           if a part cannot be a path as it is, here or anywhere; Python's alone
#     lock/                                   one lock for each request, for the vault, and for writing here
#     generation                              another text each time the cache is emptied
#     now                                     an empty file, which the launcher writes to find out the time
#     swept                                   an empty file; its modification time is when old answers were removed
#
# No part in a path contains a percent sign, so these names cannot clash with one. An answer is one file, put in place
# by one rename, so nobody ever sees the token of one mint with the conditions of another.

ANSWER_TAG = "eks-token-3"
FRESH_MARGIN = 60  # seconds; how long before its token expires an answer is no longer used
SETTLE_SECONDS = 2  # a file that changed this recently may change again, and some shells compare whole seconds
TICK_SECONDS = 0.02  # the file system's clock advances at least this often (Linux: 100 times a second)
ARCHIVE_SECONDS = 315_705_600  # 3 January 1980: Nix, OSTree and zip archives date all files before this
SWEEP_INTERVAL = 3600  # seconds between two searches for old answers
SWEEP_SECONDS = 0.1  # how long one of them may take; the next token continues it
LOCK_SECONDS = 120  # how long to wait for another process
RETRY_SECONDS = 60  # when to try again to sign the next token
REFRESH_VARIABLE = "EKS_TOKEN_REFRESH"  # "off", or
AHEAD = "ahead"  # in the process that signs the next token, while the present one is still good
# Every variable that decides whose token it is, in the order of the request line, and how it is written there.
# build/package.py puts the same list into the launcher.
#
#     plain    as it is                   region   as it is, unless an option sets the region
#     path     made absolute              secret   as its hash, which only Python can compute
#     windows  as it is, on Windows only  sts      as it is, except for the default, regional
#     bus      as it is, except for the user's own bus of systemd, which may be another keyring
#     runtime  as it is, except below /run/user/, where systemd has that bus
#
# The KEYRING_PROPERTY_ variables here are those of keyring's own backends. Others are entered as their hash.
REQUEST_VARIABLES = {
    "HOME": "plain",
    "APPDATA": "windows",
    "ATMOS_AUTH_REALM": "plain",
    "ATMOS_IDENTITY": "plain",
    "ATMOS_XDG_CONFIG_HOME": "path",
    "AWS_ACCESS_KEY_ID": "plain",
    "AWS_CONFIG_FILE": "path",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "path",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "plain",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "plain",
    "AWS_CREDENTIAL_EXPIRATION": "plain",
    "AWS_DATA_PATH": "path",
    "AWS_DEFAULT_PROFILE": "plain",
    "AWS_DEFAULT_REGION": "region",
    "AWS_EC2_METADATA_DISABLED": "plain",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": "plain",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "plain",
    "AWS_ENDPOINT_URL": "plain",
    "AWS_ENDPOINT_URL_SSO": "plain",
    "AWS_ENDPOINT_URL_SSO_OIDC": "plain",
    "AWS_ENDPOINT_URL_STS": "plain",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "plain",
    "AWS_LOGIN_CACHE_DIRECTORY": "path",
    "AWS_PROFILE": "plain",
    "AWS_REGION": "region",
    "AWS_ROLE_ARN": "plain",
    "AWS_ROLE_SESSION_NAME": "plain",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SECURITY_TOKEN": "secret",
    "AWS_SESSION_TOKEN": "secret",
    "AWS_SHARED_CREDENTIALS_FILE": "path",
    "AWS_STS_REGIONAL_ENDPOINTS": "sts",
    "AWS_USE_DUALSTACK_ENDPOINT": "plain",
    "AWS_USE_FIPS_ENDPOINT": "plain",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "path",
    "DBUS_SESSION_BUS_ADDRESS": "bus",
    "DEFAULT_ROLE": "plain",
    "HOMEDRIVE": "windows",
    "HOMEPATH": "windows",
    "KEYCHAIN_PATH": "path",
    "KEYRING_PROPERTY_APPID": "plain",
    "KEYRING_PROPERTY_BUS_NAME": "plain",
    "KEYRING_PROPERTY_COLLECTION": "plain",
    "KEYRING_PROPERTY_KEYCHAIN": "path",
    "KEYRING_PROPERTY_OBJECT_PATH": "plain",
    "KEYRING_PROPERTY_PERSIST": "plain",
    "KEYRING_PROPERTY_PREFERRED_COLLECTION": "plain",
    "KEYRING_PROPERTY_SCHEMA": "plain",
    "KEYRING_PROPERTY_SCHEME": "plain",
    "KEYRING_PROPERTY_WALLET": "plain",
    "KUBERNETES_AWS_AUTHENTICATOR_CLUSTER_ID": "plain",
    "PYTHON_KEYRING_BACKEND": "plain",
    "USERPROFILE": "windows",
    "XDG_CONFIG_HOME": "path",
    "XDG_DATA_HOME": "path",
    "XDG_RUNTIME_DIR": "runtime",
}
KEYRING_CONFIG = "keyringrc.cfg"
KEYRING_PROPERTY, KEYRING_BACKENDS = "KEYRING_PROPERTY_", "keyring.backends."
SAFE_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:/@=,+-")


class Key(NamedTuple):
    """A request line, and the directory of its answer under tokens/."""

    line: str
    directory: str


def quoted(part: str) -> str:
    """A part in safe bytes. All others are percent-encoded, and an empty part becomes a single percent sign."""
    return "".join(chr(byte) if byte in SAFE_BYTES else f"%{byte:02X}" for byte in os.fsencode(part)) or "%"


def unquoted_part(part: str) -> str:
    if "%" not in part:
        return part
    from urllib.parse import unquote_to_bytes

    return "" if part == "%" else os.fsdecode(unquote_to_bytes(part))


def is_plain(part: str) -> bool:
    """Whether a quoted part can be a path as it is. et_plain in launcher.sh is the same rule."""
    if "%" in part or "#" in part or len(part) > 200 or part.endswith("/"):
        return False
    return not {".", ".."} & set(part.split("/"))


def variables_of(wanted: str) -> list[str]:
    return [name for name, kind in REQUEST_VARIABLES.items() if kind == wanted]


def is_default(kind: str, value: str, region_named: bool) -> bool:
    """Whether a request is the same with this variable as without it. et_variable in launcher.sh has the same rules."""
    if kind == "region":
        return region_named
    if kind == "sts":
        return value == "regional"
    if kind == "runtime":
        return value.startswith("/run/user/")
    if kind == "bus":
        user = value.removeprefix("unix:path=/run/user/").removesuffix("/bus")
        if user.isascii() and user.isdecimal() and value == f"unix:path=/run/user/{user}/bus":
            try:
                return os.stat(f"/run/user/{user}").st_uid == os.geteuid()
            except OSError:
                pass
    return False


def request_key(version: str, argv: Sequence[str], environ: Mapping[str, str], platform: str) -> Key | None:
    """What a request's answer is stored under, or None if a path is relative and the working directory is gone."""
    arguments = [version, *(word for word in argv if word not in ("--refresh", "--debug"))]
    region_named = any(word == "--region" or word.startswith("--region=") for word in argv)
    variables = []
    for name, kind in REQUEST_VARIABLES.items():
        value = environ.get(name, "")
        if not value or is_default(kind, value, region_named) or (kind == "windows" and platform != "win32"):
            continue
        if kind == "path" and (not value.startswith("/") or "$" in value):
            try:
                value = os.path.abspath(os.path.expandvars(os.path.expanduser(value)))
            except OSError:  # the working directory is gone
                return None
        if kind == "secret":
            variables.append(f"{name}#{sha256(value)}")
        else:
            variables.append(quoted(f"{name}={value}"))
    for name in sorted(environ):
        if name.startswith(KEYRING_PROPERTY) and name not in REQUEST_VARIABLES and environ[name]:
            variables.append(f"{quoted(name)}#{sha256(environ[name])}")  # it may be a password
    parts = [*map(quoted, arguments), "", *variables]
    line = "".join(part + "|" for part in parts)
    # A keyring backend that is not keyring's own may read any property, and the launcher cannot list the environment.
    foreign = not (environ.get("PYTHON_KEYRING_BACKEND") or KEYRING_BACKENDS).startswith(KEYRING_BACKENDS)
    if platform != "win32" and not foreign and all(is_plain(part) for part in parts if part):
        return Key(line, line.replace("|", "|/"))
    return Key(line, hash_directory(line))


def hash_directory(line: str) -> str:
    return f"%{sha256(line)}"


# build/package.py copies some of this module into build/start.py: see its import. That may only use os, sys and time.


class Refused(Exception):
    """A directory of ours is not safe to use. The text is one line that says why."""


def cache_home(environ: Mapping[str, str], platform: str) -> str | None:
    """The path of the cache directory, or None if there is no home directory. The launcher has the same rule.

    The rule is that of platformdirs.user_cache_path. Importing that would double the time of a cached answer (13 ms).
    One thing differs: if HOME is not set, we do not look in the passwd file, because sh cannot do that.
    """
    if platform == "win32":
        local = environ.get("LOCALAPPDATA", "")
        return os.path.join(local, PROGRAM, PROGRAM, "Cache") if local else None
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        return None
    # "XDG Base Directory Specification": a relative path in this variable is invalid and must be ignored
    base = environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):
        base = os.path.join(home, "Library/Caches" if platform == "darwin" else ".cache")
    return os.path.join(base, PROGRAM)


def make_trusted(directory: str) -> None:
    """Make a directory if it is missing. Raises Refused if it is not safe to use, OSError if it cannot be made."""
    check_above(directory)  # before anything is made there
    if not os.path.isdir(directory):
        os.makedirs(directory, 0o700, exist_ok=True)
        check_above(directory)
    make_private(directory)


def check_above(path: str) -> None:
    """Raise Refused if another user, except root, can put something else in the place of this absolute path.

    That is so if they own it, or a directory or link on the way to it, or can write to such a directory. In a directory
    with the sticky bit, like /tmp, they cannot rename what others own. The user's own primary group may write: on many
    systems it has no other member, and OpenShift gives homes to the group of its containers' users. On macOS, however,
    it is staff, and everyone is in it. What nobody else can rename now stays where it is, so files may be opened by
    their paths after this. Raises OSError.
    """
    import stat

    if os.name != "posix":
        return
    user, group = os.geteuid(), -1 if sys.platform == "darwin" else os.getegid()
    here, names = "/", path.split("/")[::-1]
    while True:
        try:
            found = os.lstat(here)
        except FileNotFoundError:  # nothing is there yet
            return
        if found.st_uid not in (user, 0) and not is_outside(found.st_uid):
            raise Refused(f"{here} belongs to another user")
        if stat.S_ISLNK(found.st_mode):
            link = os.readlink(here)
            names += link.split("/")[::-1]
            here = "/" if link.startswith("/") else os.path.dirname(here)
            continue
        if not names:
            return
        others = stat.S_IWOTH if found.st_gid == group else stat.S_IWOTH | stat.S_IWGRP
        if found.st_mode & others and not found.st_mode & stat.S_ISVTX:
            raise Refused(f"others can write to {here}")
        name = names.pop()
        if name not in ("", "."):
            here = os.path.dirname(here) if name == ".." else os.path.join(here, name)


def is_outside(user: int) -> bool:
    """Whether this is how Linux shows everybody who is not in our user namespace, such as the root outside.

    Flatpak, Nix's buildFHSEnv and rootless containers make such namespaces: / or /home is not root's there.
    """
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return user == 65534 and file.read().split() != [b"0", b"0", b"4294967295"]
    except OSError:
        return False


def make_private(directory: str) -> None:
    """Make sure that other users cannot read a directory.

    Raises Refused if they can do more than read, or could have done more. Raises OSError if the directory is missing or
    its mode cannot be changed. On Windows, other users have no access to %LOCALAPPDATA%.
    """
    import stat

    if os.name != "posix":
        return
    found = os.lstat(directory)
    if stat.S_ISLNK(found.st_mode):
        raise Refused(f"{directory} is a symbolic link")
    if not stat.S_ISDIR(found.st_mode):
        raise Refused(f"{directory} is not a directory")
    if found.st_uid != os.geteuid():
        raise Refused(f"{directory} belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"others can write to {directory}")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        os.chmod(directory, 0o700)


def data_home(environ: Mapping[str, str], platform: str) -> str | None:
    """The directory of identities.json, or None if there is no home directory, as in `cache_home`.

    The rule is that of platformdirs.user_data_path. Importing that takes 2 of the 90 ms of a new token.
    """
    if platform == "win32":
        import platformdirs

        return platformdirs.user_data_dir(PROGRAM)
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        return None
    base = environ.get("XDG_DATA_HOME", "")
    if not base.startswith("/"):
        base = os.path.join(home, "Library/Application Support" if platform == "darwin" else ".local/share")
    return os.path.join(base, PROGRAM)


class Watched(NamedTuple):
    """A file that decides an answer, as it was before it was read."""

    path: str
    state: str  # modification and change time (nanoseconds), size, inode and device; "-" if there is no such file

    @property
    def exists(self) -> bool:
        return self.state != "-"

    @property
    def modified(self) -> int:
        return int(self.state.split(".")[0])

    @property
    def changed(self) -> int:
        return int(self.state.split(".")[1])

    @property
    def is_unchanged(self) -> bool:
        return state_of(self.path) == self.state


def state_of(path: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return "-"
    return f"{found.st_mtime_ns}.{found.st_ctime_ns}.{found.st_size}.{found.st_ino}.{found.st_dev}"


def look_at(paths: Iterable[str]) -> tuple[Watched, ...]:
    """The state of the files that decide an answer. Call this before the files are read.

    A file can change twice within one tick of the file system's clock, and have one change time. So a tick that has
    only begun is waited out.
    """
    watched = tuple(Watched(path, state_of(path)) for path in paths)
    now = time.time()
    if any(one.exists and abs(now - one.changed / 1e9) < TICK_SECONDS for one in watched):
        time.sleep(TICK_SECONDS)
        return look_at(one.path for one in watched)
    return watched


class Answer(NamedTuple):
    """What is stored for a request: what goes to stdout, and the conditions for that."""

    line: str  # the request line
    issued: int  # seconds since the epoch, like the next one
    fresh_until: int
    watched: tuple[Watched, ...]
    text: str


# An answer is a script that prints its text if the tests before it succeed. It ends with AFTER_TEXT, and BEFORE_TEXT
# occurs nowhere before the text.
BEFORE_TEXT, AFTER_TEXT = "\nthen echo '", "' && et_printed=yes\nfi\n"
NEVER = "[ ]"  # a test that fails


def answer_script(answer: Answer, tests: Iterable[str]) -> str:
    """An answer as it is stored: the launcher runs it, while Python reads the comments and the text."""
    comments = [f"# {ANSWER_TAG} {answer.issued} {answer.fresh_until} {answer.line}"]
    comments += [f"# {one.state} {quoted(one.path)}" for one in answer.watched]
    return "\n".join(comments) + "\nif " + " &&\n".join(tests) + BEFORE_TEXT + sh_escaped(answer.text) + AFTER_TEXT


def parse_answer(content: str) -> Answer:
    """Read what `answer_script` wrote. Raises ValueError if it is anything else."""
    head, _, rest = content.partition(BEFORE_TEXT)
    text = rest.removesuffix(AFTER_TEXT).replace("'\\''", "'")
    first, *others = head.partition("\nif ")[0].split("\n")
    mark, tag, issued, fresh_until, line = first.split(" ")
    watched = []
    for comment in others:
        _, state, path = comment.split(" ")
        watched.append(Watched(unquoted_part(path), state))
    if f"{mark} {tag}" != f"# {ANSWER_TAG}" or rest != sh_escaped(text) + AFTER_TEXT:
        raise ValueError
    return Answer(line, int(issued), int(fresh_until), tuple(watched), text)


class PythonOnly(Exception):
    """The launcher cannot use an answer. The text says why."""


class Conditions(NamedTuple):
    """What the launcher tests before it prints an answer."""

    tests: list[str]  # in sh
    dates: list[int]  # modification times (nanoseconds); there has to be a stamp for each


def conditions_for_sh(answer: Answer, home: str) -> Conditions:
    """How sh sees that a watched file changed. Raises PythonOnly if it might not, and OSError.

    sh does not know inodes. It sees that a file was edited by its date, that another file or directory was renamed over
    it by the date of the directory above, and that a link leads elsewhere by comparing it with where it led. Therefore
    no date may be so new that the file can change again within the same second, and none may be one that archives give
    all their files. One change goes unseen: an edit in place that puts the old date back (SECURITY.md).

    The launcher is in the cache directory. Its variables et_line and et_here are the request line and the directory of
    the answer. It has checked FRESH_UNTIL, but not that the answer was issued in the past.
    """
    settled = time.time_ns() - SETTLE_SECONDS * 10**9
    issued = answer.issued * 10**9 - 1  # -nt is strict, and some shells compare whole seconds
    absent, links = [], []
    dates: dict[str, int] = {}  # of files and their directories
    further: dict[str, int] = {}  # of the directories above these, for which it is enough that none becomes newer
    for path, exists in ((one.path, one.exists) for one in answer.watched):
        if any(char == "\n" or "\udc80" <= char <= "\udcff" for char in path):
            raise PythonOnly(f"{quoted(path)} has a line break or bytes that are not UTF-8 in its name")
        if not exists:
            absent.append(f"! [ -e {sh_quoted(path)} ]")
            continue
        # The keyring backend that is configured there may read properties that the launcher does not look for.
        if os.path.basename(path) == KEYRING_CONFIG:
            raise PythonOnly(f"{path} configures the keyring")
        real = os.path.realpath(path)
        if real != path:
            links.append(f"[ {sh_quoted(path)} -ef {sh_quoted(real)} ]")
        directory, *above = directories_of(path, home)
        real_directory, *real_above = directories_of(real, home)
        dates.update((each, os.stat(each).st_mtime_ns) for each in (path, directory, real_directory))
        further.update((each, os.stat(each).st_mtime_ns) for each in (*above, *real_above))
    for path, date in (dates | further).items():
        if date >= settled:
            raise PythonOnly(f"{path} has just changed, or has a date in the future")
        if path in dates and date <= ARCHIVE_SECONDS * 10**9:
            raise PythonOnly(f"the date of {path} is not that of its last change: {rfc3339(date / 1e9)}")
    newest = max(further.values(), default=issued)
    stamps = dict.fromkeys([*dates.values(), newest])
    tests = [f"""[ "$et_line" = '{answer.line}' ]""", f"[ ./now -nt {stamp(issued)} ]"]
    tests += [f"[ -e {stamp(date)} ]" for date in stamps if date != issued]  # without it, nothing is newer in dash
    tests += absent + links
    for path, date in dates.items():
        tests += [f"! [ {sh_quoted(path)} {operator} {stamp(date)} ]" for operator in ("-nt", "-ot")]
    tests += [f"! [ {sh_quoted(path)} -nt {stamp(newest)} ]" for path in further if path not in dates]
    return Conditions(tests, [issued, *stamps])


def directories_of(path: str, home: str) -> list[str]:
    """The directory of a file and those above it, up to HOME, or if it is not there, all but / and those directly in
    it. No other directory is expected to be moved."""
    found = [os.path.dirname(path)]
    while found[-1] != home and found[-1].count("/") > 1:
        found.append(os.path.dirname(found[-1]))
    return found


def stamp(date: int) -> str:
    return f'"$et_here/%{date}"'


def sh_quoted(text: str) -> str:
    return f"'{sh_escaped(text)}'"


def sh_escaped(text: str) -> str:
    return text.replace("'", "'\\''")


def read_regular(path: str) -> str:
    """The text of a small file of ours. Raises OSError or ValueError; opening a pipe in its place does not hang."""
    import stat

    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(file, encoding="utf-8", newline="") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError(f"{path} is not a file")
        return stream.read()


class LocksUnavailable(Exception):
    """The file system does not support locks, or they do not work."""


class Lock:
    """An OS lock on a file, held while the `with` block runs.

    If the holder dies, the lock is free again. Only the holder deletes the file, so whoever gets the lock checks that
    the path is still the same file. Raises Problem after `seconds`, and LocksUnavailable if locks do not work.
    """

    def __init__(self, path: str, seconds: float = LOCK_SECONDS) -> None:
        self.path = path
        self.seconds = seconds
        self._file = -1

    def __enter__(self) -> Lock:
        deadline = time.monotonic() + self.seconds
        while not self._try():
            if time.monotonic() > deadline:
                raise Problem(
                    f"another {PROGRAM} has been busy with this for {self.seconds:.0f} s",
                    "it may be waiting for an answer: look for its terminal or browser window",
                )
            time.sleep(0.02)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            os.unlink(self.path)
        except OSError:  # Windows cannot delete an open file, and does not need to
            pass
        os.close(self._file)

    def _try(self) -> bool:
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except PermissionError:
            if os.name == "nt":  # being deleted
                return False
            raise LocksUnavailable from None
        except OSError as error:
            raise LocksUnavailable from error
        try:
            if lock_file(self._file) and os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                return True
        except FileNotFoundError:  # the holder deleted it
            pass
        except OSError as error:
            os.close(self._file)
            raise LocksUnavailable from error
        os.close(self._file)
        return False


def lock_file(file: int) -> bool:
    """Take the lock if it is free. Raises OSError if locks are not supported."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except PermissionError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Minted(NamedTuple):
    """What goes to stdout, and how long it is valid."""

    text: str
    issued: int  # seconds since the epoch, like the next one
    expires: int  # the ExecCredential's expirationTimestamp
    cacheable: bool


class Cache:
    """The directory of answers and locks. A miss is not an error, and neither is an answer that cannot be stored."""

    def __init__(self, root: str, home: str = "") -> None:
        self.root = root
        self.home = home  # directories above it are not expected to be moved

    def directory(self, key: Key) -> str:
        """Where an answer is, or would be. Not every file system takes the names as they are: FAT forbids `|`."""
        here = os.path.join(self.root, "tokens", key.directory)
        hashed = os.path.join(self.root, "tokens", hash_directory(key.line))
        return hashed if not os.path.isdir(here) and os.path.isdir(hashed) else here

    def make_directory(self, key: Key) -> str:
        """Raises OSError."""
        here = self.directory(key)
        try:
            os.makedirs(here, 0o700, exist_ok=True)
        except OSError:
            here = os.path.join(self.root, "tokens", hash_directory(key.line))
            os.makedirs(here, 0o700, exist_ok=True)
        return here

    def lookup(self, key: Key, now: float) -> Answer | None:
        """The fresh answer to this request, or None."""
        try:
            answer = parse_answer(read_regular(os.path.join(self.directory(key), "%answer")))
        except (OSError, ValueError):
            return None
        if answer.line != key.line or not answer.issued <= now < answer.fresh_until:
            return None
        return answer if all(one.is_unchanged for one in answer.watched) else None

    def lock(self, name: str, seconds: float = LOCK_SECONDS) -> Lock:
        """The lock with that name, which is waited for. Raises LocksUnavailable."""
        directory = os.path.join(self.root, "lock")
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as error:
            raise LocksUnavailable from error
        return Lock(os.path.join(directory, name if name.isalpha() else sha256(name)[:32]), seconds)

    def generation(self) -> str:
        """Changes whenever the cache is emptied. An answer that was started before that is not stored afterwards."""
        try:
            return read_regular(os.path.join(self.root, "generation"))
        except (OSError, ValueError):
            return ""

    def store(
        self, key: Key, minted: Minted, watched: Sequence[Watched], generation: str, own: str | None = None
    ) -> None:
        """Store an answer if that is safe. The generation shows every change to `own`, which is identities.json."""
        now = time.time()
        answer = Answer(key.line, minted.issued, minted.expires - FRESH_MARGIN, tuple(watched), minted.text)
        if not minted.cacheable or answer.fresh_until <= now:
            return debug("not cached: its credentials end too soon, or may be others the next time")
        if any(one.exists and abs(one.modified / 1e9 - now) < SETTLE_SECONDS for one in watched if one.path != own):
            return debug("not cached: a file that it depends on has just changed")
        try:
            with self.lock("cache"):
                if self.generation() != generation:
                    return debug("not cached: the identities have changed meanwhile")
                self.sweep(now)
                self.postpone_refresh(key, (answer.issued + answer.fresh_until) / 2)
                self.write(key, answer)
        except (OSError, ValueError, LocksUnavailable, Problem) as error:
            debug(f"not cached: {type(error).__name__}")

    def write(self, key: Key, answer: Answer) -> None:
        """Write an answer, while the lock is held. Raises OSError and ValueError."""
        here = self.make_directory(key)
        try:
            conditions = self.conditions(key, answer)
        except PythonOnly as reason:
            debug(f"only Python will use what is cached: {reason}")
            conditions = Conditions([NEVER], [])
        if not all(one.is_unchanged for one in answer.watched):
            return debug("not cached: a file that it depends on has changed meanwhile")
        if not self.clock_agrees(time.time()):
            return debug("not cached: the file system's clock differs from ours")
        old = {name for name in os.listdir(here) if name[:1] == "%" and name[1:].isdigit()}
        for date in conditions.dates:
            write_file(os.path.join(here, f"%{date}"), "", date)
        script = answer_script(answer, conditions.tests)
        write_file(os.path.join(here, "%answer"), script, answer.fresh_until * 10**9)
        for name in old - {f"%{date}" for date in conditions.dates}:
            os.unlink(os.path.join(here, name))

    def conditions(self, key: Key, answer: Answer) -> Conditions:
        """What the launcher tests before it prints this answer. Raises PythonOnly if it cannot use it, and OSError."""
        if "%" in key.directory:
            raise PythonOnly("the request has a secret or special characters")
        if os.path.basename(self.directory(key)) == hash_directory(key.line):
            raise PythonOnly("the cache is on a file system that does not take all names")
        # Only texts without these are the same in every shell's echo. printf is not built into mksh.
        if answer.text.startswith("-") or "\\" in answer.text:
            raise PythonOnly("the output has special characters")
        return conditions_for_sh(answer, self.home)

    def write_for_sh(self, key: Key, answer: Answer) -> None:
        """Write an answer again that Python has just used, if the launcher could not use it and now can.

        A directory has changed, for example, though the files in it have not.
        """
        try:
            script = answer_script(answer, self.conditions(key, answer).tests)
            if script != read_regular(os.path.join(self.directory(key), "%answer")):
                with self.lock("cache", seconds=0):
                    if self.lookup(key, time.time()) == answer:
                        self.write(key, answer)
        except (OSError, ValueError, LocksUnavailable, Problem, PythonOnly) as error:
            debug(f"only Python can use what is cached: {str(error) or type(error).__name__}")

    def clock_agrees(self, now: float) -> bool:
        """Whether truncating an empty file sets its time to now. launcher.sh has no other clock."""
        path = os.path.join(self.root, "now")
        write_file(path, "", 0)
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        return abs(os.stat(path).st_mtime - now) < SETTLE_SECONDS

    def sweep(self, now: float) -> None:
        """Remove the answers that have ended, once an hour. Whoever has too many for that continues the next time."""
        swept = os.path.join(self.root, "swept")
        deadline = time.monotonic() + SWEEP_SECONDS
        try:
            if os.path.exists(swept) and abs(os.stat(swept).st_mtime - now) < SWEEP_INTERVAL:
                return
            for here, _, names in os.walk(os.path.join(self.root, "tokens")):
                if time.monotonic() > deadline:
                    return
                if names and not ("%answer" in names and os.stat(os.path.join(here, "%answer")).st_mtime > now):
                    remove_answer(here)
            write_file(swept, "")
        except OSError as error:
            debug(f"old answers were not removed: {first_line(error)}")

    def empty(self) -> None:
        """Forget every answer, including those that are being signed now. Raises Problem if that fails."""
        tokens = os.path.join(self.root, "tokens")
        import contextlib
        import shutil

        try:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(self.lock("cache"))
                except LocksUnavailable:
                    debug("locks do not work in the cache directory")  # so nothing is being stored there either
                write_file(os.path.join(self.root, "generation"), os.urandom(16).hex())
                try:
                    os.rename(tokens, f"{tokens}.{os.urandom(8).hex()}")
                except FileNotFoundError:
                    pass
            for name in os.listdir(self.root):  # including what was left when a process was killed here
                if name.startswith("tokens."):
                    shutil.rmtree(os.path.join(self.root, name), ignore_errors=True)
        except OSError as error:
            raise Problem(f"the cached tokens in {tokens} cannot be removed", "remove that directory") from error

    # Refresh ahead: %refresh says when, and %claim that somebody has started the process that signs the next token.

    def refresh_is_due(self, key: Key, now: float) -> bool:
        try:
            return os.stat(os.path.join(self.directory(key), "%refresh")).st_mtime <= now
        except OSError:
            return True

    def claim_refresh(self, key: Key, now: float) -> bool:
        """Whether the next token is to be signed, and this process is the one of many that sees to it."""
        claim = os.path.join(self.directory(key), "%claim")
        try:
            if not self.refresh_is_due(key, now):
                return False
            if os.path.exists(claim) and os.stat(claim).st_mtime < now - RETRY_SECONDS:
                os.unlink(claim)  # whoever made it was killed
            os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError:
            return False
        return True

    def postpone_refresh(self, key: Key, until: float) -> None:
        """Raises OSError."""
        here = self.make_directory(key)
        write_file(os.path.join(here, "%refresh"), "", int(until * 1e9))
        try:
            os.unlink(os.path.join(here, "%claim"))
        except FileNotFoundError:
            pass


def remove_answer(here: str) -> None:
    """Remove what is stored in this directory, and the directories above it that are empty then."""
    try:
        for name in os.listdir(here):
            if name.startswith("%"):
                os.unlink(os.path.join(here, name))
        os.removedirs(here)
    except OSError:
        return


def is_ahead(environ: Mapping[str, str]) -> bool:
    """Whether this process signs the next token. Nobody knows of it, so it must not ask anybody anything."""
    return environ.get(REFRESH_VARIABLE) == AHEAD


def open_cache(invocation: Invocation) -> Cache | None:
    return Cache(invocation.cache, invocation.environ.get("HOME", "")) if invocation.cache else None


# -- 3. keyring -------------------------------------------------------------------------------------------------------
#
# Secrets are stored in the OS keyring and nowhere else. The other sections use only `Vault`. Behind it is what
# `choose_keyring` picks: a `SecretStore` on Linux and the BSDs, which talks to their keyrings over a `SecretsBus`, or
# else a backend of the keyring library, in a `StockKeyring`. Linux does without that library, because of the time that
# it takes to import.

VAULT_SERVICE = "eks-token"
NATIVE_BACKENDS = {
    "darwin": "keyring.backends.macOS.Keyring",
    "win32": "keyring.backends.Windows.WinVaultKeyring",
}
SECRET_SERVICE_NAMES = ("keyring.backends.SecretService.Keyring", "keyring.backends.libsecret.Keyring")
REFUSED_BACKENDS = {
    "keyring.backends.null.Keyring": "it stores nothing",
    "keyring.backends.fail.Keyring": "it stores nothing",
    "keyring.backends.chainer.ChainerBackend": "it tries every backend that it finds; name one of them",
}
UNREACHABLE_HINT = (
    "environment keys and AWS profiles work without a keyring; PYTHON_KEYRING_BACKEND selects another one"
)


class KeyringUnavailable(Problem):
    """The keyring cannot be reached or opened: there is no service or no answer, or it is locked or refused."""


class UnavailableNow(KeyringUnavailable):
    """To ask again costs no time, and may succeed: the service may start again, or have another entry."""


class DamagedEntry(Problem):
    """The keyring answered, but its entry with this name is not what was stored."""


class KeyringFailure(Exception):
    """A keyring could not do what the vault asked of it. The text is the reason, and quotes no secret."""


def no_keyring(reason: str, hint: str = UNREACHABLE_HINT) -> KeyringUnavailable:
    return KeyringUnavailable(f"no keyring: {reason}", hint)


def locked_keyring(reason: str) -> KeyringUnavailable:
    hint = "unlock it in the desktop session; environment keys and AWS profiles work without a keyring"
    return KeyringUnavailable(f"the keyring is locked: {reason}", hint)


def damaged(user: str, how: str) -> DamagedEntry:
    kind, _, name = user.partition(":")
    name = name if kind == "identity" and name else "NAME"
    return DamagedEntry(
        f"the keyring's entry {user} is {how}",
        f"`eks-token login {shell_word(name)}` stores it again, `eks-token logout {shell_word(name)}` removes it",
    )


if TYPE_CHECKING:

    class Keyring(Protocol):
        """What `Vault` needs of a keyring, and documents. Every method may raise Problem or KeyringFailure."""

        def get(self, service: str, user: str) -> str | None: ...
        def set(self, service: str, user: str, value: str) -> None: ...
        def delete(self, service: str, user: str) -> bool: ...
        def clear(self, service: str) -> None: ...
        def users(self, service: str) -> list[str] | None: ...
        def reach(self) -> None: ...
        def check(self, service: str) -> str: ...


class Vault:
    """The OS keyring: one string or JSON object for each user of a service.

    Nothing is opened before it is first used. After a keyring could not be opened, it is not asked again, so a
    silent bus or a dismissed dialog makes us wait only once. Writers hold `lock/vault`; readers do not need a lock.

    Every method may raise KeyringUnavailable, DamagedEntry or Problem. Messages never show a stored value.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        platform: str = sys.platform,
        interactive: bool = True,
        keyring: Keyring | None = None,
        entries: str | None = None,
    ) -> None:
        self._opened_by = (environ, platform, interactive)
        self._keyring = keyring
        self._entries = entries  # the file with our own list of users, for keyrings that cannot list them
        self._unavailable: KeyringUnavailable | None = None

    def get(self, user: str) -> str | None:
        return self._ask(f"read {user}", lambda keyring: keyring.get(VAULT_SERVICE, user))

    def set(self, user: str, value: str) -> None:
        """Store `value`. `get` returns the old value until the new one is stored completely."""
        self._list(user, True)  # first, so that `everyone` includes what a failed sign-in leaves behind
        self._change(f"store {user}", user, lambda keyring: keyring.set(VAULT_SERVICE, user, value), value)

    def delete(self, user: str) -> bool:
        """Remove the user's value. Returns False if there was none."""
        was_there = self._change(f"remove {user}", user, lambda keyring: keyring.delete(VAULT_SERVICE, user), None)
        self._list(user, False)
        return was_there

    def clear(self, users: Iterable[str]) -> list[str]:
        """Remove all values at once, if the keyring can. Returns the users that may be left, these among them."""
        self._ask("remove its entries", lambda keyring: keyring.clear(VAULT_SERVICE))
        left = self.users()
        return sorted({*users, *self.everyone()}) if left is None else left

    def users(self) -> list[str] | None:
        """The users that have a value, or None if the keyring cannot list them (macOS, Windows)."""
        return self._ask("list its entries", lambda keyring: keyring.users(VAULT_SERVICE))

    def everyone(self) -> list[str]:
        """All users that may have a value, from our own list if the keyring cannot list them."""
        users = self.users()
        return read_entries(self._entries) if users is None else users

    def reach(self) -> None:
        """Raise KeyringUnavailable if there is no keyring. It may be locked, or have no collection yet."""
        self._ask("answer", lambda keyring: keyring.reach())

    def check(self) -> str:
        """The keyring's name, if what is stored can be read. A Secret Service is not asked for a secret."""
        return self._ask("answer", lambda keyring: keyring.check(VAULT_SERVICE))

    def get_json(self, user: str) -> dict[str, object] | None:
        import json

        text = self.get(user)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise damaged(user, "unreadable")
        return value

    def set_json(self, user: str, value: Mapping[str, object]) -> None:
        import json

        self.set(user, json.dumps(value, separators=(",", ":")))

    def get_foreign(self, service: str, user: str) -> str | None:
        """What another program stored, unchanged (Atmos: service `atmos_NAME`, user `atmos-auth`)."""
        return self._ask(f"read {service}", lambda keyring: keyring.get(service, user))

    def _list(self, user: str, stored: bool) -> None:
        """Enter a user into our own list or remove it, if the keyring cannot list its users."""
        import json

        if self._entries is None or self._ask("answer", lambda keyring: isinstance(keyring, SecretStore)):
            return
        before = set(read_entries(self._entries))
        after = before | {user} if stored else before - {user}
        if after == before:
            return
        try:
            os.makedirs(os.path.dirname(self._entries), 0o700, exist_ok=True)
            write_file(self._entries, json.dumps(sorted(after), indent=2) + "\n")
        except OSError as error:
            raise Problem(f"{self._entries} cannot be written: {error.strerror}") from error

    def _change(self, doing: str, user: str, change: Callable[[Keyring], T], result: str | None) -> T:
        """Make a change, and see that the user has the resulting value."""

        def made(keyring: Keyring) -> tuple[T, bool]:
            return change(keyring), keyring.get(VAULT_SERVICE, user) == result

        answer, kept = self._ask(doing, made)
        # KWallet accepts a change, but does not make it, if it is closed at that moment. Reading opens it.
        if not kept:
            _, kept = self._ask(doing, made)
        if not kept:
            hint = "look at it with the keyring's own program; PYTHON_KEYRING_BACKEND selects another one"
            raise Problem(f"the keyring did not {doing}, although it reported no error", hint)
        return answer

    def _ask(self, doing: str, question: Callable[[Keyring], T]) -> T:
        """The keyring's answer to one question."""
        if self._unavailable is not None:
            raise self._unavailable
        try:
            if self._keyring is None:
                self._keyring = choose_keyring(*self._opened_by)
            return question(self._keyring)
        except KeyringFailure as failure:
            raise Problem(f"the keyring could not {doing}: {failure}") from failure
        except UnavailableNow:
            raise
        except KeyringUnavailable as problem:
            self._unavailable = problem
            raise


def read_entries(path: str | None) -> list[str]:
    """The users in our own list. A damaged list counts as empty, because every identity is listed elsewhere too."""
    import json

    try:
        return [user for user in list(json.loads(read_regular(path or ""))) if isinstance(user, str)]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def choose_keyring(environ: Mapping[str, str], platform: str, interactive: bool) -> Keyring:
    """The keyring set by PYTHON_KEYRING_BACKEND or keyringrc.cfg, or the platform's.

    A backend is loaded by name. The keyring library itself tries all backends, which takes longer than everything else
    a new token needs.
    """
    configured, search_path = configured_backend(keyring_config(environ, platform))
    name = environ.get("PYTHON_KEYRING_BACKEND") or configured or NATIVE_BACKENDS.get(platform, "")
    refuse_unsafe(name, name)
    if not name or name in SECRET_SERVICE_NAMES:
        return SecretStore(environ, interactive)
    backend = load_backend(name, search_path)
    if name == NATIVE_BACKENDS["darwin"]:
        return Keychain(backend, interactive)
    if platform != "win32":
        return StockKeyring(backend)
    if name == NATIVE_BACKENDS["win32"] and "KEYRING_PROPERTY_PERSIST" not in environ:
        # keyring's own choice would send the keys to every machine that a user of a domain signs in to.
        backend.persist = "local machine"  # type: ignore[attr-defined]
    return WindowsKeyring(backend)


def keyring_config(environ: Mapping[str, str], platform: str) -> str | None:
    """keyring's own configuration file (keyring.util.platform_.config_root, which takes 25 ms to import)."""
    if platform == "win32":
        root = environ.get("LOCALAPPDATA", environ.get("PROGRAMDATA"))
        return os.path.join(root, "Python Keyring", KEYRING_CONFIG) if root else None
    home = environ.get("HOME")
    root = environ.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else "")
    return os.path.abspath(os.path.join(root, "python_keyring", KEYRING_CONFIG)) if root else None


def configured_backend(path: str | None) -> tuple[str, str]:
    """`default-keyring` and `keyring-path` from keyring's own configuration file; each is empty if not set."""
    import configparser

    config = configparser.RawConfigParser()
    try:
        config.read(path or [], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise KeyringUnavailable(f"{path} is not a configuration file", UNREACHABLE_HINT) from error
    except OSError:  # not allowed to read the file
        return "", ""
    return (
        config.get("backend", "default-keyring", fallback="").strip(),
        config.get("backend", "keyring-path", fallback="").strip(),
    )


def refuse_unsafe(class_name: str, name: str) -> None:
    why = REFUSED_BACKENDS.get(class_name)
    if why is None and "plaintext" in class_name.rpartition(".")[2].lower():
        why = "it stores secrets in plain text"
    if why is not None:
        raise KeyringUnavailable(f"the keyring backend {name} is refused: {why}", UNREACHABLE_HINT)


def load_backend(name: str, search_path: str) -> KeyringBackend:
    """An instance of the backend class `name`. Third-party backends may be in `search_path`."""
    import importlib
    import logging

    from keyring.backend import KeyringBackend

    logging.getLogger("keyring").addHandler(logging.NullHandler())  # keep its warnings off our stderr
    if search_path and not name.startswith(KEYRING_BACKENDS):
        sys.path.append(os.path.expanduser(search_path))  # last, so that its modules do not replace the bundled ones
    module, _, attribute = name.rpartition(".")
    try:
        backend_class = getattr(importlib.import_module(module), attribute)
        for base in backend_class.__mro__:
            refuse_unsafe(f"{base.__module__}.{base.__qualname__}", name)
        if not issubclass(backend_class, KeyringBackend):
            raise TypeError("it is not a KeyringBackend")
        _ = backend_class.priority  # by keyring's rules this raises RuntimeError if the backend cannot work
        backend: KeyringBackend = backend_class()
    except Problem:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"the keyring backend {name} cannot be loaded: {reason}"
        raise KeyringUnavailable(message, UNREACHABLE_HINT) from error
    return backend


# The keyring library's backends


class StockKeyring:
    """A backend with the interface of the keyring library, which cannot list its users."""

    def __init__(self, backend: KeyringBackend, name: str = "") -> None:
        self.backend = backend
        self.name = name or f"{type(backend).__module__}.{type(backend).__qualname__}"

    def get(self, service: str, user: str) -> str | None:
        return self.attempt(lambda: self.backend.get_password(service, user))

    def set(self, service: str, user: str, value: str) -> None:
        self.attempt(lambda: self.backend.set_password(service, user, value))

    def delete(self, service: str, user: str) -> bool:
        from keyring.errors import PasswordDeleteError

        def deleted() -> bool:
            try:
                self.backend.delete_password(service, user)
            except PasswordDeleteError:  # backends raise it if there is none, but also for any failure
                if self.backend.get_password(service, user) is not None:
                    raise
                return False
            return True

        return self.attempt(deleted)

    def clear(self, service: str) -> None:
        pass

    def users(self, service: str) -> list[str] | None:
        return None

    def reach(self) -> None:
        pass

    def check(self, service: str) -> str:
        self.get(service, "doctor")
        return self.name

    def attempt(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except Exception as error:
            raise stock_problem(error, type(self.backend).__module__) from error


# OSStatus values of the Security framework (SecBase.h, MacErrors.h): what they mean for us, in words.
KEYCHAIN_STATUSES: dict[int, tuple[Callable[[str], Exception], str]] = {
    -25300: (KeyringFailure, "there is no such entry"),  # errSecItemNotFound
    -25308: (locked_keyring, "it cannot show its dialog here"),  # errSecInteractionNotAllowed
    -25293: (locked_keyring, "the password was wrong, or macOS does not let this Python read it"),  # errSecAuthFailed
    -128: (locked_keyring, "the dialog was cancelled"),  # userCanceledErr
    -25307: (no_keyring, "there is no default keychain"),  # errSecNoDefaultKeychain
    -25294: (no_keyring, "the keychain does not exist"),  # errSecNoSuchKeychain
    -25291: (no_keyring, "macOS offers no keychain here"),  # errSecNotAvailable
}
WINDOWS_NO_LOGON = 1312  # ERROR_NO_SUCH_LOGON_SESSION: there is no credential store over ssh or in a service


def stock_problem(error: Exception, module: str) -> Exception:
    """What an exception from the backend of this module means, in words.

    Only the text of backends we know is shown. A third party's may quote the secret.
    """
    from keyring.errors import InitError, KeyringError, KeyringLocked, NoKeyringError

    for each in (error, error.__cause__):
        if type(each).__module__ == "keyring.backends.macOS.api":
            status = each.args[0] if each and each.args else 0
            make, reason = KEYCHAIN_STATUSES.get(status, (KeyringFailure, f"the Keychain's status {status}"))
            return make(reason)
    words = str(error) if isinstance(error, KeyringError) else getattr(error, "strerror", None)
    known = module in ("keyring.backends.macOS", "keyring.backends.Windows")
    reason = " ".join(str(words).split()) if known and words else type(error).__name__
    if isinstance(error, KeyringLocked):
        return locked_keyring(reason)
    if isinstance(error, (InitError, NoKeyringError)) or getattr(error, "winerror", 0) == WINDOWS_NO_LOGON:
        return no_keyring(reason)
    return KeyringFailure(reason)


class Keychain(StockKeyring):
    """The macOS Keychain. A write that fails keeps the old value, and no dialog is shown if nobody is there.

    keyring deletes the old item before it adds the new one. SecItemUpdate does it in one step.
    """

    def __init__(self, backend: KeyringBackend, interactive: bool) -> None:
        import ctypes

        from keyring.backends.macOS import api

        super().__init__(backend, "the macOS Keychain")
        backend.keychain = None  # type: ignore[attr-defined]  # KEYCHAIN_PATH: keyring only warns about it, on stderr
        self.api: ModuleType = api
        self.api._sec.SecItemUpdate.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self.api._found.CFDataCreate.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_long)
        self.api._found.CFDataCreate.restype = ctypes.c_void_p
        if not interactive:
            self.api._sec.SecKeychainSetUserInteractionAllowed(ctypes.c_ubyte(0))

    def set(self, service: str, user: str, value: str) -> None:
        self.attempt(lambda: self.update(service, user, value.encode()))

    def update(self, service: str, user: str, secret: bytes) -> None:
        import ctypes

        api = self.api
        value = {"kSecValueData": ctypes.c_void_p(api._found.CFDataCreate(None, secret, len(secret)))}
        names = {"kSecAttrService": service, "kSecAttrAccount": user}
        item = {"kSecClass": api.k_("kSecClassGenericPassword"), **names}
        status = api._sec.SecItemUpdate(api.create_query(**item), api.create_query(**value))
        if status == api.error.item_not_found:
            status = api.SecItemAdd(api.create_query(**item, **value), None)
        api.Error.raise_for_status(status)


# CredWrite accepts up to CRED_MAX_CREDENTIAL_BLOB_SIZE = 5 * 512 bytes (CREDENTIALW, Microsoft Learn), and keyring's
# backend writes UTF-16 without a terminator, with up to four bytes for a character that is not ASCII.
WINDOWS_BYTES = 2560
PARTS_MARK = "eks-token-parts"  # how the first item of a split value starts
PARTS_GENERATIONS = ("a", "b")  # two, so that what an interrupted write left can be found by name


class WindowsKeyring(StockKeyring):
    """The Credential Manager, which ignores the case of names and takes only short values.

    A long value is split into numbered parts, and the user's own item, the head, says how many there are. A new value
    is written next to the old one, in another generation of parts, until the head names it.
    """

    def get(self, service: str, user: str) -> str | None:
        if service != VAULT_SERVICE:
            return self.of_go(service, user)
        for _ in range(3):  # a writer may switch generations after we read the head and before we read its parts
            head = self.read(service, user)
            if head is None or not head.startswith(PARTS_MARK):
                return head
            value = self.joined(service, user, head)
            if value is not None:
                return value
        raise damaged(user, "incomplete")

    def set(self, service: str, user: str, value: str) -> None:
        size = WINDOWS_BYTES // (2 if value.isascii() else 4)
        stale = set(PARTS_GENERATIONS)
        head = value
        if len(value) > size or value.startswith(PARTS_MARK):
            first, second = PARTS_GENERATIONS
            fresh = second if (self.read(service, user) or "").startswith(f"{PARTS_MARK} {first} ") else first
            stale -= {fresh}
            self.drop_parts(service, user, fresh)
            pieces = [value[start : start + size] for start in range(0, len(value), size)]
            for number, piece in enumerate(pieces, 1):
                self.write(service, part_of(user, fresh, number), piece)
            head = f"{PARTS_MARK} {fresh} {len(pieces)} {sha256(value)}"
        self.write(service, user, head)
        try:
            for generation in stale:
                self.drop_parts(service, user, generation)
        except (Problem, KeyringFailure):
            pass  # the new value is stored; the user's next write cleans up

    def delete(self, service: str, user: str) -> bool:
        found = super().delete(service, without_case(user))
        for generation in PARTS_GENERATIONS:
            self.drop_parts(service, user, generation)
        return found

    def of_go(self, service: str, user: str) -> str | None:
        """Go programs name the credential SERVICE:USER and write UTF-8 (zalando/go-keyring, keyring_windows.go).

        keyring decodes an even number of bytes as UTF-16, so ASCII text starts with a character beyond U+2000.
        """
        text = super().get(f"{service}:{user}", "")
        if text and text[0] >= "\u2000":
            try:
                return text.encode("utf-16-le", "surrogatepass").decode()
            except UnicodeDecodeError:
                pass
        return text

    def read(self, service: str, user: str) -> str | None:
        return super().get(service, without_case(user))

    def write(self, service: str, user: str, value: str) -> None:
        super().set(service, without_case(user), value)

    def joined(self, service: str, user: str, head: str) -> str | None:
        """The value whose head item is `head`, or None if some of its parts are missing."""
        try:
            generation, count, digest = head.removeprefix(PARTS_MARK).split()
            numbers = range(1, int(count) + 1)
        except ValueError:
            return None
        pieces = [self.read(service, part_of(user, generation, number)) for number in numbers]
        value = "".join(piece or "" for piece in pieces)
        return value if sha256(value) == digest else None

    def drop_parts(self, service: str, user: str, generation: str) -> None:
        """Remove a generation's parts, last one first, so that what an interruption leaves can still be counted."""
        count = 0
        while self.read(service, part_of(user, generation, count + 1)) is not None:
            count += 1
        for number in range(count, 0, -1):
            super().delete(service, without_case(part_of(user, generation, number)))


def without_case(user: str) -> str:
    """A name that `Dev` does not share with `dev`, although Windows ignores the case of names."""
    return "".join(f"%{ord(char):x};" if char != char.lower() or char == "%" else char for char in user)


def part_of(user: str, generation: str, number: int) -> str:
    return f"part:{generation}{number}:{user}"


# The Secret Service (freedesktop.org, "Secret Service API Draft" 0.2)

SECRETS_BUS = "org.freedesktop.secrets"
SECRETS_ROOT = "/org/freedesktop/secrets"
SECRETS_API = "org.freedesktop.Secret."
SECRET_METHODS = {  # the D-Bus types of what each takes and returns; (oayays) is a secret
    "Service.OpenSession": ("sv", "vo"),
    "Service.CreateCollection": ("a{sv}s", "oo"),
    "Service.ReadAlias": ("s", "o"),
    "Service.SearchItems": ("a{ss}", "aoao"),
    "Service.Unlock": ("ao", "aoo"),
    "Collection.CreateItem": ("a{sv}(oayays)b", "oo"),
    "Item.Delete": ("", "o"),
    "Item.GetSecret": ("o", "(oayays)"),
    "Item.SetSecret": ("(oayays)", ""),
    "Prompt.Prompt": ("s", ""),
    "Prompt.Dismiss": ("", ""),
}
SECRET_PROPERTIES = {
    "Service.Collections": "ao",
    "Collection.Label": "s",
    "Collection.Locked": "b",
    "Item.Attributes": "a{ss}",
    "Item.Locked": "b",
    "Item.Modified": "t",
}
NOTHING = "/"  # the path that means no collection, or no prompt
CLEARED_AT_ONCE = 50  # items
SECRET_SCHEMES = {  # KEYRING_PROPERTY_SCHEME: what the keyring library calls the attributes (SchemeSelectable)
    "default": ("service", "username"),
    "KeePassXC": ("Title", "UserName"),
}
SERVICE_NAMES = {  # the programs that are the Secret Service, by another name that they have on the bus
    "org.gnome.keyring": "GNOME Keyring",
    "org.kde.kwalletd6": "KWallet",
    "org.kde.kwalletd5": "KWallet",
    "org.kde.secretservicecompat": "KWallet",  # ksecretd, since KDE Frameworks 6.13
    "org.keepassxc.KeePassXC.MainWindow": "KeePassXC",
}
KEEPASSXC_FIELDS = ("Title", "UserName", "URL", "Notes", "Uuid", "Path")
KEEPASSXC_SETTINGS = "in KeePassXC's settings, Secret Service Integration, turn off"


def confirming_keyring(reason: str) -> KeyringUnavailable:
    hint = f'{KEEPASSXC_SETTINGS} "Confirm when passwords are retrieved by clients"'
    return KeyringUnavailable(f"KeePassXC is unlocked, but asks about each access: {reason}", hint)


def unchanged_keyring(reason: str) -> KeyringUnavailable:
    hint = f'allow it; or {KEEPASSXC_SETTINGS} "Confirm when clients request entry deletion"'
    return KeyringUnavailable(f"the keyring is unchanged: {reason}", hint)


class LockedMeanwhile(Exception):
    """The service returned an empty secret because it has been locked since the search."""


class Matches(NamedTuple):
    """The paths of items that match a query, in all collections."""

    unlocked: Sequence[str]
    locked: Sequence[str]


class SecretStore:
    """The Secret Service's items, which are found by their attributes. They are those of the keyring library too.

    What the services do differently was found by running them:

    - KWallet is closed after each login until a program unlocks it, usually without a dialog. A closed wallet returns
      empty secrets, and accepts changes without making them. So we unlock first, and look at the result of a change.
    - KeePassXC does not show the items of a locked database, and answers every change with a prompt that completes at
      once. It can ask a person about each access, each time for one connection only.
    - GNOME Keyring shows locked items, but not their attributes.
    """

    def __init__(self, environ: Mapping[str, str], interactive: bool) -> None:
        self.bus = SecretsBus(environ, interactive)
        # The name or path of the collection for new items; empty is the default one.
        self.preferred = environ.get("KEYRING_PROPERTY_PREFERRED_COLLECTION", "")
        self.application = environ.get("KEYRING_PROPERTY_APPID") or "Python keyring library"
        scheme = environ.get("KEYRING_PROPERTY_SCHEME") or "default"
        if scheme not in SECRET_SCHEMES:
            raise no_keyring(f"there is no scheme {scheme}, which KEYRING_PROPERTY_SCHEME names")
        self.service_key, self.user_key = SECRET_SCHEMES[scheme]

    def get(self, service: str, user: str) -> str | None:
        query = {self.service_key: service, self.user_key: user}
        value = self.bus.perform(lambda: self.read(query))
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            raise KeyringFailure("what is stored there is not text") from None

    def set(self, service: str, user: str, value: str) -> None:
        query = {self.service_key: service, self.user_key: user}
        label = f"Password for '{user}' on '{service}'"
        self.bus.perform(lambda: self.write(query, label, value.encode()))

    def delete(self, service: str, user: str) -> bool:
        return self.bus.perform(lambda: self.remove({self.service_key: service, self.user_key: user}))

    def clear(self, service: str) -> None:
        """Remove all items of a service, some with each question, because a question has a time limit.

        GNOME Keyring writes its whole file for each item that is removed, so more than this would only be slower.
        """

        def some() -> int:
            found = self.search_everywhere({self.service_key: service})
            self.unlock(found.locked)
            items = [*found.unlocked, *found.locked]
            self.delete_items(items[:CLEARED_AT_ONCE])
            return len(items)

        for _ in range(self.bus.perform(some) // CLEARED_AT_ONCE):
            self.bus.perform(some)

    def users(self, service: str) -> list[str]:
        def names() -> list[str]:
            found = self.search_everywhere({self.service_key: service})
            self.unlock([item for item in found.locked if self.user_key not in self.attributes(item)])
            return [self.attributes(item).get(self.user_key, "") for item in [*found.unlocked, *found.locked]]

        return sorted({*self.bus.perform(names)} - {""})

    def reach(self) -> None:
        self.bus.perform(self.bus.collections)

    def check(self, service: str) -> str:
        def name() -> str:
            found = self.search({self.service_key: service})
            if not found.unlocked:
                self.unlock(found.locked)
            return self.bus.service_name()

        return self.bus.perform(name)

    # One operation each

    def read(self, query: dict[str, str]) -> bytes | None:
        """The secret of the item that matches, or None if there is none. Locked duplicates are left alone."""
        found = self.search_everywhere(query)
        if not found.unlocked:
            self.unlock(found.locked)
        items = self.newest_first(found.unlocked or found.locked)
        if not items:
            return None
        ((_, _, value, _),) = self.bus.call(items[0], "Item.GetSecret", self.bus.session)
        if not value and self.bus.get(items[0], "Item.Locked"):
            raise LockedMeanwhile
        return bytes(value)

    def write(self, query: dict[str, str], label: str, value: bytes) -> None:
        """Update the item that matches, wherever it is, or make one. One is left, with all attributes that it had."""
        secret = (self.bus.session, b"", value, "text/plain")
        # Without `application`, the keyring library would not find the item. It would make a second one, but read the
        # first.
        more = {"application": self.application}
        found = self.search(query) if self.bus.collections() else Matches((), ())
        if not any(found):
            return self.create_item(label, query | more, secret)
        self.unlock(found.locked)
        item, *duplicates = self.newest_first([*found.unlocked, *found.locked])
        self.bus.call(item, "Item.SetSecret", secret)
        self.add_attributes(item, more)
        self.delete_items(duplicates)

    def remove(self, query: dict[str, str]) -> bool:
        """Remove all items that match. Returns False if there were none."""
        found = self.search_everywhere(query)
        self.unlock(found.locked)
        self.delete_items([*found.unlocked, *found.locked])
        return any(found)

    # Items and collections

    def search(self, query: dict[str, str]) -> Matches:
        """The matching items. If none can be seen, the collection for new items is unlocked, which may have them."""
        collections = self.bus.collections()
        if not collections:
            raise no_keyring(
                "the keyring service has no open collection",
                "open one (in KeePassXC: unlock the database), then try again",
            )
        # Even a search makes KeePassXC ask for a password if all databases are locked, and nothing can dismiss that.
        all_locked = all(map(self.is_locked, collections))
        found = Matches((), ()) if all_locked else self.matches(query)
        if any(found):
            return found
        home = self.home(collections)
        if home in collections and self.is_locked(home):
            self.unlock([home])
        elif all_locked:
            self.unlock(collections)
        else:
            return found
        return self.matches(query)

    def matches(self, query: dict[str, str]) -> Matches:
        return Matches(*self.bus.call(SECRETS_ROOT, "Service.SearchItems", query))

    def search_everywhere(self, query: dict[str, str]) -> Matches:
        """Like `search`, but if nothing is found, a collection that may hide it is an error."""
        found = self.search(query)
        if not any(found):
            closed = [path for path in self.bus.collections() if self.is_locked(path)]
            if closed and self.bus.service_name() == "KeePassXC":
                names = listed(map(self.label, closed))
                message = f"the keyring shows no such entry, but {names} is locked and may have it"
                raise UnavailableNow(message, f"unlock {names} in KeePassXC, or close it")
        return found

    def newest_first(self, items: Sequence[str]) -> list[str]:
        """Last modified first, because that is where an unfinished update wrote."""
        if len(items) < 2:
            return list(items)
        return sorted(items, key=lambda item: -int(self.bus.get(item, "Item.Modified")))

    def home(self, collections: Sequence[str]) -> str:
        """The collection for new items: the preferred one, the default one, or NOTHING."""
        if not self.preferred:
            (path,) = self.bus.call(SECRETS_ROOT, "Service.ReadAlias", "default")
            return str(path)
        labels = {path: self.label(path) for path in collections}
        for path, label in labels.items():
            if self.preferred in (path, label, path.rpartition("/")[2]):
                return path
        raise no_keyring(
            f"there is no collection {self.preferred}, which KEYRING_PROPERTY_PREFERRED_COLLECTION names",
            f"there are: {listed(labels.values()) or 'none'}",
        )

    def label(self, collection: str) -> str:
        return str(self.bus.get(collection, "Collection.Label")) or collection

    def is_locked(self, collection: str) -> bool:
        return bool(self.bus.get(collection, "Collection.Locked"))

    def attributes(self, item: str) -> dict[str, str]:
        return dict(self.bus.get(item, "Item.Attributes"))

    def add_attributes(self, item: str, more: dict[str, str]) -> None:
        """Add those that the item does not have yet. If the service refuses, the item is still ours to find."""
        from jeepney import DBusErrorResponse

        old = self.attributes(item)
        if more.items() <= old.items():
            return
        # Setting replaces the attributes. KeePassXC keeps the fields of the entry, and refuses to have them set.
        for kept in (old, {name: old[name] for name in old if name not in KEEPASSXC_FIELDS}):
            try:
                self.bus.set(item, "Item.Attributes", kept | more)
            except DBusErrorResponse as error:
                debug(f"the keyring service does not change an item's attributes: {error.name}")
            else:
                return

    def create_item(self, label: str, attributes: dict[str, str], secret: tuple[str, bytes, bytes, str]) -> None:
        collection = self.home(self.bus.collections())
        if collection == NOTHING:
            of_new = {SECRETS_API + "Collection.Label": ("s", "Default")}
            collection, prompt = self.bus.call(SECRETS_ROOT, "Service.CreateCollection", of_new, "default")
            self.bus.prompt(prompt, "create a keyring", no_keyring)
            collection = self.home(self.bus.collections()) if collection == NOTHING else collection
        if self.is_locked(collection):
            self.unlock([collection])
        properties = {
            SECRETS_API + "Item.Label": ("s", label),
            SECRETS_API + "Item.Attributes": ("a{ss}", attributes),
        }
        _, prompt = self.bus.call(collection, "Collection.CreateItem", properties, secret, True)
        self.bus.prompt(prompt, "store an entry", unchanged_keyring)

    def delete_items(self, items: Sequence[str]) -> None:
        for item in items:
            (prompt,) = self.bus.call(item, "Item.Delete")
            self.bus.prompt(prompt, "remove an entry", unchanged_keyring)

    def unlock(self, paths: Sequence[str]) -> None:
        """Unlock collections, or items with their collections."""
        if not paths:
            return
        # KWallet unlocks a collection, KeePassXC also each item.
        collections = dict.fromkeys("/".join(path.split("/")[:6]) for path in paths)
        purpose, refusal = "unlock it", locked_keyring
        if not any(map(self.is_locked, collections)):
            purpose, refusal = "let this program read an entry", confirming_keyring
        _, prompt = self.bus.call(SECRETS_ROOT, "Service.Unlock", [*collections, *paths])
        self.bus.prompt(prompt, purpose, refusal)


BUS_SECONDS = 10.0  # for one keyring operation, not counting the time a person takes to answer
PROMPT_SECONDS = 60.0  # for a person to answer the keyring's dialog
UNATTENDED_PROMPT_SECONDS = 2.0  # for a prompt that completes without a person
RESTART_SECONDS = 3.0  # for a keyring service that restarts while we use it
DBUS = "org.freedesktop.DBus"
GONE_ERRORS = tuple(
    f"{DBUS}.Error.{name}"
    for name in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Timeout", "TimedOut", "Disconnected")
)
VANISHED_ERRORS = (SECRETS_API + "Error.NoSuchObject", DBUS + ".Error.UnknownObject")
SECRETS_LOCKED = SECRETS_API + "Error.IsLocked"
# What a service says that has been locked, or restarted, since the last call.
AGAIN_ERRORS = (SECRETS_LOCKED, SECRETS_API + "Error.NoSession", *VANISHED_ERRORS, *GONE_ERRORS)


class SecretsBus:
    """A connection to the Secret Service on the session bus.

    The first operation opens it, and the others reuse it. Secrets travel over the user's own bus in a session with the
    algorithm `plain`. `perform` raises KeyringUnavailable or KeyringFailure. The methods that an operation calls may
    also raise OSError and jeepney's DBusErrorResponse, for `perform` to turn into these.
    """

    def __init__(self, environ: Mapping[str, str], interactive: bool) -> None:
        self.environ = environ
        self.may_show = not is_ahead(environ)
        self.can_prompt = interactive and bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))
        self.connection: Jeepney = None
        self.session = ""  # the path of the Secret Service's session, which secrets are sent with
        self.deadline = 0.0

    def perform(self, operation: Callable[[], T]) -> T:
        """Run one operation within BUS_SECONDS. It runs again if the service locked or restarted meanwhile."""
        from jeepney import DBusErrorResponse

        self.deadline = time.monotonic() + BUS_SECONDS
        try:
            self.connect()
            try:
                return operation()
            except (LockedMeanwhile, DBusErrorResponse) as error:
                if isinstance(error, DBusErrorResponse) and error.name not in AGAIN_ERRORS:
                    raise
            self.introduce(wait=True)
            return operation()
        except BaseException as error:
            self.close()  # whatever state it is in: the next operation connects again
            problem = bus_problem(error)
            if problem is None:
                raise
            raise problem from error

    def connect(self) -> None:
        if self.connection is not None:
            return
        from jeepney.auth import AuthenticationError
        from jeepney.io.blocking import DBusConnection, prep_socket

        bus, no_dbus = self, no_keyring("the session bus sent something that is not a D-Bus message")

        class Connection(DBusConnection):  # type: ignore[misc]
            """Every wait ends when the operation's time is up. jeepney's own first call, Hello, would wait forever."""

            def receive(self, *, timeout: float | None = None) -> Jeepney:
                try:
                    return super().receive(timeout=bus.seconds_left())
                except OSError:  # among these is TimeoutError
                    raise
                except Exception as error:  # jeepney's parser raises whatever the bytes lead to
                    raise no_dbus from error

        reason: object = ""
        for address in session_bus_addresses(self.environ):
            try:
                socket = prep_socket(address, timeout=self.seconds_left())
            except TimeoutError:
                raise
            except AuthenticationError:
                reason = "it refused the authentication"
            except OSError as error:
                reason = error.strerror or error
            else:
                socket.settimeout(BUS_SECONDS)  # for sending; a selector waits for replies
                try:
                    self.connection = Connection(socket)
                except IndexError as error:  # jeepney takes the bus's first answer to have a value
                    raise no_dbus from error
                return self.introduce()
        if not reason:
            raise no_keyring("no session bus (DBUS_SESSION_BUS_ADDRESS is not set)")
        raise no_keyring(f"the session bus cannot be reached ({reason})")

    def introduce(self, wait: bool = False) -> None:
        """Register this connection with the service and open a session; `wait` for a service that restarts.

        GNOME Keyring registers a new client in an idle handler. It aborts if its main loop gets to the client's
        first message before that (basecamp/hey-cli 352; measured: two processes at once are enough). So our first
        message is one that the main loop answers without looking up the client.

        If a message's path has an alias, GNOME Keyring looks it up in another thread, and under load it reads freed
        memory there (measured: an existing item was not found). So we resolve the alias and use real paths.
        """
        from jeepney import DBusErrorResponse

        waits_until = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                self.collections()
                _, self.session = self.call(SECRETS_ROOT, "Service.OpenSession", "plain", ("s", ""))
            except DBusErrorResponse as error:
                if not wait or error.name not in AGAIN_ERRORS or time.monotonic() > waits_until:
                    raise
                time.sleep(0.05)
            else:
                return

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def collections(self) -> list[str]:
        return list(self.get(SECRETS_ROOT, "Service.Collections"))

    def service_name(self) -> str:
        """The name of the program that is the Secret Service."""
        from jeepney import DBusErrorResponse, message_bus

        owners = {}
        for name in (SECRETS_BUS, *SERVICE_NAMES):
            try:
                (owners[name],) = self.send(message_bus.GetNameOwner(name), "s")
            except DBusErrorResponse:
                pass
        owner = owners.pop(SECRETS_BUS, "")
        return next((SERVICE_NAMES[name] for name in owners if owners[name] == owner), "the Secret Service")

    def prompt(self, path: str, purpose: str, refusal: Callable[[str], KeyringUnavailable]) -> None:
        """Let the service do what it wants to ask a person about, and wait for the answer.

        Many prompts complete without a person, so they are called even if nobody can be asked. One that stays
        unanswered is dismissed, so that no dialog is left behind.
        """
        if path == NOTHING:
            return
        unattended = refusal(f"nobody can be asked to {purpose}")
        if not self.may_show:
            raise unattended
        from jeepney import DBusErrorResponse, MatchRule, message_bus

        seconds = PROMPT_SECONDS if self.can_prompt else UNATTENDED_PROMPT_SECONDS
        completed = MatchRule(type="signal", path=path, interface=SECRETS_API + "Prompt", member="Completed")
        # GNOME Keyring sends the signal only to the caller, other services to everyone who listens.
        self.send(message_bus.AddMatch(completed), "")
        with self.connection.filter(completed) as signals:
            try:
                self.call(path, "Prompt.Prompt", "")
                self.deadline = time.monotonic() + seconds
                try:
                    signal = self.connection.recv_until_filtered(signals)
                except TimeoutError:
                    reason = f"nobody answered the request to {purpose} within {seconds:.0f} s"
                    raise (refusal(reason) if self.can_prompt else unattended) from None
                dismissed, _ = checked(signal, "bv", "Completed")
            except BaseException:  # also Ctrl-C
                self.deadline = time.monotonic() + UNATTENDED_PROMPT_SECONDS
                try:
                    self.call(path, "Prompt.Dismiss")
                except (OSError, DBusErrorResponse, Problem, KeyringFailure):
                    pass
                raise
        self.deadline = time.monotonic() + BUS_SECONDS
        if dismissed:
            reason = f"the request to {purpose} was dismissed or could not be shown"
            raise refusal(reason) if self.can_prompt else unattended

    def seconds_left(self) -> float:
        return max(self.deadline - time.monotonic(), 0.001)

    def call(self, path: str, member: str, *arguments: object) -> Jeepney:
        """The values that a method of the Secret Service returns."""
        from jeepney import new_method_call

        takes, returns = SECRET_METHODS[member]
        method = member.partition(".")[2]
        return self.send(new_method_call(address(path, member), method, takes or None, arguments), returns)

    def get(self, path: str, name: str) -> Jeepney:
        """A property's value."""
        from jeepney import Properties

        ((signature, value),) = self.send(Properties(address(path, name)).get(name.partition(".")[2]), "v")
        if signature != SECRET_PROPERTIES[name]:
            raise KeyringFailure(f"the keyring service gave {name} as something else")
        return value

    def set(self, path: str, name: str, value: object) -> None:
        from jeepney import Properties

        properties = Properties(address(path, name))
        self.send(properties.set(name.partition(".")[2], SECRET_PROPERTIES[name], value), "")

    def send(self, message: Jeepney, returns: str) -> Jeepney:
        """The values of the reply, which have the D-Bus types `returns`."""
        from jeepney import HeaderFields

        reply = self.connection.send_and_get_reply(message)
        return checked(reply, returns, message.header.fields[HeaderFields.member])


def address(path: str, member: str) -> object:
    """jeepney's address of an object and its interface, for a member such as `Item.Delete`."""
    from jeepney import DBusAddress

    return DBusAddress(path, SECRETS_BUS, SECRETS_API + member.partition(".")[0])


def checked(message: Jeepney, signature: str, member: str) -> Jeepney:
    """The values of a message, which must have these D-Bus types. Raises DBusErrorResponse if it is an error."""
    from jeepney import HeaderFields
    from jeepney.wrappers import unwrap_msg

    values = unwrap_msg(message)
    if message.header.fields.get(HeaderFields.signature, "") != signature:
        raise KeyringFailure(f"the keyring service answered {member} with something else")
    return values


def bus_problem(error: BaseException) -> Exception | None:
    """What a failure of the bus or the service means, or None for any other error.

    The text of a D-Bus error is left out, because it may quote anything.
    """
    from jeepney import DBusErrorResponse

    if isinstance(error, TimeoutError):
        return no_keyring(f"the session bus or its keyring service did not answer within {BUS_SECONDS:.0f} s")
    if isinstance(error, OSError):
        return no_keyring(f"the connection to the session bus failed ({error.strerror or error})")
    name = str(error.name or "an error without a name") if isinstance(error, DBusErrorResponse) else ""
    if isinstance(error, LockedMeanwhile) or name == SECRETS_LOCKED:
        return locked_keyring("the service did not unlock it")
    if not name:
        return None
    if name in GONE_ERRORS or name.startswith(DBUS + ".Error.Spawn."):
        return UnavailableNow(f"no keyring: no service ({SECRETS_BUS}) is running on the session bus", UNREACHABLE_HINT)
    if name in VANISHED_ERRORS:
        return KeyringFailure("an entry or collection vanished meanwhile")
    if name == DBUS + ".Error.LimitsExceeded":
        return no_keyring("the session bus does not accept more connections")
    return KeyringFailure(f"the keyring service reported {name.removeprefix(DBUS + '.Error.')[:100]}")


def session_bus_addresses(environ: Mapping[str, str]) -> list[bytes]:
    """Addresses of Unix sockets where the session bus may listen, in the order to try them.

    They come from DBUS_SESSION_BUS_ADDRESS ("D-Bus Specification", Server Addresses: percent-encoded bytes, with `;`
    between alternatives, of which jeepney only uses the first). If it is not set, this is the well-known path of
    systemd's user bus.
    """
    from urllib.parse import unquote_to_bytes

    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    wanted = environ.get("DBUS_SESSION_BUS_ADDRESS")
    if not wanted:
        paths = dict.fromkeys([f"{runtime}/bus", f"/run/user/{os.getuid()}/bus"])
        return [os.fsencode(path) for path in paths if os.path.exists(path)]
    addresses = []
    for address in wanted.split(";"):
        transport, _, settings = address.partition(":")
        keys = dict(setting.partition("=")[::2] for setting in settings.split(","))
        if transport != "unix":
            continue
        if "path" in keys:
            addresses.append(unquote_to_bytes(keys["path"]))
        elif "abstract" in keys:
            addresses.append(b"\0" + unquote_to_bytes(keys["abstract"]))
        elif keys.get("runtime") == "yes":
            addresses.append(os.fsencode(f"{runtime}/bus"))
    if not addresses:
        raise no_keyring("DBUS_SESSION_BUS_ADDRESS is not the address of a Unix socket")
    return addresses


# -- 4. identities ----------------------------------------------------------------------------------------------------
#
# A stored identity is a set of AWS shared-config keys. The secret ones are in the vault, the others in identities.json.
# Stored identities are laid over the profiles of the AWS config file, so either can name the other as source_profile.
# This section reads files and the vault. It asks neither AWS nor a person.

# The keys that tell botocore's providers where to get credentials. An identity with none of them is keys in the vault.
RESOLVED_KEYS = {
    *("credential_process", "credential_source", "login_session", "mfa_serial", "role_arn", "source_profile"),
    *("sso_account_id", "sso_session", "sso_start_url", "web_identity_token_file"),
}
SECRET_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
STS_KEYS = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")  # the same, in an answer of STS
# What tools that write temporary keys to a credentials file call the time when these expire: saml2aws, yawsso,
# clisso and others, aws-mfa.
EXPIRY_MARKS = ("x_security_token_expires", "aws_session_expiration", "aws_expiration", "expiration")
# The keys of a profile that say where its credentials come from. A stored identity of the same name replaces these.
SOURCE_KEYS = (RESOLVED_KEYS - {"mfa_serial"}) | {
    *(*SECRET_KEYS, *EXPIRY_MARKS, "aws_security_token"),
    *("external_id", "role_session_name", "sso_region", "sso_role_name"),
}


class Keys(NamedTuple):
    access_key: str
    secret_key: str
    token: str | None
    expires: float | None  # seconds since the epoch

    def expired(self) -> str:
        """When temporary keys expired; "" if they can be used."""
        return "" if self.expires is None or self.expires > time.time() else rfc3339(self.expires)


class Credentials(Keys):
    """The names are botocore's, so its signer accepts one. No message shows a secret that was once in one."""

    def __new__(cls, access_key: str, secret_key: str, token: str | None, expires: float | None) -> Credentials:
        keep_secret(secret_key)
        keep_secret(token)
        return super().__new__(cls, access_key, secret_key, token, expires)


def parse_keys(fields: Mapping[str, object], names: Sequence[str]) -> Credentials:
    """Keys that another program, or an earlier run, has put in JSON. The names are those of the four `Keys`.

    Raises ValueError, which says what is wrong and shows none of it. The last two may be missing.
    """
    texts = []
    for name in names:
        value = fields.get(name)
        if not value and name in names[:2]:
            raise ValueError(f"lacks {name}")
        if value is not None and not isinstance(value, str):
            raise ValueError(f"has a wrong {name}: it is not text")
        texts.append(value or "")
    key, secret, token, end = texts
    if fields.get(names[3]) is not None and not is_moment(end):
        raise ValueError(f"has a wrong {names[3]}: it is not an ISO 8601 time with a time zone")
    return Credentials(key, secret, token or None, parse_time(end) if end else None)


def keys_left(keys: Credentials | None) -> float:
    """The seconds until temporary keys expire, or 0 if there are none."""
    return keys.expires - time.time() if keys and keys.expires is not None else 0


class Stored(NamedTuple):
    """identities.json: AWS shared-config keys by identity, and which one is the default."""

    default: str
    identities: Mapping[str, Profile]
    pending: tuple[str, ...] = ()  # new names whose keys are being stored, or whose login was cut short there

    def only(self) -> str:
        """The identity to use if none is named: the default, or the only one, or ""."""
        return self.default or (next(iter(self.identities)) if len(self.identities) == 1 else "")


class Choice(NamedTuple):
    """Which identity a request is for, and where its credentials may come from."""

    profile: str  # "" for botocore's own default
    named: bool  # so it must exist
    environment: bool  # environment variables may hold its credentials
    fallback: str = ""  # the stored identity to use if botocore finds nothing
    undecided: tuple[str, ...] = ()  # the stored identities, if there are several and none was chosen


class Portal(NamedTuple):
    """Where people sign in to AWS SSO. Two sso-sessions at one start URL are two sign-ins, as for the AWS CLI."""

    start_url: str
    region: str
    session: str = ""  # the name of the sso-session, if there is one


def identities_path(environ: Mapping[str, str], platform: str) -> str | None:
    home = data_home(environ, platform)
    return os.path.join(home, "identities.json") if home else None


def read_identities(path: str | None) -> Stored:
    """What is stored, which is nothing if there is no file. Raises Problem if the file cannot be read.

    Other users must not have written it, because an identity can name a command to run (credential_process).
    """
    import json

    if path is None:
        return Stored("", {})
    try:
        os.lstat(path)
        check_others(path)
        content = json.loads(read_regular(path))
        identities = {str(name): dict(keys) for name, keys in content["identities"].items()}
        if all(isinstance(value, str) for keys in identities.values() for value in keys.values()):
            default = content.get("default", "")
            pending = tuple(map(str, content.get("pending", ())))
            return Stored(default if default in identities else "", identities, pending)
    except FileNotFoundError:
        return Stored("", {})
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise Problem(
        f"{path} is damaged", f"move it away and sign in again with `{PROGRAM} login NAME`; the keyring keeps the keys"
    )


def check_others(path: str) -> None:
    """Raise Problem if another user, except root, can change a file of ours, or could have written it."""
    if os.name != "posix":
        return
    try:
        check_above(path)
    except Refused as refused:
        hint = "run this as that user, or with your own HOME"
        if os.geteuid():
            hint = "set XDG_DATA_HOME to a directory that only you can write to, and move what is stored there"
        raise Problem(f"{refused}, so {path} is not used", hint) from None
    for one in (os.path.dirname(path), path):
        if os.path.exists(one) and os.stat(one).st_mode & 0o022:
            raise Problem(f"others can write to {one}, so it is not used", f"chmod go-w {shell_word(one)}")


def check_place(path: str | None) -> str:
    """The path, if identities can be stored there. Raises Problem if not.

    Root stores nothing in another user's home (sudo may keep HOME). That user could neither use nor remove what root
    would leave there, such as a new ~/.local.
    """
    if path is None:
        raise Problem("HOME is not an absolute path, so identities cannot be stored")
    check_others(os.path.abspath(path))
    return path


def write_identities(path: str | None, stored: Stored) -> None:
    import json

    path = check_place(path)
    content: dict[str, object] = {"version": 1, "default": stored.default, "identities": stored.identities}
    if stored.pending:
        content["pending"] = stored.pending
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        write_file(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror}") from error


# Atmos's words for "no identity, but the AWS environment's own credentials" (cloudposse/atmos, pkg/auth).
NO_IDENTITY = ("false", "0", "no", "off")


def choose_identity(request: Request, environ: Mapping[str, str], stored: Stored) -> Choice:
    """Whose token the request is for: in the order of the grammar's own program, and then among stored identities.

    Raises Problem if that cannot be decided.
    """
    drop_in = request.grammar in ("aws", "aws-iam-authenticator")
    name = request.identity or ("" if drop_in else environ.get("ATMOS_IDENTITY", ""))
    if name.lower() in NO_IDENTITY and not drop_in:
        name, stored = "", Stored("", {})
    if name:
        return Choice(name, named=True, environment=False)
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(key) != bool(secret):
        there, missing = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
        if secret:
            there, missing = missing, there
        raise Problem(f"{there} is set, but {missing} is not", "set both or neither")
    profile = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or ""
    if key or profile:
        return Choice(profile, named=bool(profile), environment=True)
    undecided = () if stored.only() else tuple(sorted(stored.identities))
    if drop_in:
        return Choice("", named=False, environment=True, fallback=stored.only(), undecided=undecided)
    if undecided:
        raise no_choice(undecided)
    return Choice(stored.only(), named=bool(stored.only()), environment=not stored.only())


def no_choice(names: Sequence[str]) -> Problem:
    return Problem(
        f"which identity? These are stored: {listed(names)}",
        f"pass one with --identity, or set a default: {PROGRAM} login NAME --default",
    )


def has_keys(profile: Profile) -> bool:
    return "aws_access_key_id" in profile or "aws_secret_access_key" in profile


def check_sources(profile: str, profiles: Mapping[str, Profile]) -> None:
    """Raise Problem if source_profile leads round in a loop. A profile with keys may name itself."""
    trail = [profile]
    while source := profiles.get(trail[-1], {}).get("source_profile"):
        if "role_arn" not in profiles[trail[-1]]:
            return
        if has_keys(profiles.get(source, {})):
            return
        trail.append(source)
        if source in trail[:-1]:
            raise Problem(f"these profiles form a loop by their source_profile: {' -> '.join(trail)}")


# Our own keys, among AWS's, in a profile:
MFA_SOURCE = "eks_token_mfa_source"  # of an MFA session: the identity whose keys open it
KEY_ENDING = "eks_token_key_ending"  # the last four characters of the access key ID
KEYS_END = "eks_token_keys_end"  # when temporary keys expire
REVISION = "eks_token_revision"  # changes with every login


class AwsFiles(NamedTuple):
    """What the AWS config and credentials files say, without the parts that matter to services we do not call."""

    profiles: Mapping[str, Profile]
    sso_sessions: Mapping[str, Profile]
    services: Mapping[str, object]


def aws_files_in(config: Mapping[str, Mapping[str, Mapping[str, object]]]) -> AwsFiles:
    """The same in botocore's form, where a setting can be nested, as those of S3 are."""

    def texts(sections: Mapping[str, Mapping[str, object]]) -> dict[str, Profile]:
        return {
            name: {key: value for key, value in section.items() if isinstance(value, str)}
            for name, section in sections.items()
        }

    return AwsFiles(texts(config["profiles"]), texts(config.get("sso_sessions", {})), config.get("services", {}))


def lay_over(files: AwsFiles, stored: Stored, foreign: Mapping[str, AtmosEntry]) -> AwsFiles:
    """The AWS files with the identities among their profiles, and with two changes to all of these.

    A stored identity keeps the other settings of a profile of its name, such as its region and endpoints.
    An SSO start URL without an sso_session gets one, because botocore only refreshes the tokens of sessions. If a role
    has an mfa_serial and its source is an identity with keys, an MFA session of that identity becomes the source. All
    roles with the same device share it.
    """
    profiles = {**files.profiles, **{name: entry.profile() for name, entry in foreign.items()}}
    for name, record in stored.identities.items():
        profiles[name] = {**kept_settings(profiles.get(name, {})), **record}
    sso_sessions = dict(files.sso_sessions)
    for name, keys in list(profiles.items()):
        if "sso_session" not in keys and (portal := portal_of(keys)):
            session = unnamed_session(portal)
            sso_sessions[session] = {"sso_start_url": portal.start_url, "sso_region": portal.region}
            profiles[name] = {**keys, "sso_session": session}
        source = keys.get("source_profile", "")
        if "role_arn" in keys and "mfa_serial" in keys and may_have_mfa_session(source, profiles, stored, foreign):
            session = f"{source} with {keys['mfa_serial']}"
            of_source = profiles[source]
            if not has_keys(of_source) and of_source.get("mfa_serial") == keys["mfa_serial"]:
                session = source
            else:
                details = {MFA_SOURCE: source, "mfa_serial": keys["mfa_serial"]}
                profiles[session] = {**details, **{key: of_source[key] for key in (REVISION,) if key in of_source}}
            others = {key: value for key, value in keys.items() if key != "mfa_serial"}
            profiles[name] = {**others, "source_profile": session}
    return files._replace(profiles=profiles, sso_sessions=sso_sessions)


ROLE_KEYS = ("role_arn", "external_id", "role_session_name")
SDK_FOR_GO_TAKES_ONE = ("source_profile", "credential_source", "web_identity_token_file", "credential_process")


def as_go_reads(
    profiles: Mapping[str, Profile], name: str, stored: Iterable[str], environ: Mapping[str, str]
) -> dict[str, Profile]:
    """The profiles, changed so that botocore finds for `name` what the AWS SDK for Go would find.

    The SDK for Go (config/resolve_credentials.go and shared_config.go) has a fixed order for what a profile contains:
    source_profile, keys, credential_source, web identity, SSO, process. It assumes the profile's role on top of any of
    these. So one of them is left in each profile that leads to the credentials. It gets a profile of its own if
    botocore would not assume the role on top. Raises Problem for what the SDK refuses.
    """
    found, trail = dict(profiles), [""]
    while name in profiles and name not in stored:
        keys = profiles[name]
        base = go_source(name, keys)
        own_keys = len(trail) > 1 and SECRET_KEYS[0] in base  # a source's own keys come before its source_profile
        several = [key for key in SDK_FOR_GO_TAKES_ONE if keys.get(key)]
        if "role_arn" not in keys and several and several != ["credential_process"]:
            raise Problem(f"{name}: {several[0]} requires role_arn")
        if len(several) > 1 and not own_keys:
            raise Problem(f"{name}: a profile can have only one of {' and '.join(several)}")
        trail.append(name)
        settings = {**kept_settings(keys), **{key: keys[key] for key in ROLE_KEYS if key in keys}}
        source = "" if own_keys else keys.get("source_profile", "")
        if source in trail[1:]:  # a loop: its role is assumed with what the source has besides a role
            base = go_source(source, profiles[source])
        if source and (source not in trail or not base):
            found[name] = {**settings, "source_profile": source}
            if source in trail:
                return found
            name = source
            continue
        if not base and len(trail) > 2:
            raise Problem(f"{trail[-2]}: its source_profile {name} has no credentials")
        if not base and "role_arn" in keys:
            in_container = any(environ.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("FULL", "RELATIVE"))
            base = {"credential_source": "EcsContainer" if in_container else "Ec2InstanceMetadata"}
        if "role_arn" not in keys or {"credential_source", "web_identity_token_file"} & base.keys():
            found[name] = {**settings, **base}
        else:
            without = f"{name}, without its role"
            found |= {name: {**settings, "source_profile": without}, without: base}
        return found
    return found


def go_source(name: str, keys: Profile) -> dict[str, str]:
    """What the AWS SDK for Go gets credentials from, of all that a profile contains but a source_profile."""
    secrets = {key: keys[key] for key in SECRET_KEYS if keys.get(key)}
    if set(SECRET_KEYS[:2]) <= secrets.keys():
        return {**secrets, **{key: keys[key] for key in EXPIRY_MARKS if key in keys}}
    if set(SECRET_KEYS[:2]) & secrets.keys():
        raise Problem(f"{name}: a profile needs both aws_access_key_id and aws_secret_access_key")
    for kind in ("credential_source", "web_identity_token_file"):
        if keys.get(kind):
            return {kind: keys[kind]}
    if sso := {key: value for key, value in keys.items() if key.startswith("sso_")}:
        return sso
    # aws-iam-authenticator 0.7 does not know login_session yet
    return {key: keys[key] for key in ("credential_process", "login_session") if keys.get(key)}


def kept_settings(profile: Profile) -> dict[str, str]:
    """The settings of a profile that stay in force if an identity is stored under its name."""
    return {key: value for key, value in profile.items() if key not in SOURCE_KEYS}


def may_have_mfa_session(
    name: str, profiles: Mapping[str, Profile], stored: Stored, foreign: Mapping[str, AtmosEntry]
) -> bool:
    """Whether this source can call sts:GetSessionToken: it has long-term keys and is not a role."""
    keys = profiles.get(name, {})
    if name in stored.identities or name in foreign:
        return not (RESOLVED_KEYS - {"mfa_serial"}) & keys.keys()
    return {"aws_access_key_id", "aws_secret_access_key"} <= keys.keys() and "aws_session_token" not in keys


def sources(profiles: Mapping[str, Profile], name: str) -> list[str]:
    """An identity, its source, the source's own source, and so on."""
    trail: list[str] = []
    while name and name not in trail:
        trail.append(name)
        keys = profiles.get(name, {})
        name = keys.get("source_profile") or keys.get(MFA_SOURCE) or ""
    return trail


def portal_of(keys: Profile, session: str = "") -> Portal | None:
    """The portal of an sso-session, or of a profile without one. None if it is not named in full."""
    if not {"sso_start_url", "sso_region"} <= keys.keys():
        return None
    portal = Portal(keys["sso_start_url"], keys["sso_region"])
    return portal if session == unnamed_session(portal) else portal._replace(session=session)


def unnamed_session(portal: Portal) -> str:
    """The name of the sso-session that a start URL without one gets."""
    return f"{PROGRAM} {portal.start_url} {portal.region}"


def own_portal(files: AwsFiles, name: str) -> Portal | None:
    """Where an identity itself signs in."""
    session = files.profiles.get(name, {}).get("sso_session", "")
    return portal_of(files.sso_sessions.get(session, {}), session)


def sso_portal(files: AwsFiles, name: str) -> Portal | None:
    """Where an identity, or the nearest of its sources, signs in."""
    portals = (own_portal(files, source) for source in sources(files.profiles, name))
    return next(filter(None, portals), None)


def kind_of(keys: Profile) -> str:
    if "web_identity_token_file" in keys:
        return "web identity"
    if "role_arn" in keys:
        return "role with MFA" if "mfa_serial" in keys else "role"
    if {"sso_session", "sso_start_url", "sso_account_id"} & keys.keys():
        return "SSO"
    if "credential_process" in keys:
        return "process"
    if "login_session" in keys:
        return "aws login"
    return "keys with MFA" if "mfa_serial" in keys else "keys"


class UnknownIdentity(Problem):
    """No identity, AWS profile or entry of Atmos has this name."""


class SignInNeeded(Problem):
    """A person has to sign in."""


def sign_in_problem(name: str, what: str) -> Problem:
    return SignInNeeded(f"{name}: {what}", f"sign in with `{PROGRAM} login {shell_word(name)}`")


FORMER = "former"  # in an entry of the vault: the entry before it, as long as the record still belongs to that


def read_entry(vault: Vault, name: str, revision: str) -> dict[str, object] | None:
    """What the vault has for an identity whose record has this revision. Raises Problem.

    `login` stores new keys with the old ones inside, then the record. Until then, the old keys are in use.
    """
    entry = vault.get_json(f"identity:{name}")
    former = entry.get(FORMER) if entry and entry.get(REVISION) != revision else None
    return former if isinstance(former, dict) else entry


def read_keys(vault: Vault, name: str, revision: str = "") -> Credentials:
    """The keys stored for an identity. Raises Problem if there are none, or if they have expired."""
    entry = read_entry(vault, name, revision)
    if entry is None:
        raise sign_in_problem(name, "the keyring has no keys for it")
    try:
        keys = parse_keys(entry, (*SECRET_KEYS, "expiration"))
    except ValueError:
        raise damaged(f"identity:{name}", "incomplete") from None
    if expired := keys.expired():
        raise sign_in_problem(name, f"the stored session expired at {expired}")
    return keys


def process_keys(text: str, where: str) -> Credentials:
    """Keys in the JSON format of credential_process ("Process credential provider", AWS SDKs and Tools Reference).

    Raises Problem for anything else. It says `where` the text is from, and shows none of it.
    """
    import json

    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Problem(
            f"{where} is not a JSON object", 'expected {"Version": 1, "AccessKeyId": …, "SecretAccessKey": …}'
        )
    for value in content.values():
        keep_secret(value if isinstance(value, str) and len(value) > 20 else None)
    if content.get("Version") != 1:
        raise Problem(f"{where} is not Version 1, the only version that is supported")
    try:
        keys = parse_keys(content, STS_KEYS)
    except ValueError as error:
        raise Problem(f"{where} {error}") from None
    if expired := keys.expired():
        raise Problem(f"the credentials in {where} expired at {expired}")
    return keys


# Atmos's own entries are session credentials in files below its configuration directory, and long-term keys in the
# keyring (cloudposse/atmos, pkg/auth/cloud/aws/files.go and pkg/keyring/system.go). We only read them.


class AtmosEntry(NamedTuple):
    keys: Credentials
    region: str = ""
    mfa_serial: str = ""
    duration: str = ""  # of an MFA session, in seconds

    def profile(self) -> dict[str, str]:
        settings = {
            "region": self.region,
            "mfa_serial": self.mfa_serial,
            "duration_seconds": self.duration,
            REVISION: sha256(f"{self.keys.access_key} {self.keys.secret_key} {self.keys.token}"),
        }
        return {key: value for key, value in settings.items() if value}


def find_in_atmos(
    name: str, vault: Vault, environ: Mapping[str, str], platform: str, watched: list[Watched]
) -> AtmosEntry | None:
    """What Atmos has stored under this name, or under its lower case. Raises Problem if that has expired."""
    expired = ""
    for spelling in dict.fromkeys((name, name.lower())):
        entry = atmos_session(spelling, environ, platform, watched)
        if entry is None or entry.keys.expired():
            entry = atmos_keys(spelling, vault, environ) or entry
        if entry and not entry.keys.expired():
            return entry
        expired = entry.keys.expired() if entry else expired
    if expired:
        raise Problem(f"{name}: Atmos's session expired at {expired}", f"sign in with `atmos auth login -i {name}`")
    return None


def atmos_home(environ: Mapping[str, str], platform: str) -> str:
    """Atmos's configuration directory, or "" if there is no place for one."""
    base = environ.get("ATMOS_XDG_CONFIG_HOME") or environ.get("XDG_CONFIG_HOME")
    if not base and platform == "win32":
        base = environ.get("APPDATA")
    if not base and environ.get("HOME", "").startswith("/"):
        base = os.path.join(environ["HOME"], ".config")
    return os.path.abspath(os.path.join(base, "atmos")) if base else ""


def atmos_session(name: str, environ: Mapping[str, str], platform: str, watched: list[Watched]) -> AtmosEntry | None:
    """The session credentials that `atmos auth login` wrote for this name. Raises Problem if two realms have it."""
    import glob

    import botocore.configloader
    from botocore.exceptions import BotoCoreError

    home = atmos_home(environ, platform)
    realm = environ.get("ATMOS_AUTH_REALM")
    if not home:
        return None
    places = [os.path.join(glob.escape(realm), "aws")] if realm else ["aws", os.path.join("*", "aws")]
    paths = (os.path.join(glob.escape(home), place, "*", "credentials") for place in places)
    files = sorted(file for path in paths for file in glob.glob(path))
    watched += look_at([home, *files])
    found = []
    for path in files:
        try:
            keys = botocore.configloader.raw_config_parse(path, parse_subsections=False).get(name)
        except (BotoCoreError, UnicodeDecodeError, OSError):
            warn(f"{path} cannot be read as a credentials file")
            continue
        if keys and has_keys(keys):
            found.append((path, keys))
    if len(found) > 1:
        raise Problem(
            f"{name} is in several of Atmos's realms: {listed(path for path, _ in found)}",
            "set ATMOS_AUTH_REALM to the one you mean",
        )
    for path, keys in found:
        key, secret, token = (keys.get(name) for name in SECRET_KEYS)
        if not key or not secret:
            raise Problem(f"{name} is incomplete in {path}", f"sign in with `atmos auth login -i {name}`")
        return AtmosEntry(Credentials(key, secret, token, atmos_expiration(path, name)))
    return None


def atmos_expiration(path: str, name: str) -> float | None:
    """When the credentials expire, by the comment above their section: `; atmos: expiration=RFC3339`."""
    comment = ""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip() == f"[{name}]":
                _, found, text = comment.partition("expiration=")
                try:
                    return parse_time(text.split()[0]) if found else None
                except (ValueError, IndexError):
                    return None
            comment = line if line.lstrip().startswith((";", "#")) and "atmos:" in line else ""
    return None


def atmos_keys(name: str, vault: Vault, environ: Mapping[str, str]) -> AtmosEntry | None:
    """Long-term keys that Atmos stored in the keyring. Raises Problem if the entry does not contain AWS keys."""
    import json

    realm = environ.get("ATMOS_AUTH_REALM")
    service = f"atmos_{realm}_{name}" if realm else f"atmos_{name}"
    try:
        text = vault.get_foreign(service, "atmos-auth")
    except Problem as error:
        debug(f"Atmos's keyring items cannot be searched for {name}: {error.message}")
        return None
    if text is None:
        return None
    try:
        envelope = json.loads(go_keyring_decoded(text))
        data = envelope["data"]
        region, serial = (data.get(each) or "" for each in ("region", "mfa_arn"))
        duration = go_seconds(data.get("session_duration") or "")
        if envelope["type"] != "aws" or not isinstance(region, str) or not isinstance(serial, str):
            raise ValueError
        if not data.get("secret_access_key"):  # an SSO provider's: its access_key_id is a bearer token
            keep_secret(str(data.get("access_key_id")))
            raise Problem(
                f"the keyring entry {service} has no AWS keys", f"sign in with `atmos auth login` or `{PROGRAM} login`"
            )
        keys = parse_keys(data, ("access_key_id", "secret_access_key", "session_token", "expiration"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Problem(f"the keyring entry {service} is not one that Atmos writes for AWS") from None
    return AtmosEntry(keys, region, "" if keys.token else serial, duration)


def go_keyring_decoded(text: str) -> str:
    """A password without the encoding that go-keyring adds on macOS (zalando/go-keyring, keyring_darwin.go).

    Raises ValueError.
    """
    import base64

    for prefix, decode in (("go-keyring-base64:", base64.b64decode), ("go-keyring-encoded:", bytes.fromhex)):
        if text.startswith(prefix):
            return decode(text.removeprefix(prefix)).decode()
    return text


def go_seconds(duration: str) -> str:
    """The seconds of a duration in Go's format, such as 12h or 1h30m; "" for none. Raises ValueError."""
    import re

    if not duration:
        return ""
    if not re.fullmatch(r"(\d+[hms])+", duration):
        raise ValueError(duration)
    units = {"h": 3600, "m": 60, "s": 1}
    return str(sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)))


def marked_end(profile: Profile) -> float | None:
    """When the temporary keys in a profile expire, if the tool that wrote them says so."""
    for mark in EXPIRY_MARKS:
        try:
            return parse_time(profile[mark].strip().replace(" UTC", "Z"))
        except (KeyError, ValueError):
            continue
    return None


class last_of_its_name:
    """In the `with` block, botocore reads AWS files as the AWS SDK for Go does: the last key of a name counts.

    Otherwise two keys or sections of one name are an error, and botocore has no option for it.
    """

    def __enter__(self) -> None:
        import configparser
        from functools import partial
        from types import SimpleNamespace

        import botocore.configloader as loader

        self.loader = loader
        lenient = partial(configparser.RawConfigParser, strict=False)
        loader.configparser = SimpleNamespace(RawConfigParser=lenient, Error=configparser.Error)

    def __exit__(self, *_: object) -> None:
        import configparser

        self.loader.configparser = configparser


def config_problem(error: Botocore) -> Problem:
    """botocore's ConfigParseError, with the line and the reason. The line itself may contain a secret."""
    import configparser

    path, cause = error.kwargs["path"], error.kwargs["error"]
    line, reason = getattr(cause, "lineno", None), "it is not in the format of AWS config files"
    if isinstance(cause, configparser.MissingSectionHeaderError):
        reason = "it is above the first [section]"
    elif isinstance(cause, configparser.ParsingError):
        line, reason = cause.errors[0][0], "it is not a [section] or KEY = VALUE"
    elif isinstance(cause, configparser.DuplicateSectionError):
        reason = f"[{cause.section}] appears a second time"
    elif isinstance(cause, configparser.DuplicateOptionError):
        reason = f"{cause.option} appears a second time in [{cause.section}]"
    elif isinstance(cause, UnicodeDecodeError):
        line, reason = cause.object.count(b"\n", 0, cause.start) + 1, "it is not UTF-8 text"
    return Problem(f"{path} cannot be read: {f'line {line}: ' if line else ''}{reason}")


class Store:
    """The identities as this run found them, and where they are stored: the vault and identities.json."""

    def __init__(self, invocation: Invocation, cache: Cache | None, interactive: bool) -> None:
        self.environ = invocation.environ
        self.platform = invocation.platform
        self.cache = cache
        self.path = identities_path(invocation.environ, invocation.platform)
        entries = self.path and os.path.join(os.path.dirname(self.path), "entries.json")
        self.vault = Vault(invocation.environ, invocation.platform, interactive, entries=entries)
        self.generation = cache.generation() if cache else ""
        # The files that decide an answer, as they were before we read any of them. More may be added.
        self.watched = list(look_at(deciding_files(invocation.environ, invocation.platform)))
        self.stored = read_identities(self.path)
        self.foreign: dict[str, AtmosEntry] = {}
        self.forgiving = False  # go on without AWS files that cannot be read
        self._written: dict[bool, AwsFiles] = {}
        self.trouble: Problem | None = None  # why sessions cannot be read
        # What login has, and only stores once AWS accepts it: keys by identity, SSO tokens with their marks.
        self.new_keys: dict[str, Credentials] = {}
        self.new_tokens: dict[Portal, tuple[Mapping[str, str], str]] = {}
        self.changing = ""  # a source of this run's credentials that may give others the next time

    def note_trouble(self, problem: Problem) -> None:
        """A session cannot be read. If that is the keyring's fault, it is the reason why a person has to sign in."""
        debug(f"the keyring cannot be read: {problem.message}")
        if isinstance(problem, KeyringUnavailable):
            self.trouble = problem

    def take_up(self, name: str, record: Mapping[str, str], keys: Credentials | None) -> None:
        """Continue as if this identity were stored."""
        self.stored = self.stored._replace(identities={**self.stored.identities, name: record})
        if keys:
            self.new_keys[name] = keys

    def keys(self, name: str) -> Credentials:
        """The keys stored for an identity. Raises Problem."""
        revision = self.stored.identities.get(name, {}).get(REVISION, "")
        return self.new_keys.get(name) or read_keys(self.vault, name, revision)

    def lock(self) -> ExitStack:
        """A context that holds the lock for writing identities and vault. If locks do not work, it holds nothing."""
        import contextlib

        held = contextlib.ExitStack()
        if self.cache:
            try:
                held.enter_context(self.cache.lock("vault"))
            except LocksUnavailable:
                debug("locks do not work in the cache directory")
        return held

    def unchanged(self) -> bool:
        """Whether the identities are still as this run found them."""
        generation = self.cache.generation() if self.cache else ""
        return generation == self.generation and read_identities(self.path) == self.stored

    def take_in(self, name: str) -> bool:
        """Look in the vault, then in Atmos, for a name that is not in any file. Raises Problem."""
        try:
            known = name not in self.stored.pending and self.vault.get(f"identity:{name}") is not None
        except Problem as error:
            debug(f"the keyring cannot be searched for {name}: {error.message}")
            known = False
        if known and self.path is None:
            self.stored = self.stored._replace(identities={**self.stored.identities, name: {}})
        elif known:
            warn(f"{name} was missing from {self.path} and has been added again")
            with self.lock():
                stored = read_identities(self.path)
                self.stored = stored._replace(identities={**stored.identities, name: {}})
                write_identities(self.path, self.stored)
        elif entry := find_in_atmos(name, self.vault, self.environ, self.platform, self.watched):
            debug(f"{name} is Atmos's")
            self.foreign[name] = entry
        return known or name in self.foreign

    def is_ours(self, name: str) -> bool:
        """Whether an identity's keys come from the vault or from Atmos, and not from an AWS file."""
        return name in self.stored.identities or name in self.foreign

    def files(self, profile: str = "", as_go: bool = False) -> AwsFiles:
        """The AWS files with the identities laid over them, for `profile`, perhaps as the AWS SDK for Go reads it.

        Raises Problem if they cannot be read.
        """
        files = self.written(as_go)
        if as_go:
            profiles = as_go_reads(files.profiles, profile or "default", self.stored.identities, self.environ)
            files = files._replace(profiles=profiles)
        return lay_over(files, self.stored, self.foreign)

    def written(self, as_go: bool = False) -> AwsFiles:
        """What the AWS files say, as in botocore.session.Session.full_config. Importing that would take 26 of 120 ms.

        Raises Problem if they cannot be read, unless that is forgiven.
        """
        from contextlib import nullcontext, suppress

        from botocore.configloader import load_config, raw_config_parse
        from botocore.exceptions import ConfigNotFound, ConfigParseError

        if as_go in self._written:
            return self._written[as_go]
        config, credentials = aws_files(self.environ)
        found: dict[str, Botocore] = {"profiles": {}}
        try:
            with last_of_its_name() if as_go else nullcontext():
                with suppress(ConfigNotFound):
                    found = load_config(config)
                with suppress(ConfigNotFound):
                    for name, keys in raw_config_parse(credentials).items():
                        found["profiles"].setdefault(name, {}).update(keys)
        except ConfigParseError as error:
            problem = config_problem(error)
            if not self.forgiving:
                raise problem from error
            warn(f"{problem.message}; AWS profiles are left out")
            found = {"profiles": {}}
        self._written[as_go] = aws_files_in(found)
        return self._written[as_go]


def deciding_files(environ: Mapping[str, str], platform: str) -> list[str]:
    """The files that decide every answer."""
    ours = (keyring_config(environ, platform), identities_path(environ, platform))
    # The tokens of a Kubernetes pod, which say who it is.
    tokens = map(environ.get, ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"))
    return [*aws_files(environ), *(os.path.abspath(path) for path in (*tokens, *ours) if path)]


def aws_files(environ: Mapping[str, str]) -> list[str]:
    """The AWS config and credentials files, where botocore looks for them."""
    config = environ.get("AWS_CONFIG_FILE") or "~/.aws/config"
    credentials = environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    return [os.path.abspath(os.path.expanduser(os.path.expandvars(path))) for path in (config, credentials)]


# -- 5. sessions ------------------------------------------------------------------------------------------------------
#
# Temporary credentials and SSO tokens are stored in the vault, through botocore's `cache` hooks. sessions.json says
# which ones exist and when they expire, so that nobody has to open the vault to know. An SSO token belongs to a
# `Portal`: a start URL, a region and, if it has a name, an sso-session.

RENEW_SECONDS = 120  # sessions with less left are renewed first
RENEW_AHEAD_SECONDS = 16 * 60  # the same, if nobody waits: so that they last as long as the next token
MFA_SECONDS = 12 * 3600  # how long an MFA session (sts:GetSessionToken) lasts if duration_seconds is not set
ROLE_SESSION_NAME = "EKSGetTokenAuth"  # the name that `aws eks get-token --role-arn` uses; trust policies match on it
SSO_SCOPE = "sso:account:access"  # without it, no refresh token is issued


def credential_variables(environ: Mapping[str, str], in_environment: bool) -> dict[str, str]:
    """The variables that decide where credentials come from, some only if the environment may provide these."""
    wanted = ["AWS_ENDPOINT_URL", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"]
    if in_environment:
        wanted += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_ROLE_"]
        wanted += ["AWS_CONTAINER_", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_WEB_IDENTITY_TOKEN_FILE"]
    return {name: environ[name] for name in REQUEST_VARIABLES if name.startswith(tuple(wanted)) and environ.get(name)}


class SessionNote(NamedTuple):
    """What sessions.json says about a session or SSO token in the vault."""

    names: tuple[str, ...]  # the identities that use it, its own identity first; for an SSO token, the start URL
    expires: float  # seconds since the epoch; it can be removed then
    token_expires: float | None = None  # when an SSO token expires, which can be refreshed until `expires`
    portal: Portal | None = None
    sign_in: str = ""  # identifies the sign-in that an SSO token comes from

    @property
    def ends(self) -> float:
        return self.expires if self.token_expires is None else self.token_expires


def notes_path(identities: str) -> str:
    return os.path.join(os.path.dirname(identities), "sessions.json")


def read_notes(identities: str | None) -> dict[str, SessionNote]:
    """What sessions.json says is in the vault, by user. A damaged note is skipped."""
    import json

    if identities is None:
        return {}
    path = notes_path(identities)

    notes = {}
    try:
        content = dict(json.loads(read_regular(path)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    for user, entry in content.items():
        try:
            notes[user] = parse_note(entry)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            debug(f"the note of {user} in {path} is damaged")
    return notes


def parse_note(entry: Mapping[str, object]) -> SessionNote:
    """One note of sessions.json. Raises ValueError, TypeError, KeyError, AttributeError or OverflowError."""
    names, sso, sign_in = entry["names"], entry.get("sso", []), entry.get("sign_in", "")
    if not isinstance(names, list) or not names or not isinstance(sso, list) or not isinstance(sign_in, str):
        raise ValueError
    if not all(isinstance(text, str) for text in (*names, *sso)):
        raise ValueError
    times = [float(str(entry[key])) for key in ("expires", *(["token_expires"] if sso else []))]
    if not all(0 <= seconds <= LAST_SECOND for seconds in times):
        raise ValueError
    return SessionNote(tuple(names), times[0], times[1] if sso else None, Portal(*sso) if sso else None, sign_in)


def note_session(store: Store, user: str, note: SessionNote | None) -> None:
    """Add a session to sessions.json, or remove it. A few expired ones are removed from the vault as well."""
    notes = read_notes(store.path)
    over = [name for name, known in notes.items() if known.expires < time.time() and name != user][:3]
    for name in over:
        store.vault.delete(name)
    notes = {name: known for name, known in notes.items() if name not in (user, *over)}
    if store.path:
        write_notes(notes_path(store.path), notes if note is None else {**notes, user: note})


def write_notes(path: str, notes: Mapping[str, SessionNote]) -> None:
    """Write sessions.json, if possible. A session that is missing from it expires all the same."""
    import json

    entries = {}
    for user, note in notes.items():
        of_token = {"token_expires": note.token_expires, "sso": note.portal, "sign_in": note.sign_in}
        entries[user] = {"names": note.names, "expires": note.expires, **(of_token if note.portal else {})}
    try:
        check_place(path)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        write_file(path, json.dumps(entries, indent=2, sort_keys=True) + "\n")
    except (OSError, Problem) as error:
        debug(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}")


class Sessions:
    """The stored sessions as one run uses them: which ones it renewed, which ones expire soon, which locks it holds.

    A session with enough time left comes from the vault. For any other, this process holds the session's lock until it
    has renewed it. Other processes that want it wait, and then find it renewed.
    """

    def __init__(self, store: Store, renew: bool = False) -> None:
        self.store = store
        self.renew = renew  # sign in again, however long the sessions still last
        self.needed = RENEW_AHEAD_SECONDS if is_ahead(store.environ) else RENEW_SECONDS
        self.last_resort = False  # use sessions that cannot be renewed until they expire
        self.ending: set[str] = set()
        self.typed = False  # a person had to type an MFA code
        self.hold_back = False  # store nothing until `keep_held_back` is called
        self._held_back: dict[str, tuple[Credentials, Sequence[str]]] = {}
        self._renewed: set[str] = set()
        self._held: dict[str, Lock] = {}

    def find(self, user: str, own: bool) -> Credentials | None:
        """A session that can be used, or None. After None, the caller obtains one and calls `keep`.

        Signing in again renews the identity's own session, but not an MFA session that it shares with others.
        """
        if user in self._held_back:
            return self._held_back[user][0]
        if own and self.renew and user not in self._renewed:
            self.hold(user)
            return None
        keys = read_session(self.store, user)
        if keys_left(keys) < self.needed and self.hold(user):
            keys = read_session(self.store, user)
        if keys_left(keys) >= self.needed:
            debug("found a session in the keyring")
            self.let_go(user)
            return keys
        debug("a new session is needed")
        if keys_left(keys) > 0:
            self.ending.add(user)
        return keys if self.last_resort and keys_left(keys) > 0 else None

    def keep(self, user: str, keys: Credentials, names: Sequence[str]) -> None:
        """Store a session in the vault, unless the identities have changed since this run began."""
        self._renewed.add(user)
        try:
            if self.hold_back:
                self._held_back[user] = (keys, names)
                return
            with self.store.lock():
                if not self.store.unchanged():
                    return debug("the session is not stored: the identities have changed meanwhile")
                note = SessionNote(tuple(names), keys.expires or 0.0)
                note_session(self.store, user, note)  # first, so that logout finds it
                self.store.vault.set_json(user, as_sts_answers(keys))
        except Problem as problem:  # this run can use it all the same
            if self.typed:
                warn(f"the session is not stored, so every call asks again: {problem.message}")
            else:
                debug(f"the session is not stored: {problem.message}")
        finally:
            self.let_go(user)

    def keep_held_back(self) -> None:
        """Store the sessions that were obtained to prove an identity, which is itself stored by now."""
        self.hold_back = False
        for user, (entry, names) in self._held_back.items():
            self.keep(user, entry, names)
        self._held_back.clear()

    def hold(self, user: str) -> bool:
        """Take the lock for renewing a session. False if this process holds it already, or if locks do not work."""
        if self.store.cache is None or user in self._held:
            return False
        try:
            lock = self.store.cache.lock(f"session {user}")
            lock.__enter__()
        except LocksUnavailable:
            debug("locks do not work in the cache directory")
            return False
        self._held[user] = lock
        return True

    def let_go(self, user: str = "") -> None:
        """Release the lock of one session, or all locks."""
        for held in [user] if user else list(self._held):
            if held in self._held:
                self._held.pop(held).__exit__()


def read_session(store: Store, user: str) -> Credentials | None:
    """A session from the vault. None if there is none, or if it cannot be read."""
    try:
        entry = store.vault.get_json(user)
        return None if entry is None else parse_session(entry)
    except ValueError:
        debug(f"the stored session {user} is damaged")
    except Problem as problem:
        store.note_trouble(problem)
    return None


def parse_session(answer: Mapping[str, object]) -> Credentials:
    """The credentials in an answer of STS, which is also how the vault has them. Raises ValueError."""
    fields = answer.get("Credentials")
    if not isinstance(fields, dict) or not fields.get("SessionToken"):
        raise ValueError("has no session")
    return parse_keys({**fields, "Expiration": str(fields.get("Expiration"))}, STS_KEYS)  # botocore's is a datetime


def as_sts_answers(keys: Credentials) -> dict[str, object]:
    """The same the other way round: what botocore's cache and the vault hold."""
    values = (keys.access_key, keys.secret_key, keys.token, rfc3339(keys.expires or 0.0))
    return {"Credentials": dict(zip(STS_KEYS, values, strict=True))}


class SessionCache:
    """botocore's `cache` of temporary credentials, backed by the vault."""

    def __init__(self, sessions: Sessions, scope: str, names: Sequence[str], own: bool) -> None:
        self.sessions = sessions
        self.scope = scope  # everything that decides whose sessions these are
        self.names = names  # the identities that use them
        self.own = own  # they belong to the identity that this run is for
        self.found: dict[str, Credentials] = {}

    def user(self, key: str) -> str:
        return f"session:{sha256(f'{self.scope} {key}')[:32]}"

    def __contains__(self, key: str) -> bool:
        keys = self.sessions.find(self.user(key), self.own)
        if keys:
            self.found[key] = keys
        return keys is not None

    def __getitem__(self, key: str) -> dict[str, object]:
        return as_sts_answers(self.found[key])

    def __setitem__(self, key: str, answer: Mapping[str, object]) -> None:
        self.sessions.keep(self.user(key), parse_session(answer), self.names)


SSO_REFRESH_SECONDS = 15 * 60  # botocore.tokens.SSOTokenProvider refreshes a token with less left
SSO_TOKEN_SECRETS = ("accessToken", "refreshToken", "clientSecret")


class FoundToken(NamedTuple):
    """An SSO token, and where it is stored."""

    file: str  # the AWS CLI's, or "" for the vault
    token: Mapping[str, str]  # as botocore and the AWS CLI store it

    def left(self) -> float:
        """The seconds until it expires."""
        return parse_time(self.token["expiresAt"]) - time.time()

    def refreshable(self) -> bool:
        registered = self.token.get("registrationExpiresAt", "")
        return "refreshToken" in self.token and bool(registered) and parse_time(registered) > time.time()

    def rank(self) -> int:
        """A token that has not expired is best, then one that can be refreshed."""
        return 2 if self.left() > 0 else int(self.refreshable())


class SsoTokens:
    """botocore's `cache` of SSO tokens: ours in the vault, else the ones that `aws sso login` left in its own files.

    A token is refreshed where it was found. A refresh token works once, so all tools must go on sharing it.
    """

    def __init__(self, sessions: Sessions, sso_sessions: Mapping[str, Profile]) -> None:
        self.sessions = sessions
        self.portals: dict[str, Portal] = {}
        for name, keys in sso_sessions.items():
            if portal := portal_of(keys, name):
                self.portals[sha1(name)] = portal  # the key that botocore.utils.SSOTokenLoader uses
        self.found: dict[str, FoundToken] = {}

    def __contains__(self, key: str) -> bool:
        return self.find(key) is not None

    def __getitem__(self, key: str) -> Mapping[str, str]:
        token = self.find(key)
        if token is None:
            raise KeyError(key)
        return token

    def __setitem__(self, key: str, refreshed: Mapping[str, object]) -> None:
        portal, former = self.portals[key], self.found[key]
        token = parse_sso_token({key: str(value) for key, value in refreshed.items()})  # botocore's end is a datetime
        try:
            if former.file:
                keep_in_file(former, token)
            else:
                keep_sso_token(self.sessions.store, portal, token, former.token)
        except Problem as problem:  # this run can use it all the same
            warn(f"the refreshed SSO token cannot be stored: {problem.message}")
        finally:
            self.sessions.let_go(sso_user(portal))

    def find(self, key: str) -> Mapping[str, str] | None:
        portal, store = self.portals.get(key), self.sessions.store
        if portal is None:
            return None
        if portal in store.new_tokens:
            return store.new_tokens[portal][0]
        found = best_token(store, portal)
        due = found and found.left() < SSO_REFRESH_SECONDS and found.refreshable()
        if due and self.sessions.hold(sso_user(portal)):
            found = best_token(store, portal)  # again, now under its lock
        if found is None:
            return None
        self.found[key] = found
        return found.token


def best_token(store: Store, portal: Portal) -> FoundToken | None:
    """The token to use at a portal: ours, unless only the AWS CLI has one that is still good."""
    file = aws_cli_file(portal)
    candidates = {"": read_sso_token(store, portal), file: left_by_aws_cli(file, portal)}
    found = [FoundToken(where, token) for where, token in candidates.items() if token]
    return max(found, key=FoundToken.rank, default=None)


def left_by_aws_cli(file: str, portal: Portal) -> dict[str, str] | None:
    """The token in a file of the AWS CLI, without its refresh token if we could not write the next one back."""
    import json

    try:
        with open(file, encoding="utf-8") as stream:
            token = parse_sso_token(json.load(stream))
        owner = os.stat(os.path.dirname(file)).st_uid
    except (OSError, ValueError, RecursionError):
        return None
    if token.get("startUrl", portal.start_url).rstrip("/#") != portal.start_url.rstrip("/#"):
        return None
    ours = os.name != "posix" or owner == os.geteuid()
    if not ours or not os.access(os.path.dirname(os.path.realpath(file)), os.W_OK):
        token.pop("refreshToken", None)
    return token


def keep_in_file(former: FoundToken, token: Mapping[str, str]) -> None:
    """Put a refreshed token in the AWS CLI's file, unless somebody has signed in there meanwhile. Raises Problem."""
    import json

    try:
        with open(former.file, encoding="utf-8") as stream:
            if json.load(stream).get("accessToken") != former.token["accessToken"]:
                return debug("the refreshed SSO token is not stored: somebody signed in again meanwhile")
        write_file(os.path.realpath(former.file), json.dumps(token))
    except (OSError, ValueError, AttributeError) as error:
        raise Problem(f"{former.file}: {first_line(error)}") from error


def aws_cli_file(portal: Portal) -> str:
    """Where the AWS CLI stores the token of an sso-session, or of a start URL without one."""
    name = sha1(portal.session or portal.start_url)
    return os.path.expanduser(os.path.join("~", ".aws", "sso", "cache", f"{name}.json"))


def sha1(text: str) -> str:
    import hashlib

    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def sso_user(portal: Portal) -> str:
    """The name in the vault of a portal's SSO token. Each sso-session has its own."""
    return f"sso:{sha256(' '.join(filter(None, (portal.region, portal.start_url, portal.session))))[:32]}"


def parse_sso_token(content: object) -> dict[str, str]:
    """An SSO token as the AWS CLI and botocore store it, with its times in RFC 3339. Raises ValueError."""
    if not isinstance(content, dict):
        raise ValueError("not an object")
    token = {key: value for key, value in content.items() if isinstance(value, str)}
    for name in SSO_TOKEN_SECRETS:
        keep_secret(token.get(name))
    for name in {"expiresAt", "registrationExpiresAt"} & token.keys():
        token[name] = rfc3339(parse_time(token[name]))
    if not {"accessToken", "expiresAt"} <= token.keys():
        raise ValueError("no access token, or no time when it expires")
    return token


def read_sso_token(store: Store, portal: Portal) -> dict[str, str] | None:
    """The SSO token in the vault; None if there is none that can be used."""
    try:
        content = store.vault.get_json(sso_user(portal))
        return None if content is None else parse_sso_token(content)
    except ValueError:
        debug("the stored SSO token is damaged")
    except Problem as problem:
        store.note_trouble(problem)
    return None


def keep_sso_token(
    store: Store, portal: Portal, token: Mapping[str, str], former: Mapping[str, str] | None = None, mark: str = ""
) -> None:
    """Store an SSO token in the vault. If it was refreshed from a `former` token, that one must still be there.

    The mark tells one sign-in from another. A refreshed token keeps its mark. Raises KeyringUnavailable.
    """
    user = sso_user(portal)
    with store.lock():
        if former is not None and read_sso_token(store, portal) != former:
            return debug("the refreshed SSO token is not stored: somebody signed out or in again meanwhile")
        ends = parse_time(token["expiresAt"])
        forgotten = max(ends, parse_time(token.get("registrationExpiresAt", token["expiresAt"])))
        known = read_notes(store.path).get(user) if former is not None else None
        mark = (known.sign_in if known else mark) or os.urandom(8).hex()
        note_session(store, user, SessionNote((portal.start_url,), forgotten, ends, portal, mark))  # so logout finds it
        store.vault.set_json(user, token)


# -- 6. credentials ---------------------------------------------------------------------------------------------------
#
# `Resolver.credentials` leads from a request to credentials: `choose_identity` says whose, keys that need no session of
# botocore are taken as they are, and otherwise `provider_chain` asks botocore's own providers. They see the stored
# identities among the profiles, the vault as one more source of keys, and our cache of sessions (section 5). What
# botocore raises becomes one line for the user.


class Resolver:
    """Gets from a request to credentials. It has this run's botocore session, and knows whom it can ask."""

    def __init__(self, invocation: Invocation, cache: Cache | None, interactive: bool, renew: bool = False) -> None:
        import_when_used("inspect", "platform")  # 5 of the 90 ms of a new token
        self.store = Store(invocation, cache, interactive)
        self.sessions = Sessions(self.store, renew)
        self.person = invocation.terminal and interactive  # somebody can type an MFA code
        self.mfa_code: str | None = None  # read from stdin already; "" if it has been used
        self.used_codes: set[str] = set()  # which mfa_process printed in this run
        self.name = ""  # the chosen identity
        self.session: Botocore = None  # botocore's, once it is needed
        self.as_go = False  # read profiles as the AWS SDK for Go does
        self.profile: Profile = {}  # the identity's settings

    def credentials(self, request: Request) -> Credentials:
        """The credentials that sign this request's token. Raises Problem."""
        choice = choose_identity(request, self.store.environ, self.store.stored)
        self.name = choice.profile or choice.fallback or "default"
        if plain := self.plain_keys(choice, request):
            return plain
        try:
            return self.resolve(choice, request)
        except Problem as problem:
            if isinstance(problem, SignInNeeded) and (trouble := self.store.trouble):
                raise Problem(f"{problem.message}, and {trouble.message}", trouble.hint) from problem
            if self.sessions.ending and not self.sessions.renew:
                debug(f"{self.name}: its session cannot be renewed, so it is used until it expires")
                self.sessions.last_resort = True
            elif not (isinstance(problem, SignInNeeded) and self.person and self.sign_in_again()):
                raise
        return self.resolve(choice, request)

    def plain_keys(self, choice: Choice, request: Request) -> Credentials | None:
        """The keys in the environment or of a stored identity, if they need no session of botocore; None if they do."""
        in_environment = choice.environment and bool(self.store.environ.get("AWS_ACCESS_KEY_ID"))
        if request.role_arn or not (in_environment or choice.profile in self.store.stored.identities):
            return None
        with plain_errors(self.name):
            profile = self.store.files().profiles.get(choice.profile or "default")
            if in_environment and (profile is not None or not choice.named):
                debug(f"{self.name}: keys from the environment")
                self.profile = profile or {}
                return frozen(environment_provider(self.store.environ).load(), self.name)
        if in_environment or profile is None or RESOLVED_KEYS & profile.keys():
            return None
        debug(f"{self.name}: keys from the keyring")
        self.profile = profile
        return self.store.keys(choice.profile)

    def sign_in_again(self) -> bool:
        """If a person is there, start an SSO session now, without sending them to `login`. False if it is not SSO."""
        portal = sso_portal(self.session.files, self.name)
        if portal is None or self.sessions.renew:
            return False
        say(f"{self.name}: sign in to continue")
        authorize_again(self.store, self.session, portal, no_browser=False)
        return True

    def resolve(self, choice: Choice, request: Request) -> Credentials:
        self.session = self.open_session(choice, request)
        self.profile = self.session.files.profiles.get(choice.profile or "default", {})
        try:
            found, choice = self.load(choice, request)
            if request.role_arn:
                found = self.assume(found, choice, request)
            keys = frozen(found, self.name)
            if keys.token and keys.token == self.profile.get("aws_session_token"):
                keys = keys._replace(expires=marked_end(self.profile))
                if expired := keys.expired():
                    raise Problem(
                        f"the credentials of {self.name} expired at {expired}",
                        "renew them with the tool that wrote them to the AWS credentials file",
                    )
            return keys
        finally:
            self.sessions.let_go()

    def endpoint_settings(self) -> tuple[bool, bool, bool]:
        """Whether FIPS endpoints are configured, dual-stack endpoints, and the legacy global endpoint."""
        on = self.configured("use_fips_endpoint"), self.configured("use_dualstack_endpoint")
        legacy = self.configured("sts_regional_endpoints").lower() == "legacy"
        return on[0].lower() == "true", on[1].lower() == "true", legacy

    def region(self) -> str:
        """The region of the identity's profile, or ""."""
        return self.configured("region")

    def configured(self, name: str) -> str:
        """A setting of the AWS SDKs, from its variable or the identity's keys; "" if there is none."""
        return self.store.environ.get(f"AWS_{name.upper()}") or self.profile.get(name, "")

    def open_session(self, choice: Choice, request: Request) -> Botocore:
        """A botocore session for the chosen profile, with the stored identities among its profiles."""
        with plain_errors(self.name):
            self.as_go = request.grammar == AUTHENTICATOR.name
            session = identity_session(choice.profile or None)
            session.files = self.store.files(choice.profile, self.as_go)
            if request.region:
                session.set_config_variable("region", request.region)
            if request.ca_bundle:
                session.set_config_variable("ca_bundle", request.ca_bundle)
            session.verify_tls = request.verify_tls
            session.set_default_client_config(client_config(request))
            if choice.named and choice.profile not in (*session.files.profiles, "default"):
                if not self.store.take_in(choice.profile):
                    close = nearest(choice.profile, session.files.profiles)
                    store_as = shell_word(choice.profile)
                    raise UnknownIdentity(
                        f"there is no identity or AWS profile named {choice.profile!r}",
                        f"did you mean {close}?" if close else f"store it with `{PROGRAM} login {store_as}`",
                    )
                session.files = self.store.files(choice.profile, self.as_go)
            return session

    def load(self, choice: Choice, request: Request) -> tuple[Botocore, Choice]:
        """botocore's credentials for the choice, and the choice itself, or a stored identity in its place.

        The stored identity is tried after botocore's chain of providers and before instance metadata.
        """
        from botocore.credentials import CredentialResolver

        with plain_errors(self.name):
            check_sources(choice.profile or "default", self.session.files.profiles)
            first, last = provider_chain(self, choice)
            found = CredentialResolver(first).load_credentials()
            if found is None and choice.undecided:
                raise no_choice(choice.undecided)
            if found is None and choice.fallback:
                self.name = choice.fallback
                again = Choice(choice.fallback, named=True, environment=False)
                region = self.region()
                self.session = self.open_session(again, request._replace(region=region))
                self.profile = {
                    **self.session.files.profiles[choice.fallback],
                    **({"region": region} if region else {}),
                }
                return self.load(again, request)
            if found is None:
                found = CredentialResolver(last).load_credentials()
        if found is None:
            raise Problem(
                f"no credentials were found for {self.name}",
                f"store an identity with `{PROGRAM} login NAME`, or pass the name of an AWS profile",
            )
        debug(f"{self.name}: credentials from botocore's provider {found.method}")
        return found, choice

    def assume(self, source: Botocore, choice: Choice, request: Request) -> Botocore:
        """The credentials of the role that --role-arn names, which the identity assumes."""
        from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

        session_name = request.session_name or ROLE_SESSION_NAME
        if request.forward_session_name:
            with plain_errors(self.name):
                answer = client(self.session, "sts", source.get_frozen_credentials()).get_caller_identity()
            session_name = answer["UserId"].partition(":")[2] or session_name
        details = {"RoleSessionName": session_name}
        if request.external_id:
            details["ExternalId"] = request.external_id
        fetcher = AssumeRoleCredentialFetcher(
            self.session.create_client,
            source,
            request.role_arn,
            extra_args=details,
            cache=self.session_cache(choice.profile, choice.environment, on_top=True),
        )
        return DeferredRefreshableCredentials(method="assume-role", refresh_using=fetcher.fetch_credentials)

    def session_cache(self, profile: str, environment: bool = False, on_top: bool = False) -> SessionCache:
        """botocore's `cache` for the sessions that lead to a profile's credentials, or for the role of --role-arn.

        Its scope contains everything that decides whose sessions they are. If it left something out, one identity could
        get another's. The region is not part of it, because temporary credentials are valid in all of a partition.
        """
        import json

        files: AwsFiles = self.session.files
        trail: dict[str, list[object]] = {}
        for name in sources(files.profiles, profile or "default"):
            keys = files.profiles.get(name, {})
            sso_session, services = keys.get("sso_session", ""), keys.get("services", "")
            trail[name] = [keys, files.sso_sessions.get(sso_session), files.services.get(services)]
            environment = environment or "credential_source" in keys
        variables = credential_variables(self.store.environ, environment)
        sign_ins = [*self.sign_ins(trail), *self.web_identities(trail, environment)]
        scope = sha256(json.dumps([trail, variables, sign_ins], sort_keys=True))
        # the first name is the identity that the session belongs to
        own = not on_top and next(iter(trail)) == self.name
        return SessionCache(self.sessions, scope, ["", *trail] if on_top else list(trail), own)

    def sign_ins(self, names: Iterable[str]) -> list[object]:
        """Something that changes with every sign-in for these identities, so that no role session outlives it."""
        marks: list[object] = []
        for portal in dict.fromkeys(own_portal(self.session.files, name) for name in names):
            if portal is None:
                continue
            files = self.watch([aws_cli_file(portal)])
            note = read_notes(self.store.path).get(sso_user(portal))
            _, mark = self.store.new_tokens.get(portal, (None, note.sign_in if note else ""))
            marks.append([mark, files])
        return marks

    def web_identities(self, names: Iterable[str], environment: bool) -> list[Watched]:
        """The token files of these identities. When one is replaced, as in a pod, its sessions are not used again."""
        files = [self.session.files.profiles.get(name, {}).get("web_identity_token_file") for name in names]
        files += [self.store.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")] if environment else []
        return self.watch(os.path.abspath(file) for file in files if file)

    def watch(self, files: Iterable[str]) -> list[Watched]:
        """Note the state of files that decide these credentials too."""
        found = list(look_at(files))
        self.store.watched += [one for one in found if one not in self.store.watched]
        return found

    def ask_mfa_code(self, prompt: str) -> str:
        """An MFA code without spaces: from stdin, from mfa_process, or from a person. Raises Problem."""
        if self.mfa_code is not None:
            code, self.mfa_code = self.mfa_code, ""
            if not code:
                raise Problem(f"{self.name}: AWS did not accept the MFA code")
        elif not is_ahead(self.store.environ) and (command := self.mfa_process()):
            environ = self.store.environ
            output = run_helper(shell_command(command, environ, self.store.platform), environ, "mfa_process")
            code = "".join(output.split())
            if not (code.isascii() and code.isdecimal() and len(code) == 6):
                raise Problem(f"{self.name}: mfa_process must print a code of six digits and nothing else")
            if code in self.used_codes:
                hint = "if the code was right, a second one is needed: try again in 30 seconds, or in a terminal"
                raise Problem(f"{self.name}: mfa_process printed the same code again, but AWS accepts it once", hint)
            self.used_codes.add(code)
        elif not self.person and self.sessions.renew:
            raise Problem(f"{self.name}: an MFA code is needed", "pass it on stdin with --mfa-code-stdin")
        elif not self.person:
            raise sign_in_problem(self.name, "an MFA code is needed, but nobody is there to type it")
        else:
            code = "".join(ask(prompt, secret=True).split())
            self.sessions.typed = True
        keep_secret(code)
        return code

    def mfa_process(self) -> str:
        """The command that prints the identity's MFA codes, from its own settings or the nearest of its sources."""
        profiles = self.session.files.profiles
        commands = (profiles.get(name, {}).get("mfa_process") for name in sources(profiles, self.name))
        return next(filter(None, commands), "")


# botocore's session, which is opened only if keys need it


def identity_session(profile: str | None) -> Botocore:
    """A botocore session that sees the stored identities among the profiles, in its `files`."""
    from botocore.credentials import CachedCredentialFetcher
    from botocore.session import Session

    # botocore renews a session with less than 15 minutes left, so it would need the network, or a person, long before
    # the session expires. Our session cache has its own rule.
    CachedCredentialFetcher.DEFAULT_EXPIRY_WINDOW_SECONDS = 0

    class IdentitySession(Session):  # type: ignore[misc,unused-ignore]
        verify_tls = True
        files: AwsFiles  # with the stored identities laid over them

        @property
        def full_config(self) -> Mapping[str, object]:
            return dict(zip(AwsFiles._fields, self.files, strict=True))

        def create_client(self, service_name: str, *arguments: object, **named: Botocore) -> Botocore:
            debug(f"asking AWS: {service_name}")
            keep_secret(named.get("aws_secret_access_key"))
            keep_secret(named.get("aws_session_token"))
            if not self.verify_tls:
                named.setdefault("verify", False)
            if service_name == "sts" and not named.get("region_name") and not self.get_config_variable("region"):
                named["region_name"] = "us-east-1"  # botocore needs none for AWS's global host, but for all others
            return super().create_client(service_name, *arguments, **named)

    # We choose the profile by our own rule, so botocore reads no variable for it.
    session = IdentitySession(session_vars={"profile": (None, None, None, None)}, profile=profile)
    session.register("before-parse", check_raw_answer)
    session.register("after-call", check_botocores_answer)
    return session


def client_config(request: Request) -> Botocore:
    from botocore.config import Config

    timeouts = {"connect_timeout": request.connect_timeout, "read_timeout": request.read_timeout}
    return Config(**{name: int(seconds) or None for name, seconds in timeouts.items() if seconds})


def client(session: Botocore, service: str, keys: Credentials | Botocore, **more: object) -> Botocore:
    return session.create_client(
        service,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        aws_session_token=keys.token,
        **more,
    )


def frozen(credentials: Botocore, name: str) -> Credentials:
    """botocore's credentials as they are now, renewed if necessary."""
    with plain_errors(name):
        keys = credentials.get_frozen_credentials()
    expiry = getattr(credentials, "_expiry_time", None)  # botocore has no public name for it
    return Credentials(keys.access_key, keys.secret_key, keys.token, expiry.timestamp() if expiry else None)


def caller_identity(session: Botocore, keys: Credentials) -> dict[str, str]:
    """sts:GetCallerIdentity for these keys, with the settings of the session's profile. Raises Problem."""
    with plain_errors():
        answer = client(session, "sts", keys).get_caller_identity()
        return {field: answer[field] for field in ANSWERS["GetCallerIdentity"]}


def import_when_used(*names: str) -> None:
    """Put off importing these modules, which botocore imports but seldom uses, until something in them is used."""
    from importlib import import_module
    from types import ModuleType

    class Later(ModuleType):
        def __getattr__(self, attribute: str) -> object:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            module = import_module(self.__name__)
            vars(self).update(vars(module))
            return getattr(module, attribute)

    for name in names:
        sys.modules.setdefault(name, Later(name))


# botocore's providers, in the order in which they are asked


def provider_chain(resolver: Resolver, choice: Choice) -> tuple[list[Botocore], list[Botocore]]:
    """botocore's chain of providers in botocore's order, and separately the last of them, instance metadata.

    botocore.credentials.create_credential_resolver builds the same chain, but has no place for the vault, for a stored
    identity before the metadata, or for our prompt.
    """
    from botocore.credentials import (
        AssumeRoleProvider,
        AssumeRoleWithWebIdentityProvider,
        CanonicalNameCredentialSourcer,
    )

    store, session = resolver.store, resolver.session
    profile = choice.profile or "default"
    cache = resolver.session_cache(profile, choice.environment)
    environment, container = environment_provider(store.environ), container_provider(store)
    metadata = metadata_provider(store, session)
    builder = profile_providers(resolver, cache)
    roles = AssumeRoleProvider(
        load_config=lambda: session.full_config,
        client_creator=session.create_client,
        cache=cache,
        profile_name=profile,
        prompter=resolver.ask_mfa_code,
        credential_sourcer=CanonicalNameCredentialSourcer([environment, container, metadata]),
        profile_provider_builder=builder,
    )
    first = [roles, *builder.providers(profile, disable_env_vars=resolver.as_go or not choice.environment)]
    if choice.environment and resolver.as_go:
        first.insert(0, AssumeRoleWithWebIdentityProvider(dict, session.create_client, profile, cache))
    if choice.environment:
        first.insert(0, environment)
    if store.is_ours(profile):
        return first, []
    return [*first, container], [metadata]


def profile_providers(resolver: Resolver, cache: SessionCache) -> Botocore:
    """botocore's builder of a profile's providers. A stored identity's keys are from the vault, never from a file."""
    from botocore.credentials import (
        ConfigProvider,
        LoginProvider,
        ProcessProvider,
        ProfileProviderBuilder,
        SharedCredentialProvider,
    )

    store, session = resolver.store, resolver.session

    class LaidOverProviders(ProfileProviderBuilder):  # type: ignore[misc,unused-ignore]
        def providers(self, profile_name: str, disable_env_vars: bool = False) -> list[Botocore]:
            keys = session.files.profiles.get(profile_name, {})
            if MFA_SOURCE in keys:
                return [keys_provider(resolver, profile_name, keys[MFA_SOURCE], keys)]
            is_ours = store.is_ours(profile_name)
            ours = {
                ProcessProvider: process_provider(store, profile_name, keys, in_shell=resolver.as_go),
                LoginProvider: login_provider(resolver, profile_name, keys),
            }
            if is_ours or resolver.as_go:
                ours |= {SharedCredentialProvider: None, ConfigProvider: None}
            found = [ours.get(type(each), each) for each in super().providers(profile_name, disable_env_vars)]
            if is_ours or (resolver.as_go and has_keys(keys)):
                # next to keys in a file, mfa_serial means nothing
                found.append(keys_provider(resolver, profile_name, profile_name, keys if is_ours else {}))
            return [provider for provider in found if provider is not None]

    return LaidOverProviders(
        session, cache=cache, sso_token_cache=SsoTokens(resolver.sessions, session.files.sso_sessions)
    )


def environment_provider(environ: Mapping[str, str]) -> Botocore:
    """botocore's provider for the keys in the environment."""
    from botocore.credentials import EnvProvider

    class CheckedEnvironment(EnvProvider):  # type: ignore[misc,unused-ignore]
        def load(self) -> Botocore:
            expires = environ.get("AWS_CREDENTIAL_EXPIRATION")
            if expires and not is_moment(expires):
                raise Problem("AWS_CREDENTIAL_EXPIRATION is not an ISO 8601 time with a time zone")
            return super().load()

    return CheckedEnvironment(environ)


def keys_provider(resolver: Resolver, profile: str, source: str, settings: Profile) -> Botocore:
    """A botocore provider for the keys of `source`, or for an MFA session if `settings` have an mfa_serial."""
    from botocore.credentials import CredentialProvider, DeferredRefreshableCredentials

    class KeysProvider(CredentialProvider):  # type: ignore[misc,unused-ignore]
        METHOD = "keyring"

        def load(self) -> Botocore:
            if "mfa_serial" in settings:
                fetcher = mfa_session_fetcher(resolver, profile, source, settings)
                return DeferredRefreshableCredentials(method="mfa", refresh_using=fetcher.fetch_credentials)
            return as_botocore_has_them(long_term_keys(resolver, source), self.METHOD)

    return KeysProvider()


def long_term_keys(resolver: Resolver, source: str) -> Credentials:
    """The keys of an identity, from the vault, from Atmos or from its profile."""
    store = resolver.store
    if source in store.foreign:
        return store.foreign[source].keys
    if source in store.stored.identities:
        return store.keys(source)
    keys = resolver.session.files.profiles[source]
    return Credentials(keys[SECRET_KEYS[0]], keys[SECRET_KEYS[1]], keys.get(SECRET_KEYS[2]), None)


def as_botocore_has_them(keys: Credentials, method: str) -> Botocore:
    """botocore's credentials object for these keys, which come from its provider `method`."""
    from botocore.credentials import Credentials as StaticCredentials
    from botocore.credentials import RefreshableCredentials

    if keys.expires is None:
        return StaticCredentials(keys.access_key, keys.secret_key, keys.token, method=method)
    same = {"access_key": keys.access_key, "secret_key": keys.secret_key, "token": keys.token}
    same["expiry_time"] = rfc3339(keys.expires)
    return RefreshableCredentials.create_from_metadata(same, lambda: same, method)


def mfa_session_fetcher(resolver: Resolver, profile: str, source: str, settings: Profile) -> Botocore:
    """A botocore fetcher that opens an MFA session (sts:GetSessionToken), which all roles of the identity share."""
    from botocore.credentials import CachedCredentialFetcher
    from botocore.exceptions import ClientError

    serial = settings["mfa_serial"]

    class MfaSessionFetcher(CachedCredentialFetcher):  # type: ignore[misc,unused-ignore]
        def _create_cache_key(self) -> str:
            return f"mfa {serial}"

        def _get_credentials(self) -> Botocore:
            sts = client(resolver.session, "sts", long_term_keys(resolver, source))
            duration = int(settings.get("duration_seconds", MFA_SECONDS))
            for attempt in (1, 2, 3):
                code = resolver.ask_mfa_code(f"MFA code for {serial}: ")
                if len(code) != 6:  # botocore would not send it
                    say("an MFA code has six digits")
                    continue
                try:
                    return sts.get_session_token(SerialNumber=serial, TokenCode=code, DurationSeconds=duration)
                except ClientError as error:
                    wrong_code = "MultiFactorAuthentication" in error.response.get("Error", {}).get("Message", "")
                    if attempt == 3 or not wrong_code:
                        raise
                    say("AWS did not accept this code")
            raise Problem(f"{resolver.name}: no MFA code was accepted")

    return MfaSessionFetcher(resolver.session_cache(profile))


PROCESS_VARIABLE = "EKS_TOKEN_PROCESS_OF"  # the profiles whose credential_process is running, one a line


def processes_running(environ: Mapping[str, str]) -> list[str]:
    """The profiles whose credential_process this program runs in, outermost first."""
    return environ.get(PROCESS_VARIABLE, "").splitlines()


def process_provider(store: Store, profile: str, settings: Profile, in_shell: bool) -> Botocore:
    """botocore's provider for credential_process, with errors that name the profile and a stderr that is ours.

    The AWS SDK for Go runs it in a shell, which knows ~ and $HOME. botocore does not.
    """
    from botocore.compat import compat_shell_split
    from botocore.credentials import CredentialProvider

    class OurProcessProvider(CredentialProvider):  # type: ignore[misc,unused-ignore]
        METHOD = "custom-process"

        def load(self) -> Botocore:
            command = settings.get("credential_process")
            if command is None:
                return None
            what = f"{profile}: credential_process"
            running = [*processes_running(store.environ), profile]
            environ = {**store.environ, PROCESS_VARIABLE: "\n".join(running)}
            split = shell_command(command, environ, store.platform) if in_shell else compat_shell_split(command)
            output = run_helper(split, environ, what)
            store.changing = f"the credential_process of {profile}"
            return as_botocore_has_them(
                process_keys(output, f"the output of the credential_process of {profile}"), self.METHOD
            )

    return OurProcessProvider()


def login_provider(resolver: Resolver, profile: str, settings: Profile) -> Botocore:
    """botocore's provider for login_session (`aws login`), whose own one needs a compiled library even to read it."""
    from botocore.credentials import CredentialProvider
    from botocore.utils import generate_login_cache_key, get_login_token_cache_directory

    store, sessions = resolver.store, resolver.sessions

    class OurLoginProvider(CredentialProvider):  # type: ignore[misc,unused-ignore]
        METHOD = "login"

        def load(self) -> Botocore:
            session = settings.get("login_session")
            if session is None:
                return None
            file = os.path.join(get_login_token_cache_directory(), f"{generate_login_cache_key(session)}.json")
            store.watched += look_at([file])
            keys = read_login_session(file)
            if keys_left(keys) < RENEW_SECONDS and sessions.hold(f"login {session}"):
                keys = read_login_session(file)
            if keys is None or keys_left(keys) < RENEW_SECONDS:
                keys = self.renewed(keys)
            return as_botocore_has_them(keys, self.METHOD)

        def renewed(self, keys: Credentials | None) -> Credentials:
            """Renewing takes a compiled library, which the AWS CLI has. Raises Problem if the session has ended."""
            import shutil

            command = shutil.which("aws", path=store.environ.get("PATH", os.defpath))
            reason = "and no AWS CLI is on PATH to renew it"
            if command:
                try:
                    question = ["configure", "export-credentials", "--profile", profile, "--format", "process"]
                    return process_keys(ask_program([command, *question], store.environ)[0], f"what {command} printed")
                except Problem as problem:
                    reason = f"and the AWS CLI cannot renew it: {problem.message}"
            if keys and keys_left(keys) > 0:
                debug(f"{profile}: its session of `aws login` is used until it expires, {reason}")
                return keys
            raise SignInNeeded(
                f"{profile}: the session of `aws login` has expired, {reason}",
                f"sign in with `aws login --profile {profile}`",
            )

    return OurLoginProvider()


def read_login_session(file: str) -> Credentials | None:
    """The credentials in a file of `aws login`; None if there are none."""
    import json

    try:
        with open(file, encoding="utf-8") as stream:
            token = json.load(stream)["accessToken"]
        key, secret, session = (token[name] for name in ("accessKeyId", "secretAccessKey", "sessionToken"))
        if all(isinstance(value, str) for value in (key, secret, session)):
            return Credentials(key, secret, session, parse_time(token["expiresAt"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        debug(f"{file} has no session of `aws login`")
    return None


def container_provider(store: Store) -> Botocore:
    """botocore's provider for the credentials of a container, whose answer is checked."""
    from http.client import responses
    from types import SimpleNamespace

    from botocore.credentials import ContainerProvider
    from botocore.httpsession import URLLib3Session
    from botocore.utils import ContainerMetadataFetcher

    class DiscreetSession(URLLib3Session):  # type: ignore[misc,unused-ignore]
        def send(self, request: Botocore) -> Botocore:
            """An answer, but no content of an error, which may be credentials: botocore would quote it."""
            answer = super().send(request)
            if answer.status_code == 200:
                return answer
            reason = responses.get(answer.status_code, "")
            return SimpleNamespace(status_code=answer.status_code, content=reason.encode())

    class CheckedFetcher(ContainerMetadataFetcher):  # type: ignore[misc,unused-ignore]
        def retrieve_full_uri(self, full_url: str, headers: Botocore = None) -> Botocore:
            answer = super().retrieve_full_uri(full_url, headers)
            if is_loopback(full_url):
                store.changing = "the local server in AWS_CONTAINER_CREDENTIALS_FULL_URI"
            check_answer("container's credential", answer if isinstance(answer, dict) else {}, CONTAINER_SESSION)
            for field in CONTAINER_SESSION:
                if not isinstance(answer[field], str) or (field == "Expiration" and not is_moment(answer[field])):
                    raise Problem(f"the container's credential service's answer has a wrong {field!r}")
            return answer

    return ContainerProvider(fetcher=CheckedFetcher(DiscreetSession(timeout=CheckedFetcher.TIMEOUT_SECONDS)))


def metadata_provider(store: Store, session: Botocore) -> Botocore:
    """botocore's provider for the credentials of an EC2 instance."""
    from botocore.credentials import InstanceMetadataProvider
    from botocore.utils import InstanceMetadataFetcher, resolve_imds_endpoint_mode

    class NotedFetcher(InstanceMetadataFetcher):  # type: ignore[misc,unused-ignore]
        def retrieve_iam_role_credentials(self) -> Botocore:
            if is_loopback(variable("ec2_metadata_service_endpoint") or ""):
                store.changing = "the local server in AWS_EC2_METADATA_SERVICE_ENDPOINT"
            return super().retrieve_iam_role_credentials()

    variable = session.get_config_variable
    fetcher = NotedFetcher(
        timeout=variable("metadata_service_timeout"),
        num_attempts=variable("metadata_service_num_attempts"),
        user_agent=session.user_agent(),
        config={
            "ec2_metadata_service_endpoint": variable("ec2_metadata_service_endpoint"),
            "ec2_metadata_service_endpoint_mode": resolve_imds_endpoint_mode(session),
            "ec2_credential_refresh_window": RENEW_SECONDS,
            "ec2_metadata_v1_disabled": variable("ec2_metadata_v1_disabled"),
        },
    )
    return InstanceMetadataProvider(fetcher)


def is_loopback(url: str) -> bool:
    """Whether a server is on this machine, as those of aws-vault and aws-sso-cli are. Those of ECS and EC2 are not."""
    import ipaddress
    from urllib.parse import urlsplit

    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# What can be said about a request's credentials without asking for them


def changing_source(resolver: Resolver, request: Request) -> str:
    """Where a request's credentials come from, if that may give others each time, without asking it. Raises Problem."""
    choice = choose_identity(request, resolver.store.environ, resolver.store.stored)
    profiles = resolver.open_session(choice, request).files.profiles
    for name in sources(profiles, choice.profile or choice.fallback or "default"):
        if "credential_process" in profiles.get(name, {}):
            return f"the credential_process of {name}"
    return ""


def unlike_authenticator(resolver: Resolver, request: Request) -> list[str]:
    """What aws-iam-authenticator does otherwise with such a request, in words. Nothing is asked. Raises Problem.

    These are all known differences in the principal that we cannot, or do not want to, remove.
    """
    if request.grammar != AUTHENTICATOR.name:
        return []
    environ = resolver.store.environ
    choice = choose_identity(request, environ, resolver.store.stored)
    profiles = resolver.open_session(choice, request).full_config["profiles"]
    name = choice.profile or choice.fallback or "default"
    in_environment = [each for each in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE") if environ.get(each)]
    profile = {} if choice.environment and in_environment else profiles.get(name, {})
    found, unnamed = [], ""
    if request.role_arn:
        given = bool(request.session_name) or request.forward_session_name
        unnamed = "" if given else f"named {ROLE_SESSION_NAME}, not aws-go-sdk-TIME; -s NAME"
    elif choice.environment and in_environment == ["AWS_WEB_IDENTITY_TOKEN_FILE"]:
        given = "AWS_ROLE_SESSION_NAME" in environ
        unnamed = "" if given else "named botocore-session-TIME, not TIME; AWS_ROLE_SESSION_NAME"
    elif "role_arn" in profile and not profile.get("role_session_name"):
        unnamed = f"named botocore-session-TIME, not aws-go-sdk-TIME; role_session_name in the profile {name}"
    if unnamed:
        found.append(f"the role session is {unnamed} sets the name for both")
    login = next((each for each in sources(profiles, name) if "login_session" in profiles.get(each, {})), "")
    if profile and login:
        found.append(f"the login_session of {login} is used, which aws-iam-authenticator does not know")
    return found


# Errors, and answers that are not AWS's


class plain_errors:
    """Turns what botocore, and what it calls, may raise in the `with` block into a Problem."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, (BotoCoreError, ClientError, OSError, ValueError, RuntimeError)):
            raise credential_problem(error, self.name) from error


def credential_problem(error: Exception, name: str) -> Problem:
    from botocore import exceptions

    whose = f"{name}: " if name else ""
    if isinstance(error, exceptions.ClientError):
        details = error.response.get("Error", {})
        code, words = details.get("Code", "Unknown"), first_line(details.get("Message", ""))
        return Problem(f"{whose}AWS refused {error.operation_name}: {code}: {words}")
    if isinstance(error, exceptions.ConfigParseError):
        return config_problem(error)
    if isinstance(error, (exceptions.SSOError, exceptions.TokenRetrievalError)):
        return sign_in_problem(name or "NAME", f"the SSO session has ended or was never started ({first_line(error)})")
    if isinstance(error, RuntimeError) and "still expired" in str(error):
        return Problem(f"{whose}the credentials have expired", "obtain new ones")
    if isinstance(error, exceptions.ParamValidationError):  # several lines, the first of them a heading
        return Problem(f"{whose}{first_line(' '.join(str(error).split()))}")
    words = first_line(error)
    return Problem(f"{whose}{words} it gave no reason" if words.endswith(":") else f"{whose}{words}")


# What we read from the services' answers: members, and fields of a member, or of each item if the member is a list.
STS_SESSION = {"Credentials": STS_KEYS}
CONTAINER_SESSION = {"AccessKeyId": (), "SecretAccessKey": (), "Token": (), "Expiration": ()}
ANSWERS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "AssumeRole": STS_SESSION,
    "AssumeRoleWithWebIdentity": STS_SESSION,
    "GetSessionToken": STS_SESSION,
    "GetCallerIdentity": {"Arn": (), "Account": (), "UserId": ()},
    "RegisterClient": {"clientId": (), "clientSecret": (), "clientSecretExpiresAt": ()},
    "StartDeviceAuthorization": {"deviceCode": (), "userCode": (), "verificationUri": (), "expiresIn": ()},
    "CreateToken": {"accessToken": (), "expiresIn": ()},
    "ListAccounts": {"accountList": ("accountId",)},
    "ListAccountRoles": {"roleList": ("roleName",)},
    "GetRoleCredentials": {"roleCredentials": ("accessKeyId", "secretAccessKey", "sessionToken", "expiration")},
    "DescribeCluster": {"cluster": ()},
    "ListClusters": {"clusters": ()},
}


def check_answer(service: str, answer: Mapping[str, Botocore], wanted: Mapping[str, Sequence[str]]) -> None:
    """Raise Problem if an answer lacks something that we are going to read from it."""
    for name, fields in wanted.items():
        member = answer.get(name)
        lacking = [name] if member is None else []
        for part in member if isinstance(member, list) else [member or {}]:
            lacking += [field for field in fields if part.get(field) is None]
        if lacking:
            raise Problem(f"the {service} service's answer lacks {lacking[0]!r}")


def service_name(model: Botocore) -> str:
    service = str(model.service_model.service_name)
    return "SSO" if service.startswith("sso") else service.upper()


def check_botocores_answer(http_response: Botocore, parsed: Botocore, model: Botocore, **context: object) -> None:
    """botocore's "after-call" hook, which runs before botocore looks for an error in the answer."""
    if http_response.status_code < 300:
        check_answer(service_name(model), parsed, ANSWERS.get(model.name, {}))


def check_raw_answer(operation_model: Botocore, response_dict: Botocore, **context: object) -> None:
    """botocore's "before-parse" hook. Its parsers have no error of their own for an answer that is not AWS's.

    Raises Problem for a redirect, a page of a proxy, or fields of other types than in botocore's model of the service.
    Errors of a server (5xx) are botocore's: it tries again.
    """
    status, body = response_dict["status_code"], response_dict["body"]
    answer = f"the {service_name(operation_model)} service's answer"
    hint = "another server may have answered: check endpoint_url, AWS_ENDPOINT_URL and HTTPS_PROXY"
    if 300 <= status < 400:
        raise Problem(f"{answer} is a redirect (HTTP {status})", hint)
    shape = operation_model.output_shape
    if status >= 500 or not shape or not shape.members:
        return
    if operation_model.service_model.resolved_protocol == "query":
        wrong = wrong_in_xml(body)
    elif status >= 400 and not body:
        return
    else:
        wrong = wrong_in_json(body, shape if status < 300 else None)
    if wrong in ("XML", "JSON"):
        raise Problem(f"{answer} is not {wrong} (HTTP {status})", hint)
    if wrong:
        raise Problem(f"{answer} has a wrong {wrong!r}", hint)


def wrong_in_xml(body: bytes) -> str:
    """What is wrong with an answer of STS: "XML", the name of a field, or ""."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError):
        return "XML"
    for element in root.iter():
        if element.tag.endswith("}Expiration") and not is_moment(element.text):
            return "Expiration"
    return "" if root.tag.endswith("Response") else "XML"


def wrong_in_json(body: bytes, shape: Botocore) -> str:
    """What is wrong with a JSON answer: "JSON", the name of a field, or ""."""
    import json

    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    return misfit(shape, content, "JSON") if isinstance(content, dict) else "JSON"


JSON_TYPES = {"structure": dict, "map": dict, "list": list, "string": str, "integer": int, "long": int, "boolean": bool}


def misfit(shape: Botocore, value: object, name: str) -> str:
    """The name of the first field in a JSON value that is not of the type in botocore's model, or ""."""
    if shape is None or value is None:
        return ""
    wanted: Botocore = JSON_TYPES.get(shape.type_name, object)
    if not isinstance(value, wanted) or (wanted is int and (isinstance(value, bool) or value > LAST_SECOND * 1000)):
        return name
    if shape.type_name == "structure":
        parts = [(of, value.get(of.serialization.get("name", key)), key) for key, of in shape.members.items()]
    elif shape.type_name == "list":
        parts = [(shape.member, each, name) for each in value]
    else:
        parts = []
    return next((found for part in parts if (found := misfit(*part))), "")


# Signing in to IAM Identity Center


DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"  # RFC 8628, section 3.4
SLOW_DOWN_SECONDS = 5  # RFC 8628, section 3.5: added to the interval each time the server asks us to slow down


def unsigned_client(session: Botocore, service: str, region: str) -> Botocore:
    from botocore import UNSIGNED
    from botocore.config import Config

    return session.create_client(service, region_name=region, config=Config(signature_version=UNSIGNED))


def authorize_device(session: Botocore, portal: Portal, no_browser: bool) -> dict[str, str]:
    """An SSO token by device authorization (RFC 8628): a person confirms a code in a browser on any machine.

    Raises Problem if the person denies the request, or does not confirm it in time.
    """
    with plain_errors():
        oidc = unsigned_client(session, "sso-oidc", portal.region)
        client = oidc.register_client(clientName=PROGRAM, clientType="public", scopes=[SSO_SCOPE])
        known = {"clientId": client["clientId"], "clientSecret": client["clientSecret"]}
        keep_secret(known["clientSecret"])
        device = oidc.start_device_authorization(startUrl=portal.start_url, **known)
        keep_secret(device["deviceCode"])
        link = device.get("verificationUriComplete") or device["verificationUri"]
        say(f"Confirm the code {device['userCode']} in a browser: {link}")
        if not no_browser:
            open_browser(link)
        say("waiting for you to confirm (Ctrl-C to give up) ...")
        answer = poll_for_token(oidc, known | {"grantType": DEVICE_GRANT, "deviceCode": device["deviceCode"]}, device)
        token = {
            "startUrl": portal.start_url,
            "region": portal.region,
            "accessToken": answer["accessToken"],
            "expiresAt": rfc3339(time.time() + answer["expiresIn"]),
            **known,
            "registrationExpiresAt": rfc3339(client["clientSecretExpiresAt"]),
        }
        if answer.get("refreshToken"):
            token["refreshToken"] = answer["refreshToken"]
        return token


def poll_for_token(oidc: Botocore, question: Mapping[str, str], device: Botocore) -> Botocore:
    """Ask for the token until the person has answered (RFC 8628, section 3.5). Raises Problem."""
    interval = device.get("interval", 5)
    deadline = time.monotonic() + device["expiresIn"]
    while time.monotonic() < deadline:
        try:
            answer = dict(oidc.create_token(**question))
        except oidc.exceptions.AuthorizationPendingException:
            pass
        except oidc.exceptions.SlowDownException:
            interval += SLOW_DOWN_SECONDS
        except oidc.exceptions.AccessDeniedException:
            raise Problem("the request was denied in the browser; nothing was stored") from None
        except oidc.exceptions.ExpiredTokenException:
            break
        else:
            keep_secret(answer["accessToken"])
            keep_secret(answer.get("refreshToken"))
            return answer
        time.sleep(min(interval, max(0.0, deadline - time.monotonic())))
    raise Problem("nobody confirmed the code in time; nothing was stored", "run it again")


def open_browser(link: str) -> None:
    """Open a link in a graphical browser, if there is one. A text browser would take over the terminal."""
    environ = os.environ
    graphical = sys.platform in ("darwin", "win32") or environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")
    if graphical or environ.get("BROWSER"):
        import webbrowser

        if not link.startswith(("https://", "http://")):
            return debug("the link is not for a browser")
        # If the browser had our stdout, kubectl would wait until the browser exits, and read whatever it prints.
        try:
            quiet, stdout, stderr = os.open(os.devnull, os.O_WRONLY), os.dup(1), os.dup(2)
        except OSError:  # stdout or stderr is closed
            return debug("no browser could be started")
        try:
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            opened = webbrowser.open(link)
        except (webbrowser.Error, OSError):
            opened = False
        finally:
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            for file in (quiet, stdout, stderr):
                os.close(file)
        if not opened:
            debug("no browser could be started")


def authorize_again(store: Store, session: Botocore, portal: Portal, no_browser: bool) -> None:
    """Start an SSO session, and empty the cache of tokens minted while the person was in the browser."""
    keep_sso_token(store, portal, authorize_device(session, portal, no_browser))
    if store.cache:
        store.cache.empty()
        store.generation = store.cache.generation()


def pages(operation: Botocore, key: str, **question: str) -> list[Botocore]:
    """All pages of a listing of the SSO portal."""
    found: list[Botocore] = []
    while True:
        answer = operation(**question)
        found += answer[key]
        if not answer.get("nextToken"):
            return found
        question["nextToken"] = answer["nextToken"]


# -- 7. token ---------------------------------------------------------------------------------------------------------
#
# A bearer token is a presigned STS GetCallerIdentity URL in base64url, with the cluster's name as a signed header. The
# cluster sends that request to STS to learn who signed it. What it accepts is in aws-iam-authenticator's verifier
# (kubernetes-sigs/aws-iam-authenticator, pkg/token/token.go).

TOKEN_PREFIX = "k8s-aws-v1."
CLUSTER_HEADER = "x-k8s-aws-id"
MAX_TOKEN_LENGTH = 4096  # bytes, including the prefix
PRESIGN_EXPIRES = 60  # seconds; STS ignores it, but old verifiers allow at most 60
TOKEN_SECONDS = 14 * 60  # the verifier accepts 15 minutes from X-Amz-Date
CREDENTIAL_MARGIN = 60  # seconds; a token ends this long before the credentials that signed it


class Endpoint(NamedTuple):
    host: str
    signing_region: str


def sts_endpoint(
    region: str, grammar: str = "", fips: bool = False, dual_stack: bool = False, legacy: bool = False
) -> Endpoint:
    """The STS host for a token, from botocore's endpoint rules for STS.

    Configured endpoint URLs are ignored, because a cluster only accepts AWS's own hosts. If there is no region,
    `aws eks get-token` uses the global host and aws-iam-authenticator the host of us-east-1. Raises Problem if the
    region cannot exist.
    """
    from botocore.endpoint_provider import EndpointProvider
    from botocore.exceptions import BotoCoreError
    from botocore.loaders import Loader

    loader = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    partitions = loader.load_data("partitions")
    rules = EndpointProvider(loader.load_service_model("sts", "endpoint-rule-set-1"), partitions)
    if not region:
        region = "us-east-1" if grammar == "aws-iam-authenticator" else "aws-global"
    if "fips" in region:  # as botocore reads an old pseudo region, such as us-east-1-fips (botocore/client.py)
        region, fips = region.replace("fips-", "").replace("-fips", ""), True
    partition = check_region(region, partitions["partitions"])
    if partition.startswith("aws-iso"):
        dual_stack = False  # the verifier does not know a dual-stack domain there
    try:
        found = rules.resolve_endpoint(Region=region, UseFIPS=fips, UseDualStack=dual_stack, UseGlobalEndpoint=legacy)
    except BotoCoreError as error:
        raise Problem(f"AWS does not have this STS endpoint in {region}: {error}") from error
    schemes = found.properties.get("authSchemes") or [{}]
    return Endpoint(found.url.partition("://")[2], schemes[0].get("signingRegion", region))


def check_region(region: str, partitions: Sequence[Botocore]) -> str:
    """The ID of the region's partition. Warns if the region is not known. Raises Problem if it cannot exist."""
    import re

    known = [name for partition in partitions for name in partition["regions"]]
    for partition in partitions:
        if region in partition["regions"]:
            return str(partition["id"])
    close = nearest(region, known)
    for partition in partitions:
        if region.isascii() and re.fullmatch(partition["regionRegex"], region):
            warn(f"the region {region} is not known here" + (f"; the nearest known one is {close}" if close else ""))
            return str(partition["id"])
    raise usage(f"{region!r} is not an AWS region", f"did you mean {close}?" if close else "")


def presign(credentials: Credentials, endpoint: Endpoint, cluster: str) -> tuple[str, int]:
    """The presigned GetCallerIdentity URL, and when it was signed (seconds since the epoch)."""
    import calendar

    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest

    request = AWSRequest(
        "GET",
        f"https://{endpoint.host}/?Action=GetCallerIdentity&Version=2011-06-15",
        headers={CLUSTER_HEADER: cluster},
    )
    SigV4QueryAuth(credentials, "sts", endpoint.signing_region, expires=PRESIGN_EXPIRES).add_auth(request)
    signed = time.strptime(request.context["timestamp"], "%Y%m%dT%H%M%SZ")
    return str(request.url), calendar.timegm(signed)


def bearer_token(url: str) -> str:
    import base64

    token = TOKEN_PREFIX + base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")
    if len(token) > MAX_TOKEN_LENGTH:
        raise Problem(
            f"the token would have {len(token)} bytes, but clusters accept at most {MAX_TOKEN_LENGTH}: "
            "the session token of these credentials is too long",
            "use a role whose sessions have fewer tags or a smaller session policy",
        )
    return token


def exec_credential(token: str, version: str, expires: int) -> dict[str, object]:
    return {
        "kind": "ExecCredential",
        "apiVersion": CLIENT_AUTHENTICATION + version,
        "spec": {},
        "status": {"expirationTimestamp": rfc3339(expires), "token": token},
    }


def rendered(token: str, expires: int, request: Request) -> str:
    """The token in the output format that was requested, without a newline at the end."""
    if request.output == "token":
        return token
    credential = shown = exec_credential(token, request.version, expires)
    if request.query:
        import jmespath

        try:
            shown = jmespath.search(request.query, credential)
        except jmespath.exceptions.JMESPathError as error:
            raise usage(f"--query {request.query!r} is not a JMESPath expression: {first_line(error)}") from error
    return "\n".join(text_lines(shown)) if request.output == "text" else json_text(shown)


def text_lines(value: object, name: str = "") -> list[str]:
    """Lines in the format of the AWS CLI's `--output text` (aws/aws-cli, awscli/text.py): scalars joined by tabs, and
    each nested value on a line of its own that starts with its name."""
    if isinstance(value, dict):
        nested = [key for key in sorted(value) if isinstance(value[key], (dict, list))]
        scalars = [str(value[key]) for key in sorted(value) if key not in nested]
        lines = ["\t".join([name.upper(), *scalars] if name else scalars)] if scalars else []
        return [*lines, *(line for key in nested for line in text_lines(value[key], key))]
    if not isinstance(value, list):
        return [str(value)]
    if any(isinstance(item, dict) for item in value):
        return [line for item in value for line in text_lines(item, name)]
    scalars = [str(item) for item in value if not isinstance(item, list)]
    lines = [f"{name.upper()}\t{item}" for item in scalars] if name else ["\t".join(scalars)] * bool(scalars)
    return [*lines, *(line for item in value if isinstance(item, list) for line in text_lines(item, name))]


def mint(request: Request, resolver: Resolver) -> Minted:
    """Sign a new token. Raises Problem."""
    credentials = resolver.credentials(request)
    fips, dual_stack, legacy = resolver.endpoint_settings()
    region = request.region or resolver.region()
    endpoint = sts_endpoint(region, request.grammar, fips, dual_stack, legacy)
    url, issued = presign(credentials, endpoint, request.cluster)
    token = bearer_token(url)
    expires, cacheable = issued + TOKEN_SECONDS, True
    if credentials.expires is not None:
        if credentials.expires <= issued:
            raise Problem(f"the credentials of {resolver.name} expired at {rfc3339(credentials.expires)}")
        cacheable = credentials.expires - issued >= RENEW_SECONDS
        expires = min(expires, int(credentials.expires) - CREDENTIAL_MARGIN)
    if resolver.store.changing and not request.cache:
        debug(
            f"{resolver.store.changing} may give other credentials the next time; --cache caches the token all the same"
        )
        cacheable = False
    debug(f"signed for {endpoint.host} with {credentials.access_key[-4:]:.>8}, expires {rfc3339(expires)}")
    return Minted(rendered(token, expires, request), issued, expires, cacheable)


def token_command(invocation: Invocation) -> int:
    """Print a token: from the cache, or a new one. One process signs it while others that want the same one wait."""
    info = exec_info(invocation.environ.get("KUBERNETES_EXEC_INFO", ""))
    cache = open_cache(invocation)
    key = request_key(info.version, invocation.argv, invocation.environ, invocation.platform) if cache else None
    refresh = "--refresh" in invocation.argv
    ahead = is_ahead(invocation.environ)
    if cache and key and not refresh and not ahead and (answer := cache.lookup(key, time.time())):
        debug("answered from the cache")
        show(answer.text)
        if invocation.environ.get(REFRESH_VARIABLE) != "off" and cache.claim_refresh(key, time.time()):
            start_refresh(invocation)
        cache.write_for_sh(key, answer)
        return 0

    invocation.check_files()
    request = parse_request(invocation.argv, invocation.environ, info.version)
    asked = (f"{name} {value}" for name, value in zip(request._fields, request, strict=True) if value)
    debug(f"signing a new token: {', '.join(asked)}")
    person = invocation.terminal and info.interactive
    if ahead:
        return refresh_ahead(invocation, cache, key, request)
    if cache is None or key is None:
        show(mint(request, Resolver(invocation, cache, person)).text)
        return 0
    try:
        lock = cache.lock(f"request {key.line}")
        with lock:
            if not refresh and (answer := cache.lookup(key, time.time())):
                debug("another process has signed it meanwhile")
                show(answer.text)
                return 0
            resolver = Resolver(invocation, cache, person)
            minted, store = mint(request, resolver), resolver.store
            cache.store(key, minted, store.watched, store.generation, own=store.path)
    except LocksUnavailable:
        debug("locks do not work in the cache directory")
        minted = mint(request, Resolver(invocation, None, person))
    show(minted.text)
    return 0


def start_refresh(invocation: Invocation) -> None:
    """Start a process that signs the next token, behind the answer that was just printed. Nobody waits for it."""
    debug("a new token is signed in the background, for later")
    command = [sys.executable, *(["-I", "-S"] if invocation.build else []), invocation.file, *invocation.argv]
    environ = {**invocation.environ, REFRESH_VARIABLE: AHEAD}
    try:
        if os.name == "posix":  # importing subprocess takes as long as all the rest
            quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
            os.posix_spawn(sys.executable, command, environ, file_actions=quiet)
        else:
            import subprocess

            null, flags = subprocess.DEVNULL, getattr(subprocess, "DETACHED_PROCESS", 0)
            subprocess.Popen(command, stdin=null, stdout=null, stderr=null, env=environ, creationflags=flags)
    except (OSError, ValueError) as error:
        debug(f"that process cannot be started: {first_line(error)}")


def refresh_ahead(invocation: Invocation, cache: Cache | None, key: Key | None, request: Request) -> int:
    """Sign the next token while the present one is still good, in a process of its own. Raises Problem."""
    if cache is None or key is None:
        return 1
    if hasattr(os, "setsid"):
        try:
            os.setsid()  # Ctrl-C, or the end of the terminal, are not meant for this process
        except PermissionError:  # it has been done
            pass
    with cache.lock(f"request {key.line}", seconds=0):
        now = time.time()
        answer = cache.lookup(key, now)
        if answer is None or not cache.refresh_is_due(key, now):
            return 0  # the identities have changed, or another process was faster
        cache.postpone_refresh(key, now + RETRY_SECONDS)  # in case of failure
        resolver = Resolver(invocation, cache, interactive=False)
        minted, store = mint(request, resolver), resolver.store
        if minted.expires - FRESH_MARGIN > answer.fresh_until:
            cache.store(key, minted, store.watched, store.generation, own=store.path)
    return 0


# -- 8. kubeconfig ----------------------------------------------------------------------------------------------------
#
# First what is written for a cluster: the commands, and what they know about exec entries and about kubectl's files.
# Then how it gets into a file: ruamel.yaml says where in the text each value is, and only the lines that have to change
# are written. Comments, order, quotes and everything else stay as they are, to the byte.

EXEC_API_VERSION = CLIENT_AUTHENTICATION + "v1beta1"  # kubectl supports v1 only since 1.22
INSTALL_HINT = "copy the executable eks-token to a directory on PATH"
USABLE_STATUS = ("ACTIVE", "UPDATING")  # of a cluster; the same as in `aws eks update-kubeconfig`
EVERY_REGION = "all"
REQUESTS_AT_ONCE = 8
KUBECTL_LOCK_SECONDS = 10
EDIT_SECONDS = 60  # how long to try again if another program keeps changing the file
MOST_LEVELS, MOST_NODES = 100, 1_000_000  # of a kubeconfig's YAML
KUBECTL_KEYS = ("apiVersion", "clusters", "contexts", "current-context", "extensions", "kind", "preferences", "users")
TYPES: dict[type, str] = {dict: "mapping", list: "list", str: "string"}
FIX_KUBECONFIG = "fix {}, or pass another file with --kubeconfig"

# What a value without quotes is in kubectl's YAML 1.1, if it is not a string.
NULLS = ("", "~", "null", "Null", "NULL")
NOT_A_STRING = (
    "y|Y|n|N|yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"
    r"|[-+]?(0[xX][0-9a-fA-F_]+|0[obOB][0-7_]+|(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))"
    r"|\.(nan|NaN|NAN)"
)
NEEDS_NO_QUOTES = r"(--?)?[A-Za-z0-9_/][A-Za-z0-9_./:@=+~-]*(?<!:)"

# The commands whose exec entries can be adopted, and the grammar of their arguments.
ADOPTED = {
    "aws": AWS,
    "aws2": AWS,
    "aws-iam-authenticator": AUTHENTICATOR,
    "heptio-authenticator-aws": AUTHENTICATOR,
    "atmos": ATMOS,
}

# Others that print tokens for EKS clusters; kubectl may start them, and those above, through another program.
OTHER_PLUGINS = ("aws-cli", "kubergrunt")  # the AWS CLI's image, and Gruntwork's `kubergrunt eks token`
WRAPPER_SHELLS = ("sh", "bash", "dash", "ksh", "zsh")
SHELL_SYNTAX = "\n;&|<>()$`*?[]{}~#!\\"  # a line without these is one command

# How else a kubeconfig's user can authenticate ("kubectl config set-credentials --help").
KEY_FILES = ("client-certificate", "client-key", "tokenFile")
OTHER_WAYS = ("auth-provider", "client-certificate-data", "client-key-data", "password", "token", "username")


class Provision(NamedTuple):
    """Which entries to write, and where."""

    request: Request  # whose credentials describe the cluster; without a cluster, it means all clusters in the region
    role_arn: str = ""  # for the entry to assume
    alias: str = ""  # the context's name; if empty, the cluster's ARN
    user_alias: str = ""
    command: str = ""  # how kubectl starts this program; if empty, what works
    kubeconfig: str = ""  # a path to use instead of KUBECONFIG
    proxy_url: str = ""
    endpoint_url: str = ""  # of the EKS API
    set_current: bool = True
    prune: bool = False  # whether to remove entries for clusters that are gone
    dry_run: bool = False
    raw: bool = False  # whether a dry run shows secrets
    external_id: str = ""  # these two are for the role to assume
    session_name: str = ""


def kubeconfig_command(invocation: Invocation, options: Namespace) -> int:
    """Write the entries for one cluster, or for all clusters in a region."""
    if options.cluster_name and options.all:
        raise usage("--cluster-name and --all cannot be used together")
    if not options.cluster_name and not options.all:
        raise usage("no cluster given", "pass --cluster-name NAME, or --all for all clusters in the region")
    if options.all and (options.alias or options.user_alias):
        raise usage("--alias and --user-alias cannot be used with --all")
    if not options.all and (options.prune or options.region == EVERY_REGION):
        raise usage(f"{'--prune' if options.prune else '--region all'} needs --all")
    if options.cluster_name:
        named_cluster({"cluster_name": options.cluster_name})
    request = Request(PROGRAM, options.cluster_name, options.region, options.identity)
    role = {field: getattr(options, field) for field in ("role_arn", "external_id", "session_name")}
    check_request(request._replace(**role))
    more = ("alias", "user_alias", "command", "kubeconfig", "prune", "dry_run")
    given = role | {field: getattr(options, field) for field in more}
    return write_entries(
        invocation, Provision(request, set_current=not options.no_set_current and not options.all, **given)
    )


def update_kubeconfig_command(invocation: Invocation) -> int:
    """Do what `aws eks update-kubeconfig` does, but write an entry for this program."""
    taken = take_apart(UPDATE_KUBECONFIG, invocation.argv)
    words = taken.words[1:] if taken.words[0] == "aws" else taken.words
    check_words(UPDATE_KUBECONFIG, taken._replace(words=words))
    options = taken.options
    if not options.get("cluster_name"):
        raise usage("no cluster given", "pass --name")
    general = {field: value for field, value in options.items() if field not in ("role_arn", "output", "query")}
    request = aws_request(general, invocation.environ)
    if assumed := options.get("assume_role_arn", ""):
        request = request._replace(role_arn=assumed, session_name="EKSDescribeClusterSession")  # the AWS CLI's
    check_request(request)
    return write_entries(
        invocation,
        Provision(
            request,
            options.get("role_arn", ""),
            options.get("alias", ""),
            options.get("user_alias", ""),
            kubeconfig=options.get("kubeconfig", ""),
            proxy_url=options.get("proxy_url", ""),
            endpoint_url=options.get("endpoint_url", ""),
            dry_run=options.get("dry_run") == "true",
            raw=True,  # people use `… --dry-run > FILE`
        ),
    )


# What is written for a cluster


class Entry(NamedTuple):
    """A cluster, and the user and the context that go with it."""

    cluster: str  # its ARN
    server: str
    certificate: str  # of its certificate authority, PEM in base64
    user: str
    arguments: tuple[str, ...]  # of the exec entry
    context: str


def write_entries(invocation: Invocation, wanted: Provision) -> int:
    """Describe the wanted clusters, and write their entries. Returns 1 if some were skipped. Raises Problem."""
    for role_arn in filter(None, (wanted.role_arn, wanted.request.role_arn)):
        check_role_arn(role_arn)
    files = read_kubeconfigs(kubeconfig_paths(invocation, wanted.kubeconfig))  # before we ask anybody for anything
    command = exec_command(invocation, wanted.command)
    found = describe(invocation, wanted)
    entries = found.entries
    gone = gone_users(files, found) if wanted.prune else set()

    def change(files: Sequence[Kubeconfig], patches: Patches) -> None:
        remove_users(files, gone, patches)
        put_entries(files, entries, wanted, command, patches)

    if wanted.dry_run:
        new = [decoded(new) for file, new in rewritten(files, change) if new != file.content]
        show("".join(new) if wanted.raw else summary(entries, wanted, command), end="")
        if not wanted.raw:
            say("nothing was written; certificates and secrets are not shown, as in `kubectl config view`")
    else:
        changed = edit(files, change)
        for entry in entries:
            say(f"context {entry.context}: {'written to ' + ', '.join(changed) if changed else 'was already there'}")
    for user in sorted(gone):
        say(f"{'would remove' if wanted.dry_run else 'removed'} the user {user}: its cluster is gone")
    return 1 if found.failed else 0


class Described(NamedTuple):
    """What the EKS API says."""

    entries: list[Entry]
    identity: str  # that was asked for, or ""
    names: Mapping[str, Collection[str]] = {}  # of all clusters, by region
    failed: bool = False  # whether some of several could not be described


def gone_users(files: Sequence[Kubeconfig], found: Described) -> set[str]:
    """The users of the described identity's entries, all of whose clusters are not there any more."""

    def is_gone(arn: str) -> bool:
        region, name = region_and_name(arn)
        return region in found.names and name not in found.names[region]

    contexts = [context for file in files for context in file.contexts.values()]
    gone = {context.user for context in contexts if is_gone(context.cluster)}
    gone -= {context.user for context in contexts if not is_gone(context.cluster)}
    users = {name: user for file in files for name, user in file.users.items() if our_arguments(user) is not None}
    return {name for name, user in users.items() if name in gone and entry_identity(user) == found.identity}


def region_and_name(arn: str) -> tuple[str, str]:
    """The region and the name in the ARN of an EKS cluster, or "" twice if this is another name."""
    import re

    found = re.fullmatch("arn:[^:]*:eks:([^:]*):[^:]*:cluster/(.*)", arn)
    return (found[1], found[2]) if found else ("", "")


class Account(NamedTuple):
    """Whom the EKS API answers, and where."""

    name: str  # of the credentials, for messages
    identity: str  # that an entry has to name, or ""
    clients: Mapping[str, Botocore]  # botocore's, by region


def open_account(invocation: Invocation, wanted: Provision) -> Account:
    """Clients of the EKS API in the wanted region, or in every region of the partition. Raises Problem."""
    resolver = Resolver(invocation, open_cache(invocation), interactive=True)
    every = wanted.request.region == EVERY_REGION
    request = wanted.request._replace(region="") if every else wanted.request
    credentials = resolver.credentials(request)
    if resolver.store.changing:
        say(f"{resolver.store.changing} is asked for each token, because it may give other credentials each time;")
        say("if it does not, add --cache to the entry's args, and tokens are cached")
    region = request.region or resolver.region() or ("us-east-1" if every else "")
    if not region:
        raise usage("--region is missing", "pass the cluster's AWS region, for example --region us-east-2")
    identity = effective_identity(resolver, request)
    choice = Choice(identity, named=bool(identity), environment=not identity)
    session = resolver.open_session(choice, request._replace(region=region))
    with plain_errors(resolver.name):
        regions = session.get_available_regions("eks", session.get_partition_for_region(region)) if every else [region]
        url = wanted.endpoint_url or None
        eks = {name: client(session, "eks", credentials, region_name=name, endpoint_url=url) for name in regions}
    return Account(resolver.name, identity, eks)


def describe(invocation: Invocation, wanted: Provision) -> Described:
    """The entries for the wanted clusters, from the EKS API. Raises Problem."""
    name, identity, eks = open_account(invocation, wanted)

    def entry(cluster: tuple[str, str]) -> Entry:
        region, cluster_name = cluster
        with plain_errors(name):
            return new_entry(eks[region].describe_cluster(name=cluster_name)["cluster"], cluster_name, identity, wanted)

    def clusters(region: str) -> list[str]:
        with plain_errors(name):
            return pages(eks[region].list_clusters, "clusters")

    if wanted.request.cluster:
        return Described([entry((next(iter(eks)), wanted.request.cluster))], identity)
    names, unasked = ask_at_once(list(eks), clusters, invocation, "regions")
    if not names:
        raise next(iter(unasked.values()))
    if unasked:  # some regions are not enabled in an account, or forbidden
        warn(f"{len(unasked)} regions did not answer: {listed(unasked)}")
    found, skipped = ask_at_once([(at, each) for at in names for each in names[at]], entry, invocation, "clusters")
    for (_, each), problem in skipped.items():
        warn(f"skipped {each}: {problem.message}")
    every = wanted.request.region == EVERY_REGION
    if not found and not skipped and not wanted.prune:
        raise Problem(f"{name} sees no clusters in {'any region' if every else next(iter(eks))}")
    say(f"clusters: {len(found)}, in {f'{len(names)} regions' if every else next(iter(eks))}")
    return Described(list(found.values()), identity, names, bool(skipped))


def ask_at_once(
    questions: Sequence[K], ask: Callable[[K], T], invocation: Invocation, what: str
) -> tuple[dict[K, T], dict[K, Problem]]:
    """The answers, and the Problem of each question that has none. A terminal shows how many have been answered."""
    from concurrent.futures import ThreadPoolExecutor

    answers, problems = {}, {}
    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        futures = [(question, pool.submit(ask, question)) for question in questions]
        for number, (question, future) in enumerate(futures, 1):
            try:
                answers[question] = future.result()
            except Problem as problem:
                problems[question] = problem
            if invocation.terminal:
                sys.stderr.write(
                    f"\r{what}: {number}/{len(questions)}" + ("\r\x1b[K" if number == len(questions) else "")
                )
                sys.stderr.flush()
    finally:
        pool.shutdown(cancel_futures=True)
    return answers, problems


def effective_identity(resolver: Resolver, request: Request) -> str:
    """The identity or profile whose credentials a request got, as a name for --identity; "" if there is none.

    The entry contains the name, so that it does not use another identity after a default changes.
    """
    environ = resolver.store.environ
    choice = choose_identity(request, environ, resolver.store.stored)
    if choice.environment and (environ.get("AWS_ACCESS_KEY_ID") or environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")):
        return ""
    if choice.profile:
        return choice.profile
    session = resolver.session  # there is one: only the environment's keys and a named identity's do not need it
    if choice.fallback and session.profile == choice.fallback:
        return choice.fallback
    keys = session.files.profiles.get("default", {})
    return "default" if (RESOLVED_KEYS | set(SECRET_KEYS)) & keys.keys() else ""


def cluster_fields(found: Botocore, name: str) -> dict[str, str]:
    """What DescribeCluster says about a cluster. Raises Problem if that is another one, or cannot be used now."""
    import re

    status = found.get("status", "unknown")
    if found.get("name") != name or not is_cluster_name(name):  # it may be from ListClusters
        raise Problem(f"AWS returned a cluster that is not {name}")
    if status not in USABLE_STATUS:
        raise Problem(f"the cluster {name} cannot be used: its status is {status}", "try again when it is ACTIVE")
    forms = {
        "arn": rf"arn:aws[a-z-]*:eks:[a-z][a-z0-9-]*:[0-9]{{12}}:cluster/{re.escape(name)}",
        "endpoint": r"https://[A-Za-z0-9.-]+(:[0-9]+)?(/[!-~]*)?",
        "id": r"([A-Za-z0-9][A-Za-z0-9-]*)?",
        "certificate": r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",  # PEM in base64
    }
    values = {**found, "certificate": found.get("certificateAuthority", {}).get("data")}
    for field, form in forms.items():
        value = values.get(field) or ""
        if not isinstance(value, str) or not re.fullmatch(form, value):
            raise Problem(f"AWS returned no usable {field} for the cluster {name}: {value!r}"[:300])
    return {field: values.get(field) or "" for field in forms}


def new_entry(found: Botocore, name: str, identity: str, wanted: Provision) -> Entry:
    """The entry for a cluster, from what DescribeCluster returned. Raises Problem if the cluster cannot be used now."""
    about = cluster_fields(found, name)
    arn = about["arn"]
    # The verifier of a local cluster on an Outpost expects the ID ("aws eks get-token", AWS CLI Command Reference).
    outpost = found.get("outpostConfig")
    local = outpost is not None and outpost.get("etcdInstanceType") is None and about["id"]
    arguments = option_words(
        {
            "--cluster-id" if local else "--cluster-name": about["id"] if local else name,
            "--region": arn.split(":")[3],
            "--identity": identity,
            "--role-arn": wanted.role_arn,
            "--external-id": wanted.external_id,
            "--session-name": wanted.session_name,
        }
    )
    who = ":".join(part for part in (PROGRAM, identity, wanted.role_arn) if part)
    user = wanted.user_alias or f"{who}@{arn}"
    return Entry(arn, about["endpoint"], about["certificate"], user, tuple(arguments), wanted.alias or arn)


def put_entries(
    files: Sequence[Kubeconfig],
    entries: Sequence[Entry],
    wanted: Provision,
    command: Sequence[str],
    patches: Patches,
) -> None:
    """Add what has to change for these entries. What else a user has set in them, such as a namespace, stays."""
    # kubectl writes what is new to the first file that exists ("kubectl config --help").
    default = next((file for file in files if file.content is not None), files[-1])
    if entries and not default.data:
        patches.setdefault(default.path, {}).update(apiVersion="v1", kind="Config")

    def put(kind: str, name: str, about: Patch) -> None:
        file = next((file for file in files if name in getattr(file, kind)), default)
        items_of(patches, file.path, kind)[name] = {kind.removesuffix("s"): about}

    clusters = {name: insecure for file in reversed(files) for name, insecure in file.clusters.items()}
    users = {name: user for file in reversed(files) for name, user in file.users.items()}
    for entry in entries:
        cluster: Patch = {"server": entry.server}
        if entry.certificate:
            cluster["certificate-authority-data"] = entry.certificate
        if entry.certificate and clusters.get(entry.cluster):  # kubectl refuses it next to a certificate
            cluster["insecure-skip-tls-verify"] = Bare("false")
        if wanted.proxy_url:
            cluster["proxy-url"] = wanted.proxy_url
        put("clusters", entry.cluster, cluster)
        put("contexts", entry.context, {"cluster": entry.cluster, "user": entry.user})
        now = users.get(entry.user, KubeUser("", (), {}, ""))
        version = now.api_version.removeprefix(CLIENT_AUTHENTICATION)
        user = now._replace(
            command=command[0],
            arguments=(*command[1:], *entry.arguments),
            api_version=now.api_version if version in ("v1", "v1beta1") else EXEC_API_VERSION,
            install_hint=now.install_hint or INSTALL_HINT,
            mode=now.mode or "IfAvailable",
        )
        put("users", entry.user, {"exec": user.entry()})
    current = next((file.current for file in files if file.current), "")
    if wanted.set_current and entries and current != entries[-1].context:
        patches.setdefault(default.path, {})["current-context"] = entries[-1].context


def items_of(patches: Patches, path: str, kind: str) -> Items:
    """What changes in a list of this kubeconfig: its clusters, contexts or users."""
    found = patches.setdefault(path, {}).setdefault(kind, Items())
    assert isinstance(found, Items)
    return found


def summary(entries: Sequence[Entry], wanted: Provision, command: Sequence[str]) -> str:
    """A kubeconfig with nothing but these entries, and without their certificates."""
    hidden = [entry._replace(certificate=entry.certificate and "DATA+OMITTED") for entry in entries]
    patches: Patches = {}
    put_entries([Kubeconfig("")], hidden, wanted, command, patches)
    return "".join(f"{line}\n" for line in lines_of(patched(None, patches[""])))


def remove_entries(invocation: Invocation, names: Sequence[str], named: str) -> None:
    """Remove the users that use one of these identities, and the contexts and clusters that only they used.

    If that fails, it is only a warning, because the identity is forgotten anyway.
    """
    try:
        paths = kubeconfig_paths(invocation, named)
        if not any(PROGRAM.encode() in (read_bytes(path) or b"") for path in paths):  # it may even be damaged
            return
        files = read_kubeconfigs(paths)
        users = {name for file in files for name, user in file.users.items() if entry_identity(user) in names}
        if users:
            edit(files, lambda files, patches: remove_users(files, users, patches))
        for user in sorted(users):
            say(f"removed the user {user} from the kubeconfig")
    except Problem as problem:
        warn(f"the identity's kubeconfig entries were not removed: {problem.message}")


def remove_users(files: Sequence[Kubeconfig], users: Collection[str], patches: Patches) -> None:
    """Add what has to change to remove these users, their contexts, and the clusters that only those use."""
    contexts = [(name, context) for file in files for name, context in file.contexts.items()]
    gone = {name: context.cluster for name, context in contexts if context.user in users}
    still_used = {context.cluster for _, context in contexts if context.user not in users}
    unused = set(gone.values()) - still_used
    for file in files:
        lists = (("users", file.users, users), ("contexts", file.contexts, gone), ("clusters", file.clusters, unused))
        for kind, now, names in lists:
            for name in now.keys() & names:
                items_of(patches, file.path, kind)[name] = None
        if file.current in gone:
            patches.setdefault(file.path, {})["current-context"] = ""


# The programs that exec entries start


def exec_command(invocation: Invocation, named: str = "") -> list[str]:
    """How kubectl starts this program: as named, or else by its name if PATH leads from there to this file, and by its
    whole path if not. kubectl cannot start a shell script on Windows, so there it starts Python with the file."""
    windows = invocation.platform == "win32"

    def whole(path: str) -> str:
        # kubectl takes one with backslashes for relative to the kubeconfig, and rewrites it.
        return path.replace("\\", "/") if windows else path

    if named:
        is_name = os.path.basename(named) == named
        return [named if is_name else whole(os.path.abspath(os.path.expanduser(named)))]  # else relative to the file
    if windows and invocation.build and not invocation.file.lower().endswith(".exe"):
        return [whole(sys.executable), "-I", "-S", whole(invocation.file)]
    first = on_path(PROGRAM, invocation)
    return [PROGRAM if first and os.path.samefile(first, invocation.file) else whole(invocation.file)]


def our_arguments(user: KubeUser) -> Sequence[str] | None:
    """The arguments that an exec entry passes to this program, or None if it starts another one."""
    if user.plugin() == PROGRAM:
        return user.arguments
    if user.plugin().startswith("python"):
        after = next((index for index, word in enumerate(user.arguments) if not word.startswith("-")), -1)
        if after >= 0 and program_name(user.arguments[after]) == PROGRAM:
            return user.arguments[after + 1 :]
    return None


def entry_identity(user: KubeUser) -> str:
    """The identity that a user's exec entry names, in its arguments or its variables, or "" if there is none."""
    if (arguments := our_arguments(user)) is None:
        return ""
    try:
        request = parse_request(arguments, user.variables, "v1beta1")
        return choose_identity(request, user.variables, Stored("", {})).profile
    except Problem:
        return ""


class Plugin(NamedTuple):
    """The program that an exec entry gets its token from."""

    name: str
    arguments: tuple[str, ...]
    wrapper: str = ""  # the program that starts it
    profile: str | None = ""  # the AWS profile that the wrapper chooses, or None if the wrapper may do other things


def find_plugin(user: KubeUser) -> Plugin | None:
    """The plugin for EKS clusters, if it is not this program, that an exec entry starts, perhaps through others."""
    import re

    if our_arguments(user) is not None:
        return None
    words: Sequence[str] | None = (user.command, *user.arguments)
    wrapper, profile = "", ""
    while words:
        if (name := program_name(words[0])) in ADOPTED:
            return Plugin(name, tuple(words[1:]), wrapper, profile)
        wrapper = wrapper or name
        chosen, words = unwrapped(words)
        profile = chosen or profile
    for word in (user.command, *user.arguments):
        for part in re.split(r"[\s;&|()'\"]+", word):
            if (name := program_name(part).partition(":")[0]) in (*ADOPTED, *OTHER_PLUGINS):
                return Plugin(name, (), "" if word == user.command else wrapper, None)
    return None


def unwrapped(words: Sequence[str]) -> tuple[str, Sequence[str] | None]:
    """The AWS profile that a wrapper chooses, and the words it starts. They are None if it may do anything else."""
    import shlex

    name, rest = program_name(words[0]), list(words[1:])
    if name in WRAPPER_SHELLS and len(rest) == 2 and rest[0] == "-c" and not set(rest[1]) & set(SHELL_SYNTAX):
        try:
            name, rest = "env", shlex.split(rest[1].strip().removeprefix("exec "))  # a line may start as env's words do
        except ValueError:
            return "", None
    if name == "env":
        profile = ""
        while rest and rest[0].startswith("AWS_PROFILE="):
            profile = rest.pop(0).partition("=")[2]
        return profile, rest
    if name == "aws-vault" and rest[:1] == ["exec"] and len(rest) > 2 and not rest[1].startswith("-"):
        return rest[1], rest[3:] if rest[2] == "--" else rest[2:]
    return "", None


def program_name(command: str) -> str:
    """A command without its directory, spaces and `.exe` or `.cmd`, in lower case."""
    return command.strip().replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe").removesuffix(".cmd")


# The files that kubectl reads


class ExecUser(NamedTuple):
    """A kubeconfig's user with an exec entry, and the contexts that use it."""

    path: str  # of the kubeconfig
    entry: KubeUser
    contexts: Mapping[str, str]  # the contexts' names, and what is wrong with them, or ""


def exec_users(invocation: Invocation, named: str = "") -> list[ExecUser]:
    """The users with an exec entry that a context uses. If two files have the same user, kubectl uses the first."""
    users: dict[str, tuple[str, KubeUser]] = {}
    contexts: dict[str, KubeContext] = {}
    configs = kubeconfigs(invocation, named)
    for config in configs:
        users = {name: (config.path, user) for name, user in config.users.items()} | users
        contexts = {**config.contexts, **contexts}
    clusters = {cluster for config in configs for cluster in config.clusters}
    of: dict[str, dict[str, str]] = {name: {} for name in users}
    for name, context in contexts.items():
        missing = "" if context.cluster in clusters else f"there is no cluster named {context.cluster!r}"
        of.setdefault(context.user, {})[name] = missing
    return [ExecUser(path, user, of[name]) for name, (path, user) in users.items() if user.command and of[name]]


def kubeconfigs(invocation: Invocation, named: str = "") -> list[Kubeconfig]:
    """The kubeconfig files as kubectl reads them, and Atmos's own. Raises Problem."""
    return read_kubeconfigs(kubeconfig_paths(invocation, named, atmos_kubeconfig(invocation)))


def atmos_kubeconfig(invocation: Invocation) -> str:
    return os.path.join(atmos_home(invocation.environ, invocation.platform), "kube", "config")


def has_tilde(path: str) -> bool:
    return path == "~" or path.startswith(("~/", f"~{os.sep}"))


def kubeconfig_paths(invocation: Invocation, named: str, other: str = "") -> list[str]:
    """The files that kubectl would read: the named one, or those in KUBECONFIG, or ~/.kube/config. If none is named,
    the other one is included, if it exists. A file with several names is in the list once."""
    home = invocation.environ.get("USERPROFILE" if invocation.platform == "win32" else "HOME", "")
    given = [named] if named else invocation.environ.get("KUBECONFIG", "").split(os.pathsep)
    given = [path for path in given if path.strip()]
    if not given and not home:
        raise Problem("no kubeconfig: neither HOME nor KUBECONFIG is set", "pass --kubeconfig PATH")
    given = given or [os.path.join(home, ".kube", "config")]
    if os.path.isabs(other) and os.path.exists(other) and not named:
        given.append(other)
    paths: dict[object, str] = {}
    for path in given:
        if has_tilde(path):  # as in the AWS CLI
            path = home + path[1:]
        path = os.path.abspath(path)
        try:
            state = os.stat(path)
            file: object = (state.st_dev, state.st_ino)
        except OSError:
            file = os.path.realpath(path)
        paths.setdefault(file, path)
    return list(paths.values())


# What a kubeconfig holds


class KubeUser(NamedTuple):
    """A kubeconfig's user: the program that kubectl runs for a token. Empty if the user has no exec entry."""

    command: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    api_version: str
    mode: str = ""  # interactiveMode
    install_hint: str = ""
    others: Mapping[str, str] = {}  # the user's other ways to authenticate, with the paths of files

    def plugin(self) -> str:
        return program_name(self.command)

    def entry(self) -> Patch:
        """The exec entry, but for what we never write."""
        return {
            "apiVersion": self.api_version,
            "args": [*self.arguments],
            "command": self.command,
            "installHint": self.install_hint,
            "interactiveMode": self.mode,
        }


class KubeContext(NamedTuple):
    """The names of a context's cluster and user."""

    cluster: str
    user: str


class Kubeconfig(NamedTuple):
    """A kubeconfig file, and by name what we need from it."""

    path: str
    content: bytes | None = None  # None if there is no such file
    root: Node | None = None  # of the first document; None if that is empty
    data: Yaml = None  # the same without places in the text
    users: Mapping[str, KubeUser] = {}
    contexts: Mapping[str, KubeContext] = {}
    clusters: Mapping[str, bool] = {}  # whether they say anything about insecure-skip-tls-verify
    current: str = ""  # the context's name


def read_kubeconfigs(paths: Iterable[str]) -> list[Kubeconfig]:
    return [parse_kubeconfig(path, read_bytes(path)) for path in paths]


def read_bytes(path: str) -> bytes | None:
    """The file's bytes, or None if there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}") from error


def parse_kubeconfig(path: str, content: bytes | None) -> Kubeconfig:
    """Raises Problem if this is not a kubeconfig that kubectl can read."""
    try:
        root = compose(decoded(content or b""))
        config = fields(root, "it")
        return Kubeconfig(
            path,
            content,
            root,
            plain(root),
            {name: kube_user(user) for name, user in named(config, "user").items()},
            {
                name: KubeContext(string(context, "cluster"), string(context, "user"))
                for name, context in named(config, "context").items()
            },
            {name: "insecure-skip-tls-verify" in cluster for name, cluster in named(config, "cluster").items()},
            string(config, "current-context"),
        )
    except Fault as fault:
        raise Problem(f"{path}, line {fault.line}: {fault}", FIX_KUBECONFIG.format(path)) from None
    except RecursionError:
        raise Problem(f"{path} is nested too deeply", FIX_KUBECONFIG.format(path)) from None


def named(config: Mapping[str, Node], kind: str) -> dict[str, dict[str, Node]]:
    """The users, contexts or clusters of a kubeconfig, by name. Raises Fault."""
    found: dict[str, dict[str, Node]] = {}
    for item in items(config, f"{kind}s"):
        about = fields(item, f"an item in {kind}s")
        name = string(about, "name")
        if not name or name in found:
            raise Fault(line_of(item), f"another {kind} has the same name" if name else f"a {kind} has no name")
        found[name] = fields(about.get(kind), kind)
    return found


def kube_user(given: Mapping[str, Node]) -> KubeUser:
    """A user, as far as it decides which program gets a token. Raises Fault."""
    entry = fields(given.get("exec"), "exec")
    variables = [fields(pair, "an item in env") for pair in items(entry, "env")]
    return KubeUser(
        string(entry, "command"),
        tuple(take(word, str, "an item in args") for word in items(entry, "args")),
        {string(pair, "name"): string(pair, "value") for pair in variables},
        string(entry, "apiVersion"),
        string(entry, "interactiveMode"),
        string(entry, "installHint"),
        {key: string(given, key) if key in KEY_FILES else "" for key in (*KEY_FILES, *OTHER_WAYS) if key in given},
    )


def kubectl_fault(user: KubeUser, path: str) -> str:
    """Why kubectl would not run a user's exec entry in this kubeconfig, or "" (kubernetes/client-go,
    tools/clientcmd/validation.go, and rest/exec.go)."""
    version = user.api_version.removeprefix(CLIENT_AUTHENTICATION)
    if version == user.api_version or version not in API_VERSIONS:
        return f"kubectl rejects the apiVersion {user.api_version!r}"
    if version == "v1alpha1":
        return f"kubectl 1.24 and later reject {user.api_version}; v1beta1 is the same"
    if user.mode not in ("", "Never", "IfAvailable", "Always"):
        return f"kubectl rejects the interactiveMode {user.mode!r}"
    if version == "v1" and not user.mode:
        return f"kubectl rejects {user.api_version} without an interactiveMode"
    if "" in user.variables:
        return "kubectl rejects a variable without a name in env"
    if "auth-provider" in user.others:
        return "kubectl rejects auth-provider next to exec"
    if first := [key for key in ("token", "tokenFile", "username") if key in user.others]:
        return f"kubectl uses the user's {first[0]} and never runs exec"
    for key, value in user.others.items():
        if value and not os.path.exists(os.path.join(os.path.dirname(path), value)):
            return f"kubectl cannot read the user's {key}, {value}: there is no such file"
    return ""


# Changing files: all or none, and under kubectl's locks


def edit(
    files: Sequence[Kubeconfig], change: Change, backup: Callable[[str, bytes, bytes], str] | None = None
) -> list[str]:
    """Make the changes that `change` wants to these files, to all or to none. Returns the paths of those that changed.

    If another program has written one of them since it was read, all are read again. `backup` gets a path, the old and
    the new content, and returns the path of the backup. Raises Problem.
    """
    deadline = time.monotonic() + EDIT_SECONDS
    while time.monotonic() < deadline:
        contents = [(file.path, file.content, new) for file, new in rewritten(files, change)]
        changed = [(path, old, new) for path, old, new in contents if new != (old or b"")]
        if replace_contents(changed, backup):
            return [path for path, _, _ in changed]
        files = read_kubeconfigs(file.path for file in files)
    raise Problem(f"another program keeps changing {files[0].path}", "try again when it is done")


def rewritten(files: Sequence[Kubeconfig], change: Change) -> Iterable[tuple[Kubeconfig, bytes]]:
    """These files, and the content that each of them has after the change. Raises Problem."""
    patches: Patches = {}
    change(files, patches)
    for file in files:
        patch = patches.get(file.path)
        if patch is None or (wanted := patched(file.data, patch)) == file.data:
            yield file, file.content or b""
            continue
        new = Edits(file, patch).result().encode(encoding_of(file.content or b""))
        if for_kubectl(parse_kubeconfig(file.path, new).data) != for_kubectl(wanted):
            raise Problem(
                f"{file.path} cannot be changed without changing more: it may use YAML aliases",
                "change it in an editor",
            )
        yield file, new


def for_kubectl(data: Yaml) -> Yaml:
    """The part of a kubeconfig that kubectl reads. The rest may only have anchors that this part has aliases for."""
    return {key: value for key, value in data.items() if key in KUBECTL_KEYS} if isinstance(data, dict) else data


def replace_contents(
    contents: Sequence[tuple[str, bytes | None, bytes]], backup: Callable[[str, bytes, bytes], str] | None = None
) -> bool:
    """Write the new contents of all these files, given with the old ones, or of none. Raises Problem.

    Returns False if one of them is not what it was (None: no file), because another program has written it.
    """
    import contextlib

    for path, _, _ in contents:
        check_home(path)
    with contextlib.ExitStack() as held, contextlib.ExitStack() as rollback:
        for lock in kubectl_locks(path for path, _, _ in contents):
            take_kubectl_lock(lock)
            held.callback(discard, lock)
        if any(read_bytes(path) != old for path, old, _ in contents):
            return False
        for path, before, new in contents:
            old = before or b""
            if backup:
                rollback.callback(discard, backup(path, old, new))
            if before is None:
                rollback.callback(discard, os.path.realpath(path))  # which is not there yet, unlike a link to it
            write_kubeconfig(path, old, new)
            rollback.callback(write_kubeconfig, path, new, old)
        rollback.pop_all()
    return True


def check_home(path: str) -> None:
    """Raise Problem if we are root and the file is in another user's home, as for identities (`check_place`).

    Elsewhere, root may change another user's kubeconfig, for example one that is mounted in a container.
    """
    home = os.path.expanduser("~")
    if os.name != "posix" or os.geteuid() != 0 or not path.startswith(os.path.join(home, "")):
        return
    try:
        check_above(home)
    except Refused as refused:
        raise Problem(f"{refused}, so {path} is not changed", "run this as that user, or with your own HOME") from None


def write_kubeconfig(path: str, old: bytes, new: bytes) -> None:
    """Write a kubeconfig. If we are killed, it has the old content or the new; links, mode and owner stay.

    A new file takes its place. A file that has hard links or another owner, or is in a directory where we cannot
    write (or is mounted by itself, as in a container), is overwritten, which is how kubectl writes. If the new content
    does not fit, the old content is restored. Raises Problem.
    """
    import contextlib
    import stat

    real = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(real), 0o700, exist_ok=True)
        file = os.open(real, os.O_WRONLY | os.O_CREAT, 0o600)
        state = os.fstat(file)
        os.close(file)  # Windows replaces no file that is open
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror}") from error
    if not stat.S_ISREG(state.st_mode):
        raise Problem(f"{path} is not a regular file", "pass another file with --kubeconfig")
    if state.st_nlink == 1 and state.st_uid == getattr(os, "geteuid", int)() and replaced(real, new, state.st_gid):
        return
    try:
        overwrite(real, new)
    except BaseException as error:
        with contextlib.suppress(OSError):
            overwrite(real, old)
        if isinstance(error, OSError):
            outcome = "was not changed" if read_bytes(real) == old else "is damaged now, because it cannot be restored"
            raise Problem(f"{path} cannot be written: {error.strerror}; it {outcome}") from error
        raise


def replaced(real: str, new: bytes, group: int) -> bool:
    """Put a new file in the place of a kubeconfig whose lock we hold. Returns False if that is not possible."""
    import shutil

    # A name that no program takes for a kubeconfig. If we are killed, the next one to write removes the file.
    beside = os.path.join(os.path.dirname(real), f".{os.path.basename(real)}.{PROGRAM}")
    discard(beside)
    try:
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        overwrite(beside, new)
        if os.name == "posix":
            os.chown(beside, -1, group)
        shutil.copystat(real, beside)  # mode and access control list
        os.utime(beside)
        replace_file(beside, real)
    except OSError:
        return False
    finally:
        discard(beside)
    return True


def overwrite(path: str, content: bytes) -> None:
    """Make an existing file hold this, on the disk too. Raises OSError."""
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def kubectl_locks(paths: Iterable[str]) -> list[str]:
    """The locks that kubectl takes to change these kubeconfigs: a file next to each, which exists while the lock is
    held (kubernetes/client-go, tools/clientcmd/loader.go). If a kubeconfig is reached by a link, programs that use its
    real name are kept out too, where a lock can be made there."""
    locks = set()
    for path in paths:
        real = os.path.realpath(path)
        locks.add(os.path.join(os.path.realpath(os.path.dirname(path)), f"{os.path.basename(path)}.lock"))
        if os.path.isfile(real) and os.access(os.path.dirname(real), os.W_OK):
            locks.add(f"{real}.lock")
    return sorted(locks)


def take_kubectl_lock(lock: str) -> None:
    """Take one of kubectl's locks. kubectl itself does not wait for it, but we do. Raises Problem."""
    deadline = time.monotonic() + KUBECTL_LOCK_SECONDS
    while True:
        try:
            os.makedirs(os.path.dirname(lock), 0o700, exist_ok=True)
            return os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            if time.monotonic() > deadline:
                raise Problem(
                    f"another program has held the lock {lock} for {KUBECTL_LOCK_SECONDS} s",
                    "remove that file if no kubectl is running",
                ) from None
            time.sleep(0.05)
        except OSError as error:
            raise Problem(f"{lock} cannot be created: {error.strerror}") from error


def discard(path: str) -> None:
    """Remove a file, if that is possible."""
    try:
        os.unlink(path)
    except OSError:
        pass


# Reading YAML, which JSON is a part of. kubectl reads the first document. An error names the file and the line, and
# never quotes a value, because that could be a secret.


class Bare(NamedTuple):
    """A number or a boolean, as it is written."""

    text: str


class Items(dict["str", "Patch | None"]):
    """What changes in a list of items with names: the items by name. None removes an item."""


if TYPE_CHECKING:

    class Mark(Protocol):
        index: int
        line: int  # from 0
        column: int
        buffer: str  # the text
        pointer: int  # where this is in the buffer

    class Node(Protocol):
        """What we use of ruamel.yaml's nodes."""

        id: str  # mapping, sequence or scalar
        value: Any  # pairs of nodes, nodes, or a string, by the id
        style: str | None  # of a scalar: its quotes, or | or >
        flow_style: bool  # of the others: whether they are in brackets
        start_mark: Mark  # before an anchor, if there is one
        end_mark: Mark

    Yaml = dict[str, "Yaml"] | list["Yaml"] | str | Bare | None
    Patch = dict[str, "Patch | Items | list[str] | str | Bare"]  # what changes in a mapping: values, and new keys
    Patches = dict[str, Patch]  # by the path of the file
    Change = Callable[[Sequence[Kubeconfig], Patches], None]  # adds what has to change to the patches


class Fault(Exception):
    """What is wrong with a kubeconfig, and on which line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line  # from 1


def encoding_of(content: bytes) -> str:
    """The encoding of a kubeconfig, by its byte order mark. kubectl reads UTF-16 too, which PowerShell 5 writes."""
    import codecs

    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"


def decoded(content: bytes) -> str:
    """A kubeconfig's text, without a byte order mark. Raises Fault."""
    try:
        return content.decode(encoding_of(content))
    except UnicodeDecodeError as error:
        raise Fault(content.count(b"\n", 0, error.start) + 1, "this is not UTF-8") from None


def compose(text: str) -> Node | None:
    """The first document of a YAML text, or None if that is empty. Raises Fault."""
    import re

    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MOST_LEVELS
    yaml.composer.warn_double_anchors = False  # the warning quotes the file
    # kubectl reads a tab as a space, but not at the start of a line or after a dash. Replacing it moves nothing.
    text = re.sub(r"(?<=[^\s-])[ \t]*\t[ \t]*", lambda tabs: " " * len(tabs[0]), text)
    try:
        root: Node | None = next(yaml.compose_all(text), None)
    except MarkedYAMLError as error:
        raise Fault(error.problem_mark.line + 1 if error.problem_mark else 1, "this is not valid YAML") from None
    except YAMLError as error:  # a control character
        position = getattr(error, "position", 0)
        raise Fault(text.count("\n", 0, position) + 1, "this character is not allowed in YAML") from None
    return None if root is not None and parts(root) is None else root


def properties(node: Node) -> str:
    """The anchor and the tag before a node's value, with the spaces after them."""
    import re

    mark = node.start_mark
    found = re.match(r"([&!]\S*\s*)*", mark.buffer[mark.pointer : mark.pointer + node.end_mark.index - mark.index])
    return found[0] if found else ""


def parts(node: Node) -> dict[str, Node] | list[Node] | str | Bare | None:
    """What a node consists of: other nodes, or a scalar. If a mapping has a key twice, the last one counts."""
    if isinstance(node.value, str):
        if node.style is not None or is_string(node.value) or "!" in properties(node):  # quotes or a tag say so
            return node.value
        return None if node.value in NULLS else Bare(node.value)
    if node.id == "sequence":
        return list(node.value)
    merged: dict[str, Node] = {}
    own: dict[str, Node] = {}
    for key, value in node.value:
        if not isinstance(key.value, str):
            raise Fault(line_of(key), "this is not a key")
        if key.value != "<<" or key.style is not None:
            own[key.value] = value
            continue
        for base in reversed(value.value if value.id == "sequence" else [value]):
            merged |= fields(base, "what is merged here")
    return merged | own


def plain(root: Node | None) -> Yaml:
    """A node with everything in it. What has an alias occurs several times. Raises Fault."""
    left = MOST_NODES

    def value_of(node: Node) -> Yaml:
        nonlocal left
        left -= 1
        if left < 0:
            raise Fault(line_of(node), "its aliases stand for too much")
        found = parts(node)
        if isinstance(found, dict):
            return {key: value_of(value) for key, value in found.items()}
        return [value_of(item) for item in found] if isinstance(found, list) else found

    return None if root is None else value_of(root)


def line_of(node: Node) -> int:
    return int(node.start_mark.line) + 1


def take(node: Node | None, kind: type[T], what: str) -> T:
    """What a node consists of. null is empty, as in kubectl. Raises Fault if it is of another kind."""
    found = None if node is None else parts(node)
    if node is None or found is None:
        return kind()
    if not isinstance(found, kind):
        raise Fault(line_of(node), f"{what} is not a {TYPES[kind]}")
    return found


def fields(node: Node | None, what: str) -> dict[str, Node]:
    return take(node, dict, what)


def items(within: Mapping[str, Node], key: str) -> list[Node]:
    return take(within.get(key), list, key)


def string(within: Mapping[str, Node], key: str) -> str:
    return take(within.get(key), str, key)


# Editing YAML text


def patched(old: Yaml, patch: Patch | Items | list[str] | str | Bare | None) -> Yaml:
    """What a value becomes by a patch."""
    if isinstance(patch, Items):
        kept: dict[str, Yaml] = {}
        for item in old if isinstance(old, list) else []:
            name = str(item.get("name")) if isinstance(item, dict) else ""
            if name not in patch:
                kept[name] = item
            elif change := patch[name]:
                kept[name] = patched(item, change)
        for name, change in patch.items():
            if name not in kept and change is not None:
                kept[name] = patched({"name": name}, change)
        return list(kept.values())
    if isinstance(patch, dict):
        before = old if isinstance(old, dict) else {}
        return {**before, **{key: patched(before.get(key), value) for key, value in patch.items()}}
    return [*patch] if isinstance(patch, list) else patch


class Edits:
    """Changes to the text of a kubeconfig that leave all else as it is, to the byte.

    They take what people write into account, but not every way to write YAML. So check what the result holds.
    """

    def __init__(self, file: Kubeconfig, patch: Patch) -> None:
        self._text = decoded(file.content or b"")
        self._newline = "\r\n" if "\r\n" in self._text else "\n"
        self._edits: list[tuple[int, int, str]] = []  # from, to, and what to put there
        self._patched: set[int] = set()  # nodes with an anchor may occur again
        if file.root is None:
            self._insert_lines(len(self._text), lines_of(patched(None, patch)), 0)
        else:
            self._patch(file.root, patch)

    def result(self) -> str:
        done, at = [], 0
        for start, end, new in sorted(self._edits, key=lambda edit: edit[:2]):
            done += [self._text[at:start], new]
            at = max(at, end)
        return "".join(done) + self._text[at:]

    def _patch(self, node: Node, patch: Patch | Items) -> None:
        """Patch a mapping, or a list of items with names, that is not null or empty."""
        if id(node) in self._patched:
            return
        self._patched.add(id(node))
        if isinstance(patch, Items):
            self._patch_items(node, patch)
            return
        own = {key.value: (key, value) for key, value in node.value}
        now = take(node, dict, "")
        new: dict[str, Yaml] = {}
        for name, change in patch.items():
            old = plain(now.get(name))
            if (value := patched(old, change)) == old:
                continue
            if name not in own:  # a key that is merged from another mapping is written as well
                new[name] = value
            elif isinstance(change, dict) and parts(own[name][1]):
                if not value and not own[name][1].flow_style:
                    colon = self._after_colon(own[name][0])
                    self._put(colon, colon, " []")
                self._patch(own[name][1], change)
            else:
                self._replace(*own[name], value, in_brackets=node.flow_style)
        if node.flow_style:
            self._patch_brackets(node, (), [f"{in_quotes(name)}: {flow(value)}" for name, value in new.items()])
        elif new:
            self._insert_lines(self._end(node), lines_of(new), node.value[0][0].start_mark.column)

    def _patch_items(self, node: Node, patch: Items) -> None:
        names = [string(fields(item, ""), "name") for item in node.value]
        gone = [number for number, name in enumerate(names) if patch.get(name, {}) is None]
        new = patched([], Items({name: change for name, change in patch.items() if name not in names}))
        for item, name in zip(node.value, names, strict=True):
            if change := patch.get(name):
                self._patch(item, change)
        if node.flow_style:
            self._patch_brackets(node, gone, [flow(item) for item in new] if isinstance(new, list) else [])
            return
        for number in gone:
            item = node.value[number]
            self._put(self._dash(item)[0], self._line_end(self._end(item)), "")
        if new:
            self._insert_lines(self._end(node), lines_of(new), self._dash(node.value[0])[1])

    def _replace(self, key: Node, old: Node, value: Yaml, in_brackets: bool) -> None:
        """Replace a value in a mapping. The old one may be null or empty."""
        start, end = old.start_mark.index + len(properties(old)), self._end(old)
        if start >= end:
            start = end = self._after_colon(key)
        if isinstance(value, str) and old.id == "scalar":
            text = scalar_text(value, old.style)
            self._put(start, end, text if old.end_mark.index > old.start_mark.index else f" {text}")
        elif in_brackets or isinstance(value, (str, Bare)) or (parts(old) and old.flow_style):
            self._put(start, end, flow(value) if start < end else f" {flow(value)}")
        else:  # a block, below its key
            self._put(self._after_colon(key), end, "")
            column = key.start_mark.column
            self._insert_lines(end, lines_of(value), column if isinstance(value, list) else column + 2)

    def _patch_brackets(self, node: Node, gone: Collection[int], new: Sequence[str]) -> None:
        """Remove the items with these numbers from a mapping or a sequence, and append others."""
        pairs = node.value if node.id == "mapping" else [(item, item) for item in node.value]
        starts = [int(first.start_mark.index) for first, _ in pairs]
        ends = [int(last.end_mark.index) for _, last in pairs]
        opening = self._text.index("{" if node.id == "mapping" else "[", node.start_mark.index) + 1
        close = node.end_mark.index - 1
        if len(gone) == len(pairs):
            self._put(opening, close, ", ".join(new))
            return
        kept = min(number for number in range(len(pairs)) if number not in gone)
        for number in gone:
            if number > kept:
                self._put(ends[number - 1], ends[number], "")
            else:
                self._put(starts[number], starts[number + 1], "")
        if new:
            last = len(self._text[:close].rstrip())
            comma = "" if self._text[last - 1] == "," else ","
            self._put(last, last, f"{comma} " + ", ".join(new))

    def _put(self, start: int, end: int, new: str) -> None:
        self._edits.append((start, end, new))

    def _insert_lines(self, at: int, lines: Sequence[str], column: int) -> None:
        """Insert lines below the line of the character with this index."""
        text = "".join(f"{' ' * column}{line}{self._newline}" for line in lines)
        at = self._line_end(at)
        if at and self._text[at - 1] != "\n":  # the last line has no end
            text = self._newline + text.removesuffix(self._newline)
        self._put(at, at, text)

    def _after_colon(self, key: Node) -> int:
        return self._text.find(":", key.end_mark.index) + 1

    def _line_start(self, index: int) -> int:
        return self._text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        return self._text.find("\n", index) + 1 or len(self._text)

    def _dash(self, item: Node) -> tuple[int, int]:
        """The start of the line that has the dash of a block sequence's item, and the dash's column."""
        import re

        start = self._line_start(item.start_mark.index)
        while not (dash := re.compile(" *-").match(self._text, start)) and start:
            start = self._line_start(start - 1)
        return start, dash.end() - 1 - start if dash else 0

    def _end(self, node: Node) -> int:
        """Where a node's last value ends. ruamel's end of a block includes the comments and empty lines below it."""
        end = int(node.end_mark.index)
        if node.id == "scalar":
            return len(self._text[:end].rstrip()) if node.style in ("|", ">") else end
        if node.flow_style:
            return end
        last = node.value[-1][1] if node.id == "mapping" else node.value[-1]
        least = self._end(last) if last.start_mark.index > node.start_mark.index else 0  # an alias stands elsewhere
        while True:
            end = len(self._text[:end].rstrip())
            start = self._line_start(end)
            if start < least or not self._text[start:end].lstrip().startswith("#"):
                return end
            end = start


def lines_of(value: Yaml) -> list[str]:
    """A value as a block of YAML."""
    if isinstance(value, dict) and value:
        found = []
        for key, item in value.items():
            name, lines = scalar_text(key), lines_of(item)
            if isinstance(item, (dict, list)) and item:
                margin = "  " if isinstance(item, dict) else ""
                found += [f"{name}:", *(margin + line for line in lines)]
            else:
                found.append(f"{name}: {lines[0]}")
        return found
    if isinstance(value, list) and value:
        blocks = [lines_of(item) for item in value]
        return [("  " if number else "- ") + line for block in blocks for number, line in enumerate(block)]
    return [scalar_text(value) if isinstance(value, str) else flow(value)]


def flow(value: Yaml) -> str:
    """A value in brackets, on one line, as JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{in_quotes(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return in_quotes(value) if isinstance(value, str) else value.text if value else "null"


def scalar_text(value: str, style: str | None = None) -> str:
    """A string as YAML, in these quotes if it can be, or without any if it does not need them."""
    import re

    if style == "'" and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    return value if style != '"' and is_string(value) and re.fullmatch(NEEDS_NO_QUOTES, value) else in_quotes(value)


def in_quotes(value: str) -> str:
    """A string in double quotes, as both YAML and JSON have it, and as a terminal can show it."""
    import json

    text = json.dumps(value, ensure_ascii=False)
    codes = {char: f"\\u{ord(char):04x}" if char < "\U00010000" else f"\\U{ord(char):08x}" for char in set(text)}
    return "".join(char if char.isprintable() else codes[char] for char in text)


def is_string(value: str) -> bool:
    """Whether a value without quotes is a string for kubectl, which reads YAML 1.1."""
    import re

    return value not in NULLS and not re.fullmatch(NOT_A_STRING, value)


# -- 9. adopt ---------------------------------------------------------------------------------------------------------
#
# Switches other plugins' entries to this program. `adopt --undo` switches them back. Files are written as in section 8
# (`replace_contents`).


class Found(NamedTuple):
    """A user in a kubeconfig whose exec entry is another plugin's."""

    path: str
    user: str
    entry: KubeUser
    new: KubeUser  # what it would become
    refusal: str = ""  # why it is left alone
    notes: Sequence[str] = ()  # what a person should know before


def adopt_command(invocation: Invocation, options: Namespace) -> int:
    """Switch other plugins' exec entries to this program, and keep their arguments and variables as they are."""
    atmos = atmos_kubeconfig(invocation)
    paths = kubeconfig_paths(invocation, options.kubeconfig, atmos)
    is_atmos = {path for path in paths if os.path.realpath(path) == os.path.realpath(atmos)}
    directory = data_home(invocation.environ, invocation.platform)
    if options.undo:
        return undo(paths, directory, options.dry_run)
    if not (options.all or options.context or invocation.terminal):
        raise usage("which entries?", "pass --context NAME, or --all for all of them")
    if options.all and options.context:
        raise usage("--all and --context cannot be used together")
    files = read_kubeconfigs(paths)
    command = exec_command(invocation, options.command)
    known: dict[object, list[str]] = {}
    found = [offer(one, command, invocation, options.unwrap, known) for one in find_entries(files, options.context)]
    chosen = [one for one in found if not one.refusal and is_chosen(one, options)]
    for one in found:
        if one.refusal:
            say(f"left alone: {one.path}: user {one.user}: {one.refusal}")
    for path in sorted(is_atmos & {one.path for one in chosen}):
        warn(
            f"Atmos rewrites {path} with its own entries at each sign-in:"
            " set auto_provision: false in the spec of its aws/eks integrations"
        )
    if not chosen:
        say("there is nothing to adopt")
    elif options.dry_run:
        say("nothing was written: this is a dry run")
    else:
        changed = edit(
            files, lambda files, patches: swap_in(files, chosen, patches), lambda *file: keep_backup(directory, *file)
        )
        undoing = our_command("adopt --undo", {"--kubeconfig": options.kubeconfig}, invocation.platform)
        say(f"adopted {len(chosen)} in {', '.join(changed)}; to restore what was there: `{undoing}`")
    return 1 if options.context and any(one.refusal for one in found) else 0


def find_entries(files: Sequence[Kubeconfig], contexts: Sequence[str]) -> list[Found]:
    """Other plugins' entries for these contexts, or all, unchanged. Raises Problem if a context is missing."""
    used = [(name, context.user) for config in files for name, context in config.contexts.items()]
    for name in contexts:
        if name not in dict(used):
            close = nearest(name, dict(used))
            raise Problem(f"there is no context named {name!r}", f"did you mean {close}?" if close else "")
    wanted = {user for name, user in used if name in contexts}
    return [
        Found(config.path, name, user, user)
        for config in files
        for name, user in config.users.items()
        if user.command and our_arguments(user) is None and (name in wanted if contexts else find_plugin(user))
    ]


def offer(
    one: Found, command: Sequence[str], invocation: Invocation, unwrap: bool, known: dict[object, list[str]]
) -> Found:
    """What an entry would become, or why it is left alone. `known` has the differences of entries before it."""
    version = one.entry.api_version.removeprefix(CLIENT_AUTHENTICATION) or "v1beta1"
    if version == "v1alpha1":  # it is like v1beta1, and kubectl 1.24 dropped it
        version = "v1beta1"
    mode = one.entry.mode or ("IfAvailable" if version == "v1" else "")
    new = one.entry._replace(command=command[0], api_version=CLIENT_AUTHENTICATION + version, mode=mode)
    try:
        plugin = adoptable(one, new, unwrap)
        arguments: Sequence[str] = plugin.arguments
        request = understood(plugin, one.entry, invocation.environ, version)
        profile = {"AWS_PROFILE": plugin.profile} if plugin.profile else {}
        here = invocation._replace(environ={**invocation.environ, **one.entry.variables, **profile})
        alike = (request._replace(cluster="", region=""), *here.environ.items())
        if alike not in known:
            known[alike] = differences(here, request)
        notes = [*known[alike]]
        if plugin.profile:
            arguments = direct_arguments(plugin, one.entry, request)
            identity = request.identity or plugin.profile
            principal = principal_of(invocation, request._replace(grammar=PROGRAM, identity=identity))
            notes.append(f"its tokens are for {principal}")
    except Problem as problem:
        return one._replace(refusal=problem.message)
    return one._replace(new=new._replace(arguments=(*command[1:], *arguments)), notes=notes)


def adoptable(one: Found, new: KubeUser, unwrap: bool) -> Plugin:
    """The plugin that an entry starts. Raises Problem if the entry has to be left alone."""
    plugin = find_plugin(one.entry)
    if plugin is None:
        raise Problem(f"its command {one.entry.command!r} is not one of {', '.join(ADOPTED)}")
    if fault := kubectl_fault(new, one.path):
        raise Problem(fault)
    # The user can also authenticate in another way, and we cannot tell which one applies.
    if one.entry.others:
        raise Problem(f"it also has {', '.join(one.entry.others)}")
    if plugin.name not in ADOPTED:
        raise Problem(f"it starts {plugin.name}, whose arguments are not known here")
    if plugin.wrapper and plugin.profile is None:
        raise Problem(f"it starts {plugin.name} through {plugin.wrapper}, which may do more than choose a profile")
    if plugin.wrapper and not unwrap:
        raise Problem(f"it starts {plugin.name} through {plugin.wrapper}; --unwrap replaces both")
    return plugin


def understood(plugin: Plugin, entry: KubeUser, environ: Mapping[str, str], version: str) -> Request:
    """What an entry asks its plugin for. Raises Problem."""
    grammar = ADOPTED[plugin.name]
    variables = {name: value for name, value in {**environ, **entry.variables}.items() if value}
    try:
        if take_apart(grammar, plugin.arguments).words[: len(grammar.words)] != grammar.words:
            raise Problem(f"its arguments are not those of {' '.join(grammar.words)!r}")
        return parse_request(plugin.arguments, variables, version)
    except Problem as problem:
        if problem.status == 2:
            raise Problem(f"its arguments are not understood: {problem.message}") from None
        raise


def direct_arguments(plugin: Plugin, entry: KubeUser, request: Request) -> list[str]:
    """Arguments for this program that ask for the same as a plugin whose wrapper has chosen a profile."""
    options = take_apart(ADOPTED[plugin.name], plugin.arguments).options
    region = options.get("region") or region_variable(entry.variables)
    if not region:
        raise Problem(f"{plugin.wrapper} may choose a region too, and the entry names none")
    harmless = ("_REGION", "_REGIONAL_ENDPOINTS")
    if other := [name for name in entry.variables if name.startswith("AWS_") and not name.endswith(harmless)]:
        raise Problem(f"{plugin.wrapper} and {', '.join(other)} choose its credentials")
    given = {
        "--cluster-name" if is_cluster_name(request.cluster) else "--cluster-id": request.cluster,
        "--region": region,
        "--identity": request.identity or plugin.profile or "",
        "--role-arn": request.role_arn,
        "--external-id": request.external_id,
        "--session-name": request.session_name,
    }
    return option_words(given)


def differences(invocation: Invocation, request: Request) -> list[str]:
    """What this program does otherwise than the plugin of a request, as far as this machine shows it."""
    try:
        return unlike_authenticator(Resolver(invocation, None, interactive=False), request)
    except Problem:  # its profile is not on this machine, for example
        return []


def principal_of(invocation: Invocation, request: Request) -> str:
    """The ARN that AWS knows the credentials for a request by. Raises Problem."""
    resolver = Resolver(invocation, open_cache(invocation), interactive=False)
    credentials = resolver.credentials(request)
    session = resolver.session or resolver.open_session(Choice(resolver.name, named=True, environment=False), request)
    return str(caller_identity(session, credentials)["Arn"])


def is_chosen(one: Found, options: Namespace) -> bool:
    """Show an entry before and after. If the options do not choose it, a person decides."""
    say(f"{one.path}: user {one.user}")
    for sign, entry in (("-", one.entry), ("+", one.new)):
        version = entry.api_version.removeprefix(CLIENT_AUTHENTICATION)
        say(f"  {sign} {' '.join([entry.command, *entry.arguments])}  ({version})")
    for note in one.notes:
        say(f"  {note}")
    if options.all or options.context or options.dry_run:
        return True
    return ask("  adopt it? [y/N] ").lower() in ("y", "yes")


def swap_in(files: Sequence[Kubeconfig], chosen: Sequence[Found], patches: Patches) -> None:
    """Add what has to change for the new entries. Raises Problem if one has changed since it was shown."""
    now = {(file.path, name): user for file in files for name, user in file.users.items()}
    for one in chosen:
        if now.get((one.path, one.user)) != one.entry:
            raise Problem(f"{one.path}: the user {one.user} has changed meanwhile", "try again")
        before = one.entry.entry()
        changed: Patch = {key: value for key, value in one.new.entry().items() if value != before[key]}
        items_of(patches, one.path, "users")[one.user] = {"user": {"exec": changed}}


# The name of a backup ends with a number and the hash of the file's new content. So --undo can tell whether somebody
# has changed the file since.


def backups(path: str, directory: str | None) -> list[tuple[int, str, str]]:
    """The number, hash of the file's new content, and path of each backup of a kubeconfig, oldest first.

    They are in a directory of ours, because some programs read every file next to a kubeconfig. Older ones are there.
    """
    found = []
    for prefix in filter(None, [f"{os.path.realpath(path)}.eks-token-backup-", backup_prefix(path, directory)]):
        base = os.path.basename(prefix)
        try:
            names = os.listdir(os.path.dirname(prefix))
        except OSError:
            continue
        for name in names:
            number, _, became = name.removeprefix(base).partition("-")
            backup = os.path.join(os.path.dirname(prefix), name)
            # If we are killed, an incomplete backup has another name. --undo relies on the ones with this name.
            if name.startswith(base) and number.isdecimal() and became.isalnum() and os.path.getsize(backup):
                found.append((int(number), became, backup))
    return sorted(found)


def backup_prefix(path: str, directory: str | None) -> str:
    real = os.path.realpath(path)
    return os.path.join(directory, "backups", f"{os.path.basename(real)}-{sha256(real)[:16]}-") if directory else ""


def content_hash(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()[:16]


def keep_copy(path: str, content: bytes) -> str:
    """Write a file to the directory of backups. Raises Problem."""
    try:
        check_place(path)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        write_file(path, content)
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror}; nothing was changed") from error
    return path


def keep_backup(directory: str | None, path: str, old: bytes, new: bytes) -> str:
    """Write the old content of a kubeconfig to a new backup, and return its path. Raises Problem."""
    if directory is None:
        raise Problem("there is no place for a backup: HOME is not an absolute path", "set HOME")
    number = max((number for number, _, _ in backups(path, directory)), default=0) + 1
    return keep_copy(f"{backup_prefix(path, directory)}{number}-{content_hash(new)}", old)


def undo(paths: Sequence[str], directory: str | None, dry_run: bool) -> int:
    """Restore what was in the files before the first `adopt`."""
    known = [path for path in paths if backups(path, directory)]
    if not known:
        raise Problem("there is nothing to undo", f"there is no backup of {listed(paths)}")
    for path in known:
        kept = backups(path, directory)
        if dry_run:
            say(f"{path} would be restored from {kept[0][2]}")
            continue
        first, *later = [read_bytes(backup) or b"" for _, _, backup in kept]
        now = read_bytes(path)
        if not first:
            raise Problem(f"{kept[0][2]} is gone", "try again")
        # If nobody has changed the file, each `adopt` found what the one before left, and the last result is there.
        for (_, became, _), found in zip(kept, [*later, now or b""], strict=True):
            if content_hash(found) != became:
                aside = keep_copy(f"{backup_prefix(path, directory)}before-undo-{content_hash(found)}", found)
                warn(f"{path} has changed since it was adopted: the changed version is now in {aside}")
        if not replace_contents([(path, now, first)]):
            raise Problem(f"another program has just changed {path}", "try again")
        for _, _, backup in kept:
            discard(backup)
        say(f"{path} is restored")
    return 0


# -- 10. sign in and out ----------------------------------------------------------------------------------------------
#
# The commands that talk to a person: login, logout, and those that show who is signed in. Questions go to stderr and
# answers come from stdin. Secrets are not echoed.

KINDS = (
    ("keys", "an access key, stored in the OS keyring"),
    ("mfa", "an access key with an MFA device"),
    ("role", "a role, assumed from another identity"),
    ("sso", "AWS SSO (IAM Identity Center), in the browser"),
    ("import", "the access key of a profile in ~/.aws/credentials, copied to the keyring"),
)


class SignIn(NamedTuple):
    """What `login` should do, from its options or a person's answers. Each field is named after its option."""

    name: str
    stdin: bool
    new_keys: bool
    import_profile: str
    mfa_serial: str
    mfa_process: str
    mfa_code_stdin: bool
    role_arn: str
    source: str
    external_id: str
    role_session_name: str
    duration_seconds: str
    sso_start_url: str
    sso_region: str
    sso_session: str
    sso_account_id: str
    sso_role_name: str
    no_browser: bool
    cluster_name: str
    default: bool
    region: str
    no_verify: bool

    def kinds(self) -> list[str]:
        """The options given that say what kind of identity this is. Without any, `login` signs in again."""
        described = {
            "--stdin": self.stdin,
            "--new-keys": self.new_keys,
            "--import-profile": self.import_profile,
            "--role-arn": self.role_arn or self.source,
            "--sso-start-url": self.sso_start_url or self.sso_session,
        }
        return [option for option, value in described.items() if value]

    def only_default(self) -> bool:
        """Whether it should only make an identity the default, which is not a reason to sign in again."""
        return self.default and not (self.mfa_code_stdin or self.region or self.mfa_serial or self.mfa_process)


class Proposal(NamedTuple):
    """An identity that will be stored if AWS accepts it."""

    record: Mapping[str, str] | None  # its settings, or None to leave what is stored as it is
    keys: Credentials | None = None
    mfa_code: str | None = None  # read from stdin
    arn: str = ""  # whose keys these are, if AWS has already been asked
    portal: Portal | None = None  # where a person has just signed in
    advice: str = ""  # what the person should do next


def login_command(invocation: Invocation, options: Namespace) -> int:
    """Sign in with a new or existing identity. Anything new is stored only after AWS has accepted it."""
    wanted = SignIn(*[getattr(options, field) for field in SignIn._fields])
    resolver = Resolver(invocation, open_cache(invocation), interactive=True)
    store = resolver.store
    name = wanted.name or store.stored.only() or (ask("Name of the identity: ") if invocation.terminal else "")
    if not name:
        raise usage("which identity?", f"pass its name: {PROGRAM} login NAME")
    wanted = wanted._replace(name=name)
    check_sign_in(wanted)
    if wanted.cluster_name:
        read_kubeconfigs(kubeconfig_paths(invocation, ""))  # if one is damaged, this says so before anybody is asked
    if not wanted.kinds() and not exists(resolver, name):
        wanted = ask_for_kind(wanted, resolver.person)
        check_sign_in(wanted)
    if wanted.kinds():
        check_place(store.path)
    if wanted.new_keys and not resolver.person:
        raise usage(
            "there is no terminal to ask for the keys",
            "pass them with --stdin, in the JSON format of credential_process",
        )

    proposal = propose(wanted, resolver)
    if proposal.record is not None:
        store.take_up(name, proposal.record, proposal.keys)
    resolver.sessions.hold_back = True
    resolver.sessions.renew = not wanted.only_default()
    resolver.mfa_code = proposal.mfa_code
    arn, expires = proposal.arn, None
    kept = kept_settings(resolver.store.written().profiles.get(name, {})) if proposal.record is not None else {}
    settings = {**kept, **(proposal.record or {})}
    code = wanted.mfa_code_stdin or settings.get("mfa_process") or resolver.person
    if not proposal.keys or ("mfa_serial" in settings and not proposal.keys.token and code):
        arn, expires = prove(wanted, resolver, proposal.portal)
    keep(wanted, resolver, proposal)
    if arn:
        show(one_line(arn))
    if expires is not None:
        say(f"{name}: signed in until {rfc3339(expires)}")
    if proposal.keys:
        say(f"{name}: the keys are stored in the keyring")
    if still := sorted(kept.keys() - (proposal.record or {}).keys()):
        say(f"{name}: these settings of the AWS profile still apply: {', '.join(still)}")
    if wanted.default and not wanted.kinds():
        say(f"{name} is now the default")
    advice = filter(None, [proposal.advice, process_line(wanted, resolver, invocation)])
    for line in advice:
        say(f"hint: {line}")
    if not wanted.cluster_name:
        return 0
    return write_entries(invocation, Provision(Request(PROGRAM, wanted.cluster_name, wanted.region, name)))


def check_sign_in(wanted: SignIn) -> None:
    """Raise Problem if options cannot be used together, or if a value cannot be right."""
    check_name(wanted.name)
    if wanted.cluster_name:
        if not wanted.region:
            raise usage("--region is missing", "pass the cluster's AWS region, for example --region us-east-2")
        named_cluster({"cluster_name": wanted.cluster_name})
    kinds = wanted.kinds()
    if len(kinds) > 1:
        raise usage(f"{kinds[0]} and {kinds[1]} are for different kinds of identity")
    if bool(wanted.role_arn) != bool(wanted.source):
        raise usage("--role-arn and --source must be used together: the role, and the identity that assumes it")
    if wanted.sso_start_url and not wanted.sso_region:
        raise usage("--sso-region is missing: pass the AWS region of the start URL")
    if (wanted.external_id or wanted.role_session_name) and not wanted.role_arn:
        raise usage("--external-id and --role-session-name require --role-arn")
    if wanted.duration_seconds and not (wanted.duration_seconds.isdecimal() and int(wanted.duration_seconds) >= 900):
        raise usage(f"--duration-seconds must be a number of at least 900, not {wanted.duration_seconds!r}")


def check_name(name: str) -> None:
    plain = name.isprintable() and name == name.strip() and not set(name) & set("[]")
    if not plain or name.startswith("-") or len(name) > 128:
        raise usage(f"{name!r} cannot be the name of an identity")


def exists(resolver: Resolver, name: str) -> bool:
    """Whether this is a stored identity, an AWS profile, or an entry of Atmos."""
    if name in resolver.store.stored.identities:
        return True
    try:
        resolver.open_session(Choice(name, named=True, environment=False), Request("", "", "", name))
    except UnknownIdentity:
        return False
    return True


def ask_for_kind(wanted: SignIn, person: bool) -> SignIn:
    """Ask a person what kind of identity this is, and for what it needs."""
    if not person:
        raise usage(
            f"there is no identity or AWS profile named {wanted.name!r}, and no option says what kind to store",
            f"see {PROGRAM} login --help; --stdin reads keys in the JSON format of credential_process",
        )
    if wanted.mfa_serial:
        return wanted._replace(new_keys=True)  # the option says which kind
    say(f"{wanted.name} is new. What kind of identity is it?")
    kind = KINDS[choose("Kind", [words for _, words in KINDS])][0]
    if kind == "role":
        return wanted._replace(
            role_arn=ask("ARN of the role: "),
            source=ask("Identity or AWS profile that assumes it: "),
            mfa_serial=ask("ARN of the MFA device that the role requires (empty for none): "),
        )
    if kind == "sso":
        url = ask("Start URL (https://….awsapps.com/start): ")
        return wanted._replace(sso_start_url=url, sso_region=ask("Its AWS region: "))
    if kind == "import":
        return wanted._replace(import_profile=ask("Profile: "))
    serial = ask("ARN of the MFA device (arn:aws:iam::ACCOUNT:mfa/NAME): ") if kind == "mfa" else ""
    return wanted._replace(new_keys=True, mfa_serial=serial)


def propose(wanted: SignIn, resolver: Resolver) -> Proposal:
    """The identity to store, after asking a person for what it needs."""
    if wanted.import_profile:
        return imported(wanted, resolver)
    if wanted.stdin:
        keys, code = read_keys_from_stdin(wanted.mfa_code_stdin)
        return proposed_keys(wanted, resolver, keys, code)
    if wanted.new_keys:
        return proposed_keys(wanted, resolver, ask_for_keys(), None)
    if wanted.role_arn:
        return proposed_role(wanted, resolver)
    if wanted.sso_start_url or wanted.sso_session:
        return proposed_sso(wanted, resolver)
    return Proposal(changed_settings(wanted, resolver.store), mfa_code=code_from_stdin(wanted))


def code_from_stdin(wanted: SignIn) -> str | None:
    return "".join(sys.stdin.readline().split()) if wanted.mfa_code_stdin else None


def new_record(wanted: SignIn, **settings: str) -> dict[str, str]:
    """A record for identities.json. Its revision makes it different from the record of any other login."""
    record = {**settings, "region": settings.get("region") or wanted.region, REVISION: os.urandom(8).hex()}
    return {key: value for key, value in record.items() if value}


def ask_for_keys() -> Credentials:
    key = ask("AWS access key ID: ")
    secret = ask("AWS secret access key (not shown): ", secret=True)
    if not key or not secret:
        raise Problem("both the access key ID and the secret access key are needed; nothing was stored")
    keep_secret(secret)
    return Credentials(key, secret, None, None)


def read_keys_from_stdin(with_code: bool) -> tuple[Credentials, str | None]:
    """Keys in the JSON format of credential_process, and the MFA code that may follow them. Raises Problem."""
    import json

    text = sys.stdin.read().strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        end = len(text)
    keys = process_keys(text[:end], "the JSON on stdin")
    rest = text[end:].split()
    code = None
    if with_code:
        code = "".join(rest)
        keep_secret(code)
    elif rest:
        raise Problem("stdin has more text after the JSON object", "if that is an MFA code, pass --mfa-code-stdin")
    return keys, code


def proposed_keys(wanted: SignIn, resolver: Resolver, keys: Credentials, code: str | None) -> Proposal:
    """Keys to store, after AWS has said whose they are."""
    if wanted.mfa_serial and keys.token:
        raise usage("--mfa-serial requires long-term keys, but these have a session token")
    arn = "" if wanted.no_verify else whose_keys(wanted, resolver, keys)
    record = new_record(
        wanted,
        mfa_serial=wanted.mfa_serial,
        mfa_process=wanted.mfa_process,
        duration_seconds=wanted.duration_seconds,
        **{KEY_ENDING: keys.access_key[-4:], KEYS_END: rfc3339(keys.expires) if keys.expires is not None else ""},
    )
    return Proposal(record, keys, code, arn)


def whose_keys(wanted: SignIn, resolver: Resolver, keys: Credentials) -> str:
    """Ask AWS whose keys these are, with the settings of their profile, if they have one. Returns the ARN."""
    profiles = no_profile(resolver).files.profiles
    profile = next((each for each in (wanted.import_profile, wanted.name) if each in profiles), "")
    region = wanted.region or region_variable(resolver.store.environ) or ("" if profile else "us-east-1")
    session = resolver.open_session(Choice(profile, named=False, environment=False), Request("", "", region, ""))
    return str(caller_identity(session, keys)["Arn"])


def no_profile(resolver: Resolver) -> Botocore:
    """A botocore session without an identity, for looking at all profiles."""
    return resolver.open_session(Choice("", named=False, environment=False), Request("", "", "", ""))


def imported(wanted: SignIn, resolver: Resolver) -> Proposal:
    """A profile's keys, to be copied to the vault. We do not edit the file: that is up to the user."""
    profile = wanted.import_profile
    session = no_profile(resolver)
    keys = session.files.profiles.get(profile, {})
    if profile in resolver.store.stored.identities:
        raise Problem(f"{profile} is a stored identity, so its keys are already in the keyring")
    key, secret, token = (keys.get(part) for part in SECRET_KEYS)
    if not key or not secret:
        raise Problem(f"the profile {profile!r} has no keys" if keys else f"no AWS profile is named {profile!r}")
    wanted = wanted._replace(region=wanted.region or keys.get("region", ""))
    end = marked_end(keys) if token else None
    proposal = proposed_keys(wanted, resolver, Credentials(key, secret, token, end), None)
    credentials_file = session.get_config_variable("credentials_file")
    advice = f"delete aws_access_key_id and aws_secret_access_key from [{profile}] in {credentials_file}"
    return proposal._replace(advice=advice)


def proposed_role(wanted: SignIn, resolver: Resolver) -> Proposal:
    check_role_arn(wanted.role_arn)
    if wanted.source == wanted.name or not exists(resolver, wanted.source):
        raise Problem(
            f"there is no identity or AWS profile named {wanted.source!r} to assume the role",
            f"store it first: {PROGRAM} login {shell_word(wanted.source)}",
        )
    record = new_record(
        wanted,
        role_arn=wanted.role_arn,
        source_profile=wanted.source,
        external_id=wanted.external_id,
        role_session_name=wanted.role_session_name,
        duration_seconds=wanted.duration_seconds,
        mfa_serial=wanted.mfa_serial,
        mfa_process=wanted.mfa_process,
    )
    return Proposal(record, mfa_code=code_from_stdin(wanted))


def proposed_sso(wanted: SignIn, resolver: Resolver) -> Proposal:
    """Sign in at an SSO start URL. A person chooses the account and role if no option does."""
    settings = {"sso_session": wanted.sso_session}
    session = no_profile(resolver)
    if wanted.sso_session:
        portal = portal_of(session.files.sso_sessions.get(wanted.sso_session, {}), wanted.sso_session)
        if portal is None:
            raise Problem(
                f"AWS config does not have an sso-session {wanted.sso_session!r} with sso_start_url and sso_region"
            )
    else:
        scheme, separator, rest = wanted.sso_start_url.strip().partition("://")
        portal = Portal(scheme.lower() + separator + rest, wanted.sso_region)
        settings |= {"sso_start_url": portal.start_url, "sso_region": portal.region}
    if not portal.start_url.startswith(("https://", "http://")):
        raise usage(
            f"{portal.start_url!r} is not a start URL", "a start URL looks like https://example.awsapps.com/start"
        )
    resolver.store.vault.check()  # fails now, not after the browser, if the keyring cannot be used
    token = authorize_device(session, portal, wanted.no_browser)
    account, role = wanted.sso_account_id, wanted.sso_role_name
    if not account or not role:
        account, role = choose_role(session, portal.region, token["accessToken"], account, role, resolver.person)
    resolver.store.new_tokens[portal] = (token, os.urandom(8).hex())
    return Proposal(new_record(wanted, **settings, sso_account_id=account, sso_role_name=role), portal=portal)


def changed_settings(wanted: SignIn, store: Store) -> dict[str, str] | None:
    """The record with new settings that do not change its kind, such as the region. None if nothing changes."""
    region = "" if wanted.cluster_name else wanted.region  # with a cluster, --region is the cluster's
    changes = {key: getattr(wanted, key) for key in ("mfa_serial", "mfa_process", "duration_seconds")}
    changes = {key: value for key, value in {**changes, "region": region}.items() if value}
    stored = store.stored.identities.get(wanted.name)
    if stored is None and (changes or wanted.default):
        raise usage(
            f"{wanted.name} is an AWS profile, and its settings are in the AWS config file",
            "edit that file, or store an identity",
        )
    return {**stored, **changes} if stored is not None and (changes or wanted.default) else None


def prove(wanted: SignIn, resolver: Resolver, signed_in: Portal | None) -> tuple[str, float | None]:
    """Get new sessions for an identity; a person may have to sign in. Returns the ARN and when they end."""
    name = wanted.name
    request = Request(PROGRAM, "", wanted.region or region_variable(resolver.store.environ), name)
    session = resolver.open_session(Choice(name, named=True, environment=False), request)
    portal, new = sso_portal(session.files, name), signed_in is not None
    if portal and portal == own_portal(session.files, name) and resolver.sessions.renew and not new:
        authorize_again(resolver.store, session, portal, wanted.no_browser)
        new = True
    try:
        credentials = resolver.credentials(request)
    except SignInNeeded:  # the SSO token may have been revoked, which only shows when it is used
        if portal is None or new:
            raise
        authorize_again(resolver.store, session, portal, wanted.no_browser)
        credentials = resolver.credentials(request)
    arn = "" if wanted.no_verify else str(caller_identity(session, credentials)["Arn"])
    return arn, credentials.expires


def keep(wanted: SignIn, resolver: Resolver, proposal: Proposal) -> None:
    """Store what AWS has accepted. If this is cut short at any moment, the identity is the old one or the new one.

    New secrets are stored first. They count once the record is replaced, in one step. Old secrets are removed last.
    From here on, nothing that was cached or being signed before is used.
    """
    store, name, record = resolver.store, wanted.name, proposal.record
    forget_answers(store)
    for portal, (token, mark) in store.new_tokens.items():
        keep_sso_token(store, portal, token, mark=mark)
    if record is not None:
        with store.lock():
            now = read_identities(store.path)
            known, user = name in now.identities, f"identity:{name}"
            others = tuple(each for each in now.pending if each != name)
            entry = {**key_entry(proposal.keys), REVISION: record[REVISION]} if proposal.keys else None
            if entry and known:
                store.vault.set_json(user, {**entry, FORMER: former_entry(store.vault, name, now)})
            elif entry:
                store.vault.reach()
                write_identities(store.path, now._replace(pending=(*others, name)))
                store.vault.set_json(user, entry)
            default = name if wanted.default else now.default
            store.stored = Stored(default, {**now.identities, name: record}, others)
            write_identities(store.path, store.stored)
            if entry and known:
                store.vault.set_json(user, entry)
            elif wanted.kinds() and known:
                store.vault.delete(user)
        forget_answers(store)
    store.generation = store.cache.generation() if store.cache else ""
    resolver.sessions.keep_held_back()


def former_entry(vault: Vault, name: str, stored: Stored) -> dict[str, object] | None:
    """What the vault has for an identity that is about to be replaced, or None if it is damaged or missing."""
    try:
        return read_entry(vault, name, stored.identities[name].get(REVISION, ""))
    except DamagedEntry:
        return None


def key_entry(keys: Credentials) -> dict[str, str]:
    """Keys as they are stored in the vault."""
    entry = dict(zip(SECRET_KEYS, (keys.access_key, keys.secret_key, keys.token or ""), strict=True))
    entry["expiration"] = rfc3339(keys.expires) if keys.expires is not None else ""
    return {key: value for key, value in entry.items() if value}


def forget_answers(store: Store) -> None:
    if store.cache:
        store.cache.empty()


def process_line(wanted: SignIn, resolver: Resolver, invocation: Invocation) -> str:
    """How other AWS tools go on using the profile whose credentials have just been stored; "" if there is none."""
    session = no_profile(resolver)
    profile = wanted.import_profile or wanted.name
    written = resolver.store.written().profiles.get(profile, {})
    if not written or not wanted.kinds() or f"{PROGRAM} credentials" in written.get("credential_process", ""):
        return ""
    found = invocation.platform == "win32" or on_path(PROGRAM, invocation)
    words = exec_command(invocation) if found else [invocation.file]
    command = " ".join(shell_word(word) for word in [*words, "credentials", "-i", wanted.name])
    section = "default" if profile == "default" else f"profile {profile}"
    file = session.get_config_variable("config_file")
    return f"for the AWS CLI, SDKs and Terraform, add to [{section}] in {file}: credential_process = {command}"


def choose_role(session: Botocore, region: str, token: str, account: str, role: str, terminal: bool) -> tuple[str, str]:
    """The account and role to use: the only ones, or those that a person chooses. Raises Problem."""
    with plain_errors():
        sso = unsigned_client(session, "sso", region)
        if not account:
            accounts = pages(sso.list_accounts, "accountList", accessToken=token)
            labels = [f"{each['accountId']} {each.get('accountName', '')}" for each in accounts]
            account = accounts[pick("Account", "--sso-account-id", labels, terminal)]["accountId"]
        if not role:
            roles = pages(sso.list_account_roles, "roleList", accessToken=token, accountId=account)
            names = [each["roleName"] for each in roles]
            role = names[pick("Role", "--sso-role-name", names, terminal)]
    return account, role


def pick(what: str, option: str, labels: Sequence[str], terminal: bool) -> int:
    if not labels:
        raise Problem(f"you do not have access to any {what.lower()} at this start URL")
    if len(labels) == 1:
        return 0
    if not terminal:
        raise Problem(f"{option} is missing; there are {len(labels)} to choose from: {listed(labels)}")
    return choose(what, labels)


# logout, identities, whoami


def logout_command(invocation: Invocation, options: Namespace) -> int:
    """Remove one or all identities, with their keys, sessions, SSO tokens and cached answers."""
    if options.all == bool(options.name):
        raise usage("pass the name of an identity, or --all")
    resolver = Resolver(invocation, open_cache(invocation), interactive=True)
    store = resolver.store
    store.forgiving = True
    session = no_profile(resolver)
    sessions = read_notes(store.path)
    stored = store.stored
    names = sorted({*stored.identities, *stored.pending}) if options.all else [options.name]
    ours = [user for user, about in sessions.items() if options.all or options.name in about.names]
    files = session.files
    portals = {own_portal(files, name) for name in names}
    if options.all:
        portals |= {note.portal for note in sessions.values()}
    kept = {sso_portal(files, name) for name in store.stored.identities if name not in names}

    # The vault first: if it refuses to remove something, the identity must stay in the list.
    known = options.all or options.name in (*stored.identities, *stored.pending) or bool(ours)
    for portal in sorted(filter(None, portals - kept)):
        known = end_sso_session(resolver, session, portal) or known
    with store.lock():
        users = [*(f"identity:{name}" for name in names), *ours]
        for user in store.vault.clear(users) if options.all else users:
            known = store.vault.delete(user) or known
        for user in ours:
            note_session(store, user, None)
        if not known:
            others = sorted(store.stored.identities)
            hint = f"stored identities: {listed(others)}" if others else ""
            raise Problem(f"no identity named {options.name!r} is stored", hint)
        stored = read_identities(store.path)
        identities = {name: keys for name, keys in stored.identities.items() if name not in names}
        default = stored.default if stored.default in identities else ""
        remaining = Stored(default, identities, tuple(name for name in stored.pending if name not in names))
        if remaining != stored:
            write_identities(store.path, remaining)
    forget_answers(store)
    if not options.keep_kubeconfig:
        remove_entries(invocation, names, options.kubeconfig)
    say("removed every identity" if options.all else f"removed {options.name}")
    return 0


def end_sso_session(resolver: Resolver, session: Botocore, portal: Portal) -> bool:
    """Revoke an SSO token if the service answers, and remove it in any case. Returns False if there was none."""
    token = read_sso_token(resolver.store, portal)
    if token is not None:
        try:
            with plain_errors():
                unsigned_client(session, "sso", portal.region).logout(accessToken=token["accessToken"])
        except Problem as problem:
            debug(f"the SSO token could not be revoked: {problem.message}")
    user = sso_user(portal)
    with resolver.store.lock():
        found = resolver.store.vault.delete(user)
        note_session(resolver.store, user, None)
    return found


def identities_command(invocation: Invocation, options: Namespace) -> int:
    """List stored identities and AWS profiles without opening the keyring."""
    resolver = Resolver(invocation, None, interactive=False)
    resolver.store.forgiving = True
    files, sessions = resolver.store.files(), read_notes(resolver.store.path)
    rows: list[dict[str, str]] = []
    for name, laid_over in sorted(files.profiles.items()):
        if MFA_SOURCE in laid_over:
            continue
        stored = resolver.store.stored.identities.get(name)
        written = resolver.store.written().profiles.get(name, {})
        keys = written if stored is None else {**kept_settings(written), **stored}
        if stored is None and not (RESOLVED_KEYS | set(SECRET_KEYS)) & keys.keys():
            continue  # the profile only has settings
        ending = keys.get(KEY_ENDING) or keys.get("aws_access_key_id", "")[-4:]
        ends = [note.expires for note in sessions.values() if note.names[0] == name]
        ends += [parse_time(keys[KEYS_END])] if KEYS_END in keys else []
        portal = sso_portal(files, name)
        if portal and (note := sessions.get(sso_user(portal))):
            ends.append(note.ends)
        rows.append(
            {
                "name": name,
                "kind": kind_of(keys),
                "from": "AWS config" if stored is None else "eks-token",
                "access_key_ending": ending,
                "session_ends": rfc3339(max(ends)) if ends and max(ends) > time.time() else "",
            }
        )
    default = resolver.store.stored.only()
    if options.output == "json":
        show(json_text([{**row, "default": row["name"] == default} for row in rows], indent=2))
        return 0
    if not rows:
        say(f"there are no identities yet; store one with `{PROGRAM} login NAME`")
        return 0
    shown = [("NAME", "KIND", "FROM", "KEY", "SESSION ENDS", "")]
    for row in rows:
        key = f"...{row['access_key_ending']}" if row["access_key_ending"] else ""
        marked = "default" if row["name"] == default else ""
        shown.append((row["name"], row["kind"], row["from"], key, row["session_ends"], marked))
    widths = [max(len(line[column]) for line in shown) for column in range(5)]
    for line in shown:
        show(one_line("  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)).rstrip()))
    return 0


def whoami_command(invocation: Invocation, options: Namespace) -> int:
    """Ask AWS whose credentials an identity has."""

    resolver = Resolver(invocation, open_cache(invocation), interactive=True)
    request = Request(PROGRAM, "", options.region or region_variable(invocation.environ), options.identity)
    credentials = resolver.credentials(request)
    # keys that come straight from the keyring have not needed a session so far
    session = resolver.session or resolver.open_session(Choice(resolver.name, named=True, environment=False), request)
    answer = caller_identity(session, credentials)
    about = {
        "identity": resolver.name,
        "arn": answer["Arn"],
        "account": answer["Account"],
        "user_id": answer["UserId"],
        "session_ends": rfc3339(credentials.expires) if credentials.expires is not None else "",
    }
    if options.output == "json":
        show(json_text(about, indent=2))
        return 0
    labels = {"identity": "Identity", "arn": "ARN", "account": "Account", "session_ends": "Session ends"}
    for key, label in labels.items():
        if about[key]:
            show(one_line(f"{label + ':':13} {about[key]}"))
    return 0


def credentials_command(invocation: Invocation, options: Namespace) -> int:
    """Print an identity's credentials, so that other AWS tools can use what is in the keyring. No file contains them.

    The format is that of credential_process ("Process credential provider", AWS SDKs and Tools Reference).
    """

    name = options.identity
    running = processes_running(invocation.environ)
    if name in running:
        raise Problem(
            f"{name} is not stored here, and its credential_process leads back to it: {' -> '.join([*running, name])}",
            f"store its keys with `{PROGRAM} login {shell_word(name)} --new-keys`, or remove that credential_process",
        )
    resolver = Resolver(invocation, open_cache(invocation), interactive=True)
    credentials = resolver.credentials(Request(PROGRAM, "", region_variable(invocation.environ), name))
    answer: dict[str, str | int] = {"Version": 1}
    answer |= {"AccessKeyId": credentials.access_key, "SecretAccessKey": credentials.secret_key}
    if credentials.token:
        answer["SessionToken"] = credentials.token
    if credentials.expires is not None:
        answer["Expiration"] = rfc3339(credentials.expires)
    show(json_text(answer))
    return 0


# -- 11. doctor -------------------------------------------------------------------------------------------------------
#
# Checks everything that can be wrong on a laptop, one thing at a time. It waits for no person, and reads no secrets: of
# the keyring only whether it opens, and of a token only when it ends.

CLOCK_WARN, CLOCK_FAIL = 60, 300  # seconds; AWS rejects 5 minutes or more ("Signing AWS requests", IAM User Guide)
LITTLE_ROOM = 50_000_000  # bytes; the unpacked program takes 7 MB, and a new build is stored next to the old one
CONTEXTS_AT_ONCE = 8
LAUNCHER_RUNS = 9
PROBE_WORDS = ("no-command", "--cluster-name", "a-cluster-name", "--region", "us-east-2", "--identity", "somebody")
PROBE_ANSWER = "an answer of the usual length ".ljust(1500, ".")

# Who else writes an entry that was adopted, and how to prevent that.
REWRITERS = {
    "aws": f"use `{PROGRAM} kubeconfig` instead of `aws eks update-kubeconfig`",
    "atmos": "set auto_provision: false in the spec of Atmos's aws/eks integrations",
}


class Check(NamedTuple):
    """One thing that was checked, and what to do about it."""

    name: str
    status: str  # ok, warn or fail
    found: str
    hint: str = ""


def doctor_command(invocation: Invocation, options: Namespace) -> int:
    """Check everything that a token depends on. Returns 1 if something keeps kubectl from getting one."""

    checks = []
    for check in diagnoses(invocation, options.online, options.kubeconfig):
        checks.append(check)
        if options.output == "text":
            show(f"{check.status:5} {one_line(check.name)}: {one_line(check.found)}")
            if check.hint:
                show(f"      hint: {one_line(check.hint)}")
    if options.output == "json":
        rows = [zip(("check", "status", "found", "hint"), map(one_line, check), strict=True) for check in checks]
        show(json_text([dict(row) for row in rows], indent=2))
    return 1 if any(check.status == "fail" for check in checks) else 0


def diagnoses(invocation: Invocation, online: bool, kubeconfig: str) -> Iterable[Check]:
    """Every check, in the order in which a token depends on them."""
    yield check_python(invocation)
    yield check_executable(invocation)
    usable = check_cache(invocation)
    yield usable
    if usable.status != "fail" and (cache := open_cache(invocation)):
        yield check_locks(cache)
        yield check_file_times(cache)
        yield from check_launcher(invocation, cache)

    try:
        resolver = Resolver(invocation, None, interactive=False)
        vault, stored = resolver.store.vault, resolver.store.stored
    except Problem as problem:
        yield check_keyring(Vault(invocation.environ, invocation.platform, interactive=False), Stored("", {}))
        yield Check("identities", "fail", problem.message, problem.hint)
    else:
        yield check_keyring(vault, stored)
        yield check_identities(resolver)
    if online:
        yield check_clock(invocation.environ)

    yield check_kubectl(invocation)
    yield from check_contexts(invocation, kubeconfig)


# The program


def running_python() -> str:
    """The version of this Python, and its path below any virtual environment."""
    path = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    return f"{'.'.join(map(str, sys.version_info[:3]))}, {path}"


def check_python(invocation: Invocation) -> Check:
    """Which Python this is, and whether the executable finds one when kubectl starts it."""
    python = running_python()
    if invocation.platform == "win32" or not invocation.build:
        return Check("python", "ok", python)
    try:
        _, took = ask_program([invocation.file, "--version"], invocation.environ)
    except Problem as problem:
        return Check("python", "fail", f"the executable cannot start Python: {problem.message}", problem.hint)
    return Check("python", "ok", f"{python}; the program starts in {milliseconds(took)}")


def check_executable(invocation: Invocation) -> Check:
    """Whether the file is complete, and is the one that `command: eks-token` finds."""
    import filecmp
    import zipfile

    file = invocation.file
    if not invocation.build:
        return Check(
            "executable", "warn", f"{file} belongs to an installed package, {__version__}, which starts slowly"
        )
    found = f"{file}, {__version__}, build {invocation.build}"
    try:
        with zipfile.ZipFile(file) as archive:
            damaged_member = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        damaged_member = first_line(error)
    except Exception as error:  # zlib.error, from a module that some Pythons lack
        damaged_member = type(error).__name__
    if damaged_member:
        return Check("executable", "fail", f"{found}, is damaged: {damaged_member}", "install it again")
    if invocation.platform == "win32":
        return Check("executable", "ok", found)
    if not os.access(file, os.X_OK):
        return Check("executable", "fail", f"{found}, is not executable", f"chmod +x {file}")
    first = on_path(PROGRAM, invocation)
    if first is None:
        return Check("executable", "warn", f"{found}, is not on PATH as {PROGRAM}", "kubectl looks for it there")
    if not os.path.samefile(first, file) and not filecmp.cmp(first, file, shallow=False):
        return Check("executable", "warn", f"{found}; kubectl finds another one: {first}", "remove one of the two")
    return Check("executable", "ok", found)


def check_cache(invocation: Invocation) -> Check:
    """The owner, mode and free space of the cache directory."""
    import shutil
    import stat

    directory = cache_home(invocation.environ, invocation.platform)
    windows = invocation.platform == "win32"
    if directory is None:
        variable, lack = ("LOCALAPPDATA", "set") if windows else ("HOME", "an absolute path")
        return Check("cache", "fail", f"there is none: {variable} is not {lack}", f"set {variable}")
    what = "can write to" if windows else "own, with mode 0700"
    repair = f"every call signs a new token; make {directory} a directory that you {what}, or {other_cache_home()}"
    try:
        make_trusted(directory)
        probe = os.path.join(directory, "doctor")
        write_file(probe, "room?")
        os.unlink(probe)
        mode, room = stat.S_IMODE(os.stat(directory).st_mode), shutil.disk_usage(directory).free
    except Refused as refused:
        return Check("cache", "fail", f"not used: {refused}", repair)
    except OSError as error:
        hint = f"every call signs a new token; {other_cache_home()}"
        return Check("cache", "fail", f"{directory}: {error.strerror or type(error).__name__}", hint)
    if invocation.cache is None:
        return Check("cache", "fail", f"{directory} is not used: it was not usable when this started", repair)
    found = f"{directory}, {'' if windows else f'yours, mode {mode:04o}, '}{room / 1e6:,.0f} MB free"
    return Check("cache", "warn" if room < LITTLE_ROOM else "ok", found, "free up space" if room < LITTLE_ROOM else "")


def other_cache_home() -> str:
    variable = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
    return f"set {variable} to a directory on a local disk"


def check_locks(cache: Cache) -> Check:
    """Whether a lock keeps out a second holder, and is free again afterwards."""
    hint = f"{cache.root} may be on a network; {other_cache_home()}"
    try:
        with cache.lock("doctor"):
            try:
                with Lock(os.path.join(cache.root, "lock", "doctor"), seconds=0):
                    return Check("cache locks", "fail", "the same lock was granted twice, so nothing is cached", hint)
            except Problem:
                pass
        with cache.lock("doctor"):
            return Check("cache locks", "ok", "they work: one process signs, the others wait for it")
    except (LocksUnavailable, Problem):
        return Check("cache locks", "fail", "they do not work there, so nothing is cached", hint)


def check_file_times(cache: Cache) -> Check:
    """Whether the file system dates files by this machine's clock."""
    hint = f"set the clock of the file server, or {other_cache_home()}"
    try:
        agrees = cache.clock_agrees(time.time())
    except OSError as error:
        return Check("cache clock", "fail", error.strerror or type(error).__name__, hint)
    if not agrees:
        found = "the file system's clock differs from this machine's, so nothing is cached"
        return Check("cache clock", "fail", found, hint)
    return Check("cache clock", "ok", "the file system's clock agrees with this machine's")


def check_launcher(invocation: Invocation, cache: Cache) -> Iterable[Check]:
    """How fast a cached answer is printed here, and by what: the script at the start of the executable, or Python.

    It uses an answer to words that are not a real request, cached for a moment, so it does not need any credentials.
    """
    if invocation.platform == "win32" or not invocation.build:
        return
    environ = {name: value for name, value in invocation.environ.items() if name != "KUBERNETES_EXEC_INFO"}
    key = request_key("v1beta1", PROBE_WORDS, environ, invocation.platform)
    if key is None:
        return
    command = [invocation.file, *PROBE_WORDS]
    shell = os.path.basename(os.path.realpath("/bin/sh"))
    reason = f"/bin/sh is {shell}, which cannot print it"
    try:
        stored = store_probe(cache, key, invocation)
        # If there is no Python, only the launcher can answer.
        alone = answer_time(command, environ | {"EKS_TOKEN_PYTHON": os.devnull}) if stored else None
        took = alone or (answer_time(command, environ) if stored else None)
        if stored:
            cache.conditions(key, stored)
    except PythonOnly as error:
        reason = str(error)
    finally:
        remove_answer(cache.directory(key))
    if stored is None:
        yield Check("launcher", "fail", "an answer that was just cached cannot be found", "see the checks above")
    elif alone is not None:
        yield Check("launcher", "ok", f"prints a cached answer in {milliseconds(alone)}, run by {shell}")
    elif took is None:
        hint = f"run {invocation.file} with --debug to see why"
        yield Check("launcher", "fail", "cached answers are not printed", hint)
    else:
        reason = why_not_launcher(environ) or reason
        yield Check("launcher", "warn", f"a cached answer goes through Python, in {milliseconds(took)}: {reason}")


def store_probe(cache: Cache, key: Key, invocation: Invocation) -> Answer | None:
    """Cache an answer that watches the files of a real request, and look it up. The shell must be able to compare their
    dates, unless they have just changed."""
    now = int(time.time())
    watched = tuple(
        one
        for one in look_at(deciding_files(invocation.environ, invocation.platform))
        if not one.exists or last_change(one.path, cache.home) < now - SETTLE_SECONDS
    )
    cache.store(key, Minted(PROBE_ANSWER, now - 1, now + FRESH_MARGIN + 60, True), watched, cache.generation())
    return cache.lookup(key, time.time())


def last_change(path: str, home: str) -> float:
    """The newest date (seconds) of a file and of the directories above it, up to HOME."""
    newest = 0.0
    while path != os.path.dirname(path):
        newest = max(newest, os.stat(path).st_mtime)
        path = os.path.dirname(path) if path != home else os.sep
    return newest


def answer_time(command: Sequence[str], environ: Mapping[str, str]) -> float | None:
    """How long the executable takes to print the probe's answer (seconds, median), or None if it does not."""
    times = []
    for _ in range(LAUNCHER_RUNS):
        try:
            output, took = ask_program(command, environ)
        except Problem:
            return None
        if output != PROBE_ANSWER + "\n":
            return None
        times.append(took)
    return sorted(times)[len(times) // 2]


def why_not_launcher(environ: Mapping[str, str]) -> str:
    """What in the environment makes cached answers go through Python (build/launcher.sh, et_answer)."""
    if secret := [name for name in variables_of("secret") if environ.get(name)]:
        return f"{', '.join(secret)} is set, and secrets are never part of a file name"
    if environ.get("EKS_TOKEN_DEBUG"):
        return "EKS_TOKEN_DEBUG is set"
    for name, kind in REQUEST_VARIABLES.items():
        value = environ.get(name, "")
        if value and not is_plain(quoted(f"{name}={value}")):
            return f"{name} contains special characters"
        if value and kind == "path" and not value.startswith("/"):
            return f"{name} is not an absolute path"
    return ""


# The keyring, identities, the clock


def check_keyring(vault: Vault, stored: Stored) -> Check:
    """Whether the keyring lets us read what is stored, if nobody answers its dialogs."""
    began = time.perf_counter()
    try:
        name = vault.check()
    except Problem as problem:
        status = "fail" if stored.identities else "warn"
        return Check("keyring", status, problem.message, problem.hint)
    found = f"{name} is unlocked and answers in {milliseconds(time.perf_counter() - began)}"
    if name == "KeePassXC":
        found += "; what logout removes stays in its recycle bin"
    return Check("keyring", "ok", found)


def check_identities(resolver: Resolver) -> Check:
    """What is stored, which identities have lost their keys, and which sessions only a person can start again."""
    identities, now = resolver.store.stored.identities, time.time()
    sessions = list(read_notes(resolver.store.path).values())
    ended = [note for note in sessions if note.ends < now]
    found = f"{len(identities)} stored"
    if default := resolver.store.stored.only():
        found += f" (default: {default})"
    found += f"; sessions: {len(sessions)}, ended: {len(ended)}"
    try:
        users = resolver.store.vault.users()  # None if the keyring cannot list them
    except Problem:
        users = None
    keys = [name for name, about in sorted(identities.items()) if kind_of(about).startswith("keys")]
    lost = [name for name in keys if users is not None and f"identity:{name}" not in users]
    if lost:
        hint = f"store them again: {PROGRAM} login {shell_word(lost[0])} --new-keys"
        return Check("identities", "fail", f"{found}; the keyring has no keys for {listed(lost)}", hint)
    # A role's session starts again when something needs it.
    by_a_person = {
        note.names[0] for note in ended if note.portal or "MFA" in kind_of(identities.get(note.names[0], {}))
    }
    if by_a_person:
        hint = f"`{PROGRAM} login NAME` starts a new one"
        return Check("identities", "warn", f"{found}: {listed(sorted(by_a_person))}", hint)
    return Check("identities", "ok", found)


def check_clock(environ: Mapping[str, str]) -> Check:
    """This machine's clock compared with that of STS: the Date header of its answer to an unsigned request."""
    import email.utils

    ignored_urls = environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
    region = region_variable(environ)
    url = "" if ignored_urls else environ.get("AWS_ENDPOINT_URL_STS") or environ.get("AWS_ENDPOINT_URL") or ""
    try:
        url = url or f"https://{sts_endpoint(region).host}"
        with plain_errors():
            from botocore.awsrequest import AWSRequest
            from botocore.httpsession import URLLib3Session
            from botocore.utils import get_environ_proxies

            http = URLLib3Session(
                verify=environ.get("AWS_CA_BUNDLE") or True, proxies=get_environ_proxies(url), timeout=10
            )
            began = time.time()
            answer = http.send(AWSRequest("GET", url, headers={"User-Agent": PROGRAM}).prepare())
            middle = (began + time.time()) / 2
            theirs = email.utils.parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except Problem as problem:
        found = f"cannot get the time from {url or 'STS'}: {problem.message}"
        return Check("clock", "fail", found, "check the network")
    off = middle - theirs - 0.5  # the header is in whole seconds
    if abs(off) <= CLOCK_WARN:
        return Check("clock", "ok", f"within {max(1, round(abs(off)))} s of {url}")
    found = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} {url}"
    if abs(off) <= CLOCK_FAIL:
        return Check("clock", "warn", found, "set it; from 5 minutes on, AWS rejects what is signed here")
    return Check("clock", "fail", f"{found}, so AWS rejects what is signed here", "set it")


# kubectl and its contexts


def check_kubectl(invocation: Invocation) -> Check:
    """Whether kubectl is on PATH, and new enough."""
    import json

    path = on_path("kubectl", invocation)
    if path is None:
        return Check("kubectl", "fail", "is not on PATH", "install it: https://kubernetes.io/docs/tasks/tools/")
    try:
        output, _ = ask_program([path, "version", "--client", "-o", "json"], invocation.environ)
        version = json.loads(output)["clientVersion"]["gitVersion"]
        minor = int(version.split(".")[1])
    except Problem as problem:
        return Check("kubectl", "fail", f"{path}: {problem.message}", problem.hint)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return Check("kubectl", "fail", f"{path} does not print its version", "is it kubectl?")
    if minor < 22:  # Kubernetes' changelog 1.22: client.authentication.k8s.io/v1
        return Check("kubectl", "warn", f"{version}, {path}, lacks {CLIENT_AUTHENTICATION}v1", "use 1.22 or later")
    return Check("kubectl", "ok", f"{version}, {path}")


def check_contexts(invocation: Invocation, named: str) -> Iterable[Check]:
    """Each context: whether it gets a token, or which other plugin it still uses."""
    from concurrent.futures import ThreadPoolExecutor

    given = [] if named else invocation.environ.get("KUBECONFIG", "").split(os.pathsep)
    if unread := list(filter(has_tilde, given)):
        found = f"kubectl does not expand ~, so it does not read {listed(unread)}"
        yield Check("KUBECONFIG", "warn", found, "write $HOME instead of ~")
    try:
        users = exec_users(invocation, named)
    except Problem as problem:
        yield Check("kubeconfig", "fail", problem.message, problem.hint)
        return
    ours = [user for user in users if our_arguments(user.entry) is not None]
    others = [user for user in users if find_plugin(user.entry)]
    if ours:
        yield Check("kubeconfig", "ok", f"contexts that use {PROGRAM}: {sum(len(user.contexts) for user in ours)}")
    else:
        adopt = our_command("adopt", {"--kubeconfig": named}, invocation.platform)
        switch = f"`{adopt}` switches those of other plugins"
        hint = switch if others else f"see `{PROGRAM} kubeconfig --help`"
        yield Check("kubeconfig", "warn", f"no context uses {PROGRAM}", hint)
    with ThreadPoolExecutor(CONTEXTS_AT_ONCE) as pool:
        outcomes = pool.map(lambda user: try_entry(user, invocation), ours)
        for user, outcome in zip(ours, outcomes, strict=True):
            for context, missing in user.contexts.items():
                yield Check(f"context {context}", *(("fail", missing) if missing else outcome))
    directory = data_home(invocation.environ, invocation.platform)
    for user in others:
        for context in user.contexts:
            adopt = our_command("adopt", {"--context": context, "--kubeconfig": named}, invocation.platform)
            yield Check(f"context {context}", "warn", *about_other(user, directory, adopt))


def try_entry(user: ExecUser, invocation: Invocation) -> tuple[str, str, str]:
    """Run an exec entry as kubectl does if nobody can answer. Returns the status, what was found, and a hint."""
    import json
    import shutil

    named_version, command = user.entry.api_version, user.entry.command
    if fault := kubectl_fault(user.entry, user.path):
        return "fail", fault, f"change it in {user.path}"
    version = named_version.removeprefix(CLIENT_AUTHENTICATION)
    known = [raw for raw, about in KUBECTL_EXEC_INFO.items() if about == (version, False)]
    info = known[0] if known else json.dumps({"kind": "ExecCredential", "apiVersion": named_version, "spec": {}})
    environ = {**invocation.environ, **user.entry.variables, "KUBERNETES_EXEC_INFO": info}
    if "/" in command:  # relative to the kubeconfig (kubernetes/client-go, tools/clientcmd/loader.go)
        command = os.path.normpath(os.path.join(os.path.dirname(user.path), command))
    executable = shutil.which(command, path=environ.get("PATH", ""))
    if executable is None:
        return "fail", f"kubectl cannot find {command}", "put it on PATH, or its full path in the kubeconfig"
    try:
        output, took = ask_program([executable, *user.entry.arguments], environ)
        expires = json.loads(output)["status"]["expirationTimestamp"]
    except Problem as problem:
        return "fail", problem.message, problem.hint
    except (ValueError, KeyError, TypeError):
        return "fail", f"{command} did not print an ExecCredential", ""
    found = f"a token until {expires}, in {milliseconds(took)}"
    if user.entry.mode == "Always":
        return "warn", f"{found}, but only at a terminal", "change interactiveMode: Always to IfAvailable"
    if source := why_uncached(user, invocation._replace(environ=environ)):
        hint = "if it always gives the same, add --cache to the entry's args"
        return "ok", f"{found}; {source} is asked each time", hint
    return "ok", found, ""


def why_uncached(user: ExecUser, invocation: Invocation) -> str:
    """The source of an entry's credentials that is asked for each token, or ""."""
    try:
        request = parse_request(our_arguments(user.entry) or (), invocation.environ, "v1beta1")
        if request.cache:
            return ""
        uri = invocation.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
        local = "the local server in AWS_CONTAINER_CREDENTIALS_FULL_URI" if is_loopback(uri) else ""
        return changing_source(Resolver(invocation, None, interactive=False), request) or local
    except Problem:
        return ""


def about_other(user: ExecUser, directory: str | None, adopt: str) -> tuple[str, str]:
    """What to say about a context that uses a slower plugin, and what to do."""
    plugin = find_plugin(user.entry)
    assert plugin is not None
    name = f"{plugin.name}, through {plugin.wrapper}" if plugin.wrapper else plugin.name
    way_out = f"{adopt} --unwrap" if plugin.wrapper else adopt
    if plugin.profile is None:
        way_out = f"see `{PROGRAM} kubeconfig --help`"
    kept = backups(user.path, directory)
    if not kept or content_hash(read_bytes(user.path) or b"") == kept[-1][1]:
        return f"still uses {name}", way_out
    found = f"uses {name} again, or still: {user.path} has changed since entries in it were adopted"
    return found, "; ".join([way_out, *([REWRITERS[plugin.name]] if plugin.name in REWRITERS else [])])


# -- 12. completion ---------------------------------------------------------------------------------------------------
#
# The scripts ask the program what can come next, so that options, commands and names always match the program. Each
# script only adds its shell's quoting.

BASH_SCRIPT = r"""# bash completion for eks-token: eval "$(eks-token completion bash)"

_eks_token() {
    # bash also splits words at : and =. Join the parts that have no space between them on the line.
    local rest=${COMP_LINE:0:COMP_POINT} index part
    local -a words=()
    for ((index = 0; index <= COMP_CWORD; index++)); do
        part=${COMP_WORDS[index]}
        if ((index == 0)) || [[ $rest == [[:space:]]* ]]; then
            rest=${rest#"${rest%%[![:space:]]*}"}
            words+=("")
        fi
        if ((index == COMP_CWORD)); then
            part=$rest
        fi
        words[${#words[@]}-1]+=$part
        rest=${rest#"$part"}
    done
    COMPREPLY=()
    local line
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(command eks-token completion bash "$COMP_WORDBREAKS" "${words[@]:1}" 2>/dev/null)
    if [[ ${COMPREPLY[0]-} == :files ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY=()
        while IFS= read -r line; do
            COMPREPLY+=("$line")
        done < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]#=}")
    fi
}
complete -F _eks_token eks-token
"""
ZSH_SCRIPT = r"""#compdef eks-token
# zsh completion for eks-token: save it as _eks-token in $fpath, or source <(eks-token completion zsh)

_eks-token() {
    local line
    local -a typed values shown
    typed=("${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}")
    for line in "${(@f)$(command eks-token completion zsh '' "${typed[@]}" 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        values+=("${line%%$'\t'*}")
        shown+=("${line/$'\t'/  -- }")
    done
    if [[ ${values[1]-} == :files ]]; then
        [[ $PREFIX != --*=* ]] || compset -P '*='
        _files
    else
        compadd -l -d shown -a values
    fi
}

if [[ ${funcstack[1]-} == _eks-token ]]; then
    _eks-token "$@"
else
    compdef _eks-token eks-token
fi
"""
FISH_SCRIPT = r"""# fish completion for eks-token: eks-token completion fish > ~/.config/fish/completions/eks-token.fish

function __eks_token_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct | string unescape)
    if test (count $current) -eq 0 # an open quote, or nothing
        set current (commandline -ct | string trim --left --chars '"\'')
    end
    set -l found (command eks-token completion fish '' $before[2..-1] "$current" 2>/dev/null)
    if test "$found[1]" = :files
        __fish_complete_path (string replace --regex -- '^--[^=]*=' '' "$current")
    else
        string join -- \n $found
    end
end
complete --command eks-token --no-files --arguments '(__eks_token_complete)'
"""
SCRIPTS = {"bash": BASH_SCRIPT, "zsh": ZSH_SCRIPT, "fish": FISH_SCRIPT}
FILES = ":files"  # tells a script that its shell should complete file names
LARGE_KUBECONFIG = 60_000  # characters; ruamel.yaml takes a second for 1,000,000

# What the values of a field in a grammar, or of an argument of a command, can be.
COMPLETED = {
    "cluster_id": "clusters",
    "cluster_name": "clusters",
    "context": "contexts",
    "identity": "identities",
    "import_profile": "identities",
    "kubeconfig": FILES,
    "region": "regions",
    "source": "identities",
    "sso_region": "regions",
}
COMPLETED_NAMES = ("login", "logout", "whoami")  # commands whose argument `name` is an identity

FIELD_HELP = {
    "cluster_id": "for a local cluster on Outposts, instead of the name",
    "cluster_name": "the EKS cluster",
    "debug": "show on stderr what is done, without any secrets",
    "external_id": "the external ID that the role's trust policy requires",
    "identity": "a stored identity or an AWS profile",
    "cache": "cache the token even if its credentials may be others each time",
    "refresh": "always sign a new token",
    "region": "the cluster's AWS region",
    "role_arn": "also assume this role",
    "session_name": "the name of the role session",
}


class Slot(NamedTuple):
    """An option or an argument, as completion sees it."""

    names: tuple[str, ...]  # empty for an argument
    about: str
    takes: str  # the kind of values it takes, "any", or "" for a flag
    choices: tuple[str, ...] = ()
    many: bool = False


class Candidate(NamedTuple):
    value: str
    about: str = ""


def completion_command(invocation: Invocation, options: Namespace) -> int:
    """Print a shell's script, or what can come next if that script passes the words so far."""
    if not options.words:
        show(SCRIPTS[options.shell], end="")
        return 0
    # Not from argparse, which would interpret a --.
    breaks, *words = invocation.argv[invocation.argv.index(options.shell) + 1 :]
    words = words or [""]
    if options.shell == "bash":
        lines = bash_candidates(words, breaks, invocation)
    else:
        lines = [f"{value}\t{about}" if about else value for value, about in candidates(words, invocation)]
    for line in lines:
        show(line)
    return 0


def candidates(words: Sequence[str], invocation: Invocation) -> list[Candidate]:
    """What the last word can become after the words before it. The shells keep what fits the part typed so far."""
    *before, current = words
    if not before and not current.startswith("-"):
        return [Candidate(name, command.summary) for name, command in COMMANDS.items()]
    if before[-1:] == ["--"]:
        return []
    expected = slots(before)
    options = [slot for slot in expected if slot.names]
    pending, used, given = walk(before, options)
    if pending is not None and not (current.startswith("-") and pending.many):
        return values(pending, invocation) or (option_names(options, used) if pending.many else [])
    name, equals, _ = current.partition("=")
    if equals and name.startswith("--"):
        found = [each for slot in options if name in slot.names for each in values(slot, invocation)]
        return [each if each.value == FILES else each._replace(value=f"{name}={each.value}") for each in found]
    arguments = [slot for slot in expected if not slot.names]
    following = [*arguments[len(given) :], *(slot for slot in arguments[-1:] if slot.many)]
    if following and not current.startswith("-") and (found := values(following[0], invocation)):
        return found
    return option_names(options, used)


def walk(words: Sequence[str], options: Sequence[Slot]) -> tuple[Slot | None, set[str], list[str]]:
    """The option that is still waiting for a value, the names of the options given, and the arguments."""
    by_name = {name: slot for slot in options for name in slot.names}
    pending: Slot | None = None
    fed = False
    used: set[str] = set()
    given: list[str] = []
    for word in words:
        slot = by_name.get(word.partition("=")[0])
        if word.startswith("-"):
            used |= set(slot.names) if slot and not slot.many else set()
            pending, fed = (slot if slot and slot.takes and "=" not in word else None), False
        elif pending and (pending.many or not fed):
            fed = True
            pending = pending if pending.many else None
        else:
            given.append(word)
    return pending, used, given


def slots(before: Sequence[str]) -> list[Slot]:
    """The options and arguments of the command that the words start with, or of a token in our own grammar."""
    if before and before[0] in COMMANDS:
        return [Slot((), "", "any"), *command_slots(before[0])]  # the first is the command's own name
    options = token_slots()
    _, _, given = walk(before, options)
    return [] if given else options  # nobody types other programs' words, which are for kubeconfigs


def command_slots(name: str) -> list[Slot]:
    """The options and arguments of a command, from its parser."""
    found = []
    for action in command_parser(name)._actions:
        kind = COMPLETED.get(action.dest, "any")
        if action.dest == "name" and name in COMPLETED_NAMES:
            kind = "identities"
        choices = tuple(str(choice) for choice in action.choices or ())
        many = action.nargs in ("+", "*") or type(action).__name__ == "_AppendAction"
        takes = "" if action.nargs == 0 else kind
        if action.help != "==SUPPRESS==":
            found.append(Slot(tuple(action.option_strings), action.help or "", takes, choices, many))
    return found


def token_slots() -> list[Slot]:
    """The options of a token. Options without help are accepted but not offered."""
    found: dict[str, Slot] = {}
    for names, takes in ((BARE.values, "any"), (BARE.flags, "")):
        for name, field in names.items():
            if field not in FIELD_HELP:
                found[name] = Slot((name,), "", takes)
                continue
            known = found[field].names if field in found else ()
            found[field] = Slot((*known, name), FIELD_HELP[field], COMPLETED.get(field, takes) if takes else "")
    return list(found.values())


def option_names(options: Sequence[Slot], used: set[str]) -> list[Candidate]:
    """The long names of the options that can still be given, and the short names of those that have no other."""
    return [
        Candidate(name, slot.about)
        for slot in options
        for name in slot.names
        if slot.about and not used & set(slot.names) and (name.startswith("--") or len(slot.names) == 1)
    ]


def values(slot: Slot, invocation: Invocation) -> list[Candidate]:
    """The values of an option or an argument, as far as they are known here. Flags have none."""
    if slot.choices:
        return [Candidate(choice) for choice in slot.choices]
    if slot.takes == FILES:
        return [Candidate(FILES)]
    sources: dict[str, Callable[[Invocation], Mapping[str, str]]] = {
        "clusters": known_clusters,
        "contexts": known_contexts,
        "identities": known_identities,
        "regions": known_regions,
    }
    if slot.takes not in sources:
        return []
    try:
        found = sources[slot.takes](invocation)
    except (Problem, OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    return [
        Candidate(name, one_line(about))
        for name, about in sorted(found.items())
        if name not in ("", FILES) and name.isprintable()
    ]


def known_identities(invocation: Invocation) -> dict[str, str]:
    """The stored identities and the AWS profiles. It does not use botocore, which takes 60 ms to import."""
    import re

    environ = invocation.environ
    found: dict[str, str] = {}
    for variable, native, section in (  # "Configuration and credential file settings", AWS CLI
        ("AWS_CONFIG_FILE", "~/.aws/config", r"""(default)|profile\s+(?:'([^']+)'|"([^"]+)"|([^]\s]+))"""),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", r"([^]]+?)"),
    ):
        path = os.path.expanduser(os.path.expandvars(environ.get(variable) or native))
        text = (read_bytes(path) or b"").decode(errors="replace")
        for groups in re.findall(rf"^[ \t]*\[[ \t]*(?:{section})[ \t]*\]", text, re.MULTILINE):
            found["".join(groups)] = "AWS profile"
    try:
        stored = read_identities(identities_path(environ, invocation.platform))
    except Problem:
        return found
    return found | {name: kind_of(keys) for name, keys in stored.identities.items()}


def known_clusters(invocation: Invocation) -> dict[str, str]:
    """The clusters of kubeconfig entries. Raises Problem."""
    found: dict[str, str] = {}
    if texts := large_kubeconfigs(invocation):
        arns = [arn for text in texts for arn in scanned_names(text, "clusters")]
    else:
        configs = kubeconfigs(invocation)
        arns = [arn for config in configs for arn in config.clusters]
        users = [user for config in configs for user in config.users.values()]
        found = {cluster_of(our_arguments(user) or user.arguments): "" for user in users}
    return found | {name: f"in {region}" for region, name in map(region_and_name, arns) if name}


def large_kubeconfigs(invocation: Invocation) -> list[str]:
    """The texts of the kubeconfigs, if they are so large that a person would wait for a YAML library."""
    paths = kubeconfig_paths(invocation, "", atmos_kubeconfig(invocation))
    texts = [(read_bytes(path) or b"").decode(errors="replace") for path in paths]
    return texts if sum(map(len, texts)) > LARGE_KUBECONFIG else []


def scanned_names(text: str, kind: str) -> list[str]:
    """The names of the contexts or clusters in a kubeconfig that is JSON, or YAML as programs write it."""
    import json
    import re

    if text.startswith("{"):
        return [str(item["name"]) for item in json.loads(text)[kind]]
    text = text.replace("\r\n", "\n")
    block = re.search(rf"^{kind}:.*\n((?:(?:[ #-].*)?\n)*)", text, re.MULTILINE)
    margin = re.match(r"( *)-( +)", block[1]) if block else None
    if block is None or margin is None:
        return []
    names = re.findall(rf"^{margin[1]}[ -]{margin[2]}name: +(.+?)(?: +#.*)?$", block[1], re.MULTILINE)
    names = [name[1:-1].replace("''", "'") if name[0] == "'" else name for name in names]
    return [str(json.loads(name)) if name[0] == '"' else name for name in names]


def cluster_of(words: Sequence[str]) -> str:
    try:
        _, taken = choose_grammar(words)
    except (Problem, IndexError):
        return ""
    return taken.options.get("cluster_name") or taken.options.get("cluster_id") or ""


def known_contexts(invocation: Invocation) -> dict[str, str]:
    if texts := large_kubeconfigs(invocation):
        return {name: "" for text in texts for name in scanned_names(text, "contexts")}
    return {context: f"uses {user.entry.plugin()}" for user in exec_users(invocation) for context in user.contexts}


def known_regions(invocation: Invocation) -> dict[str, str]:
    """AWS's regions, from the file that botocore reads them from."""
    import json
    from importlib.util import find_spec

    spec = find_spec("botocore")
    path = os.path.join(os.path.dirname(spec.origin or "") if spec else "", "data", "partitions.json")
    with open(path, encoding="utf-8") as file:
        partitions = json.load(file)["partitions"]
    return {
        name: region.get("description", "")
        for partition in partitions
        for name, region in partition["regions"].items()
        if not name.endswith("-global")
    }


# bash


def bash_candidates(words: Sequence[str], breaks: str, invocation: Invocation) -> list[str]:
    """The candidates as bash should insert them, in place of what follows the last break in the current word."""
    current, quote, kept = unquoted(words[-1], breaks)
    found = [value for value, _ in candidates([unquoted(word)[0] for word in words], invocation)]
    if found == [FILES]:
        return found
    return [bash_quoted(value[kept:], quote) for value in found if value.startswith(current)]


def unquoted(word: str, breaks: str = "") -> tuple[str, str, int]:
    """A word as bash reads it, the quote that is still open at its end, and how many of its characters bash keeps.

    bash replaces what follows an open quote. If no quote is open, it replaces what follows the last unquoted break.
    """
    text, quote, opened, broken = "", "", 0, 0
    chars = iter(word)
    for char in chars:
        if char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote, opened = char, len(text)
        elif char == "\\" and quote != "'":
            following = next(chars, "")
            text += following if not quote or following in '"$`\\' else char + following
        else:
            text += char
            if not quote and char in breaks:
                broken = len(text)
    return text, quote, opened if quote else broken


def bash_quoted(value: str, quote: str) -> str:
    if quote == "'":
        return value.replace("'", "'\\''")
    if quote:
        return "".join(f"\\{char}" if char in '"$`\\' else char for char in value)
    return "".join(char if char.isalnum() or char in "_@%+=:,./-" else f"\\{char}" for char in value)


# -- 13. main ---------------------------------------------------------------------------------------------------------
#
# The table of commands, the help, and the one place that turns errors into two lines on stderr.

ACTS: Mapping[str, Callable[[Invocation, Namespace], int]] = {
    "login": login_command,
    "logout": logout_command,
    "identities": identities_command,
    "whoami": whoami_command,
    "credentials": credentials_command,
    "kubeconfig": kubeconfig_command,
    "adopt": adopt_command,
    "doctor": doctor_command,
    "completion": completion_command,
}
USAGE = f"""\
Usage
  {PROGRAM} --cluster-name NAME --region REGION [OPTION...]
  {PROGRAM} COMMAND [OPTION...]
  {PROGRAM} COMMAND --help

Commands
{"".join(f"  {name:11} {command.summary}" + chr(10) for name, command in COMMANDS.items())}"""
HELP = f"""\
{PROGRAM} prints the bearer token that kubectl needs to access an EKS cluster.
Credentials are stored in the OS keyring. A token is cached for 13 minutes and
printed from the cache in a few milliseconds.

Examples
  {PROGRAM} login dev
      store an access key, a role or an SSO sign-in as dev
  {PROGRAM} kubeconfig --cluster-name main --region us-east-2 -i dev
      write a context for the cluster main; kubectl then gets its own tokens
  {PROGRAM} adopt --all
      switch contexts made for the AWS CLI, aws-iam-authenticator or Atmos to
      {PROGRAM}
  {PROGRAM} --cluster-name main --region us-east-2 -i dev
      print a token, exactly as for kubectl
  {PROGRAM} --cluster-name main --region us-east-2 -i dev \\
      --role-arn arn:aws:iam::111122223333:role/Admin
      the same, for a role that dev assumes
  {PROGRAM} doctor
      find out why something does not work

{USAGE}
Options for a token
  --cluster-name NAME   the EKS cluster
  --cluster-id ID       for a local cluster on Outposts, instead of the name
  --region REGION       the cluster's AWS region
  -i, --identity NAME   a stored identity or an AWS profile
  --role-arn ARN        also assumes a role
  --external-id ID      the external ID that the role's trust policy requires
  --session-name NAME   the name of the role session (default: EKSGetTokenAuth)
  --refresh             always signs a new token
  --cache               also caches a token whose credentials may be others each
                        time: of a credential_process or a local server
  --debug               shows on stderr what is done, without any secrets
  --version             prints the version; with --verbose also the build, the
                        Python and the packages in use
  -h, --help            prints this help

  Without --identity, the token is for the first of these: ATMOS_IDENTITY, the
  keys in the environment, AWS_PROFILE, AWS_DEFAULT_PROFILE, the identity that
  was stored with `login --default` or is the only one, and what the AWS SDKs
  fall back on.

Commands of other programs
  A kubeconfig written for one of these programs works, for the same identity
  as before, after you change only its `command:` to {PROGRAM}:
    aws eks get-token --cluster-name NAME [--region R] [--profile P] ...
    aws-iam-authenticator token -i NAME [-r ARN] ...
    atmos aws eks token --cluster-name NAME --region R --identity I ...
  On a command line, `aws` before `eks get-token` is optional; leave out the
  names of the other two. `{PROGRAM} adopt` makes the change, and can undo it.

Environment
  AWS_PROFILE, AWS_REGION, AWS_CONFIG_FILE, AWS_ENDPOINT_URL, ...
                        the same as in the AWS SDKs
  ATMOS_IDENTITY        the identity, if no option gives one
  EKS_TOKEN_PYTHON      the Python to run: 3.10 or newer
  EKS_TOKEN_DEBUG=1     the same as --debug
  EKS_TOKEN_REFRESH=off do not sign the next token in the background
  KUBERNETES_EXEC_INFO  set by kubectl: the API version, and whether a person
                        can be asked
  PYTHON_KEYRING_BACKEND
                        a keyring other than the system's own
  XDG_CACHE_HOME, XDG_DATA_HOME
                        where the files below are stored

Files (on macOS in ~/Library/Caches and ~/Library/Application Support)
  ~/.cache/eks-token/   tokens and the unpacked program; safe to delete
  ~/.local/share/eks-token/identities.json
                        the stored identities, without their secrets
  ~/.aws/config, ~/.aws/credentials
                        AWS profiles; only read, never written

Exit status
  0  success         1  failure: stderr says why, in one line
  2  wrong usage     130  interrupted

More
  `{PROGRAM} COMMAND --help` shows each command's options and examples.
  `{PROGRAM} completion bash` (or zsh, fish) prints a completion script.
"""
SHORT_HELP = f"""\
{USAGE}
See `{PROGRAM} --help` for the options, examples and files."""


def run(invocation: Invocation) -> int:
    command = invocation.argv[0] if invocation.argv else ""
    if command in COMMANDS or "--version" in invocation.argv or is_update_kubeconfig(invocation.argv):
        invocation.check_files()  # token_command does so itself, after it has looked in the cache
    if command in COMMANDS:
        return ACTS[command](invocation, command_parser(command).parse_args(invocation.argv[1:]))
    if not invocation.argv:
        say(f"{PROGRAM}: error: no command or option given")
        for line in SHORT_HELP.splitlines():
            say(line)
        return 2
    if "--help" in invocation.argv or "-h" in invocation.argv:
        show(HELP, end="")
        return 0
    if "--version" in invocation.argv and {*invocation.argv} <= {"--version", "--verbose"}:
        verbose = "--verbose" in invocation.argv
        show("\n".join([f"{PROGRAM} {__version__}", *(version_details(invocation) if verbose else [])]))
        return 0
    if is_update_kubeconfig(invocation.argv):
        return update_kubeconfig_command(invocation)
    return token_command(invocation)


def version_details(invocation: Invocation) -> list[str]:
    """What a bug report needs: the build, the Python, and the packages, of which the executable has its own."""
    if invocation.build:
        import json
        import zipfile

        with zipfile.ZipFile(invocation.file) as archive:
            bundled = json.loads(archive.read(SBOM))["components"]
        packages = [f"{package['name']} {package['version']}" for package in bundled]
    else:
        import re
        from importlib import metadata

        required = [need for need in metadata.requires(PROGRAM) or [] if "extra ==" not in need]
        names = sorted(re.split(r"[^\w.-]", need)[0] for need in required)
        packages = [f"{name} {metadata.version(name)}" for name in names]
    return [f"build {invocation.build or 'none: an installed package'}", f"Python {running_python()}", *packages]


def set_encodings() -> None:
    """UTF-8 in Windows' pipes, which would be in the code page of old programs; escapes for what a locale lacks."""
    if sys.platform == "win32":
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper) and not stream.isatty():
                stream.reconfigure(encoding="utf-8")
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def clear_empty_variables() -> None:
    """Treat empty variables as unset. botocore reads the environment itself and would take an empty one as a value."""
    for name in [name for name, value in os.environ.items() if not value and name.startswith("AWS_")]:
        del os.environ[name]


def installed() -> Started:
    """What an installed package finds out by itself; for the executable, build/start.py has done so."""
    cache = cache_home(os.environ, sys.platform)
    try:
        if cache:
            make_trusted(cache)
    except (OSError, Refused) as error:
        warn(f"nothing is cached: {getattr(error, 'strerror', '') or error}")
        cache = None
    return Started(os.path.abspath(sys.argv[0]), "", cache, lambda: None, lambda: None, lambda: None)


def is_of_import(error: BaseException) -> bool:
    """Whether Python could not read a module. Bytecode that lost its end when a disk filled raises EOFError, say."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib")


def main(argv: Sequence[str] | None = None, started: Started | None = None) -> int:
    """Run a command line and return the exit status. The default is the process's own command line."""
    import gc

    global _debugging
    gc.disable()  # the process is short-lived, and collecting garbage during imports costs a new token 5 ms
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    set_encodings()
    clear_empty_variables()
    os.umask(0o077)
    _debugging = "--debug" in arguments or bool(os.environ.get("EKS_TOKEN_DEBUG"))
    for name in variables_of("secret"):
        keep_secret(os.environ.get(name))
    terminal = bool(sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty())
    file, build, cache, check_files, unpack_again, start_again = started or installed()
    try:
        return run(Invocation(arguments, os.environ, sys.platform, terminal, file, build, cache, check_files))
    except Problem as problem:
        say(f"{PROGRAM}: error: {problem.message}", LINE_BYTES)
        if problem.hint:
            say(f"hint: {problem.hint}", LINE_BYTES)
        return problem.status
    except ReaderGone:
        return 1
    except KeyboardInterrupt:
        if sys.stderr and sys.stderr.isatty():
            sys.stderr.write("\n")  # after the prompt and ^C
        say(f"{PROGRAM}: error: interrupted")
        return 130
    except Exception as error:  # a bug: one line for the user, and a traceback with --debug for whoever fixes it
        unpack_again()  # the cause may be a damaged file of the unpacked program
        if is_of_import(error) and arguments and arguments[0] not in COMMANDS:  # nobody has been asked anything yet
            start_again()
        if _debugging:
            import traceback

            for line in traceback.format_exc().splitlines():
                say(line)
        say(f"{PROGRAM}: error: unexpected {type(error).__name__}, which is a bug in {PROGRAM}")
        say("hint: run it again with --debug, and report what it shows")
        return 1


if __name__ == "__main__":
    sys.exit(main())
