"""Takes a seed. Gives a run of create_data in which everything that can die dies once, and what came out of it."""
