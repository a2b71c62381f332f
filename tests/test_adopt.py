"""`adopt`: kubeconfigs as other programs write them work with kubectl before and after, and come back to the byte."""

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Completed, Sandbox, kubectls, missing
from servers import AccessKey, ApiServer, RecordingProxy
from test_kubeconfig import EACH_KUBECTL, by_name, config_path, is_let_in, ran, tree, view

HEAD = """\
# written by another program
apiVersion: v1
kind: Config
preferences: {{}}
clusters:
- name: "{cluster}"
  cluster:
    server: {server}
    certificate-authority-data: {ca}
contexts:
- name: "{context}"
  context: {{cluster: "{cluster}", user: "{user}"}}
current-context: "{context}"
users:
"""


class Form:
    """How a program writes a user, its names, and which program its command is."""

    def __init__(self, command: str, user: str, text: str, cluster: str = "", works_before: bool = True) -> None:
        self.command, self.user, self.text = command, user, text
        self.cluster = cluster or user
        self.works_before = works_before

    def kubeconfig(self, server: ApiServer) -> str:
        names = {"cluster": self.cluster, "context": self.cluster, "user": self.user}
        return HEAD.format(server=server.url, ca=server.ca_data, **names) + self.text.lstrip("\n")


ARN = "arn:aws:eks:us-east-1:123456789012:cluster/demo"
FORMS = {
    # awscli/customizations/eks/update_kubeconfig.py, with a profile; v2 writes the same
    "the AWS CLI": Form(
        "aws",
        ARN,
        f"""
- name: {ARN}
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      args:
      - --region
      - us-east-1
      - eks
      - get-token
      - --cluster-name
      - demo
      - --output
      - json
      command: aws
      env:
      - name: AWS_PROFILE
        value: dev
""",
    ),
    # v1 before 1.20, in order of its keys
    "an old AWS CLI": Form(
        "aws",
        ARN,
        f"""
- name: {ARN}
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1alpha1
      args: [--region, us-east-1, eks, get-token, --cluster-name, demo, --profile, dev]
      command: aws
""",
        works_before=False,  # kubectl 1.24 dropped v1alpha1
    ),
    "the AWS CLI by path": Form(
        "aws",
        ARN,
        f"""
- name: {ARN}
  user:
    exec: {{apiVersion: client.authentication.k8s.io/v1, interactiveMode: IfAvailable, command: BIN/aws,
      args: [--profile=dev, --region=us-east-1, --color, "off", eks, get-token, --cluster-name=demo],
      env: [{{name: AWS_PROFILE, value: ""}}], provideClusterInfo: false, installHint: "see: the AWS CLI"}}
""",
    ),
    # eksctl, pkg/utils/kubeconfig: user@cluster.region.eksctl.io
    "eksctl with the AWS CLI": Form(
        "aws",
        "alice@demo.us-east-1.eksctl.io",
        """
- name: alice@demo.us-east-1.eksctl.io
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      args:
      - eks
      - get-token
      - --output
      - json
      - --cluster-name
      - demo
      - --region
      - us-east-1
      command: aws
      env:
      - name: AWS_STS_REGIONAL_ENDPOINTS
        value: regional
      - name: AWS_PROFILE
        value: dev
      interactiveMode: IfAvailable
      provideClusterInfo: false
""",
        cluster="demo.us-east-1.eksctl.io",
    ),
    "eksctl with aws-iam-authenticator": Form(
        "aws-iam-authenticator",
        "alice@demo.us-east-1.eksctl.io",
        """
- name: alice@demo.us-east-1.eksctl.io
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      args: [token, -i, demo]
      command: aws-iam-authenticator
      env:
      - {name: AWS_STS_REGIONAL_ENDPOINTS, value: regional}
      - {name: AWS_DEFAULT_REGION, value: us-east-1}
      - {name: AWS_PROFILE, value: dev}
""",
        cluster="demo.us-east-1.eksctl.io",
    ),
    # aws-iam-authenticator's README, section 6 and "Specifying Credentials & Using AWS Profiles"
    "aws-iam-authenticator's README": Form(
        "aws-iam-authenticator",
        "kubernetes-admin",
        """
- name: kubernetes-admin
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: aws-iam-authenticator
      env:
      - name: "AWS_PROFILE"
        value: "dev"
      args:
        - "token"
        - "-i"
        - "demo"
  # no client certificate/key needed here!
""",
    ),
    # terraform-aws-modules/terraform-aws-eks, templates/kubeconfig.tpl, up to version 17
    "Terraform's EKS module": Form(
        "aws-iam-authenticator",
        "eks_demo",
        """
- name: eks_demo
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1alpha1
      command: aws-iam-authenticator
      args:
        - "token"
        - "-i"
        - "demo"
      env:
        - name: AWS_PROFILE
          value: dev
""",
        works_before=False,
    ),
    "Heptio's": Form(
        "heptio-authenticator-aws",
        "aws",
        """
- name: aws
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1alpha1
      command: heptio-authenticator-aws
      args: ["token", "-i", "demo"]
      env: [{name: AWS_PROFILE, value: dev}]
""",
        works_before=False,
    ),
    # cloudposse/atmos, pkg/auth/cloud/kube/config.go and aws/eks.go
    "Atmos": Form(
        "atmos",
        "atmos-eks-demo-us-east-1",
        """
- name: atmos-eks-demo-us-east-1
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      args:
      - aws
      - eks
      - token
      - --cluster-name
      - demo
      - --region
      - us-east-1
      - --identity=dev
      command: atmos
      env:
      - name: ATMOS_IDENTITY
        value: dev
      interactiveMode: Never
      provideClusterInfo: false
""",
        cluster=ARN,
    ),
}
EACH_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))


