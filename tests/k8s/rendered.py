"""The manifests as `kubectl apply -k` would send them, and KubeRay's definitions to hold them against."""

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.processes import ROOT, find_program

K8S = ROOT / "k8s"
OVERLAYS = sorted(file.parent.relative_to(K8S).as_posix() for file in K8S.glob("**/kustomization.yaml"))

Manifest = dict[str, Any]


@functools.cache
def render(folder: str) -> list[Manifest]:
    """Return the manifests of a folder below k8s/; skips where there is no kubectl."""
    kubectl = find_program("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not at hand: it renders the overlays")
    done = subprocess.run([kubectl, "kustomize", K8S / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def select(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the manifests of a kind by name."""
    return {item["metadata"]["name"]: item for item in manifests if item["kind"] == kind}


def is_kuberay(manifest: Manifest) -> bool:
    return manifest["apiVersion"].startswith("ray.io/")


@functools.cache
def load_definition(kind: str) -> dict[str, Any]:
    """Return KubeRay's schema of a kind, closed: what it does not name is refused, as `kubectl apply` does."""
    default = ROOT.parent / "shared" / "kuberay-crds"
    folder = Path(os.environ.get("RAYDISTILL_KUBERAY_CRDS") or default)
    file = folder / f"ray.io_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"{file} is not there: RAYDISTILL_KUBERAY_CRDS names the folder of KubeRay's definitions")
    definition = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (item for item in definition["spec"]["versions"] if item["name"] == "v1")
    schema = _close(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which the definition leaves open
    return schema


def _close(schema: Any) -> Any:
    """Return a schema in which objects with known properties have no others."""
    if isinstance(schema, list):
        return [_close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _close(value) for key, value in schema.items()}
    is_open = closed.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in closed
    if isinstance(closed.get("properties"), dict) and closed.get("type") == "object" and not is_open:
        closed["additionalProperties"] = False
    return closed


def find_definition_faults(manifest: Manifest) -> list[str]:
    """Return what KubeRay's definition of its kind does not allow in a manifest."""
    validator = jsonschema.Draft202012Validator(load_definition(manifest["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def find_pods(value: Any, path: str = "") -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yield (path, metadata, spec) of every pod template inside a manifest."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from find_pods(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield path, value.get("metadata", {}), value["spec"]
        for key, item in value.items():
            yield from find_pods(item, f"{path}.{key}")


def find_clusters(value: Any) -> Iterator[Manifest]:
    """Yield the specification of every Ray cluster inside a manifest."""
    if isinstance(value, dict):
        if "headGroupSpec" in value:
            yield value
        for item in value.values():
            yield from find_clusters(item)
