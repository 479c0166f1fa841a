"""The floors of the tree: imports, late ones too, point down only; stages are blind; heavy packages stay at home."""

import ast
from pathlib import Path

import pytest

from tests.processes import ROOT, run_code

FLOORS = {
    "raydistill.types": 0,
    "raydistill.core": 1,
    "raydistill.renderers": 2,  # design.md counts it to floor 1; it stands on core, and core never on it
    "raydistill.registry": 3,
    "raydistill.engine": 3,
    "raydistill.scoring": 3,
    "raydistill.queries": 4,
    "raydistill.teacher": 4,
    "raydistill.dataset": 4,
    "raydistill.training": 4,
    "raydistill.serving": 4,
    "raydistill.client": 4,
    "raydistill.evaluation": 4,
    "raydistill": 5,  # the public surface, raydistill/__init__.py itself
    "jobs": 6,
    "raydistill.cli": 7,  # hands the heavy part of a command to a job
}
HEAVY = {"ray", "torch", "vllm", "deepspeed"}
LIGHT_ROOMS = (
    "raydistill.types",
    "raydistill.core",
    "raydistill.renderers",
    "raydistill.registry",
    "raydistill.client",
    "raydistill.queries",
)
HOMES = {  # where a package may be imported at all
    "vllm": {"raydistill.engine"},
    "deepspeed": {"raydistill.training"},
    "peft": {"raydistill.training", "raydistill.scoring"},
}

Import = tuple[str, int, str]  # importing module, line, imported dotted name


def read_modules(root: Path) -> dict[str, Path]:
    """Return every module of the project by dotted name."""
    files = [*root.glob("raydistill/**/*.py"), *root.glob("jobs/**/*.py")]
    names = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def read_imports(modules: dict[str, Path]) -> list[Import]:
    """Return every import statement, wherever it stands; a name that is a module counts as that module."""
    found = []
    for module, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno}: a relative import"
                for alias in node.names:
                    dotted = f"{node.module}.{alias.name}"
                    found.append((module, node.lineno, dotted if dotted in modules else str(node.module)))
            elif isinstance(node, ast.Call) and _is_dynamic(node):
                name = node.args[0]
                assert isinstance(name, ast.Constant), f"{file}:{node.lineno}: an import whose name is computed"
                found.append((module, node.lineno, str(name.value)))
    return found


def _is_dynamic(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__") and bool(node.args)


def room(module: str) -> str:
    """Return the package that has a floor: the first two parts of raydistill's modules, `jobs` of the jobs'."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "raydistill" else parts[0]


def find_arrows(imports: list[Import]) -> list[str]:
    """Return each import that points up, sideways to another room, or to a room without a floor."""
    wrong = []
    for module, line, target in imports:
        if target.split(".")[0] not in ("raydistill", "jobs"):
            continue
        here, there = room(module), room(target)
        if here not in FLOORS or there not in FLOORS:
            wrong.append(f"{module}:{line} imports {target}: {here if here not in FLOORS else there} has no floor")
        elif here != there and FLOORS[there] >= FLOORS[here]:
            wrong.append(
                f"{module}:{line} imports {target}: floor {FLOORS[here]} may not look at floor {FLOORS[there]}"
            )
    return wrong


def find_heavy(imports: list[Import]) -> list[str]:
    """Return each heavy import in a room that has to stay light, or outside its package's only home."""
    wrong = []
    for module, line, target in imports:
        package, here = target.split(".")[0], room(module)
        is_light = here in LIGHT_ROOMS or here == "raydistill"
        if (package in HEAVY and is_light) or (package in HOMES and here not in HOMES[package]):
            wrong.append(f"{module}:{line} imports {target}")
    return wrong


def find_circle(imports: list[Import], modules: dict[str, Path]) -> list[str]:
    """Return the modules of one circle, in order; none where there is no circle."""
    edges: dict[str, set[str]] = {module: set() for module in modules}
    for module, _, target in imports:
        if target in modules and target != module:
            edges[module].add(target)
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges[module]):
            if circle := walk(target, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(modules) if (circle := walk(module, []))), [])


@pytest.fixture(scope="module")
def modules():
    found = read_modules(ROOT)
    assert "raydistill.core.records" in found and "jobs.task" in found
    return found


@pytest.fixture(scope="module")
def imports(modules):
    return read_imports(modules)


def test_imports_point_down_only(imports):
    assert find_arrows(imports) == []


def test_heavy_packages_stay_in_their_rooms(imports):
    assert find_heavy(imports) == []


def test_modules_form_no_circle(imports, modules):
    assert find_circle(imports, modules) == []


def test_every_package_says_what_it_takes_and_gives():
    for folder in [ROOT / "raydistill", *(ROOT / "raydistill").glob("*/")]:
        if not list(folder.glob("*.py")):
            continue
        tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        docstring = ast.get_docstring(tree) or ""
        assert docstring.startswith("Takes ") and " Gives " in docstring, folder
        has_surface = folder.name in ("raydistill", "renderers")
        assert has_surface or len(tree.body) == 1, f"{folder}/__init__.py holds more than its docstring"


def test_jobs_load_nothing_heavy_before_their_config_is_valid(modules):
    jobs = sorted(
        module
        for module, file in modules.items()
        if module.startswith("jobs.") and '__name__ == "__main__"' in file.read_text(encoding="utf-8")
    )
    assert len(jobs) >= 5
    code = (
        "import importlib, sys\n"
        f"for job in {jobs!r}:\n"
        "    importlib.import_module(job)\n"
        f"    loaded = {HEAVY!r} & set(sys.modules)\n"
        "    assert not loaded, f'{job} loads {loaded}'\n"
    )
    run_code(code)


def test_checks_find_what_they_look_for_when_it_is_there(tmp_path):
    files = {
        "raydistill/core/a.py": "def f():\n    from raydistill.teacher import ask\n",
        "raydistill/teacher/__init__.py": "",
        "raydistill/teacher/ask.py": "import raydistill.dataset.read\nimport vllm.config\n",
        "raydistill/dataset/read.py": "from raydistill.dataset import write\n",
        "raydistill/dataset/write.py": "def f():\n    import raydistill.dataset.read\n",
        "raydistill/client/c.py": "import importlib\ndef f():\n    importlib.import_module('torch.nn')\n",
        "raydistill/attic/x.py": "from raydistill.core import a\n",
        "jobs/run.py": "from raydistill.teacher import ask\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    modules = read_modules(tmp_path)
    imports = read_imports(modules)
    assert [text.split(":")[0] for text in sorted(find_arrows(imports))] == [
        "raydistill.attic.x",
        "raydistill.core.a",
        "raydistill.teacher.ask",
    ]
    assert sorted(find_heavy(imports)) == [
        "raydistill.client.c:3 imports torch.nn",
        "raydistill.teacher.ask:2 imports vllm.config",
    ]
    circle = find_circle(imports, modules)
    assert circle == ["raydistill.dataset.read", "raydistill.dataset.write", "raydistill.dataset.read"]
