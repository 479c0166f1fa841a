"""Requests that are wrong, each with what it is to be answered: one table for the front alone and for an engine."""

import base64
import json

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
SAMPLE = "/api/v1/asample"
CREATE = "/api/v1/create_sampling_session"
HUGE = 10**30
JSON = {"content-type": "application/json"}


def forge(text):
    return "ss_" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


# Sessions that nobody was given; the last two are no text and deeper than a parser goes.
FORGED = ["ss_nonsense", forge('{"model": 7}'), forge('["model"]'), forge('{"model": ""}')]
FORGED += [forge(r'{"model": "\ud800"}'), forge("[" * 1490)]


def chat(**fields):
    return CHAT, {"model": "tiny", "messages": MESSAGES, "max_tokens": 4, **fields}


def sample(session, params=None, **fields):
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 9, 33]}]}
    params = {"max_tokens": 4, "temperature": 0.0, **(params or {})}
    body = {"sampling_session_id": session, "seq_id": 0, "num_samples": 1, "prompt": prompt, "sampling_params": params}
    return SAMPLE, {**body, **fields}


def chunk(**fields):
    return {"chunks": [{"type": "encoded_text", **fields}]}


# (path, body), status, code, field
CHATS = [
    (chat(tools=[]), 422, "unknown_field", "tools"),
    (chat(chat_template="{{ x }}"), 422, "unknown_field", "chat_template"),
    (chat(chat_template_kwargs={"a": 1}), 422, "unknown_field", "chat_template_kwargs"),
    (chat(add_generation_prompt=False), 422, "unknown_field", "add_generation_prompt"),
    (chat(prompt_logprobs=1), 422, "unknown_field", "prompt_logprobs"),
    (chat(echo=True, logprobs=True), 422, "unknown_field", "echo"),
    (chat(prompt_embeds="AAAA"), 422, "unknown_field", "prompt_embeds"),
    (chat(response_format={"type": "json_object"}), 422, "unknown_field", "response_format"),
    (chat(structured_outputs={"regex": "(a+)+$"}), 422, "unknown_field", "structured_outputs"),
    (chat(logits_processors=["os.system"]), 422, "unknown_field", "logits_processors"),
    (chat(vllm_xargs={"kv": 1}), 422, "unknown_field", "vllm_xargs"),
    (chat(kv_transfer_params={"do_remote_decode": True}), 422, "unknown_field", "kv_transfer_params"),
    (chat(request_id="mine"), 422, "unknown_field", "request_id"),
    (chat(priority=-5), 422, "unknown_field", "priority"),
    (chat(use_beam_search=True), 422, "unknown_field", "use_beam_search"),
    (chat(lora_request={"lora_path": "/etc"}), 422, "unknown_field", "lora_request"),
    (chat(n=1000), 422, "invalid_value", "n"),
    (chat(n=0), 422, "invalid_value", "n"),
    (chat(n=True), 422, "invalid_value", "n"),
    (chat(max_tokens=0), 422, "invalid_value", "max_tokens"),
    (chat(max_tokens=HUGE), 422, "invalid_value", "max_tokens"),
    (chat(max_tokens=385), 422, "invalid_value", "max_tokens"),
    (chat(max_completion_tokens=385), 422, "invalid_value", "max_completion_tokens"),
    (chat(max_tokens="4"), 422, "invalid_value", "max_tokens"),
    (chat(temperature=-1), 422, "invalid_value", "temperature"),
    (chat(temperature=1e400), 422, "invalid_value", "temperature"),
    (chat(temperature="hot"), 422, "invalid_value", "temperature"),
    (chat(top_p=0), 422, "invalid_value", "top_p"),
    (chat(top_p=1.5), 422, "invalid_value", "top_p"),
    (chat(seed=HUGE), 422, "invalid_value", "seed"),
    (chat(logprobs=True, top_logprobs=21), 422, "invalid_value", "top_logprobs"),
    (chat(top_logprobs=3), 422, "invalid_value", "top_logprobs"),
    (chat(stop=["a"] * 17), 422, "invalid_value", "stop"),
    (chat(stop=""), 422, "invalid_value", "stop"),
    (chat(stop=[1]), 422, "invalid_value", "stop"),
    (chat(stream="yes"), 422, "invalid_value", "stream"),
    (chat(stream_options={"include_usage": True}), 422, "invalid_value", "stream_options"),
    (chat(stream=True, stream_options={"x": 1}), 422, "unknown_field", "stream_options.x"),
    (chat(messages=[]), 422, "invalid_value", "messages"),
    (chat(messages="hi"), 422, "invalid_value", "messages"),
    (chat(messages=[{"role": "user"}]), 422, "invalid_value", "messages"),
    (chat(messages=[{"role": "wizard", "content": "hi"}]), 422, "invalid_value", "messages"),
    (chat(messages=[{"role": "user", "content": None}]), 422, "invalid_value", "messages"),
    (chat(messages=[{"role": "user", "content": "hi", "tool_calls": []}]), 422, "invalid_value", "messages"),
    (
        chat(
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]
        ),
        422,
        "invalid_value",
        "messages",
    ),
    (chat(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), 422, "invalid_value", "messages"),
    (chat(model=7), 422, "invalid_value", "model"),
    (chat(model="tiny/../../etc"), 404, "unknown_model", "model"),
    (chat(model="tinny"), 404, "unknown_model", "model"),
    (chat(model="tinny", stream=True), 404, "unknown_model", "model"),
    ((CHAT, []), 422, "invalid_value", None),
    ((CHAT, "hi"), 422, "invalid_value", None),
    (chat(model=""), 422, "invalid_value", "model"),
    (chat(model=None), 422, "invalid_value", "model"),
    ((CHAT, {"messages": MESSAGES}), 422, "invalid_value", "model"),
    ((CHAT, {"model": "tiny"}), 422, "invalid_value", "messages"),
    ((CHAT, {}), 422, "invalid_value", "model"),
]


