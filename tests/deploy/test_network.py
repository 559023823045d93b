"""deploy/: which pod may speak with which, once the policies of an overlay hold."""

import re

import pytest
from overlays import DEPLOY, ROOT, built, documents, named, of_kind

# Labels of pods that others make: KFP's services in its manifests, Argo's on each pod of a workflow, the cluster's DNS.
FOREIGN_LABELS = [
    {"app": "ml-pipeline"},
    {"app": "ml-pipeline-ui"},
    {"app": "ml-pipeline-ui-artifact"},
    {"app": "seaweedfs"},
    {"app": "minio"},
    {"app": "istiod"},
    {"component": "metadata-grpc-server"},
    {"k8s-app": "kube-dns"},
    {"workflows.argoproj.io/workflow": "fairvlm-x7k2p"},
]
NAMESPACES = {"kubeflow", "kube-system", "istio-system"}


def selects(selector, labels):
    """Whether a label selector chooses a pod with these labels."""
    tests = {
        "Exists": lambda each: each["key"] in labels,
        "In": lambda each: labels.get(each["key"]) in each["values"],
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        tests[each["operator"]](each) for each in selector.get("matchExpressions", [])
    )


def step(name):
    """The labels of a pod that runs this step."""
    return {"workflows.argoproj.io/workflow": "fairvlm-x7k2p", "fairvlm.io/step": name}


def policies(manifests, labels, direction):
    chosen = [
        each["spec"] for each in of_kind(manifests, "NetworkPolicy") if selects(each["spec"]["podSelector"], labels)
    ]
    return [each for each in chosen if direction in each["policyTypes"]]


def outside(manifests, labels):
    """(CIDR, ports) of the addresses that a pod with these labels may call."""
    return [
        (peer["ipBlock"]["cidr"], {port["port"] for port in rule["ports"]})
        for each in policies(manifests, labels, "Egress")
        for rule in each.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]


def may_call(manifests, labels, callee, port):
    """Whether a pod with `labels` may connect to one with the labels `callee`, wherever that is."""
    chosen = policies(manifests, labels, "Egress")
    return not chosen or any(
        selects(peer["podSelector"], callee) and port in {each["port"] for each in rule["ports"]}
        for each in chosen
        for rule in each.get("egress", [])
        for peer in rule["to"]
        if "podSelector" in peer
    )


def selectors(manifests):
    for each in of_kind(manifests, "NetworkPolicy"):
        yield each["spec"]["podSelector"]
        for rule in (*each["spec"].get("ingress", []), *each["spec"].get("egress", [])):
            yield from (peer["podSelector"] for peer in rule.get("to", rule.get("from", [])) if "podSelector" in peer)


def test_the_pods_of_each_step_say_which_step_they_are():
    pipeline, platform = documents((ROOT / "pipelines" / "fairvlm.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    labels = {
        name: executors.get(name, {}).get("podMetadata", {}).get("labels", {}).get("fairvlm.io/step")
        for name in pipeline["deploymentSpec"]["executors"]
    }
    # Executors are numbered where a step has several tasks: `exec-predict-2`.
    assert labels == {name: re.sub(r"-\d+$", "", name.removeprefix("exec-")).replace("-", "_") for name in labels}


def test_each_policy_selects_by_labels_that_exist(overlay):
    _, manifests = overlay
    ours = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(manifests, "Deployment")]
    pods = [*FOREIGN_LABELS, *ours, step("stage1"), step("fetch_dataset")]
    for selector in selectors(manifests):
        assert any(selects(selector, labels) for labels in pods), selector
    for each in of_kind(manifests, "NetworkPolicy"):
        for rule in (*each["spec"].get("ingress", []), *each["spec"].get("egress", [])):
            for peer in rule.get("to", rule.get("from", [])):
                assert "ipBlock" in peer or "podSelector" in peer  # a namespace alone would be all of its pods
                if "namespaceSelector" in peer:
                    (item,) = peer["namespaceSelector"]["matchLabels"].items()
                    assert item[0] == "kubernetes.io/metadata.name"
                    assert item[1] in NAMESPACES


