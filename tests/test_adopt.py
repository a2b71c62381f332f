"""`adopt`: kubeconfigs that other programs write work with kubectl before and after, and undo restores every byte."""

import difflib
import json
import re
import shlex
import stat
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import test_kubeconfig
from conftest import Completed, Sandbox, invocation, kubectls, missing, not_as_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubeconfigs import ATMOS, AUTHENTICATOR, AWS_CLI, CERTIFICATE, EKSCTL, FLOW, SECRET, TERRAFORM, WILD, kubeconfig
from servers import AccessKey, ApiServer
from test_kubeconfig import by_name, is_let_in, ran, tree, view

import eks_token

FORMS = [AWS_CLI, AWS_CLI.replace("v1beta1", "v1alpha1"), FLOW, EKSCTL, AUTHENTICATOR, TERRAFORM, ATMOS]


def working(users: str, server: ApiServer, cluster: str = "c", user: str = "u") -> str:
    """A kubeconfig with these users for the API server of the tests."""
    text = kubeconfig(users, cluster, user).replace(f"https://{SECRET}.example.com", server.url)
    return text.replace(CERTIFICATE, server.ca_data)


plain_laptop = test_kubeconfig.laptop
alice = test_kubeconfig.alice


@pytest.fixture
def laptop(plain_laptop: Sandbox) -> Sandbox:
    """The laptop of test_kubeconfig.py, with the AWS CLI and stand-ins for the other plugins on PATH."""
    laptop, bin_directory = plain_laptop, plain_laptop.root / "bin"
    aws_cli = Path(sys.executable).with_name("aws")
    (bin_directory / "aws").symlink_to(aws_cli if aws_cli.exists() else laptop.executable)
    for name in ("aws-iam-authenticator", "heptio-authenticator-aws", "atmos"):
        (bin_directory / name).write_text('#!/bin/sh\nexec eks-token "$@"\n')
        (bin_directory / name).chmod(0o755)
    laptop.env["AWS_PROFILE"] = "dev"
    return laptop


@pytest.fixture
def all_forms(laptop: Sandbox, api_server: ApiServer) -> Path:
    """One kubeconfig with a user of each form, and for each a context that is named after its number."""
    users = [re.sub("name: .*?([,\n])", rf"name: u{number}\1", form, count=1) for number, form in enumerate(FORMS)]
    contexts = [f'- name: "{number}"\n  context: {{cluster: c, user: u{number}}}\n' for number in range(len(FORMS))]
    text = working("".join(users), api_server).replace("contexts:\n", "contexts:\n" + "".join(contexts))
    return laptop.write(".kube/config", text)


def execs(home: Sandbox, path: Path | None = None) -> dict[str, Any]:
    return {name: user.get("exec") for name, user in by_name(view(home, path), "users").items()}


def adopt(home: Sandbox, *args: str | Path, **more: Any) -> Completed:
    return ran(home, "adopt", *args, **more)


# --- every form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WILD)
def test_adopt_changes_only_the_command_and_undo_restores_every_byte(name: str, tmp_path: Path) -> None:
    text = WILD[name]
    first = text if isinstance(text, bytes) else text.encode()
    path = tmp_path / "config"
    path.write_bytes(first)
    adopted = adopt_here(path)
    before, after = (eks_token.decoded(content).split("\n") for content in (first, path.read_bytes()))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    for line in changed:
        assert re.search("command|eks-token|aws$|v1alpha1|v1beta1", line), line
    assert sum(line[0] == "+" and "eks-token" in line for line in changed) == (
        3 if name.startswith("anch") else adopted
    ) - (name == "anchors"), changed
    assert adopt_here(path) == 0
    if adopted:
        assert eks_token.undo([str(path)], str(tmp_path / "data"), dry_run=False) == 0
    assert path.read_bytes() == first
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


QUOTES = st.sampled_from(["{}", "'{}'", '"{}"', "{}  # a comment", "&a {}"])


