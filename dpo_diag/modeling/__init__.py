"""Left wing: preference pairs, their tokens, and the models that score them.

- formats: one raw row (TRL, hh-rlhf, ShareGPT) to prompt, chosen, rejected
- files: raw rows of a json, jsonl, parquet or csv file, gzipped or not
- pairs: a whole data set: every bad row listed with its reason, a fingerprint, a split without leakage
- tokens: what tokenising truncates, drops or merges; token_bytes: UTF-8 bytes per token id
- data: the configuration's data: read, split, tokenised, reported
- probes: the fixed pairs that are measured at every evaluation
- models, tokenizers, adapters: policy, reference, pad token and chat template, LoRA and QLoRA
- hub: the loading library's errors in one line
- smollm2: a small real model that a package ships
"""
