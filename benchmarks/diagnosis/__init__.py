"""A benchmark of truthfulness: runs whose cause is planted and known, and what the checks say about them."""