@st.composite
def generated(draw: st.DrawFn) -> tuple[str, str]:
    """A kubeconfig that somebody might write, and the same after `adopt`."""
    newline, margin = draw(st.sampled_from(["\n", "\r\n"])), " " * draw(st.sampled_from([0, 2, 4]))
    lines: list[str] = []
    adopted: list[str] = []
    for number in range(draw(st.integers(1, 5))):
        command = draw(st.sampled_from(["aws", "/opt/bin/aws", "aws.exe", "kubelogin", "eks-token"]))
        words = draw(st.sampled_from([GET_TOKEN.split()[1:], ["eks", "get-token", "--cluster-name", "a_b"]]))
        quote, is_flow, below = draw(QUOTES), draw(st.booleans()), draw(st.sampled_from(["", "# x", "  ", "env:"]))
        new = "eks-token" if "aws" in command else command
        for text, becomes in ((lines, command), (adopted, new)):
            at = margin + "      "
            text += [f"{margin}- name: ünï 蟲 {number}", f"{margin}  user:", f"{margin}   exec:"]
            text += [f"{at}command: {quote.format(becomes)}", f"{at}apiVersion: client.authentication.k8s.io/v1beta1"]
            text += (
                [f"{at}args: {json.dumps(words)}"] if is_flow else [f"{at}args:", *(f"{at}- {word}" for word in words)]
            )
            text += [f"{at}{below}"]
    head, end = ["# mine", "users:"], draw(st.sampled_from(["", "\n", "\n---\n- x"])).replace("\n", newline)
    return newline.join(head + lines) + end, newline.join(head + adopted) + end


@given(texts=generated())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_undo_restores_any_kubeconfig_after_adopt_changed_its_commands(texts: tuple[str, str], tmp_path: Path) -> None:
    before, after = texts
    path = Path(tempfile.mkdtemp(dir=tmp_path), "config")
    path.write_bytes(before.encode())
    adopted = adopt_here(path)
    assert path.read_bytes().decode() == after
    assert adopt_here(path) == 0
    if adopted:
        eks_token.undo([str(path)], str(path.parent / "data"), dry_run=False)
    assert path.read_bytes().decode() == before


def adopt_here(path: Path) -> int:
    """Adopts in this process, and returns how many users were adopted."""
    here = invocation(environ={"HOME": str(path.parent)})
    files = eks_token.read_kubeconfigs([str(path)])
    offers = [eks_token.offer(one, ["eks-token"], here, False, {}) for one in eks_token.find_entries(files, ())]
    chosen = [one for one in offers if not one.refusal]
    data = str(path.parent / "data")
    eks_token.edit(
        files,
        lambda files, patches: eks_token.swap_in(files, chosen, patches),
        lambda *file: eks_token.keep_backup(data, *file),
    )
    return len(chosen)


def test_each_form_works_before_and_after(laptop: Sandbox, all_forms: Path, api_server: ApiServer) -> None:
    if is_real_aws := (laptop.root / "bin/aws").resolve() != laptop.executable:
        # the AWS CLI would sign for the host that this names
        assert is_let_in(laptop, "--context", "0", env={"AWS_ENDPOINT_URL": None})
    seen = len(api_server.principals)
    assert (seen > 0) == is_real_aws
    first, before = all_forms.read_bytes(), execs(laptop)
    done = adopt(laptop, "--all")
    assert done.stderr.count("  - ") == done.stderr.count("  + eks-token ") == len(FORMS)
    (laptop.root / "bin/aws").unlink()
    for number in range(len(FORMS)):
        assert is_let_in(laptop, "--context", str(number))
    assert len(set(api_server.principals)) == 1 and len(api_server.principals) > seen
    for name, entry in execs(laptop).items():
        old = before[name]
        version = old["apiVersion"].replace("v1alpha1", "v1beta1")
        assert entry == {**old, "command": "eks-token", "apiVersion": version}
    assert "there is nothing to adopt" in adopt(laptop, "--all").stderr
    adopt(laptop, "--undo")
    assert all_forms.read_bytes() == first


