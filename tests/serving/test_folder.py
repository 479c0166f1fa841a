"""Folders of dead replicas are removed, those of living ones never."""

import os
import subprocess
import sys
import tempfile
import time

import pytest

from raydistill.serving import folder
from raydistill.serving.folder import PrivateFolder


@pytest.fixture
def where(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def age(path):
    old = time.time() - 2 * folder.GRACE_SECONDS
    os.utime(path, (old, old))


def test_a_folder_goes_with_the_next_replica_once_its_own_is_dead(where):
    code = "from raydistill.serving.folder import PrivateFolder as F; f = F(); print(f.path, flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    theirs = where / owner.stdout.readline().strip()
    (theirs / "adapter").mkdir()
    age(theirs)
    ours = PrivateFolder()
    assert theirs.exists(), "its owner lives"
    owner.kill()
    owner.wait()
    again = PrivateFolder()
    assert not theirs.exists()
    assert ours.path.exists() and again.path.exists() and ours.path != again.path


def test_a_folder_that_was_just_made_is_left_alone(where):
    young = where / f"{folder.PREFIX}young"
    young.mkdir()
    PrivateFolder()
    assert young.exists(), "its owner may be about to lock it"
    age(young)
    PrivateFolder()
    assert not young.exists()
