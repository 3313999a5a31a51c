"""Prompts computed once: responses side by side behind their prompt, in rows without padding.

rows        which responses share a prompt, where they stand in a row, what predicts their tokens
attention   the attention of such a row: each response sees its prompt and itself; no mask of the whole row
ways        packed, through the model's own cache, plain: three ways to the same hidden states
verify      which of them a model may go, proved on its longest and shortest prompt in float32
"""