@pytest.mark.parametrize("kubectl", [*kubectls()[:1], *kubectls()[-1:]] or [None], ids=str)
def test_kubectl_sees_that_change_and_no_other(kubectl: Path | None, tmp_path: Path, home: Sandbox) -> None:
    kubectl = kubectl or missing("kubectl")

    def compare(text: str | bytes) -> None:
        path = tmp_path / str(id(text)) / "config"
        path.parent.mkdir()
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        view = ["config", "view", "--raw", "-o", "json", "--kubeconfig", str(path)]
        before = json.loads(ran(home, *view, command=[kubectl]).stdout)
        adopt_here(path)
        after = json.loads(ran(home, *view, command=[kubectl]).stdout)
        for user in before["users"] or []:
            entry = user["user"].get("exec") or {}
            if eks_token.program_name(entry.get("command", "")) in eks_token.ADOPTED:
                entry |= {"command": "eks-token", "apiVersion": entry["apiVersion"].replace("v1alpha1", "v1beta1")}
        assert after == before

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compare, WILD.values()))


def test_a_dry_run_shows_the_changes_and_writes_nothing(laptop: Sandbox, all_forms: Path) -> None:
    before = tree(laptop)
    done = adopt(laptop, "--all", "--dry-run")
    assert done.stderr.count("  + eks-token ") == len(FORMS)
    assert tree(laptop) == before


# --- some of them -------------------------------------------------------------------------------------------


def test_only_the_named_contexts_are_adopted(laptop: Sandbox, all_forms: Path) -> None:
    adopt(laptop, "--context", "1", "3", "--context", "5")
    adopted = {name for name, user in execs(laptop).items() if user["command"] == "eks-token"}
    assert adopted == {"u1", "u3", "u5"}


def test_undo_restores_the_bytes_before_the_first_of_several_adoptions(laptop: Sandbox, all_forms: Path) -> None:
    first = all_forms.read_bytes()
    for number in "013":
        adopt(laptop, "--context", number)
    assert list(all_forms.parent.iterdir()) == [all_forms]
    backups = list((laptop.data / "backups").iterdir())
    assert len(backups) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in backups} == {0o600}
    adopt(laptop, "--undo", "--dry-run")
    assert all_forms.read_bytes() != first
    adopt(laptop, "--undo")
    assert all_forms.read_bytes() == first
    assert list((laptop.data / "backups").iterdir()) == []
    done = laptop.run("adopt", "--undo")
    assert (done.returncode, "nothing to undo" in done.stderr) == (1, True)


@pytest.mark.parametrize("again", [False, True], ids=["after the adoption", "between two adoptions"])
def test_undo_keeps_a_copy_of_later_changes(again: bool, laptop: Sandbox, all_forms: Path) -> None:
    first = all_forms.read_bytes()
    adopt(laptop, "--all")
    text = all_forms.read_text() + "# mine\n"
    all_forms.write_text(text.replace("command: eks-token", "command: aws-iam-authenticator", 1) if again else text)
    changed = all_forms.read_bytes()
    if again:
        adopt(laptop, "--all")
    done = adopt(laptop, "--undo")
    assert all_forms.read_bytes() == first
    (aside,) = [file for file in (laptop.data / "backups").iterdir() if file.read_bytes() == changed]
    assert str(aside) in done.stderr and stat.S_IMODE(aside.stat().st_mode) == 0o600


def test_a_backup_that_a_kill_cut_short_is_ignored(laptop: Sandbox, all_forms: Path) -> None:
    first = all_forms.read_bytes()
    all_forms.with_name(f"{all_forms.name}.eks-token-backup-1-0123456789abcdef").write_bytes(b"")
    all_forms.with_name(f"{all_forms.name}.eks-token-backup-1-0123456789abcdef.4711").write_bytes(b"kind: Co")
    adopt(laptop, "--all")
    adopt(laptop, "--undo")
    assert all_forms.read_bytes() == first


def test_the_user_is_asked_about_each_entry(laptop: Sandbox, all_forms: Path) -> None:
    steps = [("u0", ""), *[("adopt it? [y/N] ", "y\n" if i % 2 else "n\n") for i in range(len(FORMS))]]
    done = laptop.run_pty("adopt", steps=steps)
    assert done.returncode == 0, done.stderr
    adopted = {name for name, user in execs(laptop).items() if user["command"] == "eks-token"}
    assert adopted == {f"u{i}" for i in range(len(FORMS)) if i % 2}


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        pytest.param([], 2, "hint: pass --context NAME, or --all for all of them", id="no terminal"),
        pytest.param(["--all", "--context", "0"], 2, "cannot be used together", id="all and a context"),
        pytest.param(["--context", "none"], 1, "there is no context named 'none'", id="an unknown context"),
        pytest.param(["--undo"], 1, "there is nothing to undo", id="nothing to undo"),
    ],
)
def test_bad_options_change_nothing(args: list[str], status: int, said: str, laptop: Sandbox, all_forms: Path) -> None:
    before = tree(laptop)
    done = laptop.run("adopt", *args)
    assert done.returncode == status
    assert said in done.stderr
    assert tree(laptop) == before