def samples(session):
    """The same for the token route."""
    return [
        (sample(session, prompt=chunk(tokens=[5, 99999])), 400, "invalid_value", "prompt"),
        (sample(session, prompt=chunk(tokens=[-1])), 400, "invalid_value", "prompt"),
        (sample(session, prompt=chunk(tokens=[HUGE])), 422, "invalid_value", "prompt.chunks.0.tokens.0"),
        (sample(session, prompt=chunk(tokens=[])), 400, "invalid_value", "prompt"),
        (sample(session, prompt=chunk(tokens=[5] * 384)), 400, "invalid_value", "prompt"),
        (sample(session, prompt={"chunks": [{"type": "image", "data": "AA"}]}), 400, "invalid_value", "prompt"),
        (sample(session, prompt={}), 422, "invalid_value", "prompt.chunks"),
        (sample(session, num_samples=0), 422, "invalid_value", "num_samples"),
        (sample(session, num_samples=1000), 422, "invalid_value", "num_samples"),
        (sample(session, num_samples=128), 400, "invalid_value", "num_samples"),
        (sample(session, prompt_logprobs=True), 400, "invalid_value", "prompt_logprobs"),
        (sample(session, topk_prompt_logprobs=5), 400, "invalid_value", "topk_prompt_logprobs"),
        (sample(session, topk_sample_logprobs=5), 400, "invalid_value", "topk_sample_logprobs"),
        (sample(session, prompt_alt_tokens_k=5), 400, "invalid_value", "prompt_alt_tokens_k"),
        (sample(session, seq_id=HUGE), 422, "invalid_value", "seq_id"),
        (sample(session, {"max_tokens": 0}), 422, "invalid_value", "sampling_params.max_tokens"),
        (sample(session, {"max_tokens": HUGE}), 422, "invalid_value", "sampling_params.max_tokens"),
        (sample(session, {"temperature": -1}), 422, "invalid_value", "sampling_params.temperature"),
        (sample(session, {"temperature": 1e400}), 422, "invalid_value", "sampling_params.temperature"),
        (sample(session, {"top_k": HUGE}), 422, "invalid_value", "sampling_params.top_k"),
        (sample(session, {"seed": HUGE}), 422, "invalid_value", "sampling_params.seed"),
        (sample(session, {"stop": [99999]}), 400, "invalid_value", "sampling_params.stop"),
        (sample(session, {"stop": [""]}), 400, "invalid_value", "sampling_params.stop"),
        (sample(session, {"stop": [5] * 65}), 400, "invalid_value", "sampling_params.stop"),
        *((sample(forged), 404, "unknown_session", "sampling_session_id") for forged in FORGED),
        ((SAMPLE, {}), 422, "invalid_value", "sampling_session_id"),
        ((CREATE, {"model_path": "tinker://tinny/final"}), 404, "unknown_model", "model"),
        ((CREATE, {"modelpath": "tinker://tiny/final"}), 422, "invalid_value", "model_path"),
        ((CREATE, {"model_path": "", "base_model": None}), 422, "invalid_value", "model_path"),
        (("/api/v1/retrieve_future", {"request_id": "never:0"}), 410, "lost", "request_id"),
        (("/api/v1/retrieve_future", {}), 422, "invalid_value", "request_id"),
    ]


# name, bytes, headers, status, code
RAW = [
    ("no JSON", b"{", JSON, 400, "malformed_json"),
    ("NaN", b'{"messages": NaN}', JSON, 400, "malformed_json"),
    ("Infinity", b'{"temperature": -Infinity}', JSON, 400, "malformed_json"),
    ("lone surrogate", b'{"model": "\\ud800"}', JSON, 400, "malformed_json"),
    ("raw surrogate", b'{"model": "\xed\xa0\x80"}', JSON, 400, "malformed_json"),
    ("no UTF-8", b'{"model": "\xff"}', JSON, 400, "malformed_json"),
    ("deep", b"[" * 200_000, JSON, 400, "malformed_json"),
    ("long number", b'{"n": ' + b"9" * 5000 + b"}", JSON, 400, "malformed_json"),
    ("two documents", b"{}{}", JSON, 400, "malformed_json"),
    ("byte order mark", b"\xef\xbb\xbf{}", JSON, 400, "malformed_json"),
    ("no content type", b"{}", {}, 415, "unsupported_media_type"),
    ("form", b"a=1", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    ("UTF-16", b"{}", {"content-type": "application/json; charset=utf-16"}, 415, "unsupported_media_type"),
    ("problem", b"{}", {"content-type": "application/problem+json"}, 415, "unsupported_media_type"),
    ("gzip", b"{}", {**JSON, "content-encoding": "gzip"}, 415, "unsupported_media_type"),
    ("too long", b'{"model": "' + b"x" * 2**20 + b'"}', JSON, 413, "body_too_large"),
]


def check(answer, status, code, field):
    """Fail unless an answer is a refusal in our form."""
    assert answer.status_code == status, answer.text[:500]
    error = answer.json()["error"]
    assert set(error) == {"code", "field", "message"}
    assert (error["code"], error["field"]) == (code, field), error
    assert 10 <= len(error["message"]) <= 500
    text = json.dumps(error)
    assert not any(word in text for word in ("Error:", "Traceback", "site-packages", ".py")), text
