"""The report's own sections, one a file."""
