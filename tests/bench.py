"""How long answers take, beside what they are measured against: python tests/bench.py [-n ROUNDS]

Every command is started many times in one run, in an order that is shuffled anew each round, so that whatever else
the machine does hits all alike. A time is that from the call that starts a process to its end, as the parent sees
it; the table has their medians, and below them what the project promises of their ratios. Nothing here passes or
fails: a promise that a noisy machine does not keep is marked, and the exit status is 0.

Where other processes are busy, `chrt -f 10 make bench`, as root, puts all of this before them.

What a command needs and this machine lacks (a keyring, the AWS CLI, Go, kubectl) is named, and its row left out.
"""

from __future__ import annotations

import argparse
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
from conftest import ROOT, KeyringDaemon, kubectls
from servers import ApiServer, Keys

LONGEST = 600  # seconds that rounds may take: an answer is fresh for 780
BUILDING = 900  # seconds for Go to fetch and build
ANSWERS = 1000

# AWS's own examples of keys; nothing that is measured calls AWS.
EXAMPLE_KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}
# What kubectl says to a plugin; every plugin here is told.
EXEC_INFO = (
    '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1beta1","spec":{"interactive":false}}\n'
)
TOKEN = "k8s-aws-v1."

AUTHENTICATOR = "sigs.k8s.io/aws-iam-authenticator"

TRUE = "/bin/true"
PYTHON = "python -I -S -c pass"
HIT = "hit"
HIT_AMONG_MANY = f"hit, {ANSWERS:,} answers in the cache"
HIT_IN_PYTHON = "hit through Python (keys in the environment)"
MISS = "miss (--refresh)"
FIRST_RUN = "first run (empty cache)"
AWS = "aws eks get-token"
AWS_IAM_AUTHENTICATOR = "aws-iam-authenticator token"
KUBECTL = "kubectl get namespaces, static token"
KUBECTL_PLUGIN = "kubectl get namespaces, eks-token (hit)"


class Promise(NamedTuple):
    """What is expected of one median, or of two: their ratio, or their difference."""

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
    Promise(HIT, TRUE, ratio, "times", most=3),
    Promise(AWS, HIT, ratio, "times", least=100),
    Promise(AWS_IAM_AUTHENTICATOR, HIT, ratio, "times", least=5),
    Promise(HIT_AMONG_MANY, HIT, ratio, "times", most=1.15),
    Promise(HIT_IN_PYTHON, PYTHON, ratio, "times", most=3),
    Promise(MISS, AWS, ratio, "times", most=0.4),
    Promise(FIRST_RUN, FIRST_RUN, alone, "s", most=1.5),
    Promise(KUBECTL_PLUGIN, KUBECTL, difference, "ms more than", most=10),
)


class Command(NamedTuple):
    """A row of the table."""

    name: str
    argv: tuple[str, ...]  # begins with an absolute path
    env: Mapping[str, str]
    times: int  # started in each round: more often where a process is short
    shows: str = ""  # what stdout must hold
    before: Callable[[], object] = lambda: None  # not timed


class Missing(Exception):
    """Why a command cannot be measured here."""


class Wrong(Exception):
    """A command that does not do what is measured."""


# --- time ---------------------------------------------------------------------------------------------------


def seconds_taken(command: Command) -> float:
    """Runs it once. stdout is a pipe, as kubectl's plugins have it. Raises Wrong for a failure."""
    command.before()
    output, stdout = os.pipe()
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    # Python ignores these two, which a child would inherit
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
        # all outputs here fit a pipe's buffer, so that nobody had to read meanwhile
        text = os.read(output, 1 << 20).decode()
    finally:
        os.close(output)
        if stdout != -1:
            os.close(stdout)
    if status != 0 or command.shows not in text:
        raise Wrong(f"exit status {os.waitstatus_to_exitcode(status)}")
    return taken