# --- what is left alone, repaired or unwrapped -----------------------------------------------------------------

GET_TOKEN = "aws eks get-token --cluster-name demo --region us-east-1"
UNWRAP = "--unwrap replaces both"
MORE = "which may do more than choose a profile"


def user(command: str, *args: str, **more: Any) -> eks_token.KubeUser:
    version = more.pop("version", "client.authentication.k8s.io/v1beta1")
    return eks_token.KubeUser(command, args, more.pop("variables", {}), version, **more)


def offered(entry: eks_token.KubeUser, unwrap: bool = False) -> eks_token.Found:
    here = invocation(environ={"HOME": "/nowhere"})
    return eks_token.offer(eks_token.Found("/nowhere/config", "u", entry, entry), ["eks-token"], here, unwrap, {})


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        pytest.param(GET_TOKEN, "", id="the AWS CLI"),
        pytest.param(GET_TOKEN.replace("aws", "aws.cmd"), "", id="the AWS CLI on Windows"),
        pytest.param(GET_TOKEN.replace("aws", "aws2"), "", id="a preview of version 2"),
        pytest.param(GET_TOKEN.replace("aws", "'aws '"), "", id="a space after the command"),
        pytest.param("aws sts get-caller-identity", "its arguments are not those of 'eks get-token'", id="not eks"),
        pytest.param("aws", "its arguments are not those of 'eks get-token'", id="no arguments"),
        pytest.param(f"{GET_TOKEN} --frobnicate", "not understood: unknown option --frobnicate", id="unknown option"),
        pytest.param(f"{GET_TOKEN} --output yaml", "not understood: --output yaml", id="an unsupported output"),
        pytest.param("atmos aws eks token --cluster-name d --region r --profile x", "--profile", id="Atmos's profile"),
        pytest.param("atmos eks get-token --cluster-name demo", "not those of 'aws eks token'", id="aws arguments"),
        pytest.param(f"sh -c '{GET_TOKEN}'", f"it starts aws through sh; {UNWRAP}", id="a shell"),
        pytest.param(f"bash -lc '{GET_TOKEN}'", f"it starts aws through bash, {MORE}", id="a login shell"),
        pytest.param(f"/bin/sh -c '{GET_TOKEN} | cat'", f"it starts aws through sh, {MORE}", id="a pipe"),
        pytest.param(f"env AWS_PROFILE=dev {GET_TOKEN}", f"it starts aws through env; {UNWRAP}", id="env"),
        pytest.param(f"env PATH=/x {GET_TOKEN}", f"it starts aws through env, {MORE}", id="another variable"),
        pytest.param(
            f"aws-vault exec dev -- {GET_TOKEN}", f"it starts aws through aws-vault; {UNWRAP}", id="aws-vault"
        ),
        pytest.param(f"aws-vault exec -d 8h dev -- {GET_TOKEN}", f"through aws-vault, {MORE}", id="aws-vault's option"),
        pytest.param(f"saml2aws exec -- {GET_TOKEN}", f"it starts aws through saml2aws, {MORE}", id="saml2aws"),
        pytest.param(f"op plugin run -- {GET_TOKEN}", f"it starts aws through op, {MORE}", id="1Password"),
        pytest.param(f"assume dev --exec '{GET_TOKEN}'", f"it starts aws through assume, {MORE}", id="granted"),
        pytest.param("docker run amazon/aws-cli:2 eks get-token", "it starts aws-cli, whose arguments", id="docker"),
        pytest.param("kubergrunt eks token", "it starts kubergrunt, whose arguments are not known", id="kubergrunt"),
        pytest.param(
            "gke-gcloud-auth-plugin", "its command 'gke-gcloud-auth-plugin' is not one of", id="another cloud"
        ),
    ],
)
def test_an_entry_is_adopted_or_left_alone_for_a_stated_reason(line: str, refusal: str) -> None:
    command, *args = shlex.split(line)
    found = offered(user(command, *args))
    assert refusal in found.refusal and bool(refusal) == bool(found.refusal)
    plugin = eks_token.find_plugin(user(command, *args))
    assert (plugin is None) == line.startswith("gke")


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        pytest.param({"version": "client.authentication.k8s.io/v1"}, "", id="no interactiveMode: repaired"),
        pytest.param({"version": "v1beta1"}, "", id="no group: repaired"),
        pytest.param({"version": ""}, "", id="no apiVersion: repaired"),
        pytest.param({"version": "client.authentication.k8s.io/v2"}, "rejects the apiVersion", id="another version"),
        pytest.param({"mode": "Sometimes"}, "kubectl rejects the interactiveMode 'Sometimes'", id="another mode"),
        pytest.param({"variables": {"": "x"}}, "kubectl rejects a variable without a name", id="an unnamed variable"),
        pytest.param({"others": {"token": ""}}, "kubectl uses the user's token and never runs exec", id="a token too"),
        pytest.param({"others": {"auth-provider": ""}}, "kubectl rejects auth-provider", id="an auth-provider too"),
        pytest.param({"others": {"client-key": "x.pem"}}, "there is no such file", id="a key that is missing"),
        pytest.param({"others": {"client-key-data": ""}}, "it also has client-key-data", id="a key too"),
    ],
)
def test_what_kubectl_rejects_is_repaired_or_left_alone(change: dict[str, Any], refusal: str) -> None:
    found = offered(user(*GET_TOKEN.split(), **change))
    assert refusal in found.refusal and bool(refusal) == bool(found.refusal)
    if not refusal:
        assert eks_token.kubectl_fault(found.entry, "") and not eks_token.kubectl_fault(found.new, "")


