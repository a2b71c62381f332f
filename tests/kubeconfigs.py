"""Kubeconfigs found in the wild: what each program writes, and what people and editors make of it."""

import base64
import json

SECRET = "a-secret-of-others"
GROUP = "client.authentication.k8s.io/"
ARN = "arn:aws:eks:us-east-1:123456789012:cluster/demo"
CERTIFICATE = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t" * 30  # one long line, which a YAML library would wrap


def kubeconfig(users: str, cluster: str = "c", user: str = "u") -> str:
    """A kubeconfig with these users, a cluster, and a context for one of the users."""
    return f"""\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {CERTIFICATE}
    server: https://{SECRET}.example.com
  name: "{cluster}"
contexts:
- context:
    cluster: "{cluster}"
    user: "{user}"
  name: "{cluster}"
current-context: "{cluster}"
kind: Config
preferences: {{}}
users:
{users}"""


# awscli/customizations/eks/update_kubeconfig.py; versions 1 and 2 write the same
AWS_CLI = f"""\
- name: {ARN}
  user:
    exec:
      apiVersion: {GROUP}v1beta1
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
"""
EKSCTL = f"""\
- name: alice@demo.us-east-1.eksctl.io
  user:
    exec:
      apiVersion: {GROUP}v1beta1
      args:
      - token
      - -i
      - demo
      command: aws-iam-authenticator
      env:
      - name: AWS_STS_REGIONAL_ENDPOINTS
        value: regional
      - name: AWS_DEFAULT_REGION
        value: us-east-1
      - name: AWS_PROFILE
        value: dev
      interactiveMode: IfAvailable
      provideClusterInfo: false
"""
AUTHENTICATOR = f"""\
- name: kubernetes-admin
  user:
    exec:
      apiVersion: {GROUP}v1beta1
      command: aws-iam-authenticator
      args:
        - "token"
        - "-i"
        - "demo"
        # - "-r"
        # - "arn:aws:iam::123456789012:role/Admin"
      # no client certificate/key needed here!
      env:
        - name: "AWS_PROFILE"
          value: "dev"
"""
WORDS = "--region us-east-1 eks get-token --cluster-name demo"
TERRAFORM = f"""\
- name: eks_demo
  user:
    exec:
      apiVersion: {GROUP}v1alpha1
      command: aws-iam-authenticator
      args:
        - "token"
        - "-i"
        - "demo"

"""
ATMOS = f"""\
- name: atmos-eks-demo
  user:
    exec:
      apiVersion: {GROUP}v1beta1
      args: [aws, eks, token, --cluster-name, demo, --region, us-east-1, --identity=dev]
      command: atmos
      env: [{{name: ATMOS_IDENTITY, value: dev}}]
      interactiveMode: Never
      provideClusterInfo: false
"""
RANCHER = f'- name: "rancher"\n  user:\n    token: "kubeconfig-user-abcde:{SECRET}"\n'
KOPS = f"""\
- name: kops.example.com
  user:
    client-certificate-data: {CERTIFICATE}
    client-key-data: {base64.b64encode(SECRET.encode()).decode()}
- name: kops.example.com-basic-auth
  user: {{password: {SECRET}, username: admin}}
"""
OTHER_CLOUDS = f"""\
- name: gke
  user:
    exec:
      apiVersion: {GROUP}v1beta1
      command: gke-gcloud-auth-plugin
      installHint: Install gke-gcloud-auth-plugin for use with kubectl by following
        https://cloud.google.com/blog/products/containers-kubernetes/kubectl-auth-changes-in-gke
      provideClusterInfo: true
- name: aks
  user:
    auth-provider: {{name: azure, config: {{access-token: {SECRET}, apiserver-id: "1"}}}}
- name: minikube
  user:
    client-certificate: ./profiles/minikube/client.crt
    client-key: ../.minikube/profiles/minikube/client.key
"""
FLOW = f"""\
- {{name: flow, user: {{exec: {{apiVersion: {GROUP}v1, interactiveMode: Never, command: aws,
    args: [{", ".join(WORDS.split())}], env: []}}}}}}   # a comment
"""
ODD_QUOTES = f"""\
- 'name': 'it''s'
  "user":
    ? exec
    : apiVersion: '{GROUP}v1beta1'
      args: ["--region", 'us-east-1', eks, "get\\x2dtoken", --cluster-name, demo]
      command: 'aws'
"""
BLOCK_SCALARS = f"""\
- name: blocks
  user:
    exec:
      apiVersion: {GROUP}v1beta1
      command: >-
        aws
      args: [eks, get-token, --region, us-east-1, --cluster-name, demo]
      installHint: |
        # not a comment
        see: there

"""
ANCHORS = f"""\
- name: one
  user:
    exec: &aws
      apiVersion: {GROUP}v1beta1
      command: &command aws
      args: &args [{", ".join(WORDS.split())}]
- name: two
  user: {{exec: *aws}}
- name: three
  user:
    exec:
      <<: *aws
      args: *args
"""
EXTENSION = f"""\
x-aws: &aws
  apiVersion: {GROUP}v1beta1
  command: aws  # ours
  args: [{", ".join(WORDS.split())}]
"""
DEEP_LIST = f"""\
  -   name: deep
      user:
          exec:
              apiVersion: {GROUP}v1beta1
              args:
                  - --region
                  - us-east-1
                  - eks
                  - get-token
                  - --cluster-name
                  - demo
              command: /usr/local/bin/aws
              # between
              env:
                  -
                    name: AWS_PROFILE
                    value: dev

  # after the last


"""

