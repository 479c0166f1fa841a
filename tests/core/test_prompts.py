"""P is read in three forms, each fault of its file is told, and the teacher sees it once, whatever the conversation."""

import json
from pathlib import Path

import pytest

from raydistill.core.errors import ConfigError
from raydistill.core.prompts import Prompt, load_prompt, student_messages, teacher_messages
from raydistill.core.records import Message

SYSTEM = [{"role": "system", "content": "Be brief."}]
SHOTS = [*SYSTEM, {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
FILLED = [*SYSTEM, {"role": "user", "content": "Sort this: {query}!"}]
ONE: list[Message] = [{"role": "user", "content": "a {query} b"}]  # of a user, so it is no slot
MANY = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}, *ONE]
FORMS = {
    "system": Prompt("system", SYSTEM),
    "messages": Prompt("messages", SHOTS),
    "template": Prompt("template", FILLED),
}


def write(folder: Path, content: object, name: str = "p.json") -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.md", "\n Be brief.\n", FORMS["system"]),
        ("p.txt", "Be brief.", FORMS["system"]),
        ("p.md", "Sort {query}\n", Prompt("template", [{"role": "user", "content": "Sort {query}"}])),
        ("p.json", SYSTEM, Prompt("messages", SYSTEM)),
        ("p.json", SHOTS, FORMS["messages"]),
        ("p.json", FILLED, FORMS["template"]),
    ],
)
def test_load_prompt_reads_each_form(tmp_path: Path, name: str, content: object, expected: Prompt) -> None:
    prompt = load_prompt(write(tmp_path, content, name))
    assert prompt == expected
    assert prompt.digest == expected.digest


def test_the_form_is_a_part_of_the_digest() -> None:
    assert FORMS["system"].digest != Prompt("messages", SYSTEM).digest


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.md", " \n\t", "is empty"),
        ("p.json", "", "is empty"),
        ("p.pdf", "Be brief.", r"has the suffix '\.pdf'; allowed are \.md, \.txt and \.json"),
        ("p.md", "grün".encode("latin-1"), r"is not UTF-8 \(byte 2\)"),
        ("p.json", '[\n{"role": }]', r"line 2: not JSON"),
        ("p.json", [], "at least one"),
        ("p.json", {"role": "user", "content": "a"}, "a list of messages"),
        ("p.json", [{"role": "user"}], "message 0 needs exactly the keys role and content"),
        ("p.json", [*SYSTEM, {"role": "tool", "content": "a"}], "message 1 has the role 'tool'"),
        ("p.json", [{"role": "system", "content": "  "}], "message 0 has no text"),
        ("p.json", [{"role": "user", "content": "{query}"}, *FILLED[1:]], "may stand once only"),
        ("p.json", [{"role": "system", "content": "{query}"}], "may stand once only, in the last message, a user's"),
        ("p.json", [*FILLED, {"role": "assistant", "content": "yes"}], "may stand once only, in the last message"),
        ("p.json", SHOTS[:2], "the last message is a user's without {query}, so the query has no place"),
    ],
)
def test_load_prompt_tells_each_fault_with_the_file(tmp_path: Path, name: str, content: object, said: str) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(ConfigError, match=said) as caught:
        load_prompt(path)
    assert str(path) in str(caught.value)


def test_load_prompt_names_what_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.md", tmp_path):
        with pytest.raises(ConfigError, match=f"prompt: {path} does not exist"):
            load_prompt(path)


@pytest.mark.parametrize("query", [ONE, MANY], ids=["one turn", "many turns"])
@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_sees_p_once_and_every_turn(form: str, query: list[Message]) -> None:
    last = {"role": "user", "content": "Sort this: a {query} b!"}
    expected = {
        "system": [*SYSTEM, *query],
        "messages": [*SHOTS, *query],
        "template": [*SYSTEM, *query[:-1], last],
    }
    before = json.dumps(query)
    assert teacher_messages(FORMS[form], query) == expected[form]
    assert student_messages(query) == query
    assert json.dumps(query) == before
