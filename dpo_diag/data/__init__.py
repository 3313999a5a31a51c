"""Preference rows from any file, their formats, their tokens: what is read, cut or dropped, and why.

- formats: one raw row (TRL, hh-rlhf, ShareGPT) to prompt, chosen, rejected
- files: raw rows of a json, jsonl, parquet or csv file, gzipped or not
- pairs: a whole data set: every bad row listed with its reason, a fingerprint, a split without leakage
- tokens: what tokenising truncates, drops or merges; token_bytes: UTF-8 bytes per token id
- tokenizing: pairs to token ids, as TRL's DPOTrainer makes them
- source: the configuration's data: read, split, tokenised, reported
- probes: the fixed pairs that are measured at every evaluation
"""
