"""The recipe's last step: sample the student without any prompt of its own."""

import raydistill
from raydistill import types


def test_student_is_sampled_by_its_path(world, monkeypatch):
    monkeypatch.setenv("RAYDISTILL_BASE_URL", world.url)
    service_client = raydistill.ServiceClient()
    sampling_client = service_client.create_sampling_client(model_path="raydistill://tiny/final")
    tokenizer = sampling_client.get_tokenizer()
    query = "I lost my parcel, number 6."
    prompt = types.ModelInput.from_ints(tokenizer.encode(query))
    params = types.SamplingParams(max_tokens=20, temperature=0.5)
    result = sampling_client.sample(prompt, sampling_params=params).result()
    answer = tokenizer.decode(result.sequences[0].tokens)
    assert isinstance(answer, str) and 1 <= len(result.sequences[0].tokens) <= 20
    assert result.model.startswith("tiny/v")