@pytest.fixture
def kubectl() -> Path:
    """The newest kubectl here."""
    return kubectls()[-1] if kubectls() else missing("kubectl")


@pytest.fixture
def laptop(home: Sandbox, kubectl: Path | None, moto: RecordingProxy) -> Sandbox:
    """A home with this kubectl, eks-token and the AWS CLI on PATH, and stand-ins for the other plugins."""
    bin_directory = home.root / "bin"
    bin_directory.mkdir()
    (bin_directory / "kubectl").symlink_to(kubectl or missing("kubectl"))
    (bin_directory / "eks-token").symlink_to(home.executable)
    aws_cli = Path(sys.executable).with_name("aws")
    (bin_directory / "aws").symlink_to(aws_cli if aws_cli.exists() else home.executable)
    for name in ("aws-iam-authenticator", "heptio-authenticator-aws", "atmos"):
        (bin_directory / name).write_text('#!/bin/sh\nexec eks-token "$@"\n')
        (bin_directory / name).chmod(0o755)
    home.env |= moto.environment | {"PATH": f"{bin_directory}:{home.env['PATH']}"}
    home.credentials(moto.create_user("alice").profile("dev"))
    return home


@pytest.fixture
def all_forms(laptop: Sandbox, api_server: ApiServer) -> Path:
    """One kubeconfig with a user of each form, and a context for each: its number."""
    users = [form.text.lstrip("\n").replace(f"name: {form.user}", f"name: u{i}") for i, form in numbered()]
    contexts = "".join(f'- name: "{i}"\n  context: {{cluster: c, user: u{i}}}\n' for i, _ in numbered())
    text = HEAD.format(server=api_server.url, ca=api_server.ca_data, cluster="c", context="0", user="u0")
    head, _, _ = text.partition("contexts:")
    return laptop.write(".kube/config", f"{head}contexts:\n{contexts}users:\n{''.join(users)}")


def numbered() -> list[tuple[int, Form]]:
    return list(enumerate(FORMS.values()))


def execs(home: Sandbox, path: Path | None = None) -> dict[str, Any]:
    return {name: user.get("exec") for name, user in by_name(view(home, path), "users").items()}


def adopt(home: Sandbox, *args: str | Path, **more: Any) -> Completed:
    return ran(home, "adopt", *args, **more)


# --- every form ---------------------------------------------------------------------------------------------


