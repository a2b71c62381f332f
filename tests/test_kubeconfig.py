"""`kubeconfig`, `aws eks update-kubeconfig`, and how login and logout edit kubeconfigs, checked with real kubectls."""

import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Completed, KeyringDaemon, Sandbox, invocation, kubectls, missing, need, not_as_root
from kubeconfigs import BROKEN, SECRET, WILD
from servers import ACCOUNT, AccessKey, ApiServer, RecordingProxy

import eks_token

REGION = "us-east-1"
ARN = f"arn:aws:eks:{REGION}:{ACCOUNT}:cluster/demo"
DEMO = ["--cluster-name", "demo", "--region", REGION]
UPDATE = ["aws", "eks", "update-kubeconfig", "--name", "demo", "--region", REGION]
USER = f"eks-token:dev@{ARN}"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/team/Admin,+=.@_x"

OTHERS = """\
# other people's
apiVersion: v1
kind: Config
current-context: a.b/c:d e
clusters:
- name: other/cluster.with:odd name
  cluster:
    server: https://other.example.com  # production
    certificate-authority: pki/ca.pem
- name: up
  cluster: {server: "https://up.example.com", certificate-authority: ../pki/ca.pem, proxy-url: "socks5://127.0.0.1:1"}
contexts:
- name: a.b/c:d e
  context: {cluster: other/cluster.with:odd name, user: "me@x.y/z:exec.users. q", namespace: kube-system}
users:
- name: "me@x.y/z:exec.users. q"
  user:
    token: a-token-of-others
- name: gke
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: ./bin/gke-gcloud-auth-plugin
      interactiveMode: Never
      installHint: "see: there"
      provideClusterInfo: true
extensions:
- name: minikube
  extension: {version: "1.2"}
preferences: {colors: true}
"""


EACH_KUBECTL = pytest.mark.parametrize("kubectl", kubectls() or [None], ids=lambda path: path.name if path else "none")


@pytest.fixture
def alice(moto: RecordingProxy, api_server: ApiServer) -> AccessKey:
    """An IAM user of the account that has the cluster `demo`."""
    moto.create_cluster("demo", region=REGION, server=api_server)
    return moto.create_user("alice")


@pytest.fixture
def laptop(home: Sandbox, kubectl: Path | None, moto: RecordingProxy, alice: AccessKey) -> Sandbox:
    """A home with this kubectl and eks-token on PATH, and Alice's keys in the profile `dev`."""
    bin_directory = home.root / "bin"
    bin_directory.mkdir()
    (bin_directory / "kubectl").symlink_to(kubectl or missing("kubectl"))
    (bin_directory / "eks-token").symlink_to(home.executable)
    home.env |= moto.environment | {"PATH": f"{bin_directory}:{home.env['PATH']}"}
    home.credentials(alice.profile("dev"))
    return home


def ran(home: Sandbox, *args: str | Path, **more: Any) -> Completed:
    done = home.run(*args, **more)
    assert done.returncode == 0, done.stderr
    return done


def config_path(home: Sandbox) -> Path:
    return home.home / ".kube/config"


