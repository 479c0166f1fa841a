"""What the manifests name exists: modules, files, settings, images, accounts, secrets, services, pods."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from jobs import distill
from tests.k8s.rendered import OVERLAYS, ROOT, Manifest, find_clusters, find_pods, render, select

IMAGE_DIR = "/app"  # WORKDIR of cluster/Dockerfile
BUILT_BY_KUBERNETES = {"kuberay-operator"}


def read_settings(job: Manifest) -> distill.Settings:
    """Return the settings that a RayJob's command gives the job, read as the job reads them."""
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert [program, *arguments[:2]] == ["python", "-m", "jobs.distill"]
    task, *overrides = arguments[2:]
    assert f"WORKDIR {IMAGE_DIR}\n" in (ROOT / "cluster/Dockerfile").read_text()
    return distill.read_settings([str(ROOT / Path(task).relative_to(IMAGE_DIR)), *overrides])


def read_serve(service: Manifest) -> tuple[ServeDeploySchema, Any]:
    """Return a RayService's Serve configuration and its arguments, checked by the application's own config."""
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (app,) = schema.applications
    module, _, name = app.import_path.partition(":")
    room = importlib.import_module(module)
    assert callable(getattr(room, name))
    return schema, room.StudentConfig.model_validate(app.args)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_job_and_student_agree(folder):
    manifests = render(folder)
    (job,) = select(manifests, "RayJob").values()
    ((name, service),) = select(manifests, "RayService").items()
    settings, (schema, student) = read_settings(job), read_serve(service)
    assert settings.student.url == f"http://{name}-serve-svc:{schema.http_options.port}"
    assert settings.task.storage == student.storage
    assert settings.task.storage.startswith("s3://")
    assert settings.task.student_model == student.model
    assert settings.train.lora_rank <= student.max_lora_rank


@pytest.mark.parametrize("folder", OVERLAYS)
def test_job_knows_what_its_cluster_can_grow_to(folder):
    manifests = render(folder)
    (job,) = select(manifests, "RayJob").values()
    settings = read_settings(job)
    selected = job["spec"].get("clusterSelector", {}).get("ray.io/cluster")
    (cluster,) = find_clusters(select(manifests, "RayCluster")[selected] if selected else job)
    groups = cluster["workerGroupSpecs"]
    head_cpus = int(cluster["headGroupSpec"]["rayStartParams"]["num-cpus"])
    cpus = head_cpus + sum(int(group["rayStartParams"]["num-cpus"]) * group["maxReplicas"] for group in groups)
    gpus = sum(
        int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
        * group["maxReplicas"]
        for group in groups
    )
    assert (settings.cluster.max_cpus, settings.cluster.max_gpus or 0) == (cpus, gpus)
    assert distill._logical_cpus(settings) <= cpus
    assert head_cpus >= 1, "the proof of a new version runs on the head"
    on_gpu = bool(gpus)
    assert (settings.teacher.accelerator == "gpu", settings.train.use_gpu is True) == (on_gpu, on_gpu)
    assert gpus == 0 or settings.train.num_workers + 1 <= gpus


def find_references(spec: Manifest) -> dict[str, set[str]]:
    """Return the names of other objects in a pod's specification, by kind; a secret with its key."""
    found: dict[str, set[str]] = {"ServiceAccount": {spec["serviceAccountName"]}}
    found["PersistentVolumeClaim"] = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in spec.get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    containers = spec["containers"]
    sources = [source for container in containers for source in container.get("envFrom", [])]
    found["ConfigMap"] = {source["configMapRef"]["name"] for source in sources}
    refs = [entry["valueFrom"]["secretKeyRef"] for item in containers for entry in item.get("env", [])]
    found["Secret"] = {f"{ref['name']}/{ref['key']}" for ref in refs}
    for container in containers:
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in spec.get("volumes", [])}
    return found


def documented_secrets() -> set[str]:
    """Return name/key of each secret that docs/kubernetes.md creates."""
    text = (ROOT / "docs/kubernetes.md").read_text()
    commands = re.findall(r"create secret generic (\S+) (.+)", text)
    return {f"{name}/{key}" for name, rest in commands for key in re.findall(r"--from-literal=(\w+)=", rest)}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_accounts_settings_volumes_and_secrets_are_declared(folder):
    manifests = render(folder)
    pods = [spec for manifest in manifests for _, _, spec in find_pods(manifest)]
    for kind in ("ServiceAccount", "ConfigMap", "PersistentVolumeClaim"):
        named = set().union(*(find_references(spec)[kind] for spec in pods))
        assert named == set(select(manifests, kind)), kind
    assert set().union(*(find_references(spec)["Secret"] for spec in pods)) == documented_secrets()
    assert {item["metadata"].get("namespace") for item in manifests if item["kind"] != "Namespace"} == {"raydistill"}
    assert set(select(manifests, "Namespace")) == {"raydistill"}


@pytest.mark.parametrize("folder", [name for name in OVERLAYS if name != "base"])
def test_images_are_targets_of_the_dockerfile_at_this_version(folder):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "cluster/Dockerfile").read_text(), re.MULTILINE)
    images = {
        container["image"]
        for manifest in render(folder)
        for _, _, spec in find_pods(manifest)
        for container in spec["containers"]
    }
    (image,) = images
    assert image in {f"raydistill:{version}-{stage}" for stage in stages}
    text = (ROOT / "docs/kubernetes.md").read_text()
    assert image in text


@pytest.mark.parametrize("folder", OVERLAYS)
def test_policies_select_pods_and_ports_that_exist(folder):
    manifests = render(folder)
    pods = [(metadata["labels"], spec) for manifest in manifests for _, metadata, spec in find_pods(manifest)]
    values = {(key, value) for labels, _ in pods for key, value in labels.items()}
    values.add(("raydistill/client", "true"))  # a client's own label
    for name, policy in select(manifests, "NetworkPolicy").items():
        text = yaml.safe_dump(policy["spec"])
        for key, value in re.findall(r"(raydistill/\w+): '?(\w+)'?", text):
            assert (key, value) in values, f"{name}: no pod has {key}: {value}"
        for selected in re.findall(r"app.kubernetes.io/name: (\S+)", text):
            assert selected in BUILT_BY_KUBERNETES
    assert select(manifests, "NetworkPolicy")["deny-all"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    declared = {port["containerPort"] for _, spec in pods for c in spec["containers"] for port in c.get("ports", [])}
    opened = {
        port["port"]
        for policy in select(manifests, "NetworkPolicy").values()
        for rule in policy["spec"].get("ingress", [])
        for port in rule.get("ports", [])
    }
    assert opened <= declared


def test_every_overlay_and_file_of_the_documentation_exists():
    text = (ROOT / "docs/kubernetes.md").read_text()
    for path in re.findall(r"\b(?:k8s|cluster|jobs)/[\w./-]*[\w/]", text):
        assert (ROOT / path).exists(), path
    for name in OVERLAYS:
        assert name == "base" or f"`{name.removeprefix('overlays/')}`" in text
