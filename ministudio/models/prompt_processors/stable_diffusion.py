"""Prompts through the text encoder of any diffusers model: CLIP, T5, whatever the folder says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor

import ministudio
from ministudio.models.prompt_processors.base import PromptProcessor
from ministudio.utils.config import ConfigError
from ministudio.utils.misc import cleanup, first_line


def _is_local(name: str) -> bool:
    """A hub id has the form owner/name, and none of these beginnings."""
    return name.count("/") != 1 or name.startswith((".", "/", "~", "models/", "outputs/"))


@ministudio.register("stable-diffusion-prompt-processor")
class StableDiffusionPromptProcessor(PromptProcessor):
    """Last hidden state of the model's text encoder, padded to the tokenizer's length."""

    max_length: ClassVar[Optional[int]] = None  # the tokenizer's own
    use_attention_mask: ClassVar[bool] = False

    @dataclass
    class Config(PromptProcessor.Config):
        pass

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self._warn_of_unknown_words()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        tokenizer, encoder = self._load_text_model()
        length = self.max_length or tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        self._warn_of_truncation(prompts, tokenizer, length)
        mask = tokens.attention_mask.to(self.device) if self.use_attention_mask else None
        embeddings = encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0].float().cpu()
        del encoder
        cleanup()
        return embeddings

    def _load_text_model(self) -> tuple[Any, Any]:
        """Tokenizer and text encoder of the classes that the model folder names."""
        name = self.cfg.pretrained_model_name_or_path
        if _is_local(name) and not Path(name).is_dir():  # the hub would be asked for it, again and again
            raise ConfigError("pretrained_model_name_or_path", f"there is no model folder {name}")
        import transformers  # takes seconds, and a cached prompt does not need it

        transformers.utils.logging.disable_progress_bar()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, subfolder="tokenizer")
            config = transformers.AutoConfig.from_pretrained(name, subfolder="text_encoder")
            cls = getattr(transformers, config.architectures[0])
            encoder, report = cls.from_pretrained(name, subfolder="text_encoder", dtype=self._dtype(), output_loading_info=True)
        except Exception as error:  # each library underneath has its own types for a bad or absent file
            raise ConfigError("pretrained_model_name_or_path", self._problem(name, error)) from error
        if missing := sorted(report["missing_keys"]):  # the library would draw them at random
            raise ConfigError("pretrained_model_name_or_path", f"the text encoder of {name} lacks {len(missing)} weights, first {missing[0]}")
        return tokenizer, encoder.eval().requires_grad_(False).to(self.device)

    def _dtype(self) -> torch.dtype:
        return torch.float32

    @staticmethod
    def _problem(name: str, error: Exception) -> str:
        missing = [part for part in ("tokenizer", "text_encoder") if not (Path(name) / part).is_dir()]
        if Path(name).is_dir() and missing:
            return f"{name} is not a whole diffusers model: it lacks {' and '.join(missing)}"
        return f"cannot load the text encoder of {name}: {first_line(error)}"

    @staticmethod
    def _warn_of_truncation(prompts: list[str], tokenizer: Any, length: int) -> None:
        for prompt in prompts:
            n = len(tokenizer(prompt).input_ids)
            if n > length:
                ministudio.warn('the model reads %d tokens; the end of "%s" (%d tokens) is cut off', length, prompt, n)

    def _warn_of_unknown_words(self) -> None:
        """A model that lists its words in vocabulary.txt knows no others."""
        path = Path(self.cfg.pretrained_model_name_or_path) / "vocabulary.txt"
        if not path.is_file():
            return
        known = path.read_text(encoding="utf-8").split()
        words = re.findall(r"\w+", " ".join([self.prompt, *self.prompts_vd, self.negative_prompt]).lower())
        unknown = [word for word in dict.fromkeys(words) if word not in set(known)]
        if unknown:
            ministudio.warn(
                "the model has never seen: %s. It knows these words only: %s", ", ".join(unknown), " ".join(sorted(known))
            )


@ministudio.register("deep-floyd-prompt-processor")
class DeepFloydPromptProcessor(StableDiffusionPromptProcessor):
    """T5 embeddings (77, 4096); padded positions are kept."""

    max_length = 77
    use_attention_mask = True

    @dataclass
    class Config(StableDiffusionPromptProcessor.Config):
        pretrained_model_name_or_path: str = "DeepFloyd/IF-I-XL-v1.0"

    cfg: Config

    def _dtype(self) -> torch.dtype:
        """The 4.8 billion parameters of T5-XXL fit a GPU in half precision only; fp16 overflows in T5."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32
