"""Takes a trained adapter. Gives an immutable version, aliases that point to it, and checks of its files."""
