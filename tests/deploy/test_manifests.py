"""deploy/: built with kubectl, held against the models of the Kubernetes client that kfp brings, and our own rules.

The client's models are generated from the API's own description (Kubernetes 1.30), so a misspelt field, a wrong type
or a missing one fails here as it would on a cluster. `kubectl apply --dry-run=client` is no use for that: even it asks
a server which kinds there are. Without kubectl, the tests of what an overlay builds are skipped.
"""

import re

import pytest
import yaml
from kubernetes import client
from kubernetes.utils import parse_quantity
from overlays import DEPLOY, OVERLAYS, ROOT, documents, named, of_kind

from pipelines.pools import CLUSTERS

SECRET_KEYS = {"GIT_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}

POOLS = CLUSTERS["own-labels"].pools
FILES = sorted(path for path in DEPLOY.rglob("*.yaml") if path.name != "kustomization.yaml")


# Against the Kubernetes API


def model_of(manifest):
    return manifest["apiVersion"].rpartition("/")[2].capitalize() + manifest["kind"]


def faults(value, kind, path=""):
    """What is wrong with a manifest's value, as lines; `kind` is the type's name in the client's generated models."""
    if value is None:
        return [f"{path}: is empty"]
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{path}: is not a list"]
        return [fault for i, each in enumerate(value) for fault in faults(each, match[1], f"{path}[{i}]")]
    if match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        if not isinstance(value, dict):
            return [f"{path}: is not a mapping"]
        return [fault for key, each in value.items() for fault in faults(each, match[1], f"{path}.{key}")]
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float)}
    if kind in plain:
        right = isinstance(value, plain[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if right else [f"{path}: {value!r} is not {kind}"]
    if kind in ("object", "datetime"):  # a number or a string: ports
        return []
    model = getattr(client, kind)
    fields = {model.attribute_map[name]: (name, type_) for name, type_ in model.openapi_types.items()}
    found = [f"{path}: has no field {key}" for key in value if key not in fields]
    for key, each in value.items():
        if key in fields:
            found += faults(each, fields[key][1], f"{path}.{key}")
    try:
        model(**{fields[key][0]: each for key, each in value.items() if key in fields})
    except ValueError as error:  # a required field is missing, or a value is none of those allowed
        found.append(f"{path}: {error}")
    return found


def test_the_check_finds_a_misspelt_a_mistyped_and_a_missing_field():
    good = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 1}]}}
    assert faults(good, "V1Service") == []
    assert faults({**good, "spec": {"port": []}}, "V1Service") == [".spec: has no field port"]
    assert faults({**good, "spec": {"ports": [{"port": "1"}]}}, "V1Service") == [".spec.ports[0].port: '1' is not int"]
    assert len(faults({**good, "spec": {"ports": [{"name": "http"}]}}, "V1Service")) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_each_file_holds_what_the_api_knows(path):
    manifests = documents(path.read_text())
    assert manifests
    for manifest in manifests:
        assert faults(manifest, model_of(manifest)) == []


def test_each_overlay_builds_what_the_api_knows(overlay):
    name, manifests = overlay
    for manifest in manifests:
        assert faults(manifest, model_of(manifest)) == []
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == OVERLAYS[name]
    keys = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(keys)) == len(keys)


def test_each_file_is_part_of_an_overlay():
    listed = {DEPLOY / "secret.example.yaml"}
    for path in DEPLOY.rglob("kustomization.yaml"):
        listed |= {(path.parent / resource).resolve() for resource in yaml.safe_load(path.read_text())["resources"]}
    assert set(FILES) <= listed


# Names that the pipeline reads


