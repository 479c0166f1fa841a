"""Every command, file and name that README shows exists."""

import ast
import importlib
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer

from raydistill.cli.app import app

ROOT = Path(__file__).parent.parent
SYSTEM_COMMANDS = {"cd", "git", "curl", "export", "pip", "source", "."}
PLACEHOLDER = re.compile(r"\b[A-Z]+\b|[*<>$~{}]")  # NAME, v*, ~/.cache: not a file of the tree


@dataclass
class Tree:
    """What a README may name: a folder's files, and those that its own commands have made."""

    root: Path
    made: set[str] = field(default_factory=set)

    def has_file(self, name: str) -> bool:
        return name in self.made or (self.root / name).exists()

    def has_module(self, name: str) -> bool:
        path = self.root.joinpath(*name.split("."))
        return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()

    def has_target(self, name: str) -> bool:
        makefile = self.root / "Makefile"
        text = makefile.read_text(encoding="utf-8") if makefile.is_file() else ""
        return re.search(rf"^{re.escape(name)}:", text, re.MULTILINE) is not None


def read_blocks(text: str, *languages: str) -> list[str]:
    """Return the contents of the fenced blocks in these languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [content for language, content in blocks if language in languages]


def read_commands(text: str) -> list[list[str]]:
    """Return the commands in the shell blocks, as words, without comments, prompts and environment settings."""
    commands = []
    for block in read_blocks(text, "sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            command: list[str] = []
            for word in [*shlex.split(line.removeprefix("$ "), comments=True), "&&"]:
                if word in ("&&", "||", "|", ";"):
                    commands += [command] if command else []
                    command = []
                elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
                    command.append(word)
    return commands


def find_faults(command: list[str], tree: Tree) -> list[str]:
    """Return what a command names that does not exist."""
    program, arguments = Path(command[0]).name, command[1:]
    files = [word.rpartition("=")[2] for word in arguments if word.endswith(".toml")]
    faults = [f"no file {name}" for name in files if not tree.has_file(name)]
    if program == "make":
        targets = [word for word in arguments if "=" not in word and not word.startswith("-")]
        return faults + [f"no make target {name}" for name in targets if not tree.has_target(name)]
    if program in ("python", "python3"):
        if arguments[:1] == ["-m"]:
            return faults + ([] if tree.has_module(arguments[1]) else [f"no module {arguments[1]}"])
        return faults + [f"no file {word}" for word in arguments[:1] if not tree.has_file(word)]
    if program == "raydistill":
        known = typer.main.get_command(app).commands
        return faults + [f"no command raydistill {word}" for word in arguments[:1] if word not in known]
    if program in ("cp", "mv"):
        tree.made.add(arguments[-1])
        return [f"no file {word}" for word in arguments[:-1] if not tree.has_file(word)]
    if program == "kubectl":
        places = [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if word in ("-k", "-f")]
        return [f"no file {word}" for word in places if not PLACEHOLDER.search(word) and not tree.has_file(word)]
    if program == "ray" and "--" in arguments:
        return find_faults(arguments[arguments.index("--") + 1 :], tree)
    if "/" in command[0]:
        return faults + ([] if tree.has_file(command[0]) else [f"no file {command[0]}"])
    return faults if program in SYSTEM_COMMANDS else [f"{program}: a command this test does not know"]


def find_inline_faults(text: str, tree: Tree) -> list[str]:
    """Return the make targets and paths in inline code that do not exist."""
    faults = []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", prose):
        if match := re.fullmatch(r"make ([\w-]+)", code):
            faults += [] if tree.has_target(match[1]) else [f"no make target {match[1]}"]
        elif re.match(r"(jobs|raydistill|tests|cluster|k8s|\.ci)/", code) and not PLACEHOLDER.search(code):
            faults += [] if tree.has_file(code) or tree.has_file(f"{code}.py") else [f"no file {code}"]
    return faults


def find_tree_faults(text: str, tree: Tree) -> list[str]:
    """Return the entries of the drawn tree (two spaces deeper: below the folder above) that do not exist."""
    faults = []
    for block in read_blocks(text, ""):
        if not re.match(r"raydistill/\s*$", block, re.MULTILINE):
            continue
        folder = ""
        for line in block.splitlines():
            indent, name = line[: len(line) - len(line.lstrip())], (line.split() or [""])[0]
            if not indent:
                folder = name if name.endswith("/") else ""
            if len(indent) <= 2 and name and not tree.has_file((folder if indent else "") + name):
                faults.append(f"no file {folder if indent else ''}{name}")
    return faults


def find_name_faults(block: str) -> list[str]:
    """Return the names of `raydistill`, and of its modules that a Python block imports, that do not exist."""
    tree = ast.parse(block)
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    pairs = [(node.value.id, node.attr) for node in used if isinstance(node.value, ast.Name)]
    return [
        f"no {name}.{attribute}" for name, attribute in pairs if name in known and not hasattr(known[name], attribute)
    ]


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_of_readme_names_what_exists(readme):
    commands = read_commands(readme)
    assert [command for command in commands if command[0] == "make"], "README shows no make command"
    tree = Tree(ROOT)
    faults = {shlex.join(command): found for command in commands if (found := find_faults(command, tree))}
    assert faults == {}


def test_every_path_and_target_in_readmes_text_exists(readme):
    tree = Tree(ROOT)
    assert find_inline_faults(readme, tree) + find_tree_faults(readme, tree) == []


def test_readmes_tree_names_every_folder(readme):
    (tree,) = (block for block in read_blocks(readme, "") if "\njobs/ " in block)
    ours = (path for end in ("py", "md", "sh", "yaml") for path in ROOT.glob(f"[a-z]*/*.{end}"))
    folders = {path.relative_to(ROOT).parts[0] for path in ours}
    assert "docs" in folders
    assert [name for name in sorted(folders) if f"\n{name}/" not in f"\n{tree}"] == []


def test_make_clean_keeps_what_readmes_commands_write(readme):
    words = [word for command in read_commands(readme) for word in command]
    written = [value for key, _, value in (word.partition("=") for word in words) if key == "output_dir"]
    assert written
    done = subprocess.run(["make", "--dry-run", "clean"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "rm " in done.stdout
    assert not {place.partition("/")[0] for place in written} & set(done.stdout.split())


def test_every_python_name_of_readme_exists(readme):
    blocks = read_blocks(readme, "python")
    assert blocks, "README shows no Python"
    assert [fault for block in blocks for fault in find_name_faults(block)] == []


def test_checks_find_what_is_missing(tmp_path):
    (tmp_path / "Makefile").write_text("demo:\n\ttrue\n")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text("")
    text = """