@EACH_FORM
def test_kubectl_works_before_and_after_and_undo_gives_the_bytes_back(
    form: Form, laptop: Sandbox, api_server: ApiServer, moto: RecordingProxy
) -> None:
    path = laptop.write(".kube/config", form.kubeconfig(api_server).replace("BIN", str(laptop.root / "bin")))
    first, before = path.read_bytes(), execs(laptop)[form.user]
    if form.works_before:
        # the AWS CLI signs for whatever host this names
        assert is_let_in(laptop, env={"AWS_ENDPOINT_URL": None})
    seen = set(api_server.principals)
    done = adopt(laptop, "--all")
    assert f"  - {before['command']} " in done.stderr and "  + eks-token " in done.stderr

    # the original is not needed any more
    for name in ("aws", "aws-iam-authenticator", "heptio-authenticator-aws", "atmos"):
        (laptop.root / "bin" / name).unlink()
    assert is_let_in(laptop)
    assert set(api_server.principals) | seen == {moto.keys[laptop_key(laptop)].arn}
    after = execs(laptop)[form.user]
    assert after["command"] == "eks-token"
    assert after["apiVersion"] == before["apiVersion"].replace("v1alpha1", "v1beta1")
    for kept in ("args", "env", "interactiveMode", "installHint", "provideClusterInfo"):
        assert after.get(kept) == before.get(kept)

    adopt(laptop, "--undo")
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir() if file.name != "cache"] == ["config"]  # kubectl's


def laptop_key(home: Sandbox) -> str:
    return (home.home / ".aws/credentials").read_text().split("aws_access_key_id = ")[1].split()[0]


@EACH_KUBECTL
def test_each_kubectl_writes_them(laptop: Sandbox, all_forms: Path) -> None:
    first = all_forms.read_bytes()
    before = view(laptop)
    adopt(laptop, "--all")
    after = view(laptop)
    assert {user["command"] for user in execs(laptop).values()} == {"eks-token"}
    assert [after[kind] for kind in ("clusters", "contexts")] == [before[kind] for kind in ("clusters", "contexts")]
    assert is_let_in(laptop, "--context", "0")
    adopt(laptop, "--undo")
    assert all_forms.read_bytes() == first


def test_a_second_time_there_is_nothing_to_adopt(laptop: Sandbox, all_forms: Path) -> None:
    adopt(laptop, "--all")
    before = tree(laptop)
    assert "there is nothing to adopt" in adopt(laptop, "--all").stderr
    assert tree(laptop) == before


def test_a_dry_run_shows_and_writes_nothing(laptop: Sandbox, all_forms: Path) -> None:
    before = tree(laptop)
    done = adopt(laptop, "--all", "--dry-run")
    assert done.stderr.count("  + eks-token ") == len(FORMS)
    assert tree(laptop) == before


def test_commands_by_path_and_of_windows_are_known(laptop: Sandbox, all_forms: Path) -> None:
    text = all_forms.read_text()
    text = text.replace("command: aws\n", "command: C:\\Program Files\\Amazon\\AWSCLIV2\\aws.exe\n")
    text = text.replace("command: atmos\n", "command: /opt/homebrew/bin/atmos\n")
    all_forms.write_text(text)
    adopt(laptop, "--all")
    assert {user["command"] for user in execs(laptop).values()} == {"eks-token"}


# --- some of them -------------------------------------------------------------------------------------------


def test_only_the_named_contexts_are_adopted(laptop: Sandbox, all_forms: Path) -> None:
    adopt(laptop, "--context", "1", "3", "--context", "5")
    adopted = {name for name, user in execs(laptop).items() if user["command"] == "eks-token"}
    assert adopted == {"u1", "u3", "u5"}


def test_several_adoptions_are_undone_to_the_first_bytes(laptop: Sandbox, all_forms: Path) -> None:
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


def test_undo_keeps_what_was_changed_since(laptop: Sandbox, all_forms: Path) -> None:
    first = all_forms.read_bytes()
    adopt(laptop, "--all")
    all_forms.write_text(all_forms.read_text() + "# mine\n")
    changed = all_forms.read_bytes()
    done = adopt(laptop, "--undo")
    assert all_forms.read_bytes() == first
    (aside,) = (laptop.data / "backups").iterdir()
    assert aside.read_bytes() == changed and str(aside) in done.stderr
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600


def test_undo_keeps_what_was_changed_between_two_adoptions(laptop: Sandbox, all_forms: Path) -> None:
    first = all_forms.read_bytes()
    adopt(laptop, "--all")
    between = all_forms.read_text() + "# mine\n"
    all_forms.write_text(between.replace("command: eks-token", "command: aws-iam-authenticator", 1))
    changed = all_forms.read_bytes()
    adopt(laptop, "--all")
    adopt(laptop, "--undo")
    assert all_forms.read_bytes() == first
    assert changed in [file.read_bytes() for file in (laptop.data / "backups").iterdir()]