def test_the_config_map_is_the_one_that_the_pipeline_reads(overlay):
    _, manifests = overlay
    *_, platform = documents((ROOT / "pipelines" / "fairvlm.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    read = [each for executor in executors.values() for each in executor.get("configMapAsEnv", [])]
    assert read
    for each in read:
        config = named(manifests, "ConfigMap", each["configMapName"])
        assert {key["configMapKey"] for key in each["keyToEnv"]} <= set(config["data"])


def test_the_address_of_mlflow_is_the_service_that_stands_beside(overlay):
    _, manifests = overlay
    address = named(manifests, "ConfigMap", "fairvlm")["data"]["MLFLOW_TRACKING_URI"]
    service = named(manifests, "Service", "mlflow")
    assert address == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (container,) = named(manifests, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    (hosts,) = [arg.removeprefix("--allowed-hosts=") for arg in container["args"] if "allowed-hosts" in arg]
    assert address.removeprefix("http://") in hosts.split(",")


def test_mlflow_s_options_are_options_of_its_server(overlay):
    from mlflow.cli import server

    (container,) = named(overlay[1], "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    known = {name for option in server.params for name in (*option.opts, *option.secondary_opts)}
    assert {arg.split("=")[0] for arg in container["args"]} <= known


# Secrets


def test_no_manifest_holds_a_secret(overlay):
    assert not of_kind(overlay[1], "Secret")


def test_the_secret_s_form_is_empty():
    (secret,) = documents((DEPLOY / "secret.example.yaml").read_text())
    assert secret["metadata"]["name"] == "fairvlm-dvc"
    assert secret["stringData"] == dict.fromkeys(SECRET_KEYS, "")
    assert "data" not in secret


def test_no_file_holds_what_looks_like_a_key():
    key = re.compile(r"AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|glpat-[\w-]{20,}|-----BEGIN|://[^/\s]+:[^/\s]+@")
    assert not [path for path in DEPLOY.rglob("*") if path.is_file() and key.search(path.read_text())]


# Access


def test_the_account_may_do_what_kfp_needs_and_nothing_else(overlay):
    name, manifests = overlay
    (binding,) = of_kind(manifests, "RoleBinding")
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "fairvlm"}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "fairvlm", "namespace": OVERLAYS[name]}]
    assert named(manifests, "ServiceAccount", "fairvlm")
    assert not of_kind(manifests, "ClusterRole")

    (role,) = of_kind(manifests, "Role")
    may = {
        (resource, verb, only)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for only in rule.get("resourceNames", [""])
    }
    assert ("workflowtaskresults", "create", "") in may
    assert not [each for each in may if "*" in each]
    changed = {resource for resource, verb, _ in may if verb not in ("get", "list", "watch")}
    assert changed == {"workflowtaskresults", "workflowtasksets/status"}
    # A list or a watch would show each secret, whatever the names; and nobody enters a pod.
    named_ones = {each for each in may if each[0] in ("secrets", "configmaps")}
    assert named_ones == {("secrets", "get", "mlpipeline-minio-artifact"), ("configmaps", "get", "kfp-launcher")}
    assert not [each for each in may if each[0].startswith("pods/")]


# Pods


def pod_specs(manifests):
    return [manifest["spec"]["template"]["spec"] for manifest in of_kind(manifests, "Deployment")]


def test_each_pod_meets_the_restricted_standard_on_a_read_only_root(overlay):
    (pod,) = pod_specs(overlay[1])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
    assert all({"persistentVolumeClaim", "emptyDir"} & volume.keys() for volume in pod["volumes"])
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser", "procMount"} & security.keys()
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}


def test_the_user_of_a_pod_is_the_user_of_the_image(overlay):
    (pod,) = pod_specs(overlay[1])
    (user,) = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert (str(pod["securityContext"]["runAsUser"]), str(pod["securityContext"]["runAsGroup"])) == user


def test_each_image_has_a_tag_of_its_own(overlay):
    for pod in pod_specs(overlay[1]):
        for container in pod["containers"]:
            assert re.fullmatch(r"[\w./-]+:(?!latest$)[\w.-]+", container["image"])


def test_each_claim_that_is_mounted_exists(overlay):
    claims = {claim["metadata"]["name"] for claim in of_kind(overlay[1], "PersistentVolumeClaim")}
    mounted = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pod_specs(overlay[1])
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert mounted == {"mlflow"}
    assert claims == mounted | {"fairvlm-models"}


# The namespace of a profile


@pytest.fixture(scope="module")
def limits():
    return documents((DEPLOY / "overlays" / "profile" / "limits.yaml").read_text())


def test_the_namespace_has_pod_security_labels_and_keeps_kubeflow_s():
    (namespace,) = documents((DEPLOY / "overlays" / "profile" / "namespace.yaml").read_text())
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] in ("baseline", "restricted")
    assert labels["pod-security.kubernetes.io/warn"] == "restricted"
    # Kubeflow lets a profile in by this label, which it gives itself.
    assert "app.kubernetes.io/part-of" not in labels
    build = yaml.safe_load((DEPLOY / "overlays" / "profile" / "kustomization.yaml").read_text())
    assert "labels" not in build  # they would be the namespace's too


def test_the_quota_has_room_for_the_trainings_that_run_side_by_side(limits):
    quota = {
        key: parse_quantity(value) for key, value in named(limits, "ResourceQuota", "fairvlm")["spec"]["hard"].items()
    }
    together = [POOLS["gpu-large"], POOLS["gpu-small"]]
    assert sum(pool.gpus for pool in together) <= quota["requests.nvidia.com/gpu"]
    for kind in ("requests", "limits"):
        assert sum(parse_quantity(pool.cpu) for pool in together) <= quota[f"{kind}.cpu"]
        assert sum(parse_quantity(pool.memory) for pool in together) <= quota[f"{kind}.memory"]


def test_no_container_is_larger_than_the_limit_range_allows(limits):
    (limit,) = named(limits, "LimitRange", "fairvlm")["spec"]["limits"]
    for pool in POOLS.values():
        assert parse_quantity(pool.cpu) <= parse_quantity(limit["max"]["cpu"])
        assert parse_quantity(pool.memory) <= parse_quantity(limit["max"]["memory"])
    for resource in ("cpu", "memory"):
        ordered = [parse_quantity(limit[kind][resource]) for kind in ("defaultRequest", "default", "max")]
        assert ordered == sorted(ordered)


def test_the_claims_fit_into_the_quota(limits):
    quota = named(limits, "ResourceQuota", "fairvlm")["spec"]["hard"]
    claims = [each for path in FILES for each in of_kind(documents(path.read_text()), "PersistentVolumeClaim")]
    assert len(claims) <= int(quota["persistentvolumeclaims"])
    wanted = sum(parse_quantity(each["spec"]["resources"]["requests"]["storage"]) for each in claims)
    assert wanted <= parse_quantity(quota["requests.storage"])
