"""A CLIP tokenizer whose merges make every word of toybox one token.

Any other text still tokenizes, byte by byte, as in CLIP itself.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 32  # tokens, start and end included


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one piece; ties go to the alphabetically first pair.

    (The `tokenizers` trainer breaks ties by hash order, so two runs can number tokens differently.)
    """
    split = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for pieces in split for pair in zip(pieces, pieces[1:])):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(pieces):
        step = 2 if tuple(pieces[i:i + 2]) == pair else 1
        merged.append("".join(pieces[i:i + step]))
        i += step
    return merged


def build(words: list[str], folder: Path) -> CLIPTokenizer:
    """Write a CLIP-format tokenizer that knows `words` into `folder`, and load it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges([*words, ","])
    pieces = [*alphabet, *[c + "</w>" for c in alphabet], *["".join(m) for m in merges], START, END]
    folder.mkdir(parents=True, exist_ok=True)
    _write_files({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH,
        "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}))
    return CLIPTokenizer.from_pretrained(folder)


def write_slow_format(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Add vocab.json and merges.txt, which a tokenizer.json holds in one."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    _write_files(model["vocab"], model["merges"], folder)


def _write_files(vocab: dict[str, int], merges: list, folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *[m if isinstance(m, str) else " ".join(m) for m in merges]]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
