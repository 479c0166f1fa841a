"""Takes a file of JSON lines. Gives Queries, and their split into training and held-out ones."""
