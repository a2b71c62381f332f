"""How long answers take, compared with other programs: python tests/bench.py [-n ROUNDS] [--before FILE]

Each round starts every command several times, in a new random order, so that other load on the machine affects all
of them alike. A time runs from the call that starts a process until the process ends, as its parent sees it. The
table shows medians, and below them the ratios that the project promises. Nothing here passes or fails: a promise
that a noisy machine does not keep is marked, and the exit status is 0.

--before FILE (make bench BEFORE=FILE) adds rows for another build of eks-token, measured in the same run.

On a busy machine, root can give all of this priority with `chrt -f 10 make bench`.

If this machine lacks what a command needs (a keyring, the AWS CLI, Go, kubectl), its row is left out and named.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
from conftest import ROOT, KeyringDaemon, built_authenticator, kubectls
from servers import ApiServer, Keys

LONGEST = 600  # seconds that all rounds may take; an answer is fresh for 780
ANSWERS = 10_000
CALLS = 200

# The example keys from AWS's documentation. Nothing that is measured here calls AWS.
EXAMPLE_KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}
# What kubectl passes to a plugin. Every plugin here gets it.
EXEC_INFO = (
    '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1beta1","spec":{"interactive":false}}\n'
)
TOKEN = "k8s-aws-v1."

TRUE = "/bin/true"
PYTHON = "python -I -S -c pass"
HIT = "hit"
HIT_AMONG_MANY = f"hit, {ANSWERS:,} answers in the cache"
HIT_IN_PYTHON = "hit through Python (keys in the environment)"
MISS = "miss (--refresh)"
FIRST_RUN = "first run (empty cache)"
AT_ONCE = f"{CALLS} calls at once"
AT_ONCE_COLD = f"{AT_ONCE}, no answer yet"
AT_ONCE_FIRST = f"{AT_ONCE}, empty cache"
BEFORE = ", before"
AWS = "aws eks get-token"
AWS_IAM_AUTHENTICATOR = "aws-iam-authenticator token"
KUBECTL = "kubectl get namespaces, static token"
KUBECTL_PLUGIN = "kubectl get namespaces, eks-token (hit)"


class Promise(NamedTuple):
    """What is expected of one median, or of the ratio or difference of two."""

    of: str
    to: str
    compared: Callable[[float, float], float]
    unit: str  # of the result
    least: float = float("-inf")
    most: float = float("inf")


def ratio(one: float, other: float) -> float:
    return one / other


def difference(one: float, other: float) -> float:
    return (one - other) * 1000


def alone(one: float, _: float) -> float:
    return one


PROMISES = (
    Promise(HIT, TRUE, ratio, "times", most=1.7),
    Promise(AWS, HIT, ratio, "times", least=100),
    Promise(AWS_IAM_AUTHENTICATOR, HIT, ratio, "times", least=5),
    Promise(HIT_AMONG_MANY, HIT, ratio, "times", most=1.15),
    Promise(HIT_IN_PYTHON, PYTHON, ratio, "times", most=1.9),
    Promise(MISS, AWS, ratio, "times", most=0.3),
    Promise(FIRST_RUN, FIRST_RUN, alone, "s", most=1.5),
    Promise(KUBECTL_PLUGIN, KUBECTL, difference, "ms more than", most=10),
)


class Command(NamedTuple):
    """A row of the table."""

    name: str
    argv: tuple[str, ...]  # starts with an absolute path
    env: Mapping[str, str]
    times: int  # starts in each round: more for a shorter process
    shows: str = ""  # what stdout must contain
    prepare: Callable[[], object] = lambda: None  # not timed
    most: int = sys.maxsize  # starts in all rounds: fewer if one takes seconds


class Missing(Exception):
    """Why a command cannot be measured here."""


class Wrong(Exception):
    """A command did not do what is being measured."""


# --- time ---------------------------------------------------------------------------------------------------


def seconds_taken(command: Command) -> float:
    """Run it once. Its stdout is a pipe, as under kubectl. Raises Wrong if it fails."""
    command.prepare()
    output, stdout = os.pipe()
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    # Python ignores these two signals, and a child would inherit that.
    signals = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        begun = time.perf_counter()
        process = os.posix_spawn(command.argv[0], command.argv, command.env, file_actions=actions, setsigdef=signals)
        try:
            _, status = os.waitpid(process, 0)
            taken = time.perf_counter() - begun
        except BaseException:
            os.kill(process, signal.SIGKILL)
            raise
        os.close(stdout)
        stdout = -1
        # Every output here fits into a pipe's buffer, so nobody had to read from it until now.
        text = os.read(output, 1 << 20).decode()
    finally:
        os.close(output)
        if stdout != -1:
            os.close(stdout)
    if status != 0 or command.shows not in text:
        raise Wrong(f"exit status {os.waitstatus_to_exitcode(status)}")
    return taken


def needs_more(command: Command, times: Mapping[str, Sequence[float]]) -> bool:
    return command.name in times and len(times[command.name]) < command.most


def measured(commands: Sequence[Command], rounds: int) -> dict[str, list[float]]:
    """The seconds of each start, by command, without commands that went wrong. Progress goes to stderr."""
    times: dict[str, list[float]] = {}
    for command in commands:
        try:
            seconds_taken(command)  # not counted: the first start reads files from the disk and writes bytecode
            times[command.name] = []
        except Wrong as error:
            say(f"{command.name}: left out: {error}")
    shuffle = random.Random(rounds).shuffle
    begun = time.monotonic()
    for done in range(rounds):
        if time.monotonic() - begun > LONGEST:
            say(f"stopped after {done} rounds and {LONGEST} s, because answers expire soon")
            break
        turn = [command for command in commands for _ in range(command.times) if needs_more(command, times)]
        shuffle(turn)
        for command in turn:
            if command.name in times:
                try:
                    times[command.name].append(seconds_taken(command))
                except Wrong as error:
                    say(f"{command.name}: left out: {error}")
                    del times[command.name]
    return {name: taken for name, taken in times.items() if taken}


# --- what is measured ---------------------------------------------------------------------------------------


class Bench:
    """Home directories with what the commands need. All of them are removed when `end` closes."""

    def __init__(self, end: ExitStack) -> None:
        self.end = end
        self.label = ""
        self.root = Path(end.enter_context(tempfile.TemporaryDirectory(prefix="eks-token-bench-")))
        self.python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        self.executable = str(Path(os.environ.get("EKS_TOKEN_EXECUTABLE") or ROOT / "dist/eks-token").resolve())
        commands = self.root / "bin"
        commands.mkdir()
        (commands / "python3").symlink_to(self.python)
        self.env = {
            "PATH": f"{commands}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "EKS_TOKEN_REFRESH": "off",
            "KUBERNETES_EXEC_INFO": EXEC_INFO,
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.root}/no-bus",
        }
        self.keys_in = "GNOME Keyring"
        try:
            daemon = KeyringDaemon()
            end.callback(daemon.stop)
            self.env["DBUS_SESSION_BUS_ADDRESS"] = daemon.address
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            self.keys_in = "~/.aws/credentials"
            say(f"{error}; the keys are in {self.keys_in} instead, which changes the times")

    def of(self, executable: str, label: str) -> Bench:
        """The same for another executable, with separate homes. `label` is added to the names of its rows."""
        other = copy.copy(self)
        other.executable, other.label, other.root = executable, label, self.root / label.strip(", ")
        other.root.mkdir()
        return other

    def home(self, name: str) -> dict[str, str]:
        """The environment of a new home that has the identity `dev`."""
        home = self.root / name
        home.mkdir(0o700)
        env = self.env | {"HOME": str(home)}
        if self.keys_in == "GNOME Keyring":
            entry = {
                "Version": 1,
                "AccessKeyId": EXAMPLE_KEYS["AWS_ACCESS_KEY_ID"],
                "SecretAccessKey": EXAMPLE_KEYS["AWS_SECRET_ACCESS_KEY"],
            }
            login = [self.executable, "login", "dev", "--stdin", "--no-verify"]
            complete(login, env=env, input=json.dumps(entry))
        else:
            settings = "".join(f"{name.lower()} = {value}\n" for name, value in EXAMPLE_KEYS.items())
            (home / ".aws").mkdir()
            (home / ".aws/credentials").write_text(f"[dev]\n{settings}")
        # The launcher does not use an answer that depends on a file or directory that has just changed.
        for path in (home, *home.rglob("*")):
            if not {".cache", "Caches"} & {*path.relative_to(home).parts}:
                os.utime(path, (1_000_000_000, 1_000_000_000))
        return env

    def request(self, cluster: str, *more: str) -> tuple[str, ...]:
        return (self.executable, "--cluster-name", cluster, "--region", "us-east-1", "-i", "dev", *more)

    def hit(self, name: str, env: Mapping[str, str]) -> Command:
        """A cached answer. It must come from the launcher, because EKS_TOKEN_PYTHON is not a Python."""
        complete(self.request("demo"), env=env)
        return Command(name + self.label, self.request("demo"), {**env, "EKS_TOKEN_PYTHON": "none"}, 10, TOKEN)

    def miss(self, env: Mapping[str, str]) -> Command:
        return Command(MISS + self.label, self.request("missed", "--refresh"), env, 2, TOKEN)

    def hit_among_many(self) -> Command:
        """The same in a cache that also has answers for many other clusters."""
        env = self.home("many")
        # They are stored by one process, because signing each of them would take ten minutes.
        script = (
            "import os, sys, time, eks_token\n"
            "cache = eks_token.Cache(eks_token.cache_home(os.environ, sys.platform))\n"
            "now = int(time.time())\n"
            "for number in range(int(sys.argv[1])):\n"
            "    argv = [sys.argv[2], f'demo-{number}', *sys.argv[4:]]\n"
            "    key = eks_token.request_key('v1beta1', argv, os.environ, sys.platform)\n"
            "    minted = eks_token.Minted('x' * 1000, now, now + 840, True)\n"
            "    cache.store(key, minted, (), cache.generation())\n"
        )
        complete(self.request("demo"), env=env)
        complete([sys.executable, "-c", script, str(ANSWERS), *self.request("demo")[1:]], env=env, cwd=ROOT)
        hit = self.hit(HIT_AMONG_MANY, env)
        kept = sum("%answer" in names for _, _, names in os.walk(self.root / "many"))
        if kept < ANSWERS:
            raise Missing(f"only {kept} answers were stored")
        return hit

    def first_run(self) -> Command:
        env = self.home("first")
        return Command(FIRST_RUN + self.label, self.request("demo"), env, 1, TOKEN, lambda: self.remove("first"))

    def remove(self, home: str, below: str = "") -> None:
        """Empties the cache of a home, or a directory in it."""
        for cache in (".cache", "Library/Caches"):
            shutil.rmtree(self.root / home / cache / "eks-token" / below, ignore_errors=True)

    def at_once(self) -> list[Command]:
        """Many calls that start together, until the last one has ended."""
        env = self.home("at-once")
        script = (
            f'calls=; while [ ${{#calls}} -lt {CALLS} ]; do calls="$calls."; "$@" >/dev/null & pids="$pids $!"; done; '
            'for pid in $pids; do wait "$pid" || exit; done; "$@"'
        )
        argv = ("/bin/sh", "-c", script, "sh", *self.request("demo"))
        return [
            Command(AT_ONCE, argv, env, 1, TOKEN, most=5),
            Command(AT_ONCE_COLD, argv, env, 1, TOKEN, lambda: self.remove("at-once", "tokens"), most=5),
            Command(AT_ONCE_FIRST, argv, env, 1, TOKEN, lambda: self.remove("at-once"), most=5),
        ]

    def with_keys(self, name: str) -> dict[str, str]:
        """The environment of a new home without identities, with keys in environment variables."""
        (self.root / name).mkdir(0o700)
        return self.env | EXAMPLE_KEYS | {"HOME": str(self.root / name)}

    def hit_in_python(self) -> Command:
        argv = (self.executable, "--cluster-name", "demo", "--region", "us-east-1")
        return Command(HIT_IN_PYTHON + self.label, argv, self.with_keys("environment"), 4, TOKEN)

    def aws(self) -> Command:
        aws = Path(sys.executable).with_name("aws")
        if not aws.exists():
            raise Missing("the AWS CLI is not installed next to this Python")
        argv = (str(aws), "eks", "get-token", "--cluster-name", "demo", "--region", "us-east-1")
        return Command(AWS, argv, self.with_keys("aws"), 1, TOKEN)

    def authenticator(self) -> Command:
        argv = (str(authenticator_here()), "token", "-i", "demo", "--region", "us-east-1")
        return Command(AWS_IAM_AUTHENTICATOR, argv, self.with_keys("authenticator"), 4, TOKEN)

    def kubectl(self, hit: Command) -> list[Command]:
        """The same kubectl command with the plugin, and with the plugin's token in the kubeconfig."""
        found = kubectls()
        if not found:
            raise Missing("kubectl is not installed")
        server = self.end.enter_context(ApiServer(Keys()))
        token = json.loads(complete(hit.argv, env=hit.env))["status"]["token"]
        # The server treats both alike, because it does not verify this token.
        server.static_token = token
        given = {name: value for name, value in hit.env.items() if name not in ("PATH", "KUBERNETES_EXEC_INFO")}
        plugin = {
            "command": hit.argv[0],
            "args": hit.argv[1:],
            "env": [{"name": name, "value": value} for name, value in given.items()],
        }
        users = {KUBECTL: server.kubeconfig(token=token), KUBECTL_PLUGIN: server.kubeconfig(plugin)}
        commands = []
        for number, (name, kubeconfig) in enumerate(users.items()):
            home = self.root / f"kubectl{number}"
            home.mkdir()
            (home / "config").write_text(kubeconfig)
            env = {"PATH": self.env["PATH"], "HOME": str(home), "KUBECONFIG": str(home / "config")}
            commands.append(Command(name, (str(found[-1]), "get", "namespaces"), env, 4, "kube-system"))
        return commands


