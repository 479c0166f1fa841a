"""An endpoint that answers rows with a real tiny model in float32 torch: exact, and able to be wrong on purpose."""

from collections.abc import Callable

import torch

from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.scoring.model import adapter_switch


class TinyEndpoint:
    """Greedy or seeded sampling from one model, its adapter on where a row names a model."""

    def __init__(self, model, version: str, tamper: Callable[[TokenResult, int], TokenResult] | None = None):
        self.model = model
        self.version = version
        self.tamper = tamper
        self.rows: list[TokenRequest] = []

    def __call__(self, rows: list[TokenRequest]) -> list[TokenResult]:
        results = []
        for row in rows:
            result = self.answer(row)
            results.append(self.tamper(result, len(self.rows)) if self.tamper else result)
            self.rows.append(row)
        return results

    @torch.inference_mode()
    def answer(self, row: TokenRequest) -> TokenResult:
        generator = torch.Generator().manual_seed(row.seed or 0)
        tokens, logprobs, cache = [], [], None
        inputs = torch.tensor([row.tokens])
        finish = "length"
        with adapter_switch(self.model, bool(row.model)):
            for _ in range(row.max_tokens):
                out = self.model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                scores = torch.log_softmax(out.logits[0, -1].float(), -1)
                greedy = row.temperature == 0
                token = int(scores.argmax() if greedy else torch.multinomial(scores.exp(), 1, generator=generator))
                tokens.append(token)
                logprobs.append(float(scores[token]))
                inputs = torch.tensor([[token]])
                if token in row.stop_token_ids and not row.ignore_eos:
                    finish = "stop"
                    break
        usage = Usage(len(row.tokens), 0, len(tokens))
        return TokenResult(tokens, logprobs, finish, usage, self.version if row.model else "base")
