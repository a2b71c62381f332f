"""Section 1: arguments and environment become one Request. Bad ones are reported in one line."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from conftest import Sandbox, assert_fails
from servers import RecordingProxy

import eks_token
from eks_token import ExecInfo, Problem, Request

ROLE = "arn:aws:iam::111122223333:role/admin"
NAMED = "--cluster-name demo --region us-east-2"
V1BETA1 = "client.authentication.k8s.io/v1beta1"


def parsed(line: str | list[str], environ: Mapping[str, str] | None = None) -> Request:
    return eks_token.parse_request(line.split() if isinstance(line, str) else line, environ or {}, "v1beta1")


def refused(line: str | list[str], environ: Mapping[str, str] | None = None) -> Problem:
    with pytest.raises(Problem) as caught:
        parsed(line, environ)
    assert caught.value.status == 2
    return caught.value


# --- KUBERNETES_EXEC_INFO -----------------------------------------------------------------------------------


def info(**content: Any) -> str:
    return json.dumps({"kind": "ExecCredential", **content})


def named(version: str) -> str:
    return f"client.authentication.k8s.io/{version}"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param("", ExecInfo("v1beta1", True), id="unset, as in a shell"),
        *(
            pytest.param(
                f'{{"kind":"ExecCredential","apiVersion":"{named(version)}","spec":{{"interactive":{interactive}}}}}\n',
                ExecInfo(version, interactive == "true"),
                id=f"kubectl's own form, {version}, interactive {interactive}",
            )
            for version in ("v1beta1", "v1")
            for interactive in ("true", "false")
        ),
        pytest.param(
            json.dumps({"spec": {"interactive": False}, "apiVersion": named("v1")}, indent=2),
            ExecInfo("v1", False),
            id="the same JSON with other whitespace",
        ),
        pytest.param(
            info(apiVersion=named("v1"), spec={"cluster": {"server": "https://x"}, "interactive": True}),
            ExecInfo("v1", True),
            id="with the cluster, as provideClusterInfo asks",
        ),
        pytest.param(info(apiVersion=named("v1")), ExecInfo("v1", True), id="without a spec"),
        pytest.param(info(spec={"interactive": False}), ExecInfo("v1beta1", False), id="without a version"),
        pytest.param(info(apiVersion=named("v1"), spec=["interactive"]), ExecInfo("v1", True), id="spec is a list"),
        pytest.param(
            info(apiVersion=named("v1"), spec={"interactive": "false"}), ExecInfo("v1", True), id="not a boolean"
        ),
    ],
)
def test_the_client_says_which_api_version_it_wants_and_whether_it_is_interactive(
    raw: str, expected: ExecInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eks_token.exec_info(raw) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("{", id="cut off"),
        pytest.param("[]", id="a list"),
        pytest.param('"v1"', id="a string"),
        pytest.param("null", id="null"),
        pytest.param(" ", id="blank"),
        pytest.param("[" * 100_000, id="too deep for the parser"),
        pytest.param("9" * 10_000, id="a number too long to convert"),
        pytest.param("\udcff{}", id="bytes that are not UTF-8"),
    ],
)
def test_what_is_not_a_json_object_is_answered_in_v1beta1_with_a_warning(
    raw: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eks_token.exec_info(raw) == ExecInfo("v1beta1", True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("eks-token: warning: KUBERNETES_EXEC_INFO")


def test_v1alpha1_is_answered_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert eks_token.exec_info(info(apiVersion=named("v1alpha1"))) == ExecInfo("v1alpha1", True)
    assert "deprecated" in capsys.readouterr().err


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(named("v2"), id="a later version"),
        pytest.param("v1", id="without its group"),
        pytest.param("authentication.k8s.io/v1", id="another group"),
        pytest.param(named(""), id="only a group"),
        pytest.param("", id="empty"),
        pytest.param(["v1"], id="a list"),
        pytest.param({"v1": 1}, id="an object"),
        pytest.param(1, id="a number"),
        pytest.param("\n\x1b[31m\ud800", id="characters for a terminal"),
    ],
)
def test_an_unknown_api_version_is_an_error_that_says_what_to_write(version: Any) -> None:
    with pytest.raises(Problem) as caught:
        eks_token.exec_info(info(apiVersion=version))
    assert "KUBERNETES_EXEC_INFO" in caught.value.message
    assert caught.value.message.isprintable()
    assert "apiVersion: client.authentication.k8s.io/v1" in caught.value.hint


# --- the bare and the Atmos grammar -------------------------------------------------------------------------

DEV = Request("eks-token", "demo", "us-east-2", "dev")


@pytest.mark.parametrize("words", ["", "aws eks token "], ids=["bare", "atmos"])
@pytest.mark.parametrize(
    ("line", "changes"),
    [
        pytest.param("--cluster-name demo --region us-east-2 --identity dev", {}, id="in full"),
        pytest.param("--cluster-name=demo --region=us-east-2 --identity=dev", {}, id="values joined with ="),
        pytest.param("-i dev --region us-east-2 --cluster-name demo", {}, id="short, in another order"),
        pytest.param("--cluster-name demo --region us-east-2 -idev", {}, id="short, joined without ="),
        pytest.param("--cluster-name demo --region us-east-2 -i=dev", {}, id="short, joined with ="),
        pytest.param("--cluster-name demo --region us-east-2", {"identity": ""}, id="no identity"),
        pytest.param("--cluster-name demo --region us-east-2 --identity=", {"identity": ""}, id="an empty identity"),
        pytest.param("-i other --cluster-name demo --region us-east-2 -i dev", {}, id="the last one wins"),
        pytest.param("--cluster-id 0a-1b --region us-east-2 -i dev", {"cluster": "0a-1b"}, id="a cluster's id"),
        pytest.param(
            f"--cluster-name demo --region us-east-2 -i dev --role-arn {ROLE} --external-id x --session-name me",
            {"role_arn": ROLE, "external_id": "x", "session_name": "me"},
            id="a role on top",
        ),
        pytest.param(
            "--cluster-name demo --region us-east-2 -i dev --refresh --debug",
            {},
            id="our flags do not change the token",
        ),
    ],
)
def test_the_bare_and_the_atmos_grammar_mean_the_same(words: str, line: str, changes: dict[str, Any]) -> None:
    expected = DEV._replace(grammar="atmos" if words else "eks-token", **changes)
    assert parsed(words + line) == expected


ATMOS_VALUES = (
    "-C --chdir --base-path --config --config-path --logs-level --logs-file --redirect-stderr --profiler-host"
    " --profiler-port --profile-file --profile-type --heatmap-mode --skill --settings-list-merge-strategy --edition"
    " --use-version"
)
ATMOS_REST = (
    "--chdir=x -Cx --pager --pager=less --cast --cast=a.cast --no-color --force-color --force-tty --mask --interactive"
    " --profiler-enabled --heatmap --ai -v --verbose --mask=false --interactive=true"
)
IN_ATMOS = f"aws eks token {NAMED} --identity=dev"


@pytest.mark.parametrize("option", [*(f"{name} x" for name in ATMOS_VALUES.split()), *ATMOS_REST.split()])
def test_other_options_of_atmos_are_accepted_anywhere_and_ignored(option: str) -> None:
    words = IN_ATMOS.split()
    for place in (0, 1, 2, 3, 5, len(words)):
        line = [*words[:place], *option.split(), *words[place:]]
        assert parsed(line) == DEV._replace(grammar="atmos"), line
    assert parsed([*option.split(), *words[3:]]) == DEV


@pytest.mark.parametrize("words", ["", "aws eks token "], ids=["bare", "atmos"])
def test_profile_is_refused_because_it_means_something_else_to_atmos(words: str) -> None:
    problem = refused(words + "--cluster-name demo --region us-east-2 --profile dev")
    assert "--profile" in problem.message
    assert "--identity" in problem.hint


@pytest.mark.parametrize("words", ["", "aws eks token "], ids=["bare", "atmos"])
def test_no_variable_replaces_the_region_option(words: str) -> None:
    problem = refused(words + "--cluster-name demo", {"AWS_REGION": "us-east-2", "AWS_DEFAULT_REGION": "us-east-2"})
    assert "--region" in problem.message


# --- the AWS CLI's grammar ----------------------------------------------------------------------------------

GET_TOKEN = Request("aws", "demo", "us-east-2", "")


@pytest.mark.parametrize("words", ["eks get-token", "aws eks get-token"])
@pytest.mark.parametrize(
    ("line", "changes"),
    [
        pytest.param("--region us-east-2 {} --cluster-name demo --output json", {}, id="as update-kubeconfig writes"),
        pytest.param("{} --output json --cluster-name demo --region us-east-2", {}, id="as eksctl writes"),
        pytest.param(
            "{} --cluster-name demo --region us-east-2 --profile dev",
            {"identity": "dev"},
            id="profile after the command",
        ),
        pytest.param(
            "--profile dev --region us-east-2 {} --cluster-name demo",
            {"identity": "dev"},
            id="profile before the command",
        ),
        pytest.param("{} --cluster-id 0a-1b --region us-east-2", {"cluster": "0a-1b"}, id="an Outposts cluster's id"),
        pytest.param(
            f"{{}} --cluster-name demo --region us-east-2 --role-arn {ROLE}", {"role_arn": ROLE}, id="role-arn"
        ),
        pytest.param(f"{{}} --cluster-name demo --region us-east-2 --role {ROLE}", {"role_arn": ROLE}, id="role"),
        pytest.param(
            "{} --cluster-name demo --region us-east-2 --query status.token --output text",
            {"query": "status.token", "output": "text"},
            id="only the token, as in scripts",
        ),
        pytest.param(
            "{} --cluster-name demo --region us-east-2 --ca-bundle /ca.pem --no-verify-ssl --cli-connect-timeout 5"
            " --cli-read-timeout 6",
            {"ca_bundle": "/ca.pem", "verify_tls": False, "connect_timeout": "5", "read_timeout": "6"},
            id="options for calls to AWS",
        ),
    ],
)
def test_the_aws_clis_arguments_mean_what_they_mean_there(words: str, line: str, changes: dict[str, Any]) -> None:
    assert parsed(line.format(words)) == GET_TOKEN._replace(**changes)


AWS_GLOBALS = [
    "--endpoint-url https://x",
    "--color off",
    "--cli-binary-format base64",
    "--cli-error-format json",
    "--debug",
    "--no-paginate",
    "--no-sign-request",
    "--no-cli-pager",
    "--cli-auto-prompt",
    "--no-cli-auto-prompt",
    "--v2-debug",
]


@pytest.mark.parametrize("option", AWS_GLOBALS)
def test_the_aws_clis_other_global_options_are_ignored_anywhere(option: str) -> None:
    words = f"eks get-token {NAMED}".split()
    for place in (0, 1, 2, 4, len(words)):
        assert parsed([*words[:place], *option.split(), *words[place:]]) == GET_TOKEN


BAD_VALUES = {
    "--output": ["yaml", "table", "yaml-stream", "off", "JSON", ""],
    "--cli-read-timeout": ["x", "1.5", "1s"],
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option in BAD_VALUES for value in BAD_VALUES[option]]
)
def test_a_bad_value_of_an_aws_cli_option_is_refused(option: str, value: str) -> None:
    assert option in refused(["eks", "get-token", "--cluster-name", "demo", option, value]).message


# --- aws-iam-authenticator's grammar ------------------------------------------------------------------------

TOKEN = Request("aws-iam-authenticator", "demo", "", "")
CLUSTER_VARIABLE = {"KUBERNETES_AWS_AUTHENTICATOR_CLUSTER_ID": "demo"}


@pytest.mark.parametrize(
    ("line", "environ", "changes"),
    [
        pytest.param("token -i demo", {}, {}, id="as in its README"),
        pytest.param("token --cluster-id demo", {}, {}, id="long"),
        pytest.param("-i demo token", {}, {}, id="before the command"),
        pytest.param("token -idemo", {}, {}, id="joined"),
        pytest.param("token", CLUSTER_VARIABLE, {}, id="the cluster from a variable"),
        pytest.param("token -i other", CLUSTER_VARIABLE, {"cluster": "other"}, id="the option before the variable"),
        pytest.param("token -i demo", {"ATMOS_IDENTITY": "dev"}, {}, id="ATMOS_IDENTITY is ignored"),
        pytest.param(f"token -i demo -r {ROLE}", {}, {"role_arn": ROLE}, id="a role"),
        pytest.param(f"token -i demo --role={ROLE}", {}, {"role_arn": ROLE}, id="a role, long"),
        pytest.param("token -i demo", {"DEFAULT_ROLE": ROLE}, {"role_arn": ROLE}, id="a role from a variable"),
        pytest.param(
            f"token -i demo -r {ROLE}", {"DEFAULT_ROLE": "x"}, {"role_arn": ROLE}, id="the role before the variable"
        ),
        pytest.param(["token", "-i", "demo", "-r", ""], {"DEFAULT_ROLE": ROLE}, {}, id="an empty role"),
        pytest.param(
            ["token", "-i", "demo", "-s", "", "--external-id="], {}, {}, id="empty options, as templates leave them"
        ),
        pytest.param(
            f"token -i demo -r {ROLE} -s me -e x",
            {},
            {"role_arn": ROLE, "session_name": "me", "external_id": "x"},
            id="a role's details",
        ),
        pytest.param(
            f"token -i demo -r {ROLE} --session-name me --external-id x",
            {},
            {"role_arn": ROLE, "session_name": "me", "external_id": "x"},
            id="a role's details, long",
        ),
        pytest.param(
            f"token -i demo -r {ROLE} --forward-session-name",
            {},
            {"role_arn": ROLE, "forward_session_name": True},
            id="the session's name forwarded",
        ),
        pytest.param("token -i demo --token-only", {}, {"output": "token"}, id="token only"),
        pytest.param("token -i demo --cache", {}, {"cache": True}, id="cached"),
        pytest.param("token -i demo --token-only=false", {}, {}, id="a flag set to false, as in Go"),
        pytest.param("token -i demo --region eu-west-1", {}, {"region": "eu-west-1"}, id="a region"),
        pytest.param("token -i demo -s me", {}, {"session_name": "me"}, id="a session's name without a role"),
        pytest.param(
            "token -i demo -c f --config f -l json --log-format json -v info --log-verbosity debug"
            " --feature-gates X=true",
            {},
            {},
            id="options that do not change the token",
        ),
    ],
)
def test_the_authenticators_arguments_and_variables_mean_what_they_mean_there(
    line: str | list[str], environ: dict[str, str], changes: dict[str, Any]
) -> None:
    assert parsed(line, environ) == TOKEN._replace(**changes)


def test_a_session_name_is_either_given_or_forwarded() -> None:
    problem = refused(f"token -i demo -r {ROLE} -s me --forward-session-name")
    assert "--forward-session-name and --session-name cannot be used together" in problem.message


@pytest.mark.parametrize(
    ("line", "environ", "expected"),
    [
        pytest.param("--region r", {"AWS_REGION": "a", "AWS_DEFAULT_REGION": "d"}, "r", id="the option first"),
        pytest.param("", {"AWS_REGION": "a", "AWS_DEFAULT_REGION": "d"}, "a", id="then AWS_REGION"),
        pytest.param("", {"AWS_REGION": "", "AWS_DEFAULT_REGION": "d"}, "d", id="then AWS_DEFAULT_REGION"),
        pytest.param("", {}, "", id="then the profile"),
    ],
)
@pytest.mark.parametrize(
    "words", ["eks get-token --cluster-name demo ", "token -i demo "], ids=["aws", "authenticator"]
)
def test_the_region_is_looked_up_in_this_order(words: str, line: str, environ: dict[str, str], expected: str) -> None:
    assert parsed(words + line, environ).region == expected


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "names", "hint"),
    [
        pytest.param(f"{NAMED} --identiy dev", "--identiy", "--identity", id="a misspelled option, bare"),
        pytest.param("--clustr-name demo --region us-east-2", "--clustr-name", "--cluster-name", id="the first one"),
        pytest.param(f"aws eks token {NAMED} --identiti=dev", "--identiti", "--identity", id="in Atmos' grammar"),
        pytest.param(f"eks get-token {NAMED} --profil dev", "--profil", "--profile", id="in the AWS CLI's"),
        pytest.param(
            "--output json --regon r eks get-token --cluster-name demo", "--regon", "--region", id="before the command"
        ),
        pytest.param("token -i demo --sesion-name x", "--sesion-name", "--session-name", id="in the authenticator's"),
        pytest.param(f"{NAMED} --role {ROLE}", "--role", "--role-arn", id="another grammar's option"),
        pytest.param(f"{NAMED} -x", "-x", "", id="a short one"),
        pytest.param(f"{NAMED} --", "--", "", id="a lone double dash"),
        pytest.param(f"get-token eks {NAMED}", "get-token eks", "eks get-token", id="words in the wrong order"),
        pytest.param(f"eks aws token {NAMED}", "eks aws token", "aws eks token", id="Atmos' in the wrong order"),
        pytest.param(f"eks get-tokn {NAMED}", "eks get-tokn", "eks get-token", id="a misspelled word"),
        pytest.param(f"aws eks {NAMED}", "aws eks", "aws eks token", id="a missing word"),
        pytest.param("lgin dev", "lgin dev", "login", id="a misspelled command"),
        pytest.param("frobnicate", "frobnicate", "--help", id="an unknown command"),
        pytest.param(f"eks get-token now {NAMED}", "now", "", id="an extra word"),
        pytest.param(f"{NAMED} dev", "dev", "", id="a stray word"),
        pytest.param("--region us-east-2", "no cluster given", "--cluster-name", id="no cluster, bare"),
        pytest.param("eks get-token", "no cluster given", "--cluster-name", id="no cluster, AWS CLI"),
        pytest.param("token", "no cluster given", "-i", id="no cluster, authenticator"),
        pytest.param(f"{NAMED} --cluster-id x", "cannot be used together", "", id="name and id, bare"),
        pytest.param(f"eks get-token {NAMED} --cluster-id x", "cannot be used together", "", id="name and id, AWS CLI"),
        pytest.param(f"{NAMED} --external-id x", "require a role", "", id="an external id without a role"),
        pytest.param(f"{NAMED} --session-name x", "require a role", "", id="a session name without a role"),
        pytest.param(f"{NAMED} --refresh=true", "--refresh", "", id="a value for our flag"),
        pytest.param(f"{NAMED} --mask=maybe", "--mask", "", id="a flag that is neither true nor false"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_correct_word(line: str, names: str, hint: str) -> None:
    problem = refused(line)
    assert names in problem.message
    assert hint in problem.hint
    assert hint or "did you mean" not in problem.hint


@pytest.mark.parametrize(
    ("line", "option"),
    [
        pytest.param(["--cluster-name"], "--cluster-name", id="nothing follows"),
        pytest.param(["--cluster-name", "--region", "us-east-2"], "--cluster-name", id="an option follows"),
        pytest.param([*NAMED.split(), "-i", "-"], "-i", id="a dash follows"),
        pytest.param([*NAMED.split(), "--identity", "-x"], "--identity", id="what follows looks like an option"),
        pytest.param(["--cluster-name", "", "--region", "us-east-2"], "--cluster-name", id="it is empty"),
        pytest.param(["--cluster-name=", "--region", "us-east-2"], "--cluster-name", id="it is empty, joined"),
        pytest.param(["--cluster-name", "demo", "--region="], "--region", id="no region"),
        pytest.param(["eks", "get-token", "--cluster-name", "demo", "--region="], "--region", id="AWS CLI's region"),
        pytest.param(["eks", "get-token", "--cluster-name", "demo", "--role-arn="], "--role", id="AWS CLI's role"),
        pytest.param(["token", "-i", "demo", "--region="], "--region", id="authenticator's region"),
    ],
)
def test_an_option_without_its_value_is_refused(line: list[str], option: str) -> None:
    # a variable must not replace an option, because the cache assumes that the option has a value
    assert refused(line, {"AWS_REGION": "us-east-2"}).message.startswith(option)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a" * 101, id="over 100 characters"),
        pytest.param("_a", id="begins with an underscore"),
        pytest.param("a.b", id="a dot"),
        pytest.param("a b", id="a space"),
        pytest.param("a/b", id="a slash"),
        pytest.param("dëmo", id="a letter beyond ASCII"),
        pytest.param("demo\n", id="a line break at the end"),
        pytest.param("\N{ARABIC-INDIC DIGIT ONE}", id="a digit beyond ASCII"),
    ],
)
@pytest.mark.parametrize("words", [[], ["aws", "eks", "token"]], ids=["bare", "atmos"])
def test_a_cluster_name_that_eks_would_refuse_is_refused(words: list[str], name: str) -> None:
    assert "EKS cluster name" in refused([*words, "--cluster-name", name, "--region", "us-east-2"]).message


@pytest.mark.parametrize("name", ["a", "0", "a" * 100, "Team-1_x", "0-"])
def test_every_name_that_eks_allows_is_accepted(name: str) -> None:
    assert parsed(["--cluster-name", name, "--region", "us-east-2"]).cluster == name


@pytest.mark.parametrize("identifier", ["a\nb", " a", "a\r", "\x1b[31m"], ids=ascii)
@pytest.mark.parametrize("words", [["--region", "us-east-2"], ["eks", "get-token"], ["token"]], ids=lambda w: w[-1])
def test_a_cluster_id_that_cannot_be_a_header_is_refused(words: list[str], identifier: str) -> None:
    assert "cannot be the name or ID" in refused([*words, "--cluster-id", identifier]).message


@pytest.mark.parametrize(
    "role",
    [
        pytest.param("admin", id="a name"),
        pytest.param("arn:aws:iam::111122223333:user/alice", id="a user"),
        pytest.param("arn:aws:sts::111122223333:assumed-role/admin/me", id="a role's session"),
        pytest.param("arn:aws:iam::111122223333:role/", id="without a name"),
        pytest.param("arn:aws:iam::1111:role/admin", id="a short account"),
        pytest.param("arn:aws:iam:us-east-1:111122223333:role/admin", id="a region"),
        pytest.param("arn:aws:iam::role/admin", id="without an account"),
        pytest.param("arn:gcp:iam::111122223333:role/admin", id="not a partition of AWS"),
    ],
)
@pytest.mark.parametrize("line", [f"{NAMED} --role-arn", f"eks get-token {NAMED} --role", "token -i demo -r"])
def test_what_is_not_a_role_arn_is_refused(line: str, role: str) -> None:
    assert "role ARN" in refused(f"{line} {role}").message


@pytest.mark.parametrize(
    "role",
    [
        ROLE,
        "arn:aws-cn:iam::111122223333:role/admin",
        "arn:aws-iso-b:iam::111122223333:role/admin",
        "arn:aws:iam::111122223333:role/aws-reserved/sso.amazonaws.com/eu-west-1/AWSReservedSSO_Admin_0123456789abcdef",
        "arn:aws:iam::111122223333:role/a+=,.@-_",
    ],
)
def test_role_arns_with_any_partition_and_path_are_accepted(role: str) -> None:
    assert parsed(f"{NAMED} --role-arn {role}").role_arn == role


# --- the executable -----------------------------------------------------------------------------------------


KEYS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "x" * 40}


@pytest.mark.parametrize(
    ("line", "status", "error", "hint"),
    [
        pytest.param(["--cluster-name", "a\n\x1b[31m", "--region", "x"], 2, r"'a\n\x1b[31m'", "name", id="escapes"),
        pytest.param(
            ["eks", "update-kubeconfig", "--name", "a\x1b[31m", "--region", "us-east-2"],
            2,
            r"'a\x1b[31m' cannot be the name or ID of a cluster",
            "",
            id="escapes in update-kubeconfig",
        ),
        pytest.param(["get-token", "eks"], 2, "'get-token eks' is not a command", "'eks get-token'", id="word order"),
        pytest.param(["--cluster-name=demo", "--region=mars-1"], 2, "'mars-1' is not an AWS", "-1?", id="region"),
        pytest.param([*NAMED.split(), "-i", "nobody"], 1, "named 'nobody'", "login nobody", id="unknown identity"),
        pytest.param(["login", "--no-such"], 2, "--no-such", "login --help", id="an unknown option of login"),
        pytest.param(["logout", "dev", "--al"], 2, "--al", "logout --help", id="an abbreviated option"),
        pytest.param(["login", "dev"], 2, "'dev'", "--stdin", id="no terminal"),
    ],
)
def test_a_failure_is_one_line_and_at_most_one_hint(
    line: list[str], status: int, error: str, hint: str, home: Sandbox
) -> None:
    assert_fails(home.run(*line, env=KEYS), error, hint, status)


@pytest.mark.parametrize("name", ["a.b", "dëmo", "a" * 200, "--role-arn=x"])
def test_update_kubeconfig_asks_eks_for_any_name_that_the_aws_cli_asks_for(
    name: str, home: Sandbox, moto: RecordingProxy, aws: str
) -> None:
    line = ["eks", "update-kubeconfig", f"--name={name}", "--region", "us-east-2", "--dry-run"]
    environ = {**moto.environment, **moto.create_user("alice").environment}
    for command in (None, [aws]):
        assert f"No cluster found for name: {name}." in home.run(*line, command=command, env=environ).stderr


def test_an_unknown_api_version_fails_before_anything_is_minted(home: Sandbox) -> None:
    environ = {"KUBERNETES_EXEC_INFO": info(apiVersion=named("v9"))}
    assert_fails(home.run(*NAMED.split(), env=environ), "client.authentication.k8s.io/v9", "apiVersion:")


def test_a_broken_exec_info_is_a_warning_and_the_token_is_printed(home: Sandbox) -> None:
    done = home.run(*NAMED.split(), env={**KEYS, "KUBERNETES_EXEC_INFO": "{"})
    assert done.returncode == 0
    assert json.loads(done.stdout)["apiVersion"] == V1BETA1
    assert done.stderr.splitlines() == [
        "eks-token: warning: KUBERNETES_EXEC_INFO is not a JSON object; answering in v1beta1"
    ]


def test_help_and_version_go_to_stdout(home: Sandbox) -> None:
    version = home.run("--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"eks-token {eks_token.__version__}\n", "")
    for line in (["--help"], ["-h"], ["eks", "get-token", "--help"], ["login", "--help"]):
        done = home.run(*line)
        assert (done.returncode, done.stderr) == (0, "")
        assert "eks-token" in done.stdout


def test_without_a_command_or_option_the_short_help_goes_to_stderr(home: Sandbox) -> None:
    done = home.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("eks-token: error: no command or option given\nUsage\n")
    assert set(eks_token.SHORT_HELP.splitlines()) <= set(done.stderr.splitlines())
    assert len(eks_token.SHORT_HELP.splitlines()) < 20 and "--help" in eks_token.SHORT_HELP
