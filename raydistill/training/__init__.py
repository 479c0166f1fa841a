"""Takes encoded rows and a student's folder. Gives an adapter in PEFT's format, metrics and resumable checkpoints."""