def test_a_wrapper_is_replaced_on_request(laptop: Sandbox, api_server: ApiServer, alice: AccessKey) -> None:
    text = api_server.kubeconfig({"command": "aws-vault", "args": ["exec", "dev", "--", *GET_TOKEN.split()]})
    path = laptop.write(".kube/config", text)
    assert "--unwrap replaces both" in adopt(laptop, "--all").stderr
    assert path.read_text() == text
    assert f"its tokens are for {alice.arn}" in adopt(laptop, "--all", "--unwrap").stderr
    (entry,) = execs(laptop).values()
    assert entry["args"] == ["--cluster-name", "demo", "--region", "us-east-1", "--identity", "dev"]
    assert is_let_in(laptop)
    adopt(laptop, "--undo")
    assert path.read_text() == text


def test_a_value_that_looks_like_an_option_stays_a_value_when_unwrapped() -> None:
    line = "env AWS_PROFILE=dev aws-iam-authenticator token -i=-x -r arn:aws:iam::111122223333:role/A -e=--debug -s=-n"
    plugin = eks_token.find_plugin(user(*line.split()))
    assert plugin is not None
    entry = user(*line.split(), variables={"AWS_REGION": "us-east-1"})
    request = eks_token.understood(plugin, entry, {}, "v1beta1")
    words = eks_token.direct_arguments(plugin, entry, request)
    again = eks_token.parse_request(words, {}, "v1beta1")
    assert (again.cluster, again.identity, again.external_id, again.session_name) == ("-x", "dev", "--debug", "-n")


def test_a_shell_that_only_runs_the_command_is_replaced_by_it() -> None:
    found = offered(user("sh", "-c", GET_TOKEN), unwrap=True)
    assert (found.refusal, found.notes, found.new.arguments) == ("", [], tuple(GET_TOKEN.split()[1:]))


def test_differences_from_the_old_plugin_are_shown_before_an_entry_is_adopted(laptop: Sandbox) -> None:
    laptop.config("[profile admin]\nrole_arn = arn:aws:iam::123456789012:role/admin\nsource_profile = dev\n")
    path = laptop.write(".kube/config", kubeconfig(EKSCTL.replace("value: dev", "value: admin")))
    steps = [("sets the name for both", ""), ("adopt it? [y/N] ", "n\n")]
    shown = laptop.run_pty("adopt", steps=steps).stderr
    assert "  the role session is named botocore-session-TIME, not aws-go-sdk-TIME; role_session_name in" in shown
    assert "aws-iam-authenticator" in path.read_text()
    path.write_text(path.read_text().replace("value: admin", "value: of another machine"))
    assert "aws-go-sdk" not in adopt(laptop, "--all").stderr and "aws-iam" not in path.read_text()