Run `make demo`, not `make dmeo`; see `jobs/train`, `jobs/trian` and `jobs/NAME`.

```sh
make demo TASK=lost.toml && make test   # a comment
KEY=1 python -m jobs.train absent.toml a=1 \\
  b=2
python -m jobs.evaluate
cp jobs/train.py my.toml
.venv/bin/python -m jobs.train my.toml
./run.sh
.venv/bin/raydistill promote triage v0002
raydistill premote triage v0002
kubectl apply -k k8s/base
ray job submit --working-dir . -- python -m jobs.nothing
frobnicate now
curl -s http://127.0.0.1:8000/status
```

```
raydistill/
  core/   what
jobs/     the jobs
```
"""
    tree = Tree(tmp_path)
    assert [fault for command in read_commands(text) for fault in find_faults(command, tree)] == [
        "no file lost.toml",
        "no make target test",
        "no file absent.toml",
        "no module jobs.evaluate",
        "no file ./run.sh",
        "no command raydistill premote",
        "no file k8s/base",
        "no module jobs.nothing",
        "frobnicate: a command this test does not know",
    ]
    assert find_inline_faults(text, tree) == ["no make target dmeo", "no file jobs/trian"]
    assert find_tree_faults(text, tree) == ["no file raydistill/", "no file raydistill/core/"]
    block = "import raydistill\nfrom raydistill import types as t\nraydistill.Nope()\nt.ModelInput, t.Other\n"
    assert find_name_faults(block) == ["no raydistill.Nope", "no t.Other"]
