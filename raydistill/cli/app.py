"""The console script `raydistill`: the registry's versions and aliases, and what a running service serves.

Whatever is heavy, or used by one command alone, is imported when that command runs.
"""

import json
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raydistill.cli import registry, tables
from raydistill.core.errors import BAD_INPUT, RaydistillError, VerificationError

REFUSED = (*BAD_INPUT, VerificationError)
WAIT_SECONDS = 120.0


class Commands(TyperGroup):
    """Ends with a sentence on standard error and status 2 (bad input) or 1 (it failed on the way)."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except RaydistillError as error:
            typer.echo(f"error: {error.args[0] if error.args else type(error).__name__}", err=True)
            raise typer.Exit(2 if isinstance(error, REFUSED) else 1) from error


app = typer.Typer(
    cls=Commands,
    help="Look at and move what a raydistill registry holds, and see what a service serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(help="A name below ROOT/models, or the model's folder or s3:// URI.")]
Storage = Annotated[
    str,
    typer.Option(envvar="RAYDISTILL_STORAGE", help="ROOT of the registry: a folder or s3://bucket/key."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")]
Alias = Annotated[str, typer.Option(help="The alias to move.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when every replica serves the version.")]
Url = Annotated[
    str | None, typer.Option(envvar="RAYDISTILL_BASE_URL", help="The service; http://127.0.0.1:8000 by default.")
]
Timeout = Annotated[float, typer.Option(min=0, help="How long --wait waits, in seconds.")]
ROOT = ".raydistill"  # a task's own default


def _show(document: Any, as_json: bool, show: Any) -> None:
    """Print a command's result: the document itself, or what `show` makes of it."""
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        show(document)


@app.command()
def versions(model: Model, storage: Storage = ROOT, as_json: Json = False) -> None:
    """List a model's versions, and which aliases point to them."""
    uri = registry.find_model_uri(model, storage)
    _show(registry.describe_versions(uri), as_json, tables.show_versions)


@app.command()
def aliases(
    model: Model,
    storage: Storage = ROOT,
    history: Annotated[bool, typer.Option("--history", help="Every move, oldest first.")] = False,
    as_json: Json = False,
) -> None:
    """List a model's aliases, and with --history every move of them."""
    document = registry.describe_aliases(registry.find_model_uri(model, storage))
    _show(document, as_json, tables.show_history if history else tables.show_aliases)


@app.command()
def show(
    model: Model,
    version: Annotated[str, typer.Argument(help="A version like v0003, or an alias.")] = "final",
    storage: Storage = ROOT,
    as_json: Json = False,
) -> None:
    """Show one version: its record, metrics, files, dataset and aliases."""
    uri = registry.find_model_uri(model, storage)
    _show(registry.describe_version(uri, version), as_json, tables.show_version)


@app.command()
def promote(
    model: Model,
    version: Annotated[str, typer.Argument(help="A version like v0003, or another alias, like candidate.")],
    alias: Alias = "final",
    force: Annotated[bool, typer.Option("--force", help="Also a version that no replica can prove.")] = False,
    wait: Wait = False,
    url: Url = None,
    timeout: Timeout = WAIT_SECONDS,
    storage: Storage = ROOT,
    as_json: Json = False,
) -> None:
    """Point an alias at a version. Of two promotions at once one wins, the other is told so."""
    uri = registry.find_model_uri(model, storage)
    waiting = registry.Waiting(url, timeout) if wait else None
    _show(registry.promote_version(uri, version, alias, force, waiting), as_json, tables.show_move)


@app.command()
def rollback(
    model: Model,
    alias: Alias = "final",
    to: Annotated[str | None, typer.Option(help="A version that the alias named before.")] = None,
    wait: Wait = False,
    url: Url = None,
    timeout: Timeout = WAIT_SECONDS,
    storage: Storage = ROOT,
    as_json: Json = False,
) -> None:
    """Take back an alias's last move; again, and it goes one further back."""
    uri = registry.find_model_uri(model, storage)
    waiting = registry.Waiting(url, timeout) if wait else None
    _show(registry.rollback_alias(uri, alias, to, waiting), as_json, tables.show_move)


@app.command()
def delete(
    model: Model,
    version: Annotated[str, typer.Argument(help="A version like v0003.")],
    storage: Storage = ROOT,
    as_json: Json = False,
) -> None:
    """Delete a version that no alias points to. Its number is not used again."""
    from raydistill.registry.delete import delete_version

    uri = registry.find_model_uri(model, storage)
    delete_version(uri, version)
    _show({"model": uri, "deleted": version}, as_json, lambda _: typer.echo(f"{version} is deleted from {uri}"))


@app.command()
def status(url: Url = None, as_json: Json = False) -> None:
    """Show what each replica of a service serves, and what it refused and why."""
    from raydistill.cli import service

    _show(service.read_status(url), as_json, tables.show_status)


@app.command("import")
def import_adapter(
    adapter: Annotated[str, typer.Argument(help="PEFT's folder or s3:// URI, weights as safetensors.")],
    name: Annotated[str, typer.Option(help="The model's name below ROOT/models.")],
    base_model: Annotated[str, typer.Option(help="What it was trained on: a folder, hub id, s3:// or demo://.")],
    storage: Storage = ROOT,
    renderer: Annotated[str, typer.Option(help="How messages become tokens: chat or raw.")] = "chat",
    queries: Annotated[str | None, typer.Option(help="JSON lines of queries of its task, for the probe.")] = None,
    max_lora_rank: Annotated[int, typer.Option(help="The largest rank the student is started with.")] = 64,
    as_json: Json = False,
) -> None:
    """Make a version of a LoRA adapter that was trained elsewhere: checked like any, and no alias moves."""
    document = registry.import_adapter(
        {
            "adapter_dir": adapter,
            "name": name,
            "base_model": base_model,
            "storage": storage,
            "renderer": renderer,
            "queries": queries,
            "max_lora_rank": max_lora_rank,
        }
    )
    _show(document, as_json, tables.show_version)


def main() -> None:
    """Run the command line."""
    sys.exit(app())
