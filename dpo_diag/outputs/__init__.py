"""Right wing: what the checkpoints wrote for the same prompts, compared. Reads records only; no torch."""
