"""Wrong versions by the dozen from a fixed seed: none passes the gate, and none ends in another error than ours."""

import os
import random
import shutil

import pytest

from raydistill.core.errors import NotFoundError, VerificationError
from raydistill.core.records import ProbePoint
from raydistill.registry.check import check_version
from raydistill.registry.fetch import fetch_version
from raydistill.registry.publish import publish
from raydistill.registry.versions import read_version
from tests.drafts import make_tiny_draft
from tests.registry.mutants import MUTANTS
from tests.registry.version_copy import Copy

SEED = 6
COUNT = int(os.environ.get("RAYDISTILL_MUTANTS", "205"))  # `make soak` asks for more
MAX_RANK = 8
FEWEST_KINDS = 41


@pytest.fixture(scope="module")
def whole(model_dir, adapter_dir, tmp_path_factory):
    """A version that is right, and a folder for copies of it."""
    root = tmp_path_factory.mktemp("mutants")
    probe = [ProbePoint([1, 2, index], index + 3, -9.0, -1.0) for index in range(4)]
    publish(str(root / "whole" / "triage"), make_tiny_draft(model_dir, probe=probe), adapter_dir)
    return root


def copy_version(root, name):
    """Return the registry folder of a model that holds a copy of the version."""
    shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(root / "whole" / "triage", root / name / "triage")
    return root / name / "triage"


def pass_gate(uri, model_dir, cache):
    """Do what a replica does before an engine sees a version."""
    version = read_version(str(uri), "v0001")
    folder = fetch_version(str(uri), version, cache)
    check_version(version, folder, model_dir, MAX_RANK)


def test_the_copy_passes_unchanged_and_sealed_anew(whole, model_dir):
    uri = copy_version(whole, "unchanged")
    pass_gate(uri, model_dir, whole / "cache")
    copy = Copy(uri / "v0001")
    copy.save(copy.tensors())
    copy.change_config(lora_dropout=0.1)
    pass_gate(uri, model_dir, whole / "cache")


@pytest.mark.parametrize("number", range(COUNT))
def test_no_mutant_passes(whole, model_dir, number):
    mutate, reason = list(MUTANTS.items())[number % len(MUTANTS)]
    uri = copy_version(whole, "mutant")
    beside = sorted(path.name for path in whole.iterdir())
    mutate(Copy(uri / "v0001"), random.Random(f"{SEED}-{number}"))
    with pytest.raises((VerificationError, NotFoundError), match=reason):  # what is missing may come yet
        pass_gate(uri, model_dir, whole / "mutant" / "cache")
    assert not list(whole.rglob("pickle-was-loaded"))
    assert sorted(path.name for path in whole.iterdir()) == beside, "nothing was written outside the cache"


def test_every_kind_of_mutant_is_tried():
    assert len(MUTANTS) >= FEWEST_KINDS
    assert len(MUTANTS) <= COUNT, "RAYDISTILL_MUTANTS is too small for each kind to be tried once"
