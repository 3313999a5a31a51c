"""The built-in metrics, by what they come from; each module registers its own."""
