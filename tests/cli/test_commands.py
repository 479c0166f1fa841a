"""The registry's commands: what each tells and does, as tables, as JSON, and as an exit status."""

import pytest

from raydistill.core import storage
from raydistill.core.errors import ConflictError
from raydistill.registry import resolve
from raydistill.registry.aliases import move_alias, read_aliases
from raydistill.registry.versions import list_versions, read_version


def test_versions_are_listed_with_their_aliases_and_state(root, run):
    storage.write_bytes(f"{root}/models/triage/v0004/.claim", b"")
    storage.write_bytes(f"{root}/models/triage/v0005/version.json", b"{}")
    text = run("versions", "triage", "--storage", root)
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("v0")]
    assert rows[0] == ["v0001", "final", "4", "15", "B", "0.6123", "8.00", "ffffffff"]
    assert rows[1][:2] == ["v0002", "candidate"]
    assert rows[2][0] == "v0003" and rows[2][-1] == "unverifiable"
    assert rows[3] == ["v0004", "unfinished"] and rows[4] == ["v0005", "damaged"]
    assert "v0005:" in text and "is no version" in text
    told = run("versions", "triage", "--json", RAYDISTILL_STORAGE=root)
    assert [entry["state"] for entry in told["versions"]] == ["published"] * 3 + ["unfinished", "damaged"]
    assert told["versions"][0]["metrics"]["rows"] == {"train": 180}
    assert told["model"] == f"{root}/models/triage"


def test_a_model_is_named_by_its_place_too(root, run):
    assert run("versions", f"{root}/models/triage", "--json") == run("versions", "triage", "--storage", root, "--json")


def test_aliases_are_listed_and_their_history(root, run):
    run("promote", "triage", "v0002", "--storage", root)
    text = run("aliases", "triage", "--storage", root)
    rows = [line.split() for line in text.splitlines()]
    assert ["candidate", "v0002"] in [row[:2] for row in rows] and ["final", "v0002"] in [row[:2] for row in rows]
    told = run("aliases", "triage", "--storage", root, "--json")
    moves = [(move["alias"], move["from"], move["to"]) for move in told["history"]]
    assert moves == [("final", None, "v0001"), ("candidate", None, "v0002"), ("final", "v0001", "v0002")]
    assert told["aliases"]["final"]["version"] == "v0002" and "@" in told["aliases"]["final"]["by"]
    assert "v0001   v0002" in run("aliases", "triage", "--history", "--storage", root)


def test_show_tells_record_metrics_files_aliases_and_dataset(root, run):
    version = read_version(f"{root}/models/triage", "v0001")
    text = run("show", "triage", "final", "--storage", root)
    for part in (
        f"{root}/models/triage/v0001",
        f"triage/v0001@{version.content_digest}",
        "rank 4, alpha 4, 14 modules",
        "f" * 32,
        "validation_loss_nats",
        "rows.train",
        "adapter_model.safetensors",
        version.files[1].sha256[:16],
    ):
        assert part in text
    told = run("show", "triage", "v0001", "--storage", root, "--json")
    assert told["aliases"] == ["final"]
    assert told["record"]["files"][1]["sha256"] == version.files[1].sha256
    assert told["record"]["dataset_fingerprint"] == "f" * 32


def test_promote_moves_an_alias_and_rollback_takes_it_back(root, run):
    assert "triage/final: v0001 -> v0002" in run("promote", "triage", "candidate", "--storage", root)
    assert "triage/final is v0002 already" in run("promote", "triage", "v0002", "--storage", root)
    told = run("rollback", "triage", "--storage", root, "--json")
    assert (told["from"], told["to"], told["served"]) == ("v0002", "v0001", None)
    told = run("promote", "triage", "v0002", "--alias", "next", "--storage", root, "--json")
    assert (told["alias"], told["from"], told["to"]) == ("next", None, "v0002")
    assert "v0001 -> v0002" in run("rollback", "triage", "--to", "v0002", "--storage", root)
    assert read_aliases(f"{root}/models/triage").mapping == {"candidate": "v0002", "final": "v0002", "next": "v0002"}


def test_an_unverifiable_version_is_promoted_by_force_alone(folder, run):
    assert "--force" in run("promote", "triage", "v0003", "--storage", folder, status=2)
    assert read_aliases(f"{folder}/models/triage").mapping["final"] == "v0001"
    run("promote", "triage", "v0003", "--force", "--storage", folder)
    assert read_aliases(f"{folder}/models/triage").mapping["final"] == "v0003"


def test_the_loser_of_two_promotions_is_told(folder, run, monkeypatch):
    def come_second(uri, alias, label, seen):
        monkeypatch.undo()
        move_alias(uri, alias, "v0003")
        return move_alias(uri, alias, label, seen)

    monkeypatch.setattr(resolve, "move_alias", come_second)
    told = run("promote", "triage", "v0002", "--storage", folder, status=2)
    assert "final was moved from v0001 to v0003 by" in told
    assert read_aliases(f"{folder}/models/triage").mapping["final"] == "v0003"


def test_delete_refuses_a_version_in_use_and_takes_another(root, run):
    assert "final points to" in run("delete", "triage", "v0001", "--storage", root, status=2)
    assert run("delete", "triage", "v0003", "--storage", root, "--json")["deleted"] == "v0003"
    assert [version.label for version in list_versions(f"{root}/models/triage")] == ["v0001", "v0002"]
    told = run("versions", "triage", "--storage", root, "--json")
    assert told["versions"][2] == {"version": "v0003", "aliases": [], "state": "deleted"}
    assert "deleted" in run("aliases", "triage", "--history", "--storage", root)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("versions", "triagge"), "holds no model 'triagge'; known models: triage"),
        (("versions", "../triage!"), "holds no model"),
        (("versions", "tri age"), "is no usable name"),
        (("versions", "gs://bucket/models/triage"), "this kind of storage is not known"),
        (("show", "triage", "v0009"), "known versions: v0001, v0002, v0003"),
        (("show", "triage", "finale"), "known aliases: candidate -> v0002, final -> v0001"),
        (("promote", "triage", "v0009"), "known versions"),
        (("promote", "triage", "v0001", "--alias", "v7"), "looks like a version"),
        (("promote", "triage", "v0001", "--alias", "../x"), "is no usable name"),
        (("rollback", "triage"), "final has named v0001 only"),
        (("rollback", "triage", "--to", "v0002"), "never named v0002"),
        (("delete", "triage", "final"), "is no version"),
        (("status", "--url", "ftp://nowhere"), "ftp://nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_ends_with_status_2_and_says_what_is_right(folder, run, words, reason):
    words = words if words[0] == "status" else (*words, "--storage", folder)
    told = " ".join(run(*words, status=2).split())
    assert reason in told
    assert told.startswith("error: ")


def test_unknown_options_and_commands_end_with_status_2(run):
    assert "No such option" in run("versions", "triage", "--nope", status=2)
    assert "No such command" in run("frobnicate", status=2)
    assert "Missing argument" in run("promote", "triage", status=2)


def test_conflicts_of_a_store_are_failures_in_words(folder, run, monkeypatch):
    def losing_write(place, data, if_match=None):
        raise ConflictError(f"{place} was changed")

    monkeypatch.setattr(storage, "write_bytes", losing_write)
    assert "other writers won 10 times" in run("promote", "triage", "v0002", "--storage", folder, status=2)
