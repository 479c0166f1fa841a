"""Conversations of which every user turn is answered: what the teacher is told, and what is kept of it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import create_data
from raydistill.core.answers import row_seed
from raydistill.core.prompts import load_prompt
from raydistill.dataset import ledger
from raydistill.dataset.read import read_examples
from raydistill.renderers import get_renderer, load_tokenizer
from tests.jobs.create_data_desk import Desk, num_asked
from tests.jsonl import write_jsonl

SAMPLING = {"temperature": 0.7, "top_p": 0.5, "max_tokens": 40, "stop": ["\n\n"], "top_logprobs": 2}
NUM_CONVERSATIONS = 12


def test_every_turn_is_asked_as_configured_on_the_answers_before_and_kept_with_its_labels(
    tmp_path: Path, model_dir: str, teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, log = teacher
    monkeypatch.setattr(ledger, "COMPACT_ROWS", 4)  # so that objects are joined, and the labels with them
    told, asked = log.with_suffix(".told"), num_asked(log)
    told.unlink(missing_ok=True)
    desk = Desk(tmp_path, model_dir, [])
    turns = [[f"TELL turn {turn} of {index}" for turn in range(2)] for index in range(NUM_CONVERSATIONS)]
    conversations = (
        {
            "messages": [
                {"role": "user", "content": first},
                {"role": "assistant", "content": "an answer that is not the teacher's"},
                {"role": "user", "content": second},
            ]
        }
        for first, second in turns
    )
    write_jsonl(desk.queries, *conversations)
    settings = {"answer_turns": "all", "smoke_rows": 4, "smoke_min_kept": 4, **SAMPLING}
    for num_examples in (6, NUM_CONVERSATIONS, NUM_CONVERSATIONS):  # grown, and then again
        create_data.run(desk.config(num_examples=num_examples, **settings), handle, on_progress=lambda _: None)
    assert num_asked(log) == asked + 2 * NUM_CONVERSATIONS

    examples, manifest = read_examples(str(desk.output))
    assert manifest is not None
    assert manifest.counts["kept"] == len(examples) == 2 * NUM_CONVERSATIONS
    renderer, prompt = get_renderer("chat", load_tokenizer(model_dir)), load_prompt(str(desk.prompt))
    requests = {tuple(request["tokens"]): request for request in map(json.loads, told.read_text().splitlines())}
    for example in examples:
        messages = [*prompt.messages, *example.messages]
        request = requests.pop(tuple(renderer.build_generation_prompt(messages).to_ints()))
        assert {key: request[key] for key in SAMPLING} == SAMPLING
        assert request["seed"] == row_seed(example.id)
        assert request["stop_token_ids"] == renderer.get_stop_sequences()
    assert requests == {}
    for later in (example for example in examples if len(example.messages) == 3):
        (first,) = (example for example in examples if example.messages == later.messages[:1])
        assert later.messages[1]["content"] == first.response, "its own earlier answer, not the query's"
    assert sum(len(example.messages) == 3 for example in examples) == NUM_CONVERSATIONS

    for shard in manifest.shards:
        schema = pq.read_schema(desk.output / shard.uri)
        assert schema.field("top_ids").type == pa.list_(pa.list_(pa.int32(), 2))
        assert schema.field("top_logprobs").type == pa.list_(pa.list_(pa.float16(), 2))
        for row in pq.read_table(desk.output / shard.uri).to_pylist():
            assert [ids[0] for ids in row["top_ids"]] == row["response_tokens"]
            assert all(ids[1] == ids[0] + 1 for ids in row["top_ids"])
