"""Prompts to text embeddings, by the tokenizer and text encoder of a model folder (CLIP or T5)."""
from pathlib import Path
from typing import Any, List, Union

import torch
from torch import Tensor

from .errors import UserError
from .folder import first_line, model_folder, read_json, refuse_missing, variant_of

MAX_TOKENS = 77  # Stable Diffusion's and DeepFloyd IF's; a tokenizer with a shorter limit keeps its own
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")


class TextEncoder:
    """A frozen text encoder; call it with a list of prompts."""

    def __init__(self, tokenizer: Any, encoder: torch.nn.Module, device: Union[str, torch.device]) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.device = device
        self.masked = "T5" in type(encoder).__name__  # CLIP attends to its padding, T5 does not

    @classmethod
    def load(cls, name: Union[str, Path], device: Union[str, torch.device] = "cpu") -> "TextEncoder":
        """From a diffusers-format folder or hub id; `UserError` if it has no readable text encoder."""
        import transformers

        folder = model_folder(name, text=True)
        weights = folder / "text_encoder"
        kind = (read_json(weights / "config.json").get("architectures") or ["none named"])[0]
        if kind not in ENCODERS:
            raise UserError(f"{weights} is of kind {kind}; known are {', '.join(ENCODERS)}")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
            encoder, report = getattr(transformers, kind).from_pretrained(
                str(weights), variant=variant_of(weights, torch.float32), output_loading_info=True
            )
        except Exception as error:  # whatever the reader raises, the folder is at fault
            raise UserError(f"cannot load the text encoder of {folder}: {first_line(error)}") from error
        refuse_missing(weights, report["missing_keys"])
        # T5-XXL, 4.8 billion parameters, fits a GPU in half precision only, and fp16 overflows in T5
        half = kind.startswith("T5") and torch.device(device).type == "cuda"
        return cls(tokenizer, encoder.to(torch.bfloat16 if half else torch.float32), device)

    @torch.no_grad()
    def __call__(self, prompts: List[str]) -> Tensor:
        """Embeddings (B, Nt, D), float32; longer prompts are cut at the encoder's number of tokens."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=min(self.tokenizer.model_max_length, MAX_TOKENS),
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        mask = tokens.attention_mask if self.masked else None
        return self.encoder(tokens.input_ids, attention_mask=mask).last_hidden_state.float()
