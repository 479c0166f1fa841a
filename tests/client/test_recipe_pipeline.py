"""The recipe written out by hand: ask a teacher with its long prompt, keep the pairs without it, train on them."""

import asyncio
import json

import raydistill
from raydistill import renderers, types
from raydistill.registry.versions import list_versions
from tests.client.protocol_server import State, serve
from tests.processes import ray_address, run_job
from tests.tiny_task import NAMES

TEACHER_PROMPT = "You are the help desk of a shop. Answer in few words, and never promise anything."
QUERIES = [f"I {verb} my {name}, what now?" for name in NAMES for verb in ("lost", "broke", "want", "never got")]


async def write_pairs(base_model: str, output_file: str) -> None:
    service_client = raydistill.ServiceClient()
    teacher_client = service_client.create_sampling_client(base_model=base_model)
    tokenizer = teacher_client.get_tokenizer()
    renderer = renderers.get_renderer("chat", tokenizer)

    async def ask(query: str) -> str:
        messages = [{"role": "system", "content": TEACHER_PROMPT}, {"role": "user", "content": query}]
        prompt = renderer.build_generation_prompt(messages)
        stop = renderer.get_stop_sequences()
        result = await teacher_client.sample_async(
            prompt,
            sampling_params=types.SamplingParams(max_tokens=24, temperature=0.3, stop=stop),
            num_samples=1,
        )
        output = await result
        message, _ok = renderer.parse_response(output.sequences[0].tokens)
        return message["content"]

    answers = await asyncio.gather(*(ask(query) for query in QUERIES))
    with open(output_file, "w") as file:  # noqa: PTH123 - as the recipe writes it
        for query, answer in zip(QUERIES, answers, strict=True):
            if answer.strip():  # a random model may say nothing, and nothing cannot be learnt
                pair = [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": pair}) + "\n")


def read_queries(path):
    lines = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert all([message["role"] for message in messages] == ["user", "assistant"] for messages in lines)
    return [messages[0]["content"] for messages in lines]


def test_pipeline_writes_every_pair_without_p_when_the_server_is_a_stand_in(model_dir, tmp_path, monkeypatch):
    state = State(base_model=model_dir)
    with serve(state) as url:
        monkeypatch.setenv("RAYDISTILL_BASE_URL", url)
        asyncio.run(write_pairs(model_dir, str(tmp_path / "pairs.jsonl")))
    assert read_queries(tmp_path / "pairs.jsonl") == QUERIES
    asked = [body["prompt"]["chunks"][0]["tokens"] for body in state.bodies("asample")]
    tokenizer = renderers.load_tokenizer(model_dir)
    assert len(asked) == len(QUERIES) and all(TEACHER_PROMPT in tokenizer.decode(tokens) for tokens in asked)
    assert all(body["sampling_params"]["stop"] == [2] for body in state.bodies("asample"))


def test_pipeline_and_train_publish_a_version(world, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDISTILL_BASE_URL", world.url)
    data_file = tmp_path / "pairs.jsonl"
    asyncio.run(write_pairs(world.base_dir, str(data_file)))
    assert set(read_queries(data_file)) <= set(QUERIES)
    assert TEACHER_PROMPT not in data_file.read_text()
    done = run_job(
        "train",
        f"data_file={data_file}",
        f"student_model={world.base_dir}",
        "lora_rank=32",
        "num_epochs=3",
        f"log_path={tmp_path / 'log'}",
        cwd=tmp_path,
        timeout_seconds=300,
        RAY_ADDRESS=ray_address(),
    )
    assert done.returncode == 0, done.stderr
    assert "pairs/v0001" in done.stdout
    (version,) = list_versions(str(tmp_path / "models" / "pairs"))
    assert version.lora["rank"] == 32 and version.base_model == world.base_dir
    assert (tmp_path / "log" / "metrics.jsonl").is_file()
