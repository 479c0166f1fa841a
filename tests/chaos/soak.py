"""Many runs of create_data under faults, one after another; what was run before, of the same code, is not run again.

    python -m tests.chaos.soak --seeds 34 [--first 0] [--teacher vllm] [--results soak.json]

Each seed is a run in which every kind of fault strikes once, so 34 seeds are 204 kills. A run mostly waits: with
--first and --results, two halves of the seeds can run side by side. Prints the failures, and the
share of failing runs that is ruled out with 95 % confidence (the exact bound of Clopper and Pearson), as JSON.
"""

import argparse
import dataclasses
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.chaos.arena import open_arena
from tests.chaos.run import ENGINE_KINDS, KINDS, run
from tests.processes import ROOT
from tests.tiny import make_tiny_model

HASH_ROWS, ENGINE_ROWS = 240, 900  # an engine answers many between two commits
AWAY_SECONDS = 30.0  # that the object store is


def main() -> None:
    """Run the seeds that have no result yet, and print what all came to; status 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=34)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--teacher", choices=("hash", "vllm"), default="hash")
    parser.add_argument("--results", type=Path, default=Path("soak.json"))
    arguments = parser.parse_args()
    commit = _find_commit()
    results = read_results(arguments.results, commit)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    for seed in seeds:
        if str(seed) not in results:
            results[str(seed)] = _run(seed, arguments.teacher)
            arguments.results.write_text(json.dumps({"commit": commit, "results": results}, indent=2))
    wanted = [results[str(seed)] for seed in seeds]
    failures = {seed: result for seed, result in results.items() if result["wrong"]}
    summary = {
        "runs": len(wanted),
        "faults": sum(len(result.get("faults", ())) for result in wanted),
        "failures": failures,
        "failing_share_at_most_95": round(upper_bound(sum(bool(result["wrong"]) for result in wanted), len(wanted)), 4),
    }
    print(json.dumps(summary, indent=2))
    raise SystemExit(bool(failures))


def _find_commit() -> str:
    """Return which commit is run, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def read_results(file: Path, commit: str) -> dict[str, Any]:
    """Return what an earlier soak of a commit came to, by seed; SystemExit where the file's is of other code."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    if found.get("commit") != commit or commit.endswith("-dirty"):
        raise SystemExit(f"{file}: a soak of {found.get('commit')}, this is {commit}. Move it away, or name --results.")
    return found["results"]


def _run(seed: int, teacher: str) -> dict[str, Any]:
    kinds = KINDS if teacher == "hash" else ENGINE_KINDS
    with tempfile.TemporaryDirectory(prefix="raydistill-soak-") as name:
        folder = Path(name)
        try:
            with open_arena(folder, teacher, AWAY_SECONDS) as arena:
                rows = HASH_ROWS if teacher == "hash" else ENGINE_ROWS
                return dataclasses.asdict(run(arena, make_tiny_model(folder / "model"), seed, kinds, rows))
        except Exception as error:  # noqa: BLE001 - a run that does not end is a failure like any other
            return {"wrong": [repr(error)]}


def upper_bound(num_failures: int, num_runs: int, confidence: float = 0.95) -> float:
    """Return the largest share of failures that is compatible with what was seen, at this confidence, one-sided.

    Source: Clopper and Pearson, The use of confidence or fiducial limits (1934).
    """
    from scipy.stats import beta

    if num_failures == num_runs:
        return 1.0
    return float(beta.ppf(confidence, num_failures + 1, num_runs - num_failures))


if __name__ == "__main__":
    main()
