"""One preference pair from one row, however it is written: what trains, scores and imports reads rows alike.

- pair: the pair itself, its messages, and the rules that hold for all
- forms/: the forms in which people write pairs, a file each
"""
