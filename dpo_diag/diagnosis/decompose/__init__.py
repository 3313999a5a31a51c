"""Exact splits of a change between two steps: the loss, the perplexities, the tokens."""