def test_what_no_rule_allows_is_denied(overlay):
    name, manifests = overlay
    deny = named(manifests, "NetworkPolicy", "fairvlm-deny-all")["spec"]
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}
    assert not deny.keys() & {"ingress", "egress"}
    assert selects(deny["podSelector"], step("train"))
    # The namespace of a profile is ours; that of KFP is not.
    assert selects(deny["podSelector"], {"app": "anything"}) == (name == "profile")


def test_in_kubeflow_s_own_namespace_nobody_else_is_touched():
    manifests = built("standalone")
    for labels in FOREIGN_LABELS:
        assert not policies(manifests, labels, "Ingress")
        assert not policies(manifests, labels, "Egress")
    assert not {each["kind"] for each in manifests} & {"Namespace", "ResourceQuota", "LimitRange"}


@pytest.mark.parametrize(
    ("callee", "port"),
    [
        ({"app": "ml-pipeline"}, 8887),
        ({"component": "metadata-grpc-server"}, 8080),
        ({"app": "seaweedfs"}, 8333),
        ({"app": "minio"}, 9000),
        ({"k8s-app": "kube-dns"}, 53),
        ({"app.kubernetes.io/name": "mlflow"}, 5000),
    ],
)
def test_a_step_reaches_what_it_needs(overlay, callee, port):
    name, manifests = overlay
    assert may_call(manifests, step("stage1"), callee, port)
    assert not may_call(manifests, step("stage1"), callee, 22)
    assert not may_call(manifests, step("stage1"), {"app": "a neighbour"}, port)
    if name == "profile":  # a driver, which has no label of a step
        assert may_call(manifests, {"workflows.argoproj.io/workflow": "fairvlm-x7k2p"}, callee, port)


def test_only_the_plan_and_fetch_dataset_leave_the_cluster(overlay):
    _, manifests = overlay
    api = named(manifests, "NetworkPolicy", "fairvlm-kubernetes-api")["spec"]["egress"][0]["to"]
    addresses = {peer["ipBlock"]["cidr"] for peer in api}
    assert all(int(cidr.split("/")[1]) >= 24 for cidr in addresses)
    for name in ("ingest", "stage1", "register"):
        assert {cidr for cidr, _ in outside(manifests, step(name))} == addresses
    for name in ("plan", "fetch_dataset"):
        fetch = outside(manifests, step(name))
        assert {cidr for cidr, _ in fetch} == addresses | {"0.0.0.0/0", "::/0"}
        assert all(ports == {443} for cidr, ports in fetch if cidr not in addresses)


def test_fetch_dataset_does_not_reach_private_addresses(overlay):
    rule = named(overlay[1], "NetworkPolicy", "fairvlm-fetch-dataset")["spec"]["egress"][0]
    kept_out = {cidr for peer in rule["to"] for cidr in peer["ipBlock"]["except"]}
    private = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "fc00::/7"}
    assert private <= kept_out


def test_mlflow_answers_runs_alone_and_calls_nobody(overlay):
    _, manifests = overlay
    labels = {"app.kubernetes.io/name": "mlflow"}
    rules = [rule for each in policies(manifests, labels, "Ingress") for rule in each.get("ingress", [])]
    callers = [peer for rule in rules for peer in rule["from"]]
    assert any(selects(peer["podSelector"], step("register")) for peer in callers)
    assert not any(selects(peer["podSelector"], {"app": "a neighbour"}) for peer in callers)
    assert not any("namespaceSelector" in peer for peer in callers)
    assert policies(manifests, labels, "Egress")
    for callee, port in (({"app": "ml-pipeline"}, 8887), ({"app": "seaweedfs"}, 8333)):
        assert not may_call(manifests, labels, callee, port)


def test_nodes_of_a_train_job_speak_with_each_other_alone():
    (policy,) = documents((DEPLOY / "trainer" / "network.yaml").read_text())
    job, other = {"jobset.sigs.k8s.io/jobset-name": "stage1-x"}, {"fairvlm.io/step": "stage1"}
    spec = policy["spec"]
    assert selects(spec["podSelector"], job)
    assert not selects(spec["podSelector"], other)
    for peer in (*spec["ingress"][0]["from"], *spec["egress"][0]["to"]):
        assert selects(peer["podSelector"], job)
        assert not selects(peer["podSelector"], other)
