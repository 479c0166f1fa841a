"""Takes nothing from the rest. Gives the shapes of a row, errors, config, prompts, URIs and storage."""
