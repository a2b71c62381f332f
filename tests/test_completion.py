"""Completion as bash, zsh and fish do it, and --help.

Each shell is the real one. In those that have a terminal here, `eks-token` is a function that prints its arguments once
the line is complete: so it is seen what the shell makes of the quotes.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Sandbox, invocation, need

import eks_token

NAMES = ["dev", "my dev", "team:prod", "a=b", "it's", "$HOME (x)", "café", "d\\e", '"q"']
ARN = "arn:aws:eks:us-east-2:123456789012:cluster/orders"
SHELLS = ["bash", "zsh", "fish"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, executable: Path) -> Sandbox:
    """A home with identities of odd names, AWS profiles, kubeconfig entries, and eks-token on PATH."""
    home = Sandbox(tmp_path_factory.mktemp("completion") / "sandbox", lambda: executable)
    (home.home / "bin").mkdir()
    (home.home / "bin/eks-token").symlink_to(executable)
    home.env |= {"PATH": f"{home.home}/bin:{os.environ['PATH']}", "TERM": "dumb"}
    stored = {"version": 1, "default": "", "identities": {name: {} for name in NAMES}}
    home.write(str((home.data / "identities.json").relative_to(home.home)), json.dumps(stored))
    home.config('[profile work]\n[profile "two words"]\n[default]\n[sso-session corp]\n')
    entries = {
        "ours": ("eks-token", ["--cluster-name", "alpha", "--region", "eu-west-1"]),
        "theirs": ("aws", ["--region", "eu-west-1", "eks", "get-token", "--cluster-name", "beta"]),
    }
    version = "client.authentication.k8s.io/v1beta1"
    users = {
        name: {"command": command, "args": args, "apiVersion": version} for name, (command, args) in entries.items()
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": ARN, "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": name, "user": {"exec": entry}} for name, entry in users.items()],
        "contexts": [
            {"name": "ours", "context": {"cluster": ARN, "user": "ours"}},
            {"name": ARN, "context": {"cluster": ARN, "user": "theirs"}},
        ],
    }
    home.write(".kube/config", json.dumps(config))
    done = home.run("--version")
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def shell(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


# --- what is offered ----------------------------------------------------------------------------------------


def offered_by_bash(home: Sandbox, line: str) -> list[str]:
    words = [word for word in re.split(r"([=:])|\s+", line) if word is not None]
    words = [word for index, word in enumerate(words) if word or index == len(words) - 1]
    if words[-1] == "" and line[-1] in "=:":
        words.pop()
    script = 'eval "$(eks-token completion bash)"; COMP_LINE=$1 COMP_POINT=${#1} COMP_CWORD=$(($# - 2)); shift'
    script += '; COMP_WORDS=("$@"); _eks_token; printf "%s\\n" "${COMPREPLY[@]}"'
    return home.run("-c", script, "bash", line, *words, command=["bash"]).stdout.splitlines()


def offered_by_zsh(home: Sandbox, line: str) -> list[str]:
    found = home.home / "found"
    found.unlink(missing_ok=True)
    rc = (
        f"compadd() {{ local -a here; builtin compadd -O here $@; print -rl -- $here >>{found}; builtin compadd $@ }}\n"
    )
    in_zsh(home, f"{line}\t\x15exit\n", rc)
    return found.read_text().splitlines() if found.exists() else []


def in_zsh(home: Sandbox, typed: str, more: str = "") -> str:
    rc = "autoload -Uz compinit && compinit -u -D\nsource <(eks-token completion zsh)\nPS1='ready> '\nunsetopt beep\n"
    home.write("zsh/.zshrc", rc + "zstyle ':completion:*' list-prompt ''\nLISTMAX=1000\n" + more)
    done = home.run_pty("-i", steps=[("ready> ", typed)], command=["zsh"], env={"ZDOTDIR": str(home.home / "zsh")})
    return done.stdout


def offered_by_fish(home: Sandbox, line: str) -> list[str]:
    done = home.run("-c", "eks-token completion fish | source; complete -C $argv[1]", line, command=["fish"])
    assert done.stderr == ""
    return [row.partition("\t")[0] for row in done.stdout.splitlines()]


OFFERED: dict[str, Callable[[Sandbox, str], list[str]]] = {
    "bash": offered_by_bash,
    "zsh": offered_by_zsh,
    "fish": offered_by_fish,
}


@pytest.mark.parametrize("shell", SHELLS, indirect=True)
@pytest.mark.parametrize(
    ("line", "among", "not_among"),
    [
        pytest.param("", ["login", "kubeconfig", "doctor", "completion"], ["--cluster-name"], id="commands"),
        pytest.param("--", ["--cluster-name", "--identity", "--refresh"], ["--profile", "login"], id="options"),
        pytest.param("-i dev --", ["--cluster-name"], ["--identity"], id="but those that are given"),
        pytest.param("login --", ["--sso-start-url", "--default"], ["--cluster-id"], id="of a command"),
        pytest.param("login ", ["dev", "work"], ["corp", "login"], id="identities to sign in"),
        pytest.param("logout ", ["dev"], [], id="identities to forget"),
        pytest.param("--identity ", ["dev", "default"], [], id="identities by option"),
        pytest.param("-i ", ["dev", "work"], [], id="identities by a short option"),
        pytest.param("--cluster-name ", ["alpha", "beta", "orders"], ["dev"], id="clusters"),
        pytest.param("kubeconfig --cluster-name ", ["alpha"], [], id="clusters of a command"),
        pytest.param("adopt --context ", ["ours"], ["dev"], id="contexts"),
        pytest.param("--region ", ["us-east-2", "eu-west-1", "cn-north-1"], ["aws-global"], id="regions"),
        pytest.param("eks ", [], ["get-token", "--cluster-name"], id="no words of other programs"),
        pytest.param("doctor -o ", ["text", "json"], [], id="choices"),
        pytest.param("completion ", SHELLS, [], id="shells"),
    ],
)
def test_what_may_come_next(shell: str, line: str, among: list[str], not_among: list[str], place: Sandbox) -> None:
    offered = OFFERED[shell](place, f"eks-token {line}")
    assert set(among) <= set(offered)
    assert not set(not_among) & set(offered)


@pytest.mark.parametrize("shell", SHELLS, indirect=True)
def test_files_where_a_file_is_meant(shell: str, place: Sandbox) -> None:
    place.write("a-file", "")
    assert "a-file" in OFFERED[shell](place, "eks-token kubeconfig --kubeconfig a-f")


@pytest.mark.parametrize("shell", SHELLS, indirect=True)
def test_nothing_for_what_it_cannot_know(shell: str, place: Sandbox) -> None:
    assert [word for word in OFFERED[shell](place, "eks-token login --sso-start-url ") if word] == []


@pytest.mark.parametrize("form", ["as the AWS CLI", "indented", "JSON", "Windows"])
def test_names_in_a_large_kubeconfig_are_read_without_a_yaml_library(form: str, tmp_path: Path) -> None:
    names = [ARN, 'a "name"', "b: c", "it's", "d#e"]
    clusters: list[Any] = [{"cluster": {"name": "not this"}, "name": name} for name in names * 500]
    config: dict[str, Any] = {"kind": "Config", "clusters": clusters, "contexts": clusters, "users": []}
    text = json.dumps(config) if form == "JSON" else "\n".join([*eks_token.lines_of(config), ""])
    if form == "indented":
        text = re.sub("(?m)^([ -])", r"    \1", text)
    path = tmp_path / "config"
    path.write_bytes(text.replace("\n", "\r\n" if form == "Windows" else "\n").encode())
    here = invocation(environ={"KUBECONFIG": str(path), "HOME": str(tmp_path)})
    yaml = [name for name in sys.modules if name.startswith("ruamel")]
    assert set(eks_token.known_contexts(here)) == set(names)
    assert eks_token.known_clusters(here) == {"orders": "in us-east-2"}
    assert [name for name in sys.modules if name.startswith("ruamel")] == yaml


# --- what the shell makes of it -----------------------------------------------------------------------------


def arguments_of(output: str) -> list[str]:
    return re.findall(r"^<(.*)>\r?$", output, re.MULTILINE)


SHOW = """eks-token() { printf '<%s>\\n' "$@"; }\n"""


def completed_by_bash(home: Sandbox, line: str) -> list[str]:
    rc = home.write(
        "bashrc", f"""PS1='ready> '\neval "$(eks-token completion bash)"\n{SHOW}bind 'set bell-style none'\n"""
    )
    typed = [("ready> ", f"{line}\t\n"), ("ready> ", "exit\n")]
    return arguments_of(home.run_pty("--noprofile", "--rcfile", rc, "-i", steps=typed, command=["bash"]).stdout)


def completed_by_zsh(home: Sandbox, line: str) -> list[str]:
    return arguments_of(in_zsh(home, f"{line}\t\nexit\n", SHOW))


def completed_by_fish(home: Sandbox, line: str) -> list[str]:
    """fish has the token alone; that is put in its place, and run."""
    script = "eks-token completion fish | source; complete --escape -C $argv[1]"
    rows = home.run("-c", script, line, command=["fish"]).stdout.splitlines()
    assert len(rows) == 1, rows
    kept = re.sub(r"""(['"].*|(\\.|[^\s\\])*)$""", "", line)
    show = "function eks-token; printf '<%s>\\n' $argv; end;"
    return arguments_of(home.run("-c", f"{show} {kept}{rows[0].partition(chr(9))[0]}", command=["fish"]).stdout)


COMPLETED: dict[str, Callable[[Sandbox, str], list[str]]] = {
    "bash": completed_by_bash,
    "zsh": completed_by_zsh,
    "fish": completed_by_fish,
}


@pytest.mark.parametrize("shell", SHELLS, indirect=True)
@pytest.mark.parametrize(
    ("typed", "arguments"),
    [
        pytest.param("wh", ["whoami"], id="a command"),
        pytest.param("login wo", ["login", "work"], id="a plain name"),
        pytest.param("login my", ["login", "my dev"], id="a space to come"),
        pytest.param("login my\\ d", ["login", "my dev"], id="after a space"),
        pytest.param('login "my d', ["login", "my dev"], id="in an open quote"),
        pytest.param("login 'my d", ["login", "my dev"], id="in an open single quote"),
        pytest.param("login team:p", ["login", "team:prod"], id="after a colon"),
        pytest.param("login tea", ["login", "team:prod"], id="before a colon"),
        pytest.param("login a=", ["login", "a=b"], id="after an equals sign"),
        pytest.param("login it", ["login", "it's"], id="a single quote"),
        pytest.param("login \\$H", ["login", "$HOME (x)"], id="a dollar sign and brackets"),
        pytest.param("login ca", ["login", "café"], id="a letter beyond ASCII"),
        pytest.param("login d\\\\", ["login", "d\\e"], id="a backslash"),
        pytest.param("--identity=wo", ["--identity=work"], id="joined to its option"),
        pytest.param("--identity=my", ["--identity=my dev"], id="joined, with a space"),
        pytest.param("--identity=team:p", ["--identity=team:prod"], id="joined, with a colon"),
        pytest.param("--cluster-n", ["--cluster-name"], id="an option"),
        pytest.param("adopt --context arn:aws:eks:us", ["adopt", "--context", ARN], id="an ARN"),
        pytest.param("--region us-gov-w", ["--region", "us-gov-west-1"], id="a region"),
    ],
)
def test_a_completed_line_means_the_name(shell: str, typed: str, arguments: list[str], place: Sandbox) -> None:
    assert COMPLETED[shell](place, f"eks-token {typed}") == arguments


def test_bash_where_a_colon_breaks_no_word(place: Sandbox) -> None:
    need("bash")
    script = """COMP_WORDBREAKS=' '; eval "$(eks-token completion bash)"
    COMP_LINE='eks-token login team:p' COMP_POINT=22
    COMP_WORDS=(eks-token login team:p) COMP_CWORD=2; _eks_token; printf '%s\\n' "${COMPREPLY[@]}" """
    assert place.run("-c", script, command=["bash"]).stdout == "team:prod\n"


def test_bash_completes_the_word_under_the_cursor(place: Sandbox) -> None:
    need("bash")
    script = """eval "$(eks-token completion bash)"; COMP_LINE='eks-token login wo --default' COMP_POINT=18
    COMP_WORDS=(eks-token login wo --default) COMP_CWORD=2; _eks_token; printf '%s\\n' "${COMPREPLY[@]}" """
    assert place.run("-c", script, command=["bash"]).stdout == "work\n"


@pytest.mark.parametrize("shell", SHELLS, indirect=True)
def test_no_word_on_stderr_whatever_is_typed(shell: str, place: Sandbox) -> None:
    damaged = place.write("damaged/eks-token/identities.json", "{").parent.parent
    broken = place.write("broken", "apiVersion: [")
    env = {"XDG_DATA_HOME": str(damaged), "KUBECONFIG": str(broken)}
    lines = (["nonsense", ""], ["--", ""], ["login", "--region"], ["login", ""], ["adopt", "--context", ""])
    for words in (*lines, ["--cluster-name", ""], ["-i", "-x", "="], ["'"], [""], []):
        done = place.run("completion", shell, "=:", *words, env=env)
        assert (done.returncode, done.stderr) == (0, ""), words


def test_identities_are_completed_with_no_heavy_import(place: Sandbox) -> None:
    script = (
        "import sys; sys.argv = ['eks-token', 'completion', 'bash', '=:', 'login', '']\n"
        "import eks_token; eks_token.main()\n"
        "print(sorted({'botocore', 'keyring', 'jeepney', 'subprocess'} & sys.modules.keys()))"
    )
    env = {"PYTHONPATH": str(Path(eks_token.__file__).parent)}
    done = place.run("-c", script, command=[place.env["EKS_TOKEN_PYTHON"]], env=env)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("shell", SHELLS, indirect=True)
def test_the_script_is_sound(shell: str, place: Sandbox) -> None:
    script = place.run("completion", shell).stdout
    assert "eks-token" in script
    done = place.run("-n", place.write(f"script.{shell}", script), command=[shell])
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell(place: Sandbox) -> None:
    done = place.run("completion", "tcsh")
    assert done.returncode == 2
    assert "invalid choice: 'tcsh'" in done.stderr


# --- what keeps the tables whole ----------------------------------------------------------------------------


def test_every_option_that_is_offered_is_explained() -> None:
    fields = {*eks_token.BARE.values.values(), *eks_token.BARE.flags.values()}
    assert fields - {"", "profile"} == eks_token.FIELD_HELP.keys()


def test_every_option_of_a_command_is_explained() -> None:
    for name in eks_token.COMMANDS:
        assert [slot for slot in eks_token.command_slots(name) if not slot.about] == [], name


# --- help ---------------------------------------------------------------------------------------------------


def test_the_help_goes_to_stdout(place: Sandbox) -> None:
    for words in (["--help"], ["-h"], ["eks", "get-token", "--help"], ["--cluster-name", "x", "--help"]):
        done = place.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert done.stdout == eks_token.HELP


def test_the_help_fits_a_terminal_and_begins_with_examples() -> None:
    lines = eks_token.HELP.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines.index("Examples") < lines.index("Usage") < lines.index("Commands")


def test_the_help_names_every_command_and_option() -> None:
    words = set(re.findall(r"[\w-]+", eks_token.HELP))
    offered = {name for name, field in eks_token.BARE.values.items() if field and field != "profile"}
    assert (offered | eks_token.OUR_FLAGS.keys() | eks_token.COMMANDS.keys()) - words == set()


@pytest.mark.parametrize("command", list(eks_token.COMMANDS))
def test_each_command_explains_itself(command: str, place: Sandbox) -> None:
    done = place.run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: eks-token {command} ")
    assert eks_token.COMMANDS[command].summary in done.stdout
    assert f"eks-token {command} " in done.stdout[done.stdout.index("examples:") :]


def test_the_examples_of_the_help_are_understood() -> None:
    text = eks_token.HELP.replace("\\\n", "")
    examples = text[text.index("Examples") : text.index("Usage")].splitlines()
    lines = [line.split()[1:] for line in examples if line.startswith("  eks-token ")]
    assert lines[0] == ["login", "dev"]
    for line in lines:
        if line[0] in eks_token.COMMANDS:
            eks_token.command_parser(line[0]).parse_args(line[1:])
        else:
            eks_token.parse_request(line, {}, "v1beta1")
