"""Takes token ids and a model with or without an adapter. Gives log-probabilities, KL and probes, in float32 torch."""