def view(home: Sandbox, path: Path | None = None, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The kubeconfig as kubectl reads it."""
    arguments = ["--kubeconfig", str(path)] if path else []
    done = ran(home, "config", "view", "--raw", "-o", "json", *arguments, command=["kubectl"], env=env)
    return dict(json.loads(done.stdout))


def by_name(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {item["name"]: item[kind.removesuffix("s")] for item in config[kind] or []}


def exec_of(home: Sandbox, user: str, path: Path | None = None) -> dict[str, Any]:
    return dict(by_name(view(home, path), "users")[user]["exec"])


def is_let_in(home: Sandbox, *more: str | Path, env: Mapping[str, str | None] | None = None) -> bool:
    done = ran(home, *more, "get", "namespaces", command=["kubectl"], env=env)
    return "kube-system" in done.stdout


ENTRY = eks_token.Entry(f"{ARN}-new", "https://new", "Y2E=", "us: er", ("--cluster-name", "x"), "ctx,")


def put(path: Path, entries: Sequence[eks_token.Entry]) -> None:
    """Write these entries to a kubeconfig, as `kubeconfig` does."""
    wanted = eks_token.Provision(eks_token.Request("eks-token", "x", REGION, ""), set_current=len(entries) == 1)
    files = eks_token.read_kubeconfigs([str(path)])
    eks_token.edit(files, lambda files, patches: eks_token.put_entries(files, entries, wanted, ["eks-token"], patches))


def tree(home: Sandbox) -> dict[str, bytes]:
    """The content of every file next to the kubeconfig, and of what the program left in the temporary directory."""
    places = [home.home / ".kube", home.tmp]
    return {str(path): path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}


# --- one cluster --------------------------------------------------------------------------------------------


@EACH_KUBECTL
def test_every_kubectl_gets_in_with_the_entry_that_is_written(
    laptop: Sandbox, api_server: ApiServer, alice: AccessKey
) -> None:
    done = ran(laptop, "kubeconfig", *DEMO, "--identity", "dev")
    assert "warning" not in done.stderr and done.stdout == ""
    assert is_let_in(laptop)
    assert set(api_server.principals) == {alice.arn}
    config = view(laptop)
    assert by_name(config, "clusters") == {
        ARN: {"server": api_server.url, "certificate-authority-data": api_server.ca_data}
    }
    assert by_name(config, "contexts") == {ARN: {"cluster": ARN, "user": USER}}
    assert config["current-context"] == ARN
    entry = exec_of(laptop, USER)
    assert entry == {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "command": "eks-token",
        "args": [*DEMO, "--identity", "dev"],
        "env": None,
        "interactiveMode": "IfAvailable",
        "installHint": "copy the executable eks-token to a directory on PATH",
        "provideClusterInfo": False,
    }
    assert "provideClusterInfo" not in config_path(laptop).read_text()
    assert stat.S_IMODE(config_path(laptop).stat().st_mode) == 0o600
    assert stat.S_IMODE(config_path(laptop).parent.stat().st_mode) == 0o700
    assert list(laptop.tmp.iterdir()) == []


def test_a_second_run_changes_nothing(laptop: Sandbox) -> None:
    options = ["kubeconfig", *DEMO, "-i", "dev", "--role-arn", ROLE, "--alias", "a.b/c:d e"]
    ran(laptop, *options)
    before, state = tree(laptop), config_path(laptop).stat()
    assert "was already there" in ran(laptop, *options).stderr
    assert tree(laptop) == before
    assert config_path(laptop).stat().st_mtime_ns == state.st_mtime_ns


def test_a_second_run_keeps_comments_and_what_a_user_added(laptop: Sandbox) -> None:
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev")
    path = config_path(laptop)
    text = path.read_text().replace("IfAvailable", "Never\n      env: [{name: EKS_TOKEN_DEBUG, value: '1'}]")
    text = text.replace("server:", "proxy-url: http://127.0.0.1:1\n    server:")
    path.write_text("# mine\n" + text)
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev")
    assert path.read_text() == "# mine\n" + text
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev", "--user-alias", USER, "--role-arn", ROLE)
    entry = exec_of(laptop, USER)
    assert entry["env"] == [{"name": "EKS_TOKEN_DEBUG", "value": "1"}] and entry["interactiveMode"] == "Never"
    assert entry["args"][-2:] == ["--role-arn", ROLE]
    assert by_name(view(laptop), "clusters")[ARN]["proxy-url"] == "http://127.0.0.1:1"


def test_each_identity_and_each_role_gets_a_separate_user(laptop: Sandbox, moto: RecordingProxy) -> None:
    laptop.credentials(moto.create_user("bob").profile("bob") + laptop.home.joinpath(".aws/credentials").read_text())
    for identity, more in (("dev", []), ("bob", []), ("dev", ["--role-arn", ROLE])):
        alias = f"{identity} {len(more)}"
        ran(laptop, "kubeconfig", *DEMO, "-i", identity, *more, "--alias", alias)
    assert set(by_name(view(laptop), "users")) == {USER, f"eks-token:bob@{ARN}", f"eks-token:dev:{ROLE}@{ARN}"}


def test_the_role_is_assumed_for_the_token_but_not_for_describe_cluster(
    laptop: Sandbox, moto: RecordingProxy, api_server: ApiServer, alice: AccessKey
) -> None:
    role = moto.create_role("Admin,+=.@_x")
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev", "--role-arn", role)
    assert moto.last("DescribeCluster").principal == alice.arn
    assert moto.count("AssumeRole") == 0
    assert is_let_in(laptop)
    assert set(api_server.principals) == {f"arn:aws:sts::{ACCOUNT}:assumed-role/Admin,+=.@_x/EKSGetTokenAuth"}


def test_kubectl_reads_odd_names_back(laptop: Sandbox) -> None:
    names = ["a.b/c:d e", "ünïcode 蟲", "- x", "a: b", "a #b", "\t", " x ", "a\x1b\x7f\x9b\u202e\U000e0001b"]
    odd = 'users.x.exec.y arn:aws:eks:x:1:cluster/y a,b "q" \' yes 1e3 null ~ # [x {x} *x &x !x | %x @x `x 0x1f 1_000'
    names += f"{odd} .5 2024-01-01 = << ? - -- ... a\\b a:".split()
    entries = [ENTRY._replace(user=name, context=name, arguments=(name,)) for name in names]
    put(config_path(laptop), entries)
    config = view(laptop)
    assert {name: user["exec"]["args"] for name, user in by_name(config, "users").items()} == {n: [n] for n in names}
    assert {name: context["user"] for name, context in by_name(config, "contexts").items()} == {n: n for n in names}


def test_no_set_current_keeps_the_current_context(laptop: Sandbox) -> None:
    laptop.write(".kube/config", OTHERS)
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev", "--no-set-current")
    assert view(laptop)["current-context"] == "a.b/c:d e"
    assert is_let_in(laptop, "--context", ARN)


def test_other_entries_keep_their_meaning(laptop: Sandbox) -> None:
    laptop.write(".kube/config", OTHERS)
    before = view(laptop)
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev")
    after = view(laptop)
    for kind, name in (("clusters", ARN), ("contexts", ARN), ("users", USER)):
        mine = by_name(after, kind)
        del mine[name]
        assert mine == by_name(before, kind)
    assert after["extensions"] == before["extensions"] and after["preferences"] == before["preferences"]
    text = config_path(laptop).read_text()
    assert text.startswith(OTHERS[: OTHERS.index("current-context")])
    assert set(OTHERS.splitlines()) - set(text.splitlines()) == {"current-context: a.b/c:d e"}
    assert is_let_in(laptop)


# --- which identity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "identity"),
    [
        pytest.param(["-i", "dev"], {}, "dev", id="a named identity"),
        pytest.param([], {"AWS_PROFILE": "dev"}, "dev", id="AWS_PROFILE"),
        pytest.param([], {"ATMOS_IDENTITY": "dev"}, "dev", id="ATMOS_IDENTITY"),
        pytest.param([], {}, "default", id="the default profile"),
        pytest.param([], {"AWS_PROFILE": "dev", "KEYS": "alice"}, "", id="environment keys, so none"),
    ],
)
def test_the_entry_names_the_identity_that_was_used(
    arguments: Sequence[str], env: Mapping[str, str], identity: str, laptop: Sandbox, alice: AccessKey
) -> None:
    laptop.credentials(alice.profile("dev") + alice.profile())
    env = {**env, **alice.environment} if "KEYS" in env else env
    ran(laptop, "kubeconfig", *DEMO, *arguments, env=env)
    entry = exec_of(laptop, f"eks-token:{identity}@{ARN}" if identity else f"eks-token@{ARN}")
    assert entry["args"] == DEMO + ["--identity", identity] * bool(identity)
    assert is_let_in(laptop, env=env)


# --- login and logout ---------------------------------------------------------------------------------------


def keys_json(key: AccessKey) -> str:
    return json.dumps({"Version": 1, "AccessKeyId": key.id, "SecretAccessKey": key.secret})


def test_the_only_stored_identity_is_named_in_the_entry(
    laptop: Sandbox, keyring_daemon: KeyringDaemon, moto: RecordingProxy, alice: AccessKey
) -> None:
    laptop.credentials("")
    ran(laptop, "login", "me", "--stdin", stdin=keys_json(alice))
    ran(laptop, "kubeconfig", *DEMO)
    ran(laptop, *UPDATE, "--alias", "as the AWS CLI has it")
    assert set(by_name(view(laptop), "users")) == {f"eks-token:me@{ARN}"}
    ran(laptop, "login", "other", "--stdin", "--default", stdin=keys_json(moto.create_user("bob")))
    assert is_let_in(laptop)


def test_login_checks_the_region_and_the_kubeconfig_first(laptop: Sandbox) -> None:
    done = laptop.run("login", "me", "--stdin", "--cluster-name", "demo", stdin="{}")
    assert (done.returncode, "--region is missing" in done.stderr) == (2, True)
    laptop.write(".kube/config", "users: [\n")
    done = laptop.run("login", "me", "--stdin", *DEMO, stdin="{}")
    assert (done.returncode, "this is not valid YAML" in done.stderr) == (1, True)


@pytest.mark.parametrize("keep", [False, True], ids=["removed", "kept"])
def test_logout_removes_the_identitys_entries(
    keep: bool, laptop: Sandbox, keyring_daemon: KeyringDaemon, moto: RecordingProxy, alice: AccessKey
) -> None:
    laptop.write(".kube/config", OTHERS)
    before = view(laptop)
    for name, more in (("me", []), ("you", ["--default"])):
        ran(laptop, "login", name, "--stdin", *more, stdin=keys_json(alice))
    ran(laptop, "kubeconfig", *DEMO, "-i", "you", "--alias", "yours")
    ran(laptop, "kubeconfig", *DEMO, "-i", "me", "--alias", "mine")
    ran(laptop, "kubeconfig", *DEMO, "-i", "me", "--alias", "mine again", "--role-arn", ROLE)
    both = config_path(laptop).read_bytes()
    ran(laptop, "logout", "me", *(["--keep-kubeconfig"] if keep else []))
    if keep:
        assert config_path(laptop).read_bytes() == both
        return
    after = view(laptop)
    assert set(by_name(after, "contexts")) == {"yours", "a.b/c:d e"}
    assert set(by_name(after, "users")) == {f"eks-token:you@{ARN}", *by_name(before, "users")}
    assert ARN in by_name(after, "clusters") and after["current-context"] == ""
    ran(laptop, "logout", "--all")
    after = view(laptop)
    assert [by_name(after, kind) for kind in ("clusters", "contexts", "users")] == [
        by_name(before, kind) for kind in ("clusters", "contexts", "users")
    ]


def test_logout_edits_several_files_and_skips_a_broken_one(
    laptop: Sandbox, keyring_daemon: KeyringDaemon, alice: AccessKey
) -> None:
    one, two = laptop.home / "one", laptop.home / "two"
    ran(laptop, "login", "me", "--stdin", stdin=keys_json(alice))
    for path in (one, two):
        ran(laptop, "kubeconfig", *DEMO, "-i", "me", "--kubeconfig", path)
    (laptop.home / "link").symlink_to(one)
    ran(laptop, "logout", "me", env={"KUBECONFIG": f"~/one:{laptop.home}/link:{laptop.home}/none:{two}"})
    assert [by_name(view(laptop, path), "users") for path in (one, two)] == [{}, {}]
    assert not (laptop.home / "none").exists()

    ran(laptop, "login", "me", "--stdin", stdin=keys_json(alice))
    broken = laptop.write("broken", "eks-token: [\n")
    done = ran(laptop, "logout", "me", env={"KUBECONFIG": str(broken)})
    assert f"{broken}, line 2: this is not valid YAML" in done.stderr and "removed me" in done.stderr


# --- aws eks update-kubeconfig ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(UPDATE, id="aws eks update-kubeconfig"),
        pytest.param(UPDATE[1:], id="eks update-kubeconfig"),
        pytest.param(["--region", REGION, "eks", "update-kubeconfig", "--name=demo"], id="a global option first"),
    ],
)
def test_aws_eks_update_kubeconfig_writes_the_same_entry(words: Sequence[str], laptop: Sandbox) -> None:
    ran(laptop, *words, "--profile", "dev")
    assert is_let_in(laptop)
    text = config_path(laptop).read_text()
    config_path(laptop).unlink()
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev")
    assert config_path(laptop).read_text() == text


def test_the_options_of_update_kubeconfig_work_as_in_the_aws_cli(
    laptop: Sandbox, moto: RecordingProxy, api_server: ApiServer
) -> None:
    role = moto.create_role("Describer")
    path = laptop.home / "elsewhere/config"
    ran(
        laptop,
        *["eks", "update-kubeconfig", "--name", "demo", "--alias", "c", "--user-alias", "u", "--role-arn", ROLE],
        *["--assume-role-arn", role, "--proxy-url", "http://127.0.0.1:9", "--kubeconfig", str(path), "--verbose"],
        env={"AWS_PROFILE": "dev", "AWS_REGION": REGION},
    )
    assert moto.last("DescribeCluster").principal == (
        f"arn:aws:sts::{ACCOUNT}:assumed-role/Describer/EKSDescribeClusterSession"
    )
    config = view(laptop, path)
    assert by_name(config, "clusters")[ARN]["proxy-url"] == "http://127.0.0.1:9"
    assert by_name(config, "contexts") == {"c": {"cluster": ARN, "user": "u"}}
    assert exec_of(laptop, "u", path)["args"] == [*DEMO, "--identity", "dev", "--role-arn", ROLE]


def test_without_a_region_the_profiles_is_used(laptop: Sandbox, alice: AccessKey) -> None:
    laptop.credentials(alice.profile("dev") + f"region = {REGION}\n")
    ran(laptop, "eks", "update-kubeconfig", "--name", "demo", "--profile", "dev")
    assert exec_of(laptop, USER)["args"] == [*DEMO, "--identity", "dev"]


def test_describe_cluster_goes_to_the_endpoint_url(laptop: Sandbox, moto: RecordingProxy) -> None:
    ran(laptop, *UPDATE, "--profile", "dev", "--endpoint-url", moto.url, env={"AWS_ENDPOINT_URL": None})
    assert moto.count("DescribeCluster") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param([*UPDATE, "--kubernetes"], "unknown option --kubernetes", id="an unsupported option"),
        pytest.param([*UPDATE, "--dry-runs"], "did you mean --dry-run?", id="a misspelt option"),
        pytest.param(["eks", "update-kubeconfig", "--region", REGION], "pass --name", id="no cluster"),
        pytest.param(["eks", "update-kubeconfig", "--name", "demo"], "--region is missing", id="no region"),
        pytest.param([*UPDATE, "more"], "unexpected argument 'more'", id="an extra word"),
        pytest.param([*UPDATE, "--role-arn", "Admin"], "'Admin' is not a role ARN", id="not a role ARN"),
        pytest.param(["kubeconfig", "--region", REGION], "--cluster-name NAME, or --all", id="ours without cluster"),
        pytest.param(["kubeconfig", *DEMO, "--all"], "cannot be used together", id="one cluster and all"),
        pytest.param(
            ["kubeconfig", *DEMO, "--external-id", "x"], "require a role to assume", id="an ID without a role"
        ),
        pytest.param(["kubeconfig", *DEMO, "--prune"], "--prune needs --all", id="--prune for one cluster"),
        pytest.param(["kubeconfig", "--cluster-name", "demo"], "--region", id="ours without region"),
        pytest.param(["kubeconfig", *DEMO, "--output", "json"], "--output", id="ours with an unknown option"),
    ],
)
def test_wrong_arguments_are_rejected_by_name(words: Sequence[str], said: str, laptop: Sandbox) -> None:
    done = laptop.run(*words, env={"AWS_PROFILE": "dev"})
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not config_path(laptop).exists()


# --- a dry run ----------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_shows_no_secret(laptop: Sandbox) -> None:
    laptop.write(".kube/config", OTHERS)
    before = tree(laptop)
    done = ran(laptop, "kubeconfig", *DEMO, "-i", "dev", "--dry-run")
    assert USER in done.stdout and "DATA+OMITTED" in done.stdout
    assert "other" not in done.stdout + done.stderr
    assert tree(laptop) == before


def test_a_dry_run_of_update_kubeconfig_prints_a_working_kubeconfig(laptop: Sandbox) -> None:
    done = ran(laptop, *UPDATE, "--profile", "dev", "--dry-run")
    assert not config_path(laptop).parent.exists()
    printed = laptop.write("printed", done.stdout)
    assert is_let_in(laptop, "--kubeconfig", printed)


def test_control_characters_in_names_never_reach_the_terminal(laptop: Sandbox) -> None:
    odd = "a\x1b\x7f\x9b\u202e\U000e0001b"
    done = laptop.run_pty("kubeconfig", *DEMO, "-i", "dev", "--alias", odd, "--user-alias", odd, "--dry-run", steps=[])
    assert not [char for char in (done.stdout + done.stderr) if not char.isprintable() and char not in "\r\n"]


def test_a_kubeconfigs_content_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        master, terminal = os.openpty()
    except OSError:
        missing("a pseudo-terminal")
    with open(master, "rb", buffering=0) as shown, open(terminal, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        eks_token.show("a:\tb\x85\x9b\u202e\x7f\n- é")
        assert shown.read(100).decode() == "a:\tb    \r\n- é\r\n"


# --- all clusters -------------------------------------------------------------------------------------------


def test_every_usable_cluster_of_a_region_is_written(laptop: Sandbox, moto: RecordingProxy) -> None:
    moto.forget()  # the answer that DescribeCluster was given
    names = ["demo", "one", "two"]
    for name in names[1:]:
        moto.create_cluster(name, region=REGION)
    moto.create_cluster("elsewhere", region="eu-west-1")
    every = ["kubeconfig", "--all", "--region", REGION, "-i", "dev"]
    done = ran(laptop, *every)
    assert f"clusters: 3, in {REGION}" in done.stderr
    assert {name.rpartition("/")[2] for name in by_name(view(laptop), "contexts")} == set(names)
    assert view(laptop)["current-context"] == ""
    before = tree(laptop)
    shown = laptop.run_pty(*every, steps=[]).stderr
    assert "regions: 1/1" in shown and "clusters: 3/3" in shown
    assert tree(laptop) == before

    moto.fail("DescribeCluster", "AccessDeniedException", "no", 403, times=1)
    done = laptop.run(*every)
    assert done.returncode == 1
    assert re.search("skipped (demo|one|two): dev: AWS refused DescribeCluster: AccessDeniedException: no", done.stderr)


def test_every_region_is_searched_and_deleted_clusters_are_pruned(laptop: Sandbox, moto: RecordingProxy) -> None:
    moto.forget()
    moto.create_cluster("elsewhere", region="eu-west-1")
    laptop.write(".kube/config", OTHERS)
    entries = [
        ENTRY._replace(
            cluster=ARN.replace("demo", name),
            user=user,
            context=f"{user} {name}",
            arguments=("--cluster-name", name, "--region", REGION, "--identity", identity),
        )
        for user, identity, name in (
            ("gone", "dev", "lost"),
            ("kept", "other", "lost"),
            ("both", "dev", "lost"),  # also the user of a cluster that still exists
            ("both", "dev", "demo"),
        )
    ]
    put(config_path(laptop), entries)
    every = ["kubeconfig", "--all", "--region", "all", "-i", "dev"]
    before = tree(laptop)
    assert "would remove the user gone" in ran(laptop, *every, "--prune", "--dry-run").stderr
    assert tree(laptop) == before
    done = ran(laptop, *every)
    assert re.search(r"clusters: 2, in \d\d regions", done.stderr)
    assert "gone" in by_name(view(laptop), "users")
    assert "removed the user gone: its cluster is gone" in ran(laptop, *every, "--prune").stderr
    names = {f"eks-token:dev@{arn}" for arn in (ARN, ARN.replace("demo", "elsewhere").replace(REGION, "eu-west-1"))}
    assert by_name(view(laptop), "users").keys() == {"me@x.y/z:exec.users. q", "gke", "kept", "both", *names}
    assert {"both lost", "both demo"} <= by_name(view(laptop), "contexts").keys()
    assert "gone" not in config_path(laptop).read_text()


def test_every_page_of_a_listing_is_read() -> None:
    book = {None: (["a", "b"], "2"), "2": (["c"], "3"), "3": ([], None)}

    def list_clusters(nextToken: str | None = None) -> dict[str, Any]:
        names, following = book[nextToken]
        return {"clusters": names, **({"nextToken": following} if following else {})}

    assert eks_token.pages(list_clusters, "clusters") == ["a", "b", "c"]


# --- files --------------------------------------------------------------------------------------------------


def test_the_first_existing_file_gets_new_entries_and_old_ones_stay_where_they_are(
    laptop: Sandbox,
) -> None:
    first, second = laptop.write("second file", OTHERS), laptop.home / "third"
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev", "--kubeconfig", second)
    paths = {"KUBECONFIG": f"{laptop.home}/none:{first}:{second}:"}
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev", "--user-alias", USER, "--role-arn", ROLE, env=paths)
    assert exec_of(laptop, USER, second)["args"][-1] == ROLE
    assert USER not in by_name(view(laptop, first), "users") and view(laptop, env=paths)["current-context"] == ARN
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev", "--user-alias", "new", env=paths)
    assert "new" in by_name(view(laptop, first), "users") and not (laptop.home / "none").exists()
    assert is_let_in(laptop, env=paths)


def test_if_no_file_exists_the_last_is_created(laptop: Sandbox) -> None:
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev", env={"KUBECONFIG": f"{laptop.home}/a/x:{laptop.home}/b/y"})
    assert not (laptop.home / "a").exists()
    assert USER in by_name(view(laptop, laptop.home / "b/y"), "users")


def test_a_link_stays_a_link_and_the_mode_is_kept(laptop: Sandbox) -> None:
    real = laptop.write("dotfiles/kube", OTHERS)
    real.chmod(0o640)
    config_path(laptop).parent.mkdir()
    config_path(laptop).symlink_to(real)
    locks = {str(config_path(laptop).with_name("config.lock")), str(real.with_name("kube.lock"))}
    assert set(eks_token.kubectl_locks([str(config_path(laptop))])) == locks
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev")
    assert sorted(path.name for path in real.parent.iterdir()) == ["kube"]
    assert config_path(laptop).is_symlink() and stat.S_IMODE(real.stat().st_mode) == 0o640
    assert USER in by_name(view(laptop, real), "users")


def test_a_kubeconfig_in_json_is_read_too(laptop: Sandbox, api_server: ApiServer) -> None:
    laptop.write(".kube/config", api_server.kubeconfig(token="a-token"))
    ran(laptop, "kubeconfig", *DEMO, "-i", "dev")
    assert by_name(view(laptop), "users")["demo"] == {"token": "a-token"}
    assert is_let_in(laptop)


@pytest.mark.parametrize(
    "made", ["directory", "device", "dangling link", "immutable", pytest.param("read-only", marks=not_as_root)]
)
def test_a_kubeconfig_that_cannot_be_written_is_one_clear_error(made: str, laptop: Sandbox) -> None:
    path = config_path(laptop)
    path.parent.mkdir()
    if made == "directory":
        path.mkdir()
    elif made == "device":
        path.symlink_to("/dev/null")
    elif made == "dangling link":
        path.symlink_to("/proc/nowhere/config")
    elif made == "read-only":
        laptop.write(".kube/config", OTHERS).chmod(0o400)
    elif subprocess.run(["chattr", "+i", str(laptop.write(".kube/config", OTHERS))], capture_output=True).returncode:
        pytest.skip("only on a file system with chattr +i, as root")
    try:
        done = laptop.run("kubeconfig", *DEMO, "-i", "dev")
        assert done.returncode == 1
        assert done.stderr.startswith(f"eks-token: error: {path} ")
        assert len(done.stderr.splitlines()) <= 2
        assert list(path.parent.iterdir()) == [path] and Path("/dev/null").is_char_device()
    finally:
        subprocess.run(["chattr", "-i", str(path)], capture_output=True)


@pytest.mark.parametrize(
    ("names", "limit"), [(1, 16), (2, 16), (2, 0)], ids=["replaced", "overwritten", "where nothing can be restored"]
)
def test_a_failed_write_leaves_the_file_as_it_was(names: int, limit: int, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(b"old content")
    if names == 2:
        path.with_name("other").hardlink_to(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(eks_token.Problem, match="File too large; it was not changed"):
            eks_token.write_kubeconfig(str(path), b"old content", b"new content, and longer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old content" and len(list(tmp_path.iterdir())) == names


def test_hard_links_and_group_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(b"old")
    path.chmod(0o640)
    inode = path.stat().st_ino
    eks_token.write_kubeconfig(str(path), b"old", b"new content")
    assert path.stat().st_ino != inode and stat.S_IMODE(path.stat().st_mode) == 0o640
    path.with_name("other").hardlink_to(path)
    eks_token.write_kubeconfig(str(path), b"new content", b"x")
    assert path.with_name("other").read_bytes() == b"x"


def test_all_files_are_written_or_none_and_a_linked_directory_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    paths = [str(tmp_path / "link" / name) for name in "abc"]
    Path(paths[0]).write_text("a: b\n")
    home = {"KUBECONFIG": ":".join([*paths, str(tmp_path / "real/a")]), "HOME": "/"}
    assert eks_token.kubeconfig_paths(invocation(environ=home), "") == paths
    files = eks_token.read_kubeconfigs(paths)

    def change(files: Sequence[eks_token.Kubeconfig], patches: Any) -> None:
        patches.update({path: {"kind": "y"} for path in paths})

    write, written = eks_token.write_kubeconfig, []

    def third_fails(path: str, old: bytes, new: bytes) -> None:
        written.append(path)
        if len(written) == 3:
            raise eks_token.Problem("no")
        write(path, old, new)

    monkeypatch.setattr(eks_token, "write_kubeconfig", third_fails)
    with pytest.raises(eks_token.Problem, match="no"):
        eks_token.edit(files, change, lambda path, *_: eks_token.keep_copy(f"{path}.backup", b"x"))
    assert [path.read_text() for path in (tmp_path / "real").iterdir()] == ["a: b\n"]
    assert eks_token.edit(files, change) == paths
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["a", "b", "c"]


# --- secrets ------------------------------------------------------------------------------------------------


AWS_USER = """\
- name: aws
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: aws
      args: [--region, us-east-1, eks, get-token, --cluster-name, demo]
"""
AWS_CONTEXT = "- {name: aws, context: {cluster: up, user: aws}}\n"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["doctor"], id="doctor"),
        pytest.param(["completion", "fish", "", "adopt", "--context", ""], id="completion"),
        pytest.param(["adopt", "--all", "--dry-run"], id="a dry run of adopt"),
        pytest.param(["kubeconfig", *DEMO, "-i", "dev", "--dry-run"], id="a dry run of kubeconfig"),
        pytest.param([*UPDATE, "--profile", "dev", "--dry-run"], id="a dry run of update-kubeconfig"),
        pytest.param(["logout", "--all"], id="logout with nothing stored"),
    ],
)
def test_read_only_commands_write_no_file_and_start_no_kubectl(
    words: list[str], laptop: Sandbox, keyring_daemon: KeyringDaemon
) -> None:
    text = OTHERS.replace("users:\n", "users:\n" + AWS_USER).replace("contexts:\n", "contexts:\n" + AWS_CONTEXT)
    laptop.write(".kube/config", f"# not from eks-token\n{text}")
    log = laptop.root / "log"
    kubectl = laptop.root / "bin/kubectl"
    kubectl.unlink()
    kubectl.write_text(f'#!/bin/sh\necho "$*" >>{log}; find "$TMPDIR" -type f >>{log}\n')
    kubectl.chmod(0o755)
    before = tree(laptop)
    done = laptop.run(*words)
    assert "a-token-of-others" not in done.stdout + done.stderr or "--dry-run" in words
    called = log.read_text().splitlines() if log.exists() else []
    assert called == (["version --client -o json"] if words == ["doctor"] else [])
    assert tree(laptop) == before


BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(8 * [f'*{alias}'])}]\n" for name, alias in zip("bcdefgh", "abcdefg", strict=True)
)


def error_of(text: str | bytes) -> str:
    with pytest.raises(eks_token.Problem) as caught:
        eks_token.parse_kubeconfig("/a/config", text.encode() if isinstance(text, str) else text)
    assert caught.value.hint == "fix /a/config, or pass another file with --kubeconfig"
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param("- a-token\n", 1, "it is not a mapping", id="a list"),
        pytest.param("a-token\n", 1, "it is not a mapping", id="a string"),
        pytest.param("users:\n- a-token\n", 2, "an item in users is not a mapping", id="a user that is a string"),
        pytest.param("users: [null]\n", 1, "a user has no name", id="a user that is null"),
        pytest.param("contexts:\n\n- context: {}\n", 3, "a context has no name", id="a context without a name"),
        pytest.param("clusters: [{name: [a]}]\n", 1, "name is not a string", id="a name that is a list"),
        pytest.param("users:\n- name: off\n", 2, "name is not a string", id="a name that is a boolean to kubectl"),
        pytest.param("users: [{name: a, user: a-token}]\n", 1, "user is not a mapping", id="a user without keys"),
        pytest.param("users: [{name: a, user: {exec: 1}}]\n", 1, "exec is not a mapping", id="exec that is a number"),
        pytest.param(
            "users:\n- name: a\n  user:\n    exec:\n      args:\n      - -i\n      - 1\n",
            7,
            "an item in args is not a string",
            id="an argument that is a number",
        ),
        pytest.param(
            "users: [{name: a, user: {exec: {env: [{name: A, value: 1}]}}}]\n",
            1,
            "value is not a string",
            id="a variable that is a number",
        ),
        pytest.param("contexts: [{name: a, context: {user: {}}}]", 1, "user is not a string", id="a mapping as a user"),
        pytest.param("a: b\ncurrent-context: 1\n", 2, "current-context is not a string", id="a number is current"),
        pytest.param("a: " + "[" * 200 + "]" * 200, 1, "this is not valid YAML", id="nested very deeply"),
        pytest.param(BOMB, 1, "its aliases stand for too much", id="an alias bomb"),
    ],
)
def test_an_error_in_a_kubeconfig_names_the_line_and_shows_no_value(text: str | bytes, line: int, reason: str) -> None:
    assert error_of(text) == f"/a/config, line {line}: {reason}"


def test_an_alias_that_contains_itself_is_an_error() -> None:
    assert error_of("a: &a\n- *a\n") == "/a/config is nested too deeply"


def test_whatever_kubectl_reads_is_read() -> None:
    nothing = "users:\ncontexts: null\nclusters: ~\ncurrent-context: Null\n"
    for text in (nothing, "", "# nothing\n", "---\n---\nusers: 1\n"):
        config = eks_token.parse_kubeconfig("", text.encode())
        assert (config.users, config.contexts, config.clusters, config.current) == ({}, {}, {}, "")
    text = """users:
- &a {name: a, user:\t{exec: {command: aws, args: [x]}}}\t# a tab
- {<<: *a, name: 1:20}
- {name: "1", user: }
- {name: 2024-01-01, user: {exec: {command: first, command: last}}}
- {name: !!str 2, user: &b {exec: {command: &c !!str yes}}}
...
[
"""
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        users = eks_token.parse_kubeconfig("", text.encode(encoding)).users
        assert {name: user.command for name, user in users.items()} == {
            "a": "aws",
            "1:20": "aws",
            "1": "",
            "2024-01-01": "last",
            "2": "yes",
        }


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kubeconfig_is_an_error_that_quotes_nothing_from_it(name: str) -> None:
    text, line = BROKEN[name]
    error = error_of(text)
    assert error.startswith(f"/a/config, line {line}: ") and SECRET not in error


def test_a_broken_file_is_one_clear_error_for_each_command(laptop: Sandbox) -> None:
    text, line = BROKEN["an unknown alias"]
    path = laptop.write(".kube/config", str(text))
    before = tree(laptop)
    error = f"{path}, line {line}: this is not valid YAML"
    for words in (["adopt", "--all"], ["kubeconfig", *DEMO, "-i", "dev"]):
        done = laptop.run(*words)
        hint = f"hint: fix {path}, or pass another file with --kubeconfig"
        assert (done.returncode, done.stderr.splitlines()) == (1, [f"eks-token: error: {error}", hint])
    assert error in laptop.run("doctor").stdout
    done = laptop.run("completion", "fish", "", "adopt", "--context", "")
    assert (done.returncode, done.stderr, SECRET in done.stdout) == (0, "", False)
    assert tree(laptop) == before


def test_no_command_shows_a_value_or_leaves_a_copy(laptop: Sandbox, keyring_daemon: KeyringDaemon) -> None:
    for number, text in enumerate(WILD.values()):
        laptop.write(f"many/{number}", "")
        (laptop.home / f"many/{number}").write_bytes(text if isinstance(text, bytes) else text.encode())
    env = {"KUBECONFIG": os.pathsep.join(str(path) for path in (laptop.home / "many").iterdir())}
    for words in (["adopt", "--all", "--debug"], ["kubeconfig", *DEMO, "-i", "dev", "--debug"], ["doctor"]):
        done = laptop.run(*words, env=env)
        assert SECRET not in done.stdout + done.stderr
    assert list(laptop.tmp.iterdir()) == []


@pytest.mark.parametrize("place", ["a link", "nothing"])
def test_a_kill_at_any_system_call_leaves_the_old_file_or_the_new(place: str, tmp_path: Path) -> None:
    strace, *_ = need("strace")
    path = tmp_path / "kube/config"
    contents = ["kind: old", "kind: " + "new" * 100]
    old = None if place == "nothing" else contents[0].encode()
    script = "import eks_token, os, sys; os.getppid(); eks_token.replace_contents([(sys.argv[1], {}, {})])"
    command = [sys.executable, "-c", script.format(old, contents[1].encode()), str(path)]

    def prepare() -> None:
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        if place == "a link":
            path.symlink_to("real")
        if old:
            path.write_bytes(old)
            path.chmod(0o640)

    def run(*options: str) -> int:
        env = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([strace, "-qq", *options, *command], env=env, capture_output=True, check=False).returncode

    prepare()
    assert run("-o", str(tmp_path / "calls")) == 0
    lines = [line for line in (tmp_path / "calls").read_text().splitlines() if "(" in line]
    names = [line.partition("(")[0] for line in lines]
    begun = names.index("getppid")  # Python has started but has not opened a kubeconfig
    changing = ("write", "fsync", "ftruncate", "chmod", "utimensat", "rename", "unlink", "O_CREAT")
    outcomes = set()
    for number, line in enumerate(lines):
        if number < begun or (not line.startswith(changing[:-1]) and changing[-1] not in line):
            continue
        prepare()
        count = names[: number + 1].count(names[number])
        run("-o", "/dev/null", "-e", f"inject={names[number]}:signal=SIGKILL:when={count}")
        outcomes.add(path.read_text() if path.exists() else "")
        assert outcomes <= {contents[0] if old else "", contents[1]}, line
    for lock in ("config.lock", "real.lock"):
        path.with_name(lock).unlink(missing_ok=True)
    path.with_name(f".{path.resolve().name}.eks-token").write_bytes(b"half")  # a kill may leave this too
    path.write_bytes(old or b"")
    files = eks_token.read_kubeconfigs([str(path)])
    assert eks_token.replace_contents([(str(path), files[0].content, contents[1].encode())])
    assert {file.name for file in path.parent.iterdir()} <= {"config", "real"}
    assert len(outcomes) == 2


# --- only our lines change ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WILD)
def test_adding_an_entry_changes_no_other_line_and_removing_it_leaves_no_trace(name: str, tmp_path: Path) -> None:
    text, path = WILD[name], tmp_path / "config"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    def but_lists(text: str) -> list[str]:
        """The lines without empty lists, list keys and the current context."""
        lines = (line for line in text.split("\n") if line.strip("{}"))
        return [line for line in lines if not re.match("(clusters|contexts|users|current-context):.*|(api|kind)", line)]

    before = eks_token.decoded(path.read_bytes())
    put(path, [ENTRY])
    after = eks_token.decoded(path.read_bytes())
    if "JSON" not in name:
        rest = iter(but_lists(after))
        assert all(line in rest for line in but_lists(before)), "a line was changed, or moved"
    put(path, [ENTRY])
    assert eks_token.decoded(path.read_bytes()) == after
    config = eks_token.parse_kubeconfig("", path.read_bytes())
    assert config.users[ENTRY.user].arguments == ENTRY.arguments
    assert config.contexts[ENTRY.context] == (ENTRY.cluster, ENTRY.user)
    other = ENTRY._replace(server="https://it's", arguments=("--cluster-name", "é", "--region=-x"))
    put(path, [other])
    assert eks_token.parse_kubeconfig("", path.read_bytes()).users[ENTRY.user].arguments == other.arguments
    put(path, [ENTRY])
    assert eks_token.decoded(path.read_bytes()).replace('"', "") == after.replace('"', "")  # quotes stay
    files = eks_token.read_kubeconfigs([str(path)])
    eks_token.edit(files, lambda files, patches: eks_token.remove_users(files, {ENTRY.user}, patches))
    left = eks_token.decoded(path.read_bytes())
    if "JSON" not in name:
        assert but_lists(left.rstrip("\r\n")) == but_lists(before.rstrip("\r\n"))
    assert ENTRY.user not in left and ENTRY.cluster not in left


def test_a_kubeconfig_can_be_a_pipe_or_have_a_colon_in_its_name(laptop: Sandbox) -> None:
    path = laptop.write("a:b", OTHERS.replace("users:\n", "users:\n" + AWS_USER))
    assert "user aws" in ran(laptop, "adopt", "--all", "--dry-run", "--kubeconfig", path).stderr
    script = 'KUBECONFIG=<(cat "$1") "$2" adopt --all --dry-run'
    # the preloaded Python does not inherit the pipe
    done = ran(laptop, "-c", script, "bash", path, laptop.executable, command=["bash"], python=sys.executable)
    assert "user aws" in done.stderr


# --- kubectl ------------------------------------------------------------------------------------------------


def test_the_command_is_one_that_every_program_finds(laptop: Sandbox, tmp_path: Path) -> None:
    """Desktop programs often start with a PATH that lacks ~/.local/bin."""

    def command(*options: str) -> str:
        ran(laptop, "kubeconfig", *DEMO, "-i", "dev", *options)
        return str(exec_of(laptop, USER)["command"])

    assert command() == "eks-token"
    assert command("--command", "~/bin/eks-token") == f"{laptop.home}/bin/eks-token"
    assert command("--command", "token") == "token"
    (laptop.root / "bin/eks-token").unlink()
    assert command() == str(laptop.executable)
    assert is_let_in(laptop, env={"PATH": "/usr/bin:/bin", "KUBECONFIG": str(config_path(laptop))})
    (laptop.root / "bin/eks-token").write_text("#!/bin/sh\n")  # another program with the same name
    (laptop.root / "bin/eks-token").chmod(0o755)
    assert command() == str(laptop.executable)


def test_kubectls_lock_is_waited_for_and_then_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "config.lock"
    lock.touch()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            lock.unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    eks_token.take_kubectl_lock(str(lock))
    assert (len(slept), lock.exists()) == (3, True)
    monkeypatch.setattr(eks_token, "KUBECTL_LOCK_SECONDS", 0)
    with pytest.raises(eks_token.Problem, match=f"has held the lock {lock} for"):
        eks_token.take_kubectl_lock(str(lock))
    assert lock.exists()


def test_concurrent_runs_lose_nothing(laptop: Sandbox, alice: AccessKey) -> None:
    laptop.write(".kube/config", OTHERS)
    laptop.credentials("".join(alice.profile(f"p{number}") for number in range(6)))
    started = [laptop.start("kubeconfig", *DEMO, "-i", f"p{number}", "--alias", f"c{number}") for number in range(6)]
    started += [laptop.start("config", "set-context", "theirs", command=["kubectl"])]
    deadline = time.monotonic() + 120
    for process in started[:-1]:
        _, stderr = process.communicate(timeout=deadline - time.monotonic())
        assert process.returncode == 0, stderr
    started[-1].communicate(timeout=60)
    contexts = set(by_name(view(laptop), "contexts"))
    assert contexts >= {"a.b/c:d e", *(f"c{number}" for number in range(6))}
    if started[-1].returncode == 0:  # kubectl does not wait for a lock
        assert "theirs" in contexts


# --- the answer of DescribeCluster --------------------------------------------------------------------------


FOUND = {"name": "demo", "arn": ARN, "endpoint": "https://x", "status": "ACTIVE"}
WANTED = eks_token.Provision(eks_token.Request("eks-token", "demo", REGION, "dev"))


@pytest.mark.parametrize(
    ("outpost", "option"),
    [
        pytest.param({"controlPlaneInstanceType": "m5.large"}, "--cluster-id", id="local"),
        pytest.param({"etcdInstanceType": "m5.large"}, "--cluster-name", id="extended"),
    ],
)
def test_only_a_local_cluster_on_an_outpost_is_named_by_its_id(outpost: Mapping[str, Any], option: str) -> None:
    found = FOUND | {"id": "an-id", "status": "UPDATING", "outpostConfig": {"outpostArns": ["x"], **outpost}}
    entry = eks_token.new_entry(found, "demo", "dev", WANTED)
    value = "an-id" if option == "--cluster-id" else "demo"
    assert entry.arguments == (option, value, "--region", REGION, "--identity", "dev")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "other"}, "a cluster that is not demo"),
        ({"name": ["demo"]}, "a cluster that is not demo"),
        ({"arn": None}, "no usable arn"),
        ({"arn": 5}, "no usable arn"),
        ({"arn": ARN.replace("demo", "other")}, "no usable arn"),
        ({"arn": f"{ARN}\n--debug"}, "no usable arn"),
        ({"arn": ARN.replace(REGION, "-x")}, "no usable arn"),
        ({"arn": ARN.replace(REGION, "1-east")}, "no usable arn"),
        ({"endpoint": ""}, "no usable endpoint"),
        ({"endpoint": "http://x"}, "no usable endpoint"),
        ({"endpoint": "file:///etc/passwd"}, "no usable endpoint"),
        ({"endpoint": "--insecure"}, "no usable endpoint"),
        ({"endpoint": ["https://x"]}, "no usable endpoint"),
        ({"id": "--debug"}, "no usable id"),
        ({"status": "DELETING"}, "its status is DELETING"),
        ({"certificateAuthority": {"data": "-----"}}, "no usable certificate"),
        ({"certificateAuthority": {"data": 5}}, "no usable certificate"),
    ],
    ids=str,
)
def test_a_bad_answer_of_describe_cluster_is_rejected(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(eks_token.Problem, match=re.escape(said)):
        eks_token.new_entry(FOUND | wrong, "demo", "dev", WANTED)


@pytest.mark.parametrize("name", ["--debug", "-i", "a b", "a\x1b", "", "x" * 101, "démo"], ids=ascii)
def test_a_cluster_name_from_aws_is_checked_like_one_from_a_user(name: str) -> None:
    with pytest.raises(eks_token.Problem, match="AWS returned a cluster that is not"):
        eks_token.new_entry(FOUND | {"name": name, "arn": ARN.replace("demo", name)}, name, "dev", WANTED)


def test_a_value_that_looks_like_an_option_stays_a_value() -> None:
    wanted = WANTED._replace(role_arn=ROLE, external_id="--debug", session_name="me")
    words = eks_token.new_entry(FOUND, "demo", "-i", wanted).arguments
    assert words[4:] == ("--identity=-i", "--role-arn", ROLE, "--external-id=--debug", "--session-name", "me")
    taken = eks_token.parse_request(words, {}, "v1beta1")
    assert (taken.identity, taken.external_id, taken.session_name) == ("-i", "--debug", "me")


def test_an_unknown_cluster_is_reported_in_the_words_of_aws(laptop: Sandbox, moto: RecordingProxy) -> None:
    moto.forget()
    done = laptop.run("kubeconfig", "--cluster-name", "nope", "--region", REGION, "-i", "dev")
    assert done.returncode == 1
    assert done.stderr.startswith("eks-token: error: dev: AWS refused DescribeCluster: ResourceNotFoundException: ")


def test_on_windows_kubectl_starts_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path has slashes, because kubectl would resolve one with backslashes relative to the kubeconfig."""
    monkeypatch.setattr(sys, "executable", r"C:\Python 3\python.exe")
    command = eks_token.exec_command(invocation(platform="win32", file=r"C:\Tools\eks-token", build="x"))
    assert command == ["C:/Python 3/python.exe", "-I", "-S", "C:/Tools/eks-token"]
    assert eks_token.exec_command(invocation(platform="win32", environ={})) == ["/usr/bin/eks-token"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["eks-token"], id="by name"),
        pytest.param([r"C:\Python\python.exe", "-I", "-S", r"C:\Tools\eks-token"], id="through Python, on Windows"),
        pytest.param(["/usr/bin/python3.12", "/opt/eks-token"], id="through Python"),
    ],
)
def test_an_entry_of_ours_is_recognized(words: list[str]) -> None:
    user = eks_token.KubeUser(words[0], (*words[1:], *DEMO, "--identity=dev"), {}, "")
    assert eks_token.our_arguments(user) == (*DEMO, "--identity=dev")
    assert eks_token.entry_identity(user) == "dev"