def complete(argv: Sequence[str], **settings: object) -> str:
    """The output of a command that must succeed. Raises Missing if it does not."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]
    if done.returncode:
        raise Missing(f"{Path(argv[0]).name} failed: {(done.stderr.strip().splitlines() or ['silently'])[-1]}")
    return str(done.stdout)


def authenticator_here() -> Path:
    """aws-iam-authenticator, built once. Raises Missing."""
    go = shutil.which("go")
    if go is None:
        raise Missing("Go is not installed")
    say("building aws-iam-authenticator takes some minutes, but only once")
    try:
        return built_authenticator(go)
    except RuntimeError as error:
        raise Missing(str(error)) from None


def commands_here(bench: Bench, before: Bench | None) -> list[Command]:
    """The rows of the table in their order: each program next to what it is compared with."""
    env = bench.home("home")
    hit = bench.hit(HIT, env)
    commands = [
        Command(TRUE, ("/bin/true",), env, 10),
        hit,
        Command(PYTHON, (bench.python, "-I", "-S", "-c", "pass"), env, 4),
        bench.miss(env),
    ]
    if before:
        env = before.home("home")
        commands += [before.hit(HIT, env), before.hit_in_python(), before.miss(env), before.first_run()]
    makers: dict[str, Callable[[], Command | list[Command]]] = {
        HIT_AMONG_MANY: bench.hit_among_many,
        HIT_IN_PYTHON: bench.hit_in_python,
        FIRST_RUN: bench.first_run,
        AWS: bench.aws,
        AWS_IAM_AUTHENTICATOR: bench.authenticator,
        "kubectl": lambda: bench.kubectl(hit),
        AT_ONCE: bench.at_once,
    }
    for name, make in makers.items():
        try:
            made = make()
        except Missing as error:
            say(f"{name}: left out: {error}")
        else:
            commands += made if isinstance(made, list) else [made]
    order = [TRUE, HIT, HIT_AMONG_MANY, AWS_IAM_AUTHENTICATOR, PYTHON, HIT_IN_PYTHON, MISS, FIRST_RUN, AWS]
    order += [KUBECTL, KUBECTL_PLUGIN, AT_ONCE, AT_ONCE_COLD, AT_ONCE_FIRST]
    return sorted(commands, key=lambda command: order.index(command.name.removesuffix(BEFORE)))


# --- the table ----------------------------------------------------------------------------------------------


def versions(bench: Bench, commands: Sequence[Command], load: float) -> str:
    here = {command.name: Path(command.argv[0]) for command in commands}
    shown = [f"Python {platform.python_version()} for eks-token and the AWS CLI", f"keys in {bench.keys_in}"]
    if AWS in here:
        shown.append(f"AWS CLI {metadata.version('awscli')}")
    if AWS_IAM_AUTHENTICATOR in here:
        shown.append(here[AWS_IAM_AUTHENTICATOR].name.replace("-v", " "))
    if KUBECTL in here:
        found = re.search(r"v(1\.\d+\.\d+)", complete([str(here[KUBECTL]), "version", "--client"]))
        shown.append(f"kubectl {found[1] if found else '(?)'}")
    shown.append(f"the load was {load:.1f} on {os.cpu_count()} processors")
    return "; ".join(shown)


def table(times: Mapping[str, Sequence[float]]) -> list[str]:
    lines = [f"{'':44}{'median':>10}{'middle half':>20}{'starts':>8}"]
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else [*taken] * 3
        spread = f"{low * 1000:.2f} - {high * 1000:.2f}"
        lines.append(f"{name:44}{middle * 1000:7.2f} ms{spread:>20}{len(taken):8}")
    return lines


def promises(times: Mapping[str, Sequence[float]]) -> list[str]:
    median = {name: statistics.median(taken) for name, taken in times.items()}
    lines = [f"{'':44}{'result':>10}  {'expected':16}"]
    for promise in PROMISES:
        if promise.of not in median or promise.to not in median:
            continue
        result = promise.compared(median[promise.of], median[promise.to])
        wanted = f"at least {promise.least:g}" if promise.least > 0 else f"at most {promise.most:g}"
        met = promise.least <= result <= promise.most
        end = f"{promise.unit} {promise.to}" if promise.to != promise.of else promise.unit
        lines.append(f"{promise.of:44}{result:10.2f}  {wanted:14}{end}{'' if met else '   NOT MET'}")
    return [line.rstrip() for line in lines]


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def terminated(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure how long answers take.")
    parser.add_argument("-n", type=int, default=20, metavar="ROUNDS", help="rounds (default: %(default)s)")
    parser.add_argument("--before", metavar="FILE", help="another build of eks-token, to compare with")
    options = parser.parse_args(argv)
    if os.name != "posix":
        say("this needs a POSIX system, because it measures the launcher")
        return 0
    signal.signal(signal.SIGTERM, terminated)  # so that the processes that we started end too
    load = os.getloadavg()[0]
    with ExitStack() as end:
        bench = Bench(end)
        if not os.path.exists(bench.executable):
            parser.error(f"{bench.executable} does not exist; run `make build` first")
        before = bench.of(os.path.abspath(options.before), BEFORE) if options.before else None
        commands = commands_here(bench, before)
        say(f"{options.n} rounds")
        times = measured(commands, max(options.n, 1))
        print(versions(bench, commands, load), "", *table(times), "", *promises(times), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
