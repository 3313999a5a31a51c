"""Rules over a run for CI. Reads diagnosis, outputs and review; nothing reads it."""
