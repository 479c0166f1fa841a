"""The Serve config files and the Dockerfile name what exists, open nothing and run as nobody special."""

import importlib
import re
import subprocess

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.processes import ROOT, find_program

SERVE_FILES = sorted((ROOT / "cluster").glob("serve.*.yaml"))


@pytest.mark.parametrize("file", SERVE_FILES, ids=lambda file: file.name)
def test_serve_file_fits_rays_schema_and_our_arguments(file):
    config = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    assert config.http_options.host == "127.0.0.1"
    assert config.http_options.port == 8000
    (app,) = config.applications
    module, _, name = app.import_path.partition(":")
    assert name == "build"
    room = importlib.import_module(module)
    config_class = {"student": "StudentConfig", "teacher": "TeacherConfig"}[app.name]
    getattr(room, config_class).model_validate(app.args)


def test_there_is_a_serve_file_for_teacher_and_student():
    assert [file.name for file in SERVE_FILES] == ["serve.student.yaml", "serve.teacher.yaml"]


def test_local_cluster_and_serve_file_agree_on_storage_and_port():
    script = (ROOT / "cluster/local.sh").read_text()
    text = (ROOT / "cluster/serve.student.yaml").read_text()
    student = yaml.safe_load(text)
    assert f"BUCKET={student['applications'][0]['args']['storage']}" in script
    assert r"SERVE_PORT=$(sed -n 's/^  port: *//p'" in script, "the port is read from the file"
    assert re.findall(r"^  port: *(.*)$", text, re.MULTILINE) == [str(student["http_options"]["port"])]


def test_dockerfile_is_pinned_copies_what_exists_and_ends_as_a_user():
    text = (ROOT / "cluster/Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    names = {name for _, name in stages}
    assert {"cpu", "gpu"} <= names
    assert all(base in names or re.search(r":\d+\.\d+\.\d+", base) for base, _ in stages)
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        sources = [word for word in line.split()[:-1] if not word.startswith("--")]
        assert [name for name in sources if not (ROOT / name).exists()] == []
    for name in ("cpu", "gpu"):
        stage = text.partition(f" AS {name}\n")[2].partition("\nFROM ")[0]
        assert re.findall(r"^USER (.+)$", stage, re.MULTILINE)[-1] == "1000:1000"


def test_dockerfile_passes_hadolint():
    hadolint = find_program("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not at hand")
    done = subprocess.run([hadolint, ROOT / "cluster/Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