TEMPLATE = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority-data": CERTIFICATE}}],
    "contexts": [{"name": "json", "context": {"cluster": "c", "user": "json"}}],
    "current-context": "json",
    "users": [
        {
            "name": "json",
            "user": {"exec": {"apiVersion": f"{GROUP}v1beta1", "command": "aws", "args": WORDS.split(), "env": None}},
        },
        {"name": "json-token", "user": {"token": SECRET}},
    ],
}
LIKE_AWS = kubeconfig(AWS_CLI, ARN, ARN)
MANY = kubeconfig("".join(AWS_CLI.replace(ARN, f"{ARN}-{number}") for number in range(60)), "m", f"{ARN}-0")

WILD: dict[str, str | bytes] = {
    "the AWS CLI": LIKE_AWS,
    "an AWS CLI before 1.20": LIKE_AWS.replace("v1beta1", "v1alpha1"),
    "eksctl": kubeconfig(EKSCTL, "demo.us-east-1.eksctl.io", "alice@demo.us-east-1.eksctl.io"),
    "aws-iam-authenticator's README": kubeconfig(AUTHENTICATOR),
    "heptio-authenticator-aws": kubeconfig(AUTHENTICATOR.replace("aws-iam-authenticator", "heptio-authenticator-aws")),
    "Terraform's module": kubeconfig(TERRAFORM),
    "Atmos": kubeconfig(ATMOS, ARN),
    "a secret in a variable": kubeconfig(ATMOS.replace("value: dev", f"value: {SECRET}")),
    "nodeadm": kubeconfig(
        AUTHENTICATOR.replace("aws-iam-authenticator", "/usr/bin/aws-iam-authenticator"), "kubernetes", "kubelet"
    ),
    "Rancher": kubeconfig(RANCHER),
    "kops": kubeconfig(KOPS),
    "other clouds": kubeconfig(OTHER_CLOUDS),
    "everything together": kubeconfig(AWS_CLI + RANCHER + EKSCTL + KOPS + OTHER_CLOUDS + AUTHENTICATOR + ATMOS + FLOW),
    "flow": kubeconfig(FLOW),
    "odd quotes": kubeconfig(ODD_QUOTES),
    "block scalars": kubeconfig(BLOCK_SCALARS),
    "a block scalar that ends like a comment": kubeconfig(
        f"{AWS_CLI}      installHint: |\n        get it\n        # there\n# a comment\n"
    ),
    "anchors": kubeconfig(ANCHORS),
    "tags": kubeconfig(AWS_CLI.replace("command: ", "command: !!str ").replace("value: dev", "value: !!str 12")),
    "an anchor in an extension": EXTENSION
    + kubeconfig("- {name: u, user: {exec: *aws}}\n- name: v\n  user:\n    exec:\n      <<: *aws\n      env: []\n"),
    "indented lists": kubeconfig(DEEP_LIST),
    "comments everywhere": "# a\n\n" + LIKE_AWS.replace("\n", "  # here\n", 9) + "# z\n#\n",
    "tabs": kubeconfig(AWS_CLI.replace("command: aws", "command:\taws\t# tabs")),
    "no newline at the end": LIKE_AWS.rstrip("\n"),
    "Windows line ends": LIKE_AWS.replace("\n", "\r\n").encode(),
    "a byte order mark": b"\xef\xbb\xbf" + LIKE_AWS.encode(),
    "UTF-16 from Notepad": LIKE_AWS.replace("\n", "\r\n").encode("utf-16"),
    "aws.exe": kubeconfig(AWS_CLI.replace("command: aws", "command: C:\\Program Files\\AWSCLIV2\\aws.exe")),
    "letters from many scripts": kubeconfig(AWS_CLI.replace(ARN, "жук 虫 🪲"), "蟲", "жук 虫 🪲"),
    "several documents": f"---\n{LIKE_AWS}...\n---\nusers: [\n",
    "a directive and a document start": f"%YAML 1.1\n---\n{LIKE_AWS}",
    "JSON on one line": json.dumps(TEMPLATE, separators=(",", ":")),
    "JSON from kubectl": json.dumps(TEMPLATE, indent=4) + "\n",
    "JSON with tabs": json.dumps(TEMPLATE, indent="\t") + "\n",
    "empty lists": 'clusters: []\ncontexts: []\ncurrent-context: ""\nkind: Config\npreferences: {}\nusers: []\n',
    "nulls": "apiVersion: v1\nkind: Config\nclusters: null\ncontexts: ~ # none\nusers:\n# the end\n",
    "only a comment": "# nothing\n",
    "empty": "",
    "empty JSON": "{}",
    "other keys": "x-mine: [1, {a: b}]\nextensions:\n- {name: minikube, extension: {v: 1}}\n" + LIKE_AWS,
    "60 clusters": MANY,
}

