"""The kinds of loss that the package brings, by family; each module registers its own in `LOSSES`."""
