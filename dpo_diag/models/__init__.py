"""Policy, reference, tokenizer, adapters, checkpoints: found and loaded in one place."""