def test_a_backup_that_a_kill_cut_short_is_none(laptop: Sandbox, all_forms: Path) -> None:
    first = all_forms.read_bytes()
    all_forms.with_name(f"{all_forms.name}.eks-token-backup-1-0123456789abcdef").write_bytes(b"")
    all_forms.with_name(f"{all_forms.name}.eks-token-backup-1-0123456789abcdef.4711").write_bytes(b"kind: Co")
    adopt(laptop, "--all")
    adopt(laptop, "--undo")
    assert all_forms.read_bytes() == first


def test_a_person_is_asked_for_each_entry(laptop: Sandbox, all_forms: Path) -> None:
    steps = [("u0", ""), *[("adopt it? [y/N] ", "y\n" if i % 2 else "n\n") for i, _ in numbered()]]
    done = laptop.run_pty("adopt", steps=steps)
    assert done.returncode == 0, done.stderr
    adopted = {name for name, user in execs(laptop).items() if user["command"] == "eks-token"}
    assert adopted == {f"u{i}" for i, _ in numbered() if i % 2}


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        pytest.param([], 2, "hint: pass --context NAME, or --all for all of them", id="nobody to ask"),
        pytest.param(["--all", "--context", "0"], 2, "cannot be used together", id="all and some"),
        pytest.param(["--context", "none"], 1, "there is no context named 'none'", id="an unknown context"),
        pytest.param(["--undo"], 1, "there is nothing to undo", id="nothing to undo"),
    ],
)
def test_wrong_words_change_nothing(args: list[str], status: int, said: str, laptop: Sandbox, all_forms: Path) -> None:
    before = tree(laptop)
    done = laptop.run("adopt", *args)
    assert done.returncode == status
    assert said in done.stderr
    assert tree(laptop) == before


# --- what is left alone -------------------------------------------------------------------------------------

ODD = {
    "another command of aws": ("aws", "[sts, get-caller-identity]", "its arguments are not those of 'eks get-token'"),
    "no arguments": ("aws", "[]", "its arguments are not those of 'eks get-token'"),
    "an unknown option": ("aws", "[eks, get-token, --cluster-name, demo, --frobnicate]", "--frobnicate"),
    "an unknown output": ("aws", "[eks, get-token, --cluster-name, demo, --output, yaml]", "--output yaml"),
    "Atmos's profile": ("atmos", "[aws, eks, token, --cluster-name, d, --region, r, --profile, x]", "--profile"),
    "the words of another": ("atmos", "[eks, get-token, --cluster-name, demo]", "not those of 'aws eks token'"),
    "a shell": ("sh", "[-c, aws eks get-token --cluster-name demo]", None),
    "a wrapper": ("aws-vault", "[exec, dev, --, aws, eks, get-token, --cluster-name, demo]", "its command 'aws-vault'"),
    "another cloud's": ("gke-gcloud-auth-plugin", "[]", None),
    "ours": ("eks-token", "[eks, get-token, --cluster-name, demo]", None),
}


@pytest.mark.parametrize(("command", "args", "said"), ODD.values(), ids=list(ODD))
def test_what_is_not_understood_is_left_alone_and_named(
    command: str, args: str, said: str | None, laptop: Sandbox, all_forms: Path
) -> None:
    text = "- name: odd one\n  user: {exec: {apiVersion: client.authentication.k8s.io/v1beta1, "
    all_forms.write_text(all_forms.read_text() + text + f"command: {command}, args: {args}}}}}\n")
    before = execs(laptop)["odd one"]
    done = adopt(laptop, "--all")
    assert execs(laptop)["odd one"] == before
    left = [line for line in done.stderr.splitlines() if line.startswith("left alone: ") and "user odd one" in line]
    assert len(left) == (said is not None) and all(str(said) in line for line in left)
    assert execs(laptop)["u0"]["command"] == "eks-token"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param("client-certificate: ../x.pem, ", "it also has client-certificate", id="a certificate too"),
        pytest.param("", "its apiVersion 'client.authentication.k8s.io/v2' is unknown", id="another apiVersion"),
    ],
)
def test_a_named_context_that_is_left_alone_is_a_failure(
    more: str, said: str, laptop: Sandbox, all_forms: Path
) -> None:
    version = "v1beta1" if more else "v2"
    text = all_forms.read_text().replace("contexts:\n", "contexts:\n- {name: odd, context: {cluster: c, user: odd}}\n")
    text += f"- name: odd\n  user: {{{more}exec: {{apiVersion: client.authentication.k8s.io/{version}, command: aws, "
    all_forms.write_text(text + "args: [eks, get-token, --cluster-name, demo]}}\n")
    before = all_forms.read_bytes()
    done = laptop.run("adopt", "--context", "odd")
    assert done.returncode == 1
    assert said in done.stderr
    assert all_forms.read_bytes() == before


