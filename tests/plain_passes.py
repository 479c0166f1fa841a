"""The yardstick: plain passes of transformers over one row, without padding, packing, cache or mask of ours."""

import torch


@torch.inference_mode()
def plain_logprobs(model, prompt: list[int], response: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the log-probabilities of every token of the vocabulary at each place of the response, (places, vocab)."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].to(dtype), dim=-1)


@torch.inference_mode()
def greedy_tokens(model, prompt: list[int], num_tokens: int) -> tuple[list[int], list[float]]:
    """Return the likeliest next tokens and their log-probabilities."""
    tokens, logprobs = list(prompt), []
    for _ in range(num_tokens):
        last = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].log_softmax(-1)
        tokens.append(int(last.argmax()))
        logprobs.append(float(last.max()))
    return tokens[len(prompt) :], logprobs
