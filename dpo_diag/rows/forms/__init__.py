"""The forms in which people write preference pairs, one a file: which columns claim a file, what is the pair."""
