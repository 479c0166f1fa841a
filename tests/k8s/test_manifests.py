"""Every manifest fits its schema, runs as nobody special within limits, and is told by its file's name."""

import copy
import re

import pytest
import yaml

from tests.k8s.rendered import (
    K8S,
    OVERLAYS,
    Manifest,
    find_clusters,
    find_definition_faults,
    find_pods,
    is_kuberay,
    render,
    select,
)

KUBERNETES = "1.33"


@pytest.mark.parametrize("folder", OVERLAYS)
def test_manifest_fits_kubernetes_schema(folder):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: make setup")
    manifests = [item for item in render(folder) if not is_kuberay(item)]
    assert {item["kind"] for item in manifests} >= {"Namespace", "ServiceAccount", "NetworkPolicy", "ConfigMap"}
    for manifest in manifests:
        validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_pods_fit_kubernetes_schema(folder):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: make setup")
    for manifest in render(folder):
        for _, metadata, spec in find_pods(manifest):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_manifest_fits_kuberays_definition(folder):
    manifests = [item for item in render(folder) if is_kuberay(item)]
    assert {item["kind"] for item in manifests} >= {"RayJob", "RayService"}
    assert {item["metadata"]["name"]: found for item in manifests if (found := find_definition_faults(item))} == {}


def test_definition_refuses_when_a_field_is_unknown_missing_or_wrong():
    job = copy.deepcopy(select(render("base"), "RayJob")["distill"])
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    groups[0]["minReplica"] = 0
    groups[1]["template"]["spec"]["containers"][0]["ressources"] = {}
    del groups[1]["maxReplicas"]
    job["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] = "v3"
    faults = "\n".join(find_definition_faults(job))
    assert all(word in faults for word in ("'minReplica'", "'ressources'", "'maxReplicas'", "'v3'")), faults


def find_open_ends(path: str, spec: Manifest, is_head: bool) -> list[str]:
    """Return what a pod's specification leaves open."""
    pod, faults = spec.get("securityContext", {}), []
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser") or "seccompProfile" not in pod:
        faults.append(f"{path}: may run as root, or without a seccomp profile")
    if is_head == (spec.get("automountServiceAccountToken") is False):
        faults.append(f"{path}: only the head's autoscaler talks to Kubernetes")
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        faults += find_loose_limits(f"{path} {container['name']}", container)
    return faults


def find_loose_limits(where: str, container: Manifest) -> list[str]:
    """Return what a container, or the autoscaler's options, leave open."""
    security, resources = container.get("securityContext", {}), container.get("resources", {})
    missing = [
        f"{where}: no {kind} of {name}"
        for kind in ("requests", "limits")
        for name in ("cpu", "memory")
        if name not in resources.get(kind, {})
    ]
    if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities", {}).get("drop") != ["ALL"]:
        missing.append(f"{where}: keeps capabilities or may gain privileges")
    return missing


@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_container_is_no_root_and_has_requests_and_limits(folder):
    faults, num_pods = [], 0
    for manifest in render(folder):
        for path, metadata, spec in find_pods(manifest):
            num_pods += 1
            faults += find_open_ends(path, spec, metadata["labels"]["raydistill/role"] == "head")
        for cluster in find_clusters(manifest):
            faults += find_loose_limits("autoscaler", cluster["autoscalerOptions"])
    assert faults == []
    assert num_pods == 6  # submitter, two heads, teacher, trainer, student


def test_open_ends_are_found_when_there_are_some():
    spec = {"containers": [{"name": "a", "resources": {"limits": {"cpu": 1}}}], "securityContext": {"runAsUser": 0}}
    faults = find_open_ends("pod", spec, is_head=False)
    assert len(faults) == 6, faults


@pytest.mark.parametrize("folder", OVERLAYS)
def test_workers_of_the_job_start_at_none_and_every_cluster_asks_for_a_token(folder):
    manifests = render(folder)
    clusters = [cluster for manifest in manifests for cluster in find_clusters(manifest)]
    assert len(clusters) == 2
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"] is True
        groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        if "student" not in groups:
            assert {name: group["minReplicas"] for name, group in groups.items()} == {"teacher": 0, "trainer": 0}


def test_files_of_rays_kinds_are_named_after_kind_and_variant():
    for file in K8S.glob("**/ray*.yaml"):
        assert re.fullmatch(r"ray-(cluster|job|service)\.[a-z-]+\.yaml", file.name), file
    for file in K8S.glob("**/*.yaml"):
        documents = [item for item in yaml.safe_load_all(file.read_text()) if isinstance(item, dict)]
        for kind in {item.get("kind", "") for item in documents if item.get("apiVersion", "").startswith("ray.io/")}:
            assert file.name.startswith(f"ray-{kind.removeprefix('Ray').lower()}."), file
