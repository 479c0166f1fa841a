"""A place to run create_data at: one folder with a model, P and queries, and what is there afterwards."""

from pathlib import Path
from typing import Any

from jobs.data_config import CreateDataConfig
from tests.jsonl import write_jsonl


class Desk:
    """One folder with a model, P and queries, and configs made of them."""

    def __init__(self, folder: Path, model_dir: str, texts: list[str]) -> None:
        self.folder = folder
        self.prompt = folder / "prompt.md"
        self.prompt.write_text("Be brief.")
        self.queries = write_jsonl(folder / "queries.jsonl", *({"text": text} for text in texts))
        self.model_dir = model_dir
        self.output = folder / "dataset"

    def config(self, **changes: Any) -> CreateDataConfig:
        values: dict[str, Any] = {
            "output_file": str(self.output),
            "teacher_model": self.model_dir,
            "num_examples": 10,
            "queries": str(self.queries),
            "prompt": str(self.prompt),
            "commit_rows": 8,
            "concurrency": 8,  # with commit_rows it decides how many actors there are: two
            "max_tokens": 40,
        }
        return CreateDataConfig(**{**values, **changes})


def num_asked(log: Path) -> int:
    """Return how many rows the hash teacher was asked, by its log."""
    return len(log.read_text().split()) if log.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, the lock apart."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
