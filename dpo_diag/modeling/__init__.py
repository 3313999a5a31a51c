"""Left wing: preference pairs, their tokens, and the models that score them.

formats   one raw row (TRL, hh-rlhf, ShareGPT) to prompt, chosen, rejected
files     raw rows of a json, jsonl, parquet or csv file, gzipped or not
pairs     a whole data set: every bad row listed with its reason, a fingerprint, a split without leakage
data      the configuration's data: read, split, tokenised, reported
tokens    what tokenising truncates, drops or merges
tokenizers  pad token, chat template, fingerprint, bytes per token
models    policy, reference, tokenizer, device
adapters  LoRA, QLoRA
hub       the loading library's errors in one line
smollm2   a small real model that a package ships
probes    the fixed pairs that are measured at every evaluation
"""