# --- files --------------------------------------------------------------------------------------------------


def test_all_of_kubeconfigs_files_are_looked_through(laptop: Sandbox, api_server: ApiServer) -> None:
    forms = list(FORMS.values())
    one, two = (laptop.write(name, form.kubeconfig(api_server)) for name, form in zip("ab", forms, strict=False))
    first = one.read_bytes(), two.read_bytes()
    paths = {"KUBECONFIG": f"{one}:{laptop.home}/none:{two}"}
    adopt(laptop, "--all", env=paths)
    assert [next(iter(execs(laptop, path).values()))["command"] for path in (one, two)] == ["eks-token"] * 2
    adopt(laptop, "--undo", env=paths)
    assert (one.read_bytes(), two.read_bytes()) == first
    adopt(laptop, "--all", "--kubeconfig", two, env=paths)
    assert one.read_bytes() == first[0] and two.read_bytes() != first[1]


def test_atmos_own_file_is_looked_at_and_its_rewriting_told(laptop: Sandbox, api_server: ApiServer) -> None:
    atmos = laptop.write(".config/atmos/kube/config", FORMS["Atmos"].kubeconfig(api_server))
    first = atmos.read_bytes()
    done = adopt(laptop, "--all")
    assert f"Atmos rewrites {atmos} with its own entries" in done.stderr and "auto_provision: false" in done.stderr
    assert is_let_in(laptop, "--kubeconfig", atmos)
    adopt(laptop, "--undo")
    assert atmos.read_bytes() == first
    assert "auto_provision" in adopt(laptop, "--all", env={"KUBECONFIG": str(atmos)}).stderr


def test_a_link_stays_one_and_undo_finds_its_way_through_it(laptop: Sandbox, all_forms: Path) -> None:
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
def test_where_nothing_is_there_is_nothing_to_adopt(text: str | None, laptop: Sandbox) -> None:
    if text is not None:
        laptop.write(".kube/config", text)
    before = tree(laptop)
    assert "there is nothing to adopt" in adopt(laptop, "--all").stderr
    assert tree(laptop) == before


def test_a_broken_file_is_one_clear_error(laptop: Sandbox) -> None:
    path = laptop.write(".kube/config", "users: [\n")
    before = tree(laptop)
    done = laptop.run("adopt", "--all")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2 and f"{path}, line 2: this is not valid YAML" in done.stderr
    assert tree(laptop) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="not as root, who may write everything")
def test_a_read_only_file_is_one_clear_error_and_no_backup_is_left(laptop: Sandbox, all_forms: Path) -> None:
    all_forms.chmod(0o400)
    before = tree(laptop)
    done = laptop.run("adopt", "--all")
    assert done.returncode == 1
    assert f"{all_forms} cannot be written: Permission denied" in done.stderr
    assert tree(laptop) == before


def test_secrets_in_the_file_are_shown_nowhere(laptop: Sandbox, all_forms: Path, moto: RecordingProxy) -> None:
    key: AccessKey = moto.create_user("bob")
    env: Mapping[str, str] = key.environment
    variables = ", ".join(f"{{name: {name}, value: {value}}}" for name, value in env.items())
    text = all_forms.read_text() + "- {name: token, user: {token: a-token-of-others}}\n- name: keys\n  user: {exec: {"
    text += f"apiVersion: client.authentication.k8s.io/v1, command: aws, env: [{variables}], interactiveMode: Never, "
    all_forms.write_text(text + "args: [--region, us-east-1, eks, get-token, --cluster-name, demo]}}\n")
    for more in (["--dry-run"], []):
        done = adopt(laptop, "--all", *more)
        assert key.secret not in done.stdout + done.stderr and "a-token-of-others" not in done.stdout + done.stderr
    assert execs(laptop)["keys"]["command"] == "eks-token"
    assert config_path(laptop).read_text().count(key.secret) == 1
