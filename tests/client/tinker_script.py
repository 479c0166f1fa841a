"""Sample with the public `tinker` SDK, unmodified; runs in a virtual environment that has it, and prints JSON."""

import json
import sys

import tinker  # pyright: ignore[reportMissingImports]
from tinker import types  # pyright: ignore[reportMissingImports]

base_url, api_key, model_path, text = sys.argv[1:]
with tinker.ServiceClient(base_url=base_url, api_key=api_key) as service_client:
    sampling_client = service_client.create_sampling_client(model_path=model_path).result()
    tokenizer = sampling_client.get_tokenizer()
    prompt = types.ModelInput.from_ints(tokenizer.encode(text))
    params = types.SamplingParams(max_tokens=6, temperature=0.0, stop=[])
    result = sampling_client.sample(prompt, num_samples=2, sampling_params=params).result()
    try:
        service_client.create_sampling_client(model_path="tinker://no-such/final").result()
        unknown = "served"
    except tinker.NotFoundError as error:
        unknown = str(error)
sequences = [{"tokens": list(item.tokens), "logprobs": list(item.logprobs)} for item in result.sequences]
text = tokenizer.decode(sequences[0]["tokens"])
print(json.dumps({"version": tinker.__version__, "sequences": sequences, "text": text, "unknown": unknown}))
