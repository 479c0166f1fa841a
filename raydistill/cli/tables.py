"""The commands' documents as tables, 80 columns wide where nobody says otherwise."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Document = dict[str, Any]


def _make_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _print(table: Table, title: str = "") -> None:
    console = Console(highlight=False, soft_wrap=False)
    if title:
        console.print(Text(title), soft_wrap=True)
    console.print(table)


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(text: str | None) -> str:
    return (text or "").partition(".")[0].replace("T", " ") or "?"


def show_versions(document: Document) -> None:
    """Print a model's versions."""
    right = ("rank", "size", "loss", "probe")
    table = _make_table("version", "aliases", "rank", "size", "loss", "probe", "dataset", "", right=right)
    for entry in document["versions"]:
        names = Text(", ".join(entry["aliases"]))
        if entry["state"] != "published":
            table.add_row(entry["version"], names, "", "", "", "", "", entry["state"])
            continue
        metrics = entry["metrics"]
        losses = (metrics.get("validation_loss_nats"), metrics.get("train_loss_nats"), "")
        loss = next(loss for loss in losses if loss is not None)
        table.add_row(
            entry["version"],
            names,
            str(entry["rank"]),
            _size(entry["bytes"]),
            _number(loss),
            f"{entry['probe_shift_nats']:.2f}",
            Text(entry["dataset_fingerprint"][:8]),
            "" if entry["verifiable"] else "unverifiable",
        )
    _print(table, document["model"])
    for entry in document["versions"]:
        if "reason" in entry:
            Console().print(Text(f"{entry['version']}: {entry['reason']}"))


def show_aliases(document: Document) -> None:
    """Print where a model's aliases point."""
    table = _make_table("alias", "version", "since (UTC)", "by")
    for alias, pointer in document["aliases"].items():
        table.add_row(alias, pointer["version"], _time(pointer["since"]), Text(pointer["by"] or "?"))
    _print(table, document["model"])


def show_history(document: Document) -> None:
    """Print every move of a model's aliases, and every deletion."""
    table = _make_table("time (UTC)", "alias", "from", "to", "by")
    for move in document["history"]:
        target = move["to"] or "deleted"
        by = Text(move.get("by") or "?")
        table.add_row(_time(move["time"]), move["alias"] or "", move["from"] or "", target, by)
    _print(table, document["model"])


def show_version(document: Document) -> None:
    """Print one version's record: facts, metrics and files."""
    record = document["record"]
    lora, probe = record["lora"], f"{len(record['probe'])} points, {document['probe_shift_nats']:.2f} nat"
    facts = {
        "served as": document["served_as"],
        "aliases": ", ".join(document["aliases"]) or "none",
        "base model": record["base_model"],
        "base revision": record["base_revision"],
        "LoRA": f"rank {lora['rank']}, alpha {lora['alpha']}, {lora['modules']} modules",
        "renderer": f"{record['renderer']} (template {record['template_digest']})",
        "dataset": record["dataset_fingerprint"] or "unknown",
        "prompt": record["prompt_digest"] or "unknown",
        "probe": probe if record["verifiable"] else f"{probe}: unverifiable",
    }
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key, Text(str(value)))
    _print(table, f"{document['model']}/{document['version']}")
    metrics = _make_table("metric", "value", right=("value",))
    for key, value in _flatten(record["metrics"]).items():
        metrics.add_row(Text(key), Text(_number(value)))
    _print(metrics)
    files = _make_table("file", "size", "SHA-256", right=("size",))
    for entry in record["files"]:
        files.add_row(Text(entry["name"]), _size(entry["bytes"]), entry["sha256"][:16])
    _print(files)


def _flatten(values: Document, prefix: str = "") -> Document:
    flat: Document = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def show_move(document: Document) -> None:
    """Print what a promotion or a rollback did."""
    alias, old, new = f"{document['name']}/{document['alias']}", document["from"], document["to"]
    moved = f"{alias} is {new} already" if old == new else f"{alias}: {old or 'nothing'} -> {new}"
    served = {None: "", True: "; every replica serves it", False: "; no replica runs, the next one loads it first"}
    Console(highlight=False).print(Text(moved + served[document["served"]]), soft_wrap=True)


def show_status(document: Document) -> None:
    """Print what each replica serves, and what it refused and why."""
    replicas = document.get("replicas") or [document]
    table = _make_table("replica", "alias", "served version")
    refused = _make_table("refused", "why")
    reasons: Document = {}
    for index, replica in enumerate(replicas):
        name = Text(str(replica.get("replica") or index + 1))
        aliases = replica.get("aliases", {})
        for alias, exact in aliases.items():
            table.add_row(name, Text(alias), Text(exact))
        if not aliases and not document.get("asleep"):
            table.add_row(name, "none", Text(f"{document['base_model']} (base model)"))
        if replica.get("storage_error"):
            since = f" (since {_time(replica.get('storage_error_since'))})"
            table.add_row(name, "storage", Text(replica["storage_error"] + since))
        for label, reason in replica.get("unread", {}).items():
            table.add_row(name, "cannot read", Text(f"{label}: {reason}"))
        for label, since in replica.get("loading", {}).items():
            table.add_row(name, "loading", Text(f"{label} (since {_time(since)})"))
        reasons |= replica.get("refused", {})
    what = document.get("asleep") or f"{document['base_model']} on {len(replicas)} replicas"
    _print(table, f"{document['url']}: {what}")
    for label, reason in sorted(reasons.items()):
        refused.add_row(Text(label), Text(reason))
    if reasons:
        _print(refused)
