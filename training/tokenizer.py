"""A CLIP tokenizer whose merges make every word of toybox one token.

Any other text still tokenizes, byte by byte, as in CLIP itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 32  # tokens, start and end included


def build(words: list[str], folder: Path) -> CLIPTokenizer:
    """Write a CLIP-format tokenizer that knows `words` into `folder`, and load it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>",
        initial_alphabet=alphabet, show_progress=False))
    merges = json.loads(bpe.to_str())["model"]["merges"]
    pieces = [*alphabet, *[c + "</w>" for c in alphabet], *["".join(m) for m in merges], START, END]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *[" ".join(m) for m in merges]]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH,
        "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}))
    return CLIPTokenizer.from_pretrained(folder)
