"""Reading every format: the same rows give the same queries, and what is wrong is named with its place."""

import datetime
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.core import storage
from raydistill.core.errors import ConfigError
from raydistill.core.records import digest
from raydistill.queries import lines
from raydistill.queries.index import scan_queries
from raydistill.queries.read import iter_queries, read_queries
from tests.jsonl import write_jsonl
from tests.moto_bucket import open_bucket
from tests.queries.sources import FORMATS, write_csv, write_parquet, write_rows

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": 'c "quoted"\nand a second line'},
]
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


def fault_of(source: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        list(iter_queries(source))
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_queries(tmp_path: Path, name: str) -> None:
    rows = [{"text": "hello, world", "sector": "bank"}, {"messages": TURNS, "sector": "shop"}, {"text": "中文？"}]
    found = list(iter_queries(FORMATS[name](tmp_path / name, rows)))
    hello = [{"role": "user", "content": "hello, world"}]
    assert [query.messages for query in found] == [hello, TURNS, [{"role": "user", "content": "中文？"}]]
    assert [query.id for query in found] == [digest(query.messages) for query in found]
    assert [query.metadata for query in found] == [{"sector": "bank"}, {"sector": "shop"}, {}]


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_every_format_gives_the_same_ids_for_any_text(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    rows = [{"text": text} for text in texts]
    expected = [digest([{"role": "user", "content": text}]) for text in texts]
    for name, write in FORMATS.items():
        assert [query.id for query in iter_queries(write(folder / name, rows))] == expected, name


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), min_size=1, max_size=8))
def test_plain_text_gives_the_ids_of_its_lines(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("text") / "q.txt"
    path.write_bytes("\r\n".join(["first", *texts]).encode())
    expected = [text for text in (text.strip() for text in ["first", *texts]) if text]
    assert [query.messages[0]["content"] for query in iter_queries(path)] == expected


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    for name, content in {"q.jsonl": '{"text": "a"}', "q.txt": "a", "q.csv": "text\na"}.items():
        path = tmp_path / name
        path.write_text(content, encoding="utf-8-sig")
        assert [query.messages[0]["content"] for query in iter_queries(path)] == ["a"]


def test_a_null_is_a_key_that_is_not_there(tmp_path: Path) -> None:
    day = datetime.date(2024, 2, 29)
    rows = [{"text": "a", "messages": None, "day": day, "score": float("nan")}, {"text": None, "messages": TURNS}]
    found = list(iter_queries(write_parquet(tmp_path / "q.parquet", rows)))
    assert [query.metadata for query in found] == [{"day": "2024-02-29"}, {}]
    assert found[1].messages == TURNS
    cells = [{"text": "a", "messages": ""}, {"text": "", "messages": TURNS, "sector": ""}]
    assert [query.metadata for query in iter_queries(write_csv(tmp_path / "q.csv", cells))] == [{}, {}]


def test_a_folder_is_read_by_name_and_other_files_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(tmp_path / "b.jsonl", [{"text": "3"}])
    write_csv(tmp_path / "a.csv", [{"text": "1"}, {"text": "2"}])
    write_parquet(tmp_path / "c.parquet", [{"text": "4"}])
    (tmp_path / "d.TXT").write_text("5\n\n  6  ")
    (tmp_path / "README.md").write_text("no query")
    (tmp_path / ".hidden.txt").write_text("no query")
    (tmp_path / "sub.jsonl").mkdir()
    with caplog.at_level(logging.INFO):
        found = [query.messages[0]["content"] for query in iter_queries(tmp_path)]
    assert found == ["1", "2", "3", "4", "5", "6"]
    (record,) = [record for record in caplog.records if "not read" in record.message]
    assert record.message.endswith("README.md, sub.jsonl.")
    (tmp_path / "e.jsonl").write_text("")
    assert "e.jsonl: holds no queries" in fault_of(tmp_path)


def test_faults_of_a_folder_name_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n{"text": "\xff"}\n{"text": ""}\n')
    (tmp_path / "b.csv").write_bytes(b'text,id\n"two\nlines",1\n\xff,2\n,3\nfour,4,5\n"open')
    (tmp_path / "c.txt").write_bytes(b"fine\n\xff\n")
    write_parquet(tmp_path / "d.parquet", [{"text": "fine"}, {"text": " "}])
    message = fault_of(tmp_path)
    assert "has 8 bad lines and rows" in message
    for place in (
        "a.jsonl, line 3: not UTF-8 (byte 10)",
        'a.jsonl, line 4: "text" holds no text',
        "b.csv, line 4: not UTF-8 (byte 0)",
        'b.csv, line 5: "text" holds no text',
        "b.csv, line 6: has 3 cells, and the first line names 2 columns",
        "b.csv, line 7: not CSV (unexpected end of data)",
        "c.txt, line 2: not UTF-8 (byte 0)",
        'd.parquet, row 2: "text" holds no text',
    ):
        assert place in message
    assert "fine" not in message


def test_many_faults_are_counted_and_the_first_twenty_shown(tmp_path: Path) -> None:
    message = fault_of(write_jsonl(tmp_path / "q.jsonl", *["{"] * 50))
    assert "has 50 bad lines" in message and "line 20:" in message and "and 30 more" in message
    assert "line 21:" not in message


def test_hostile_json_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    deep, digits = '{"text": ' + "[" * 100_000, '{"text": "a", "n": ' + "9" * 5000 + "}"
    half, nested = '{"text": "a", "note": "\\udc00"}', '{"text": "a", "n": ' + "[" * 990 + "]" * 990 + "}"
    message = fault_of(
        write_jsonl(tmp_path / "q.jsonl", deep, digits, half, '{"text": "a", "id": [1]}', "[1, 2]", nested)
    )
    for number in range(1, 6):
        assert f"line {number}:" in message


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "q.jsonl").write_bytes(b'{"text": "fine"}\n' + b"x" * (3 << 20))
    assert "line 2: longer than 1 MiB" in fault_of(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("q.csv", b"question,topic\na,b\n", 'no column "text" or "messages"; the columns are question, topic'),
        ("q.csv", b"text,text\na,b\n", "a column stands there twice"),
        ("q.csv", b"text,\xff\na,b\n", "the first line, which names the columns, is not UTF-8 (byte 5)"),
        ("q.csv", b"text\n", "holds no queries"),
        ("q.csv", b"messages\n[{]\n", '"messages" is not JSON'),
        ("q.txt", b" \n\n", "holds no queries"),
        ("q.parquet", b"PAR1 not really", "no Parquet file that can be read"),
        ("q.yaml", b"text: a", "has the suffix '.yaml'; read are .jsonl"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = fault_of(tmp_path / name)
    assert expected in message and str(tmp_path / name) in message


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"question": "a", "topic": 3}], "the columns are question (string), topic (int64)"),
        ([{"text": 3}], "the column text must be text; the columns are text (int64)"),
        ([{"messages": "no JSON"}], 'row 1: "messages" is not JSON'),
        ([{"messages": [{"role": "user"}]}], "row 1: message 0 needs exactly the keys role and content"),
        ([{"text": "a", "messages": TURNS}], 'row 1: needs either "text" or "messages"'),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, rows: list[dict], expected: str) -> None:
    assert expected in fault_of(write_parquet(tmp_path / "q.parquet", rows))