def test_it_is_a_failure_if_a_named_context_is_left_alone(laptop: Sandbox, all_forms: Path) -> None:
    all_forms.write_text(all_forms.read_text().replace("client.authentication.k8s.io/v1beta1", "v2", 1))
    before = all_forms.read_bytes()
    done = laptop.run("adopt", "--context", "0")
    assert done.returncode == 1
    assert "kubectl rejects the apiVersion 'client.authentication.k8s.io/v2'" in done.stderr
    assert all_forms.read_bytes() == before


def test_an_alias_that_would_change_another_user_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config"
    text = str(WILD["anchors"]).replace("{exec: *aws}", "{exec: *aws, token: x}")
    path.write_text(text)
    with pytest.raises(eks_token.Problem, match="cannot be changed without changing more: it may use YAML aliases"):
        adopt_here(path)
    assert path.read_text() == text


# --- files --------------------------------------------------------------------------------------------------


def test_every_file_in_kubeconfig_is_searched(laptop: Sandbox, api_server: ApiServer) -> None:
    one, two = (laptop.write(name, working(form, api_server)) for name, form in (("a", AWS_CLI), ("b", EKSCTL)))
    first = one.read_bytes(), two.read_bytes()
    paths = {"KUBECONFIG": f"{one}:{laptop.home}/none:{two}"}
    adopt(laptop, "--all", env=paths)
    assert [next(iter(execs(laptop, path).values()))["command"] for path in (one, two)] == ["eks-token"] * 2
    adopt(laptop, "--undo", env=paths)
    assert (one.read_bytes(), two.read_bytes()) == first
    adopt(laptop, "--all", "--kubeconfig", two, env=paths)
    assert one.read_bytes() == first[0] and two.read_bytes() != first[1]


def test_the_kubeconfig_of_atmos_is_adopted_with_a_note(laptop: Sandbox, api_server: ApiServer) -> None:
    atmos = laptop.write(".config/atmos/kube/config", working(ATMOS, api_server, "c", "atmos-eks-demo"))
    first = atmos.read_bytes()
    done = adopt(laptop, "--all")
    assert f"Atmos rewrites {atmos} with its own entries" in done.stderr and "auto_provision: false" in done.stderr
    assert is_let_in(laptop, "--kubeconfig", atmos)
    adopt(laptop, "--undo")
    assert atmos.read_bytes() == first
    assert "auto_provision" in adopt(laptop, "--all", env={"KUBECONFIG": str(atmos)}).stderr


def test_a_link_stays_a_link_and_undo_follows_it(laptop: Sandbox, all_forms: Path) -> None:
    real = laptop.write("dotfiles/kube", all_forms.read_text())
    real.chmod(0o640)
    all_forms.unlink()
    all_forms.symlink_to(real)
    first = real.read_bytes()
    adopt(laptop, "--all")
    assert all_forms.is_symlink() and real.read_bytes() != first and stat.S_IMODE(real.stat().st_mode) == 0o640
    adopt(laptop, "--undo", "--kubeconfig", real)
    assert all_forms.is_symlink() and real.read_bytes() == first


@pytest.mark.parametrize("text", ["", "# nothing\n", None], ids=["empty", "a comment", "absent"])
def test_an_empty_or_absent_kubeconfig_has_nothing_to_adopt(text: str | None, laptop: Sandbox) -> None:
    if text is not None:
        laptop.write(".kube/config", text)
    before = tree(laptop)
    assert "there is nothing to adopt" in adopt(laptop, "--all").stderr
    assert tree(laptop) == before


@not_as_root
def test_a_read_only_file_is_one_clear_error_and_leaves_no_backup(laptop: Sandbox, all_forms: Path) -> None:
    all_forms.chmod(0o400)
    before = tree(laptop)
    done = laptop.run("adopt", "--all")
    assert done.returncode == 1
    assert f"{all_forms} cannot be written: Permission denied" in done.stderr
    assert tree(laptop) == before
