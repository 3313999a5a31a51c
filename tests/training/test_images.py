"""Pairs that differ in their image alone are different pairs, from the data set to the explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dpo_diag import load_run
from dpo_diag.diagnosis.checks import CheckContext, run_checks
from dpo_diag.records.pair_id import pair_id_of
from dpo_diag.training import DiagDPOTrainer
from dpo_diag.training.first_look import first_look

from .tiny import arguments, copies, make_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' }}{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def processor() -> LlavaProcessor:
    """Images of 28 x 28 pixels: four patches and a class token."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip


def llava(vocabulary: int, image_token: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **size)
    text = LlamaConfig(
        vocab_size=vocabulary, num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, **size,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, vision_feature_layer=-2)
    )


@pytest.mark.parametrize("decoded", [True, False])
def test_images_make_pairs(tmp_path: Path, decoded: bool) -> None:
    """Four pictures under one question and the same answers, evaluated twice; the data set holds the pictures decoded
    or as files. Every pair is recorded under the id of its content, and nothing takes it for a repeat."""
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 255, (28, 28, 3), dtype=np.uint8)) for _ in range(4)]
    turns = {name: [{"role": role, "content": text}] for name, role, text in (
        ("prompt", "user", "cat?"), ("chosen", "assistant", "red"), ("rejected", "assistant", "two dog"))}  # fmt: skip
    rows = [{**turns, "images": [picture]} for picture in pictures]
    data = Dataset.from_list(rows) if decoded else Dataset.from_list([{**turns, "image": p} for p in pictures])
    reads = processor()
    model = llava(len(reads.tokenizer), reads.tokenizer.convert_tokens_to_ids("<image>"))
    trainer = DiagDPOTrainer(
        model=model, ref_model=copies(model),
        args=arguments(tmp_path / "out", max_steps=1, eval_strategy="steps", eval_steps=1, max_length=None),
        train_dataset=data.select(range(2)), eval_dataset=data.select(range(2, 4)), processing_class=reads,
        recorder=tmp_path / "run",
    )  # fmt: skip
    trainer.train()
    run = load_run(tmp_path / "run")
    ids = {split: set(part["pair_id"]) for split, part in run.pairs.groupby("split", observed=True)}
    assert ids == {"train": {pair_id_of(r) for r in rows[:2]}, "eval": {pair_id_of(r) for r in rows[2:]}}
    sums = run.pairs[(run.pairs["split"] == "eval") & (run.pairs["side"] == "chosen")].groupby("step")["sum_logp"]
    assert (sums.nunique() == 2).all()  # the picture changes what the answer's tokens are worth
    spoken = {f["code"] for f in run_checks(CheckContext.from_run(run)) if f["outcome"] == "speaks"}
    assert not spoken & {"DVG014", "DVG027"}
    assert first_look(trainer) is None  # there are no tokens to look at before a batch is made
