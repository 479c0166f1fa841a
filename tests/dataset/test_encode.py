"""Examples become the tokens a trainer uses; raw and validation rows are chosen by hash alone."""

import pytest

from raydistill.core.records import Example
from raydistill.dataset.encode import encode_example, encode_examples, is_raw, is_validation, split_validation
from raydistill.renderers import get_renderer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: str):
    return load_tokenizer(tokenizer_dir)


def make_example(index: int = 0, query: int | None = None, tokens: list[int] | None = None) -> Example:
    messages = [{"role": "user", "content": f"Where is parcel {index}?"}]
    return Example(f"e{index}", f"q{index if query is None else query}", messages, '{"team": "billing"}', tokens)


def test_encode_example_renders_the_query_alone_and_keeps_the_teachers_tokens(tokenizer) -> None:
    renderer = get_renderer("chat", tokenizer)
    prompt, target = encode_example(make_example(tokens=[7, 8, 2]), renderer, None, False)
    assert tokenizer.decode(prompt) == "<|im_start|>user\nWhere is parcel 0?<|im_end|>\n<|im_start|>assistant\n"
    assert target == [7, 8, 2]


def test_encode_example_encodes_a_text_anew_with_its_stop_token(tokenizer) -> None:
    renderer = get_renderer("chat", tokenizer)
    _, target = encode_example(make_example(), renderer, None, False)
    assert renderer.parse_response(target) == ({"role": "assistant", "content": '{"team": "billing"}'}, True)


def test_encode_example_raw_is_the_plain_encoded_query(tokenizer) -> None:
    chat, raw = get_renderer("chat", tokenizer), get_renderer("raw", tokenizer)
    prompt, target = encode_example(make_example(tokens=[7, 2]), chat, raw, True)
    assert prompt == tokenizer.encode("Where is parcel 0?")
    assert target == [7, 2]


def test_encode_example_never_shows_a_conversation_raw(tokenizer) -> None:
    chat, raw = get_renderer("chat", tokenizer), get_renderer("raw", tokenizer)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    example = Example("e", "q", turns, "d", None)
    prompt, _ = encode_example(example, chat, raw, True)
    assert prompt == chat.build_generation_prompt(turns).to_ints()


def test_encode_examples_shows_a_share_raw(tokenizer) -> None:
    examples = [make_example(index) for index in range(300)]
    rows = encode_examples(examples, tokenizer, raw_fraction=0.1)
    num_raw = sum(
        prompt == tokenizer.encode(example.messages[0]["content"])
        for (prompt, _), example in zip(rows, examples, strict=True)
    )
    assert num_raw == sum(is_raw(example.id, 0.1) for example in examples)
    assert 15 <= num_raw <= 50
    assert all(len(prompt) > 0 and len(target) > 1 for prompt, target in rows)


def test_is_raw_at_the_ends() -> None:
    assert not any(is_raw(f"e{index}", 0.0) for index in range(100))
    assert all(is_raw(f"e{index}", 1.0) for index in range(100))


def test_split_validation_takes_five_percent_by_query() -> None:
    examples = [make_example(index, query=index // 2) for index in range(2000)]
    training, validation = split_validation(examples)
    assert 60 <= len(validation) <= 150
    assert {example.query_id for example in validation} == {
        example.query_id for example in examples if is_validation(example.query_id)
    }
    assert not {example.query_id for example in training} & {example.query_id for example in validation}
    assert sorted(training + validation, key=id) == sorted(examples, key=id)


@pytest.mark.parametrize(("num_examples", "expected"), [(200, 8), (100, 8), (16, 8), (10, 5), (2, 1), (1, 0), (0, 0)])
def test_split_validation_of_few_rows(num_examples: int, expected: int) -> None:
    _, validation = split_validation([make_example(index) for index in range(num_examples)])
    if num_examples == 200:  # the hash may give more than eight of two hundred
        assert 8 <= len(validation) <= 20
    else:
        assert len(validation) == expected


def test_split_validation_does_not_depend_on_the_order() -> None:
    examples = [make_example(index) for index in range(60)]
    one = {example.id for example in split_validation(examples)[1]}
    assert one == {example.id for example in split_validation(examples[::-1])[1]}