BROKEN: dict[str, tuple[str | bytes, int]] = {
    "an unclosed bracket": (f"users: [\n- name: {SECRET}\n", 2),
    "a tab at the start of a line": (f"users:\n- name: a\n\t\tuser: {SECRET}\n", 3),
    "a tab after a dash": (f"users:\n-\tname: {SECRET}\n", 2),
    "a merge conflict": (f"a: 1\n<<<<<<< HEAD\nb: {SECRET}\n", 3),
    "an unclosed quote": (f'a: 1\nb: "{SECRET}\n', 3),
    "an unknown alias": (f"a: 1\nb: *{SECRET}\n", 2),
    "a template": (f"a: {{{{ {SECRET} }}}}\n", 1),
    "a control character": (f"a: 1\nb: {SECRET}\x1b\n", 2),
    "Latin-1": (f"a: 1\nb: {SECRET} \xe9\n".encode("latin-1"), 2),
    "a name that occurs twice": (f"users:\n- name: {SECRET}\n- name: {SECRET}\n", 3),
    "a name that is a number": ("users:\n- name: a\n- name: 12\n", 3),
    "users that are a mapping": (f"users:\n  name: {SECRET}\n", 2),
    "arguments that are a string": (f"users:\n- name: a\n  user:\n    exec:\n      args: {SECRET}\n", 5),
}
"""Each with the line that has the error."""