def test_parquet_with_bad_utf8_names_the_row(tmp_path: Path) -> None:
    column = pa.array([b"fine", b"\xff", b"fine too"]).view(pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, column.buffers())})
    pq.write_table(table, tmp_path / "q.parquet")
    assert "row 2: not UTF-8 (byte 0)" in fault_of(tmp_path / "q.parquet")


def test_a_damaged_parquet_file_names_the_place(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "q.parquet", [{"text": f"row {index}"} for index in range(5000)])
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    assert "the file cannot be read from here on" in fault_of(path)


@pytest.mark.parametrize(("source", "expected"), [("missing", "does not exist"), ("gs://b/q", "is not known")])
def test_missing_sources_are_refused_at_once(source: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        iter_queries(source)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "holds no files of queries" in fault_of(tmp_path)


def test_an_id_of_the_users_may_repeat_with_the_same_text_only(tmp_path: Path) -> None:
    fine = [{"text": "a", "id": 1}, {"text": "b", "id": "2"}, {"text": "a", "id": "1"}, {"text": "c"}]
    found = read_queries(write_rows(tmp_path / "a.jsonl", fine))
    assert [query.metadata.get("id") for query in found] == [1, "2", None]
    write_rows(tmp_path / "b.jsonl", [{"text": "d", "id": 3}, {"text": "e", "id": 3}, {"text": "f", "id": "1"}])
    message = fault_of(tmp_path)
    assert "b.jsonl, line 2: has the id of line 1, but another text" in message
    assert "b.jsonl, line 3: has the id of line 1 of a.jsonl, but another text" in message
    assert "has 2 bad lines" in message
    assert len(list(iter_queries(tmp_path, check_names=False))) == 7


def test_ids_do_not_depend_on_how_a_row_is_written(tmp_path: Path) -> None:
    plain = '{"messages": [{"role": "user", "content": "é"}]}'
    other = '{ "note": 1, "messages":[{"content":"\\u00e9","role":"user"}] }'
    first, second = iter_queries(write_jsonl(tmp_path / "q.jsonl", plain, other))
    assert first.id == second.id


def test_a_folder_in_s3_is_read_like_one_on_disk(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "1"}, {"text": "1"}])
    write_csv(tmp_path / "b.csv", [{"text": "2"}])
    write_parquet(tmp_path / "c.parquet", [{"text": "3"}])
    with open_bucket("queries") as uri:
        storage.upload_dir(tmp_path, f"{uri}/some/folder")
        storage.write_bytes(f"{uri}/some/folder/notes.md", b"no query")
        storage.write_bytes(f"{uri}/some/folder/.hidden.txt", b"no query")
        for place in (f"{uri}/some/folder", f"{uri}/some/folder/"):
            assert list(iter_queries(place)) == list(iter_queries(tmp_path))
        assert scan_queries(iter_queries(f"{uri}/some/folder/a.jsonl")).num_merged == 1
        storage.write_bytes(f"{uri}/root.txt", b"4\n5\n")
        assert len(list(iter_queries(uri))) == 2
        assert "does not exist" in fault_of(f"{uri}/some/file.jsonl")
        assert "the bucket does not exist" in fault_of("s3://nobodys-bucket/queries")
