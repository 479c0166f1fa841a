"""Takes the address of a served model and prompts as token ids. Gives completions, by httpx alone."""