def measured(commands: Sequence[Command], rounds: int) -> dict[str, list[float]]:
    """Seconds of each start, by command; without a command that went wrong. Says on stderr how it goes."""
    times: dict[str, list[float]] = {}
    for command in commands:
        try:
            seconds_taken(command)  # the first start reads files from the disk, and writes bytecode
            times[command.name] = []
        except Wrong as error:
            say(f"{command.name}: left out: {error}")
    shuffle = random.Random(rounds).shuffle
    begun = time.monotonic()
    for done in range(rounds):
        if time.monotonic() - begun > LONGEST:
            say(f"ended after {done} rounds and {LONGEST} s: answers would no longer be fresh")
            break
        turn = [command for command in commands for _ in range(command.times) if command.name in times]
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
    """Homes with what the commands need in them; all of it is gone when `end` closes."""

    def __init__(self, end: ExitStack) -> None:
        self.end = end
        self.root = Path(end.enter_context(tempfile.TemporaryDirectory(prefix="eks-token-bench-")))
        self.python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        self.executable = str(Path(os.environ.get("EKS_TOKEN_EXECUTABLE") or ROOT / "dist/eks-token").resolve())
        commands = self.root / "bin"
        commands.mkdir()
        (commands / "python3").symlink_to(self.python)
        self.env = {
            "PATH": f"{commands}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
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
            say(f"{error}; the keys are in {self.keys_in} instead, which takes another time")

    def home(self, name: str) -> dict[str, str]:
        """The environment of a new home, with the identity `dev` where such keys are kept."""
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
        # an answer that depends on a new file is not kept
        for path in [*home.rglob("identities.json"), *home.glob(".aws/*")]:
            os.utime(path, (1_000_000_000, 1_000_000_000))
        return env

    def request(self, cluster: str, *more: str) -> tuple[str, ...]:
        return (self.executable, "--cluster-name", cluster, "--region", "us-east-1", "-i", "dev", *more)

    def hit(self, name: str, env: Mapping[str, str]) -> Command:
        """An answer that is there. The launcher has to give it, since the Python named here is none."""
        complete(self.request("demo"), env=env)
        return Command(name, self.request("demo"), {**env, "EKS_TOKEN_PYTHON": "none"}, 10, TOKEN)

    def hit_among_many(self) -> Command:
        """The same in a cache that has answers for other clusters too; each was minted."""
        env = self.home("many")
        # a hundred in a process: one each would take minutes, and a process keeps its connection to the bus
        script = (
            "import sys, eks_token\n"
            "for number in range(int(sys.argv[1]), int(sys.argv[1]) + 100):\n"
            "    status = eks_token.main([sys.argv[2], f'demo-{number}', *sys.argv[4:]])\n"
            "    assert status == 0, status\n"
        )
        for first in range(0, ANSWERS, 100):
            complete([sys.executable, "-c", script, str(first), *self.request("demo")[1:]], env=env, cwd=ROOT)
        hit = self.hit(HIT_AMONG_MANY, env)
        kept = sum("%answer" in names for _, _, names in os.walk(self.root / "many"))
        if kept < ANSWERS:
            raise Missing(f"only {kept} answers were kept")
        return hit

    def first_run(self) -> Command:
        env = self.home("first")
        caches = [self.root / "first" / name for name in (".cache", "Library/Caches")]

        def empty() -> None:
            for cache in caches:
                shutil.rmtree(cache, ignore_errors=True)

        return Command(FIRST_RUN, self.request("demo"), env, 1, TOKEN, empty)

    def with_keys(self, name: str) -> dict[str, str]:
        """The environment of a new home that has no identity and the keys in the environment."""
        (self.root / name).mkdir(0o700)
        return self.env | EXAMPLE_KEYS | {"HOME": str(self.root / name)}

    def hit_in_python(self) -> Command:
        argv = (self.executable, "--cluster-name", "demo", "--region", "us-east-1")
        return Command(HIT_IN_PYTHON, argv, self.with_keys("environment"), 4, TOKEN)

    def aws(self) -> Command:
        aws = Path(sys.executable).with_name("aws")
        if not aws.exists():
            raise Missing("the AWS CLI is not installed beside this Python")
        argv = (str(aws), "eks", "get-token", "--cluster-name", "demo", "--region", "us-east-1")
        return Command(AWS, argv, self.with_keys("aws"), 1, TOKEN)

    def authenticator(self) -> Command:
        argv = (str(built_authenticator()), "token", "-i", "demo", "--region", "us-east-1")
        return Command(AWS_IAM_AUTHENTICATOR, argv, self.with_keys("authenticator"), 4, TOKEN)

    def kubectl(self, hit: Command) -> list[Command]:
        """The same call of kubectl's with the plugin, and with the plugin's token in its kubeconfig."""
        found = kubectls()
        if not found:
            raise Missing("kubectl is not installed")
        server = self.end.enter_context(ApiServer(Keys()))
        token = json.loads(complete(hit.argv, env=hit.env))["status"]["token"]
        # to the server, both are the same: it does not verify this one
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
    """What a command writes, which has to succeed. Raises Missing."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]
    if done.returncode:
        raise Missing(f"{Path(argv[0]).name} failed: {(done.stderr.strip().splitlines() or ['silently'])[-1]}")
    return str(done.stdout)


def built_authenticator() -> Path:
    """aws-iam-authenticator, built once: the newest 0.7 that the module proxy has, else the newest. Raises Missing.

    `go install` refuses a module with replace directives, as 0.7 has; as a tool of another module it is built all
    the same.
    """
    kept = ROOT / ".venv/bench"
    for path in kept.glob("aws-iam-authenticator-v*"):
        return path
    go = shutil.which("go")
    if go is None:
        raise Missing("Go is not installed")
    say("building aws-iam-authenticator, once: a minute or two")
    with tempfile.TemporaryDirectory(prefix="eks-token-go-") as directory:
        settings = {"cwd": directory, "env": os.environ | {"GOFLAGS": "-mod=mod"}, "timeout": BUILDING}
        program = f"{AUTHENTICATOR}/cmd/aws-iam-authenticator"
        try:
            complete([go, "mod", "init", "bench"], **settings)
            try:
                complete([go, "get", "-tool", f"{program}@v0.7"], **settings)
            except Missing:
                complete([go, "get", "-tool", f"{program}@latest"], **settings)
            version = complete([go, "list", "-m", "-f", "{{.Version}}", AUTHENTICATOR], **settings).strip()
            complete([go, "build", "-o", "built", program], **settings)
        except subprocess.TimeoutExpired:
            raise Missing(f"Go was not done in {BUILDING} s") from None
        kept.mkdir(parents=True, exist_ok=True)
        path = kept / f"aws-iam-authenticator-{version}"
        shutil.move(Path(directory, "built"), path)
    return path


def commands_here(bench: Bench) -> list[Command]:
    env = bench.home("home")
    hit = bench.hit(HIT, env)
    commands = [
        Command(TRUE, ("/bin/true",), env, 10),
        hit,
        Command(PYTHON, (bench.python, "-I", "-S", "-c", "pass"), env, 4),
        Command(MISS, bench.request("missed", "--refresh"), env, 2, TOKEN),
    ]
    makers: dict[str, Callable[[], Command | list[Command]]] = {
        HIT_AMONG_MANY: bench.hit_among_many,
        HIT_IN_PYTHON: bench.hit_in_python,
        FIRST_RUN: bench.first_run,
        AWS: bench.aws,
        AWS_IAM_AUTHENTICATOR: bench.authenticator,
        "kubectl": lambda: bench.kubectl(hit),
    }
    for name, make in makers.items():
        try:
            made = make()
        except Missing as error:
            say(f"{name}: left out: {error}")
        else:
            commands += made if isinstance(made, list) else [made]
    # as a row belongs to the one before
    order = [TRUE, HIT, HIT_AMONG_MANY, AWS_IAM_AUTHENTICATOR, PYTHON, HIT_IN_PYTHON, MISS, FIRST_RUN, AWS]
    order += [KUBECTL, KUBECTL_PLUGIN]
    return sorted(commands, key=lambda command: order.index(command.name))


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
    shown.append(f"load {load:.1f} on {os.cpu_count()} processors before")
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
    parser = argparse.ArgumentParser(description="Measures how long answers take.")
    parser.add_argument("-n", type=int, default=20, metavar="ROUNDS", help="rounds (default: %(default)s)")
    options = parser.parse_args(argv)
    if os.name != "posix":
        say("only on POSIX systems, where the launcher runs")
        return 0
    signal.signal(signal.SIGTERM, terminated)  # so that what was started ends
    load = os.getloadavg()[0]
    with ExitStack() as end:
        bench = Bench(end)
        if not os.path.exists(bench.executable):
            parser.error(f"{bench.executable} is not there: make build")
        commands = commands_here(bench)
        say(f"{options.n} rounds")
        times = measured(commands, max(options.n, 1))
        print(versions(bench, commands, load), "", *table(times), "", *promises(times), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
