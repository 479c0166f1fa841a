"""How tests ask a student by every route, and spoil versions for it."""

import asyncio
import json
from pathlib import Path

from raydistill import types

TOKENS = 12
PROMPT = [5 + 7 * index % 300 for index in range(140)]  # longer than a block of the CPU engine's prefix cache
CHAT = [{"role": "user", "content": "I lost my parcel."}]
POLL_SECONDS = 0.5  # of the world's student
HEADER = "x-raydistill-model"


async def sample(client, num_samples=1):
    """Return the exact version and the tokens of each sample, greedily, so that all must be the same."""
    params = types.SamplingParams(max_tokens=TOKENS, temperature=0.0, stop=[])
    prompt = types.ModelInput.from_ints(PROMPT)
    result = await (await client.sample_async(prompt, num_samples=num_samples, sampling_params=params))
    return result.model, {tuple(sequence.tokens) for sequence in result.sequences}


async def chat(http, model, stream):
    """Return the versions that header and body name, and the text."""
    body = {"model": model, "messages": CHAT, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        text = (await answer.aread()).decode()
        assert answer.status_code == 200, text
    if not stream:
        whole = json.loads(text)
        return {answer.headers[HEADER], whole["model"]}, whole["choices"][0]["message"]["content"]
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events[-1] == "[DONE]", text
    pieces = [json.loads(event) for event in events[:-1]]
    words = [choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"]]
    return {piece["model"] for piece in pieces} | {answer.headers[HEADER]}, "".join(words)


def spoil_probe(uri, version):
    """Let a version's record promise what its weights do not do: only the engine can tell."""
    path = Path(uri, version.label, "version.json")
    data = json.loads(path.read_bytes())
    for point in data["probe"]:
        point["adapter"] = min(-0.1, 2 * point["base"] - point["adapter"] - 3)  # a log-probability all the same
    path.write_text(json.dumps(data))
    return version


async def wait_for(http, part, key, value):
    """Return when the status says so of an alias; of a refusal, whatever its reason, when three polls have passed."""
    for _ in range(150):
        told = (await http.get("/status")).json()[part]
        if value is None and key in told:
            return await asyncio.sleep(3 * POLL_SECONDS)
        if key in told and told[key] == value:
            return None
        await asyncio.sleep(0.1)
    raise AssertionError(f"{part} {key} is not {value} after 15 s: {(await http.get('/status')).text}")
