"""Left wing: checkpoints asked again, the same way each time. Prompt sets, generation, scoring of pairs.

    prompts     prompt sets as files
    checkers    is an answer right: SQL that is run, exact, contains, regex, JSON
    generation  model x fixed prompts -> rows of outputs/
    tokenizing  pairs to token ids, as TRL's DPOTrainer does it
    scoring     model x pairs -> rows of pairs/ and tokens/
    checkpoints many checkpoints: folders, adapters, resuming
    schedule    at which steps to look

Importing this package or `prompts` does not import torch.
"""
