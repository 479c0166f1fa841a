"""Messages to tokens and back, with a real tokenizer."""

import pytest

from raydistill import renderers
from raydistill.core.errors import ConfigError, NotFoundError
from raydistill.types import ModelInput

USER = [{"role": "user", "content": "Where is my order?"}]
END = 2  # <|im_end|>


@pytest.fixture
def tokenizer(tokenizer_dir):
    return renderers.load_tokenizer(tokenizer_dir)


def test_chat_prompt_is_the_templates_own_when_built(tokenizer):
    prompt = renderers.get_renderer("chat", tokenizer).build_generation_prompt(USER)
    assert isinstance(prompt, ModelInput)
    assert prompt.to_ints() == tokenizer.apply_chat_template(USER, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(prompt.tokens) == "<|im_start|>user\nWhere is my order?<|im_end|>\n<|im_start|>assistant\n"


def test_raw_prompt_is_the_last_user_text_when_built(tokenizer):
    messages = [*USER, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "Thanks"}]
    raw = renderers.get_renderer("raw", tokenizer)
    assert raw.build_generation_prompt(messages).to_ints() == tokenizer.encode("Thanks")
    with pytest.raises(ConfigError, match="user message"):
        raw.build_generation_prompt([{"role": "system", "content": "only this"}])


@pytest.mark.parametrize("name", ["chat", "raw"])
def test_response_is_well_ended_only_when_one_stop_token_is_last(tokenizer, name):
    renderer = renderers.get_renderer(name, tokenizer)
    body = tokenizer.encode("It is on its way.")
    message = {"role": "assistant", "content": "It is on its way."}
    assert renderer.get_stop_sequences() == [END]
    assert renderer.parse_response([*body, END]) == (message, True)
    assert renderer.parse_response(body) == (message, False)
    assert renderer.parse_response([*body, END, END]) == (message, False)
    assert renderer.parse_response([*body, END, *body]) == (message, False)
    assert renderer.parse_response([]) == ({"role": "assistant", "content": ""}, False)


@pytest.mark.parametrize("text", [" leading", "ünïcode 漢字 🙂", "a  b\n\nc\t", '{"team": "billing"}'])
def test_response_text_is_unchanged_when_encoded_and_parsed(tokenizer, text):
    renderer = renderers.get_renderer("chat", tokenizer)
    message, ok = renderer.parse_response([*tokenizer.encode(text, add_special_tokens=False), END])
    assert ok and message["content"] == text


def test_end_of_turn_comes_first_when_end_of_sequence_is_another_token(tokenizer):
    tokenizer.eos_token = "<|endoftext|>"
    assert renderers.get_renderer("chat", tokenizer).get_stop_sequences() == [END, 0]
    tokenizer.chat_template = None
    assert renderers.get_renderer("raw", tokenizer).get_stop_sequences() == [0]


def test_template_digest_differs_when_template_or_its_effect_differs(tokenizer_dir):
    first, again, other, defaulted = (renderers.load_tokenizer(tokenizer_dir) for _ in range(4))
    other.chat_template = other.chat_template.replace("assistant\n", "assistant\n\n")
    defaulted.chat_template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + first.chat_template
    )
    digests = [renderers.get_renderer("chat", item).template_digest for item in (first, again, other, defaulted)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert renderers.get_renderer("raw", first).template_digest not in digests


def test_template_digest_is_there_when_the_template_refuses_a_role_or_reads_the_date(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    renderer = renderers.get_renderer("chat", tokenizer)
    assert len(renderer.template_digest) == 32
    with pytest.raises(ConfigError, match="no system role"):
        renderer.build_generation_prompt([{"role": "system", "content": "s"}, *USER])
    tokenizer.chat_template = "{{ strftime_now('%s') }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    renderer = renderers.get_renderer("chat", tokenizer)
    assert renderer.template_digest == renderers.get_renderer("chat", tokenizer).template_digest


def test_tokenizer_digest_is_stable_when_used_and_differs_for_another_vocabulary(tokenizer_dir, tokenizer):
    before = renderers.tokenizer_digest(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=4)
    again = renderers.load_tokenizer(tokenizer_dir)
    assert renderers.tokenizer_digest(tokenizer) == before == renderers.tokenizer_digest(again)
    tokenizer.add_tokens(["<new>"])
    assert renderers.tokenizer_digest(tokenizer) != before


def test_renderer_says_what_to_do_when_it_cannot_be_made(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="allowed are chat, raw"):
        renderers.get_renderer("chatml", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"chat_template\.jinja.*renderer = \"raw\""):
        renderers.get_renderer("chat", tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos_token"):
        renderers.get_renderer("raw", tokenizer)
    with pytest.raises(NotFoundError, match="no folder"):
        renderers.load_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(NotFoundError, match="holds none"):
        renderers.load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one"),
        ([{"role": "robot", "content": "x"}], "robot"),
        ([{"role": "user", "content": "\ud83d"}], "surrogate"),
    ],
)
def test_messages_are_refused_when_they_are_none(tokenizer, messages, words):
    for name in ("chat", "raw"):
        with pytest.raises(ConfigError, match=words):
            renderers.get_renderer(name, tokenizer).build_generation_prompt(messages)
