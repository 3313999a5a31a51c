"""Preference rows from any file and their tokens: what is read, cut or dropped, and why.

- pairs: a whole data set: every bad row listed with its reason, a fingerprint; hub: one from `datasets`
- splits: held out without leakage, and which pairs come first
- tokens: pairs to token ids, as TRL's DPOTrainer makes them; token_report: what that cuts or drops;
  token_bytes: UTF-8 bytes per token id
- source: the configuration's data: read, split, tokenised, reported
"""
