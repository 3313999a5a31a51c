"""Left wing: finished checkpoints measured, the same way each time, into run folders.

    prompts, checkers        prompt sets as files; is an answer right: SQL that is run, exact, contains, regex, JSON
    generation, scoring      one model: fixed prompts -> rows of outputs/; pairs -> rows of pairs/ and tokens/
    generate_run, score_run  many checkpoints, one after the other; what a run folder holds already is skipped
    swapped_answers          old answers under new models, and the reverse
    next_tokens, longppl     where probability went; what a long context adds
    play                     one prompt, several checkpoints side by side
    weights                  what training did to the weights, without torch

Importing this package or `prompts` does not import torch.
"""
