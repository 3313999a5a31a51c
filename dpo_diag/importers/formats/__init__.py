"""One foreign format a file: how it is recognised, how it is read. Each registers itself in `log_format.FORMATS`."""
