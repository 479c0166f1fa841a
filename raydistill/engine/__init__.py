"""Takes rows of token ids. Gives tokens, log-probabilities and usage; the only room that knows vllm."""
