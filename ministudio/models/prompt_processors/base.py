"""A prompt becomes embeddings for each view; a guidance asks for those of its cameras."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

import ministudio
from ministudio.models.prompt_processors.cache import EmbeddingCache, model_identity
from ministudio.models.prompt_processors.directions import OVERHEAD, VIEWS, PerpNeg, Thresholds, view_prompts
from ministudio.utils.base import BaseObject
from ministudio.utils.config import ConfigError


@dataclass
class PromptProcessorOutput:
    """Embeddings of one prompt: plain, and one per view in the order of `directions.VIEWS`."""

    text_embeddings: Tensor  # [1, Nt, D]
    uncond_text_embeddings: Tensor  # [1, Nt, D]
    text_embeddings_vd: Tensor  # [4, Nt, D]
    uncond_text_embeddings_vd: Tensor  # [4, Nt, D]
    directions: tuple[str, ...] = VIEWS
    direction2idx: dict[str, int] = field(default_factory=lambda: {view: i for i, view in enumerate(VIEWS)})
    thresholds: Thresholds = Thresholds()
    use_perp_neg: bool = False
    perp_neg: PerpNeg = PerpNeg()
    prompt: str = ""
    prompts_vd: list[str] = field(default_factory=list)

    def get_text_embeddings(
        self,
        elevation: Tensor,  # [B] degrees
        azimuth: Tensor,  # [B] degrees
        camera_distances: Tensor,  # [B]
        view_dependent_prompting: bool = True,
    ) -> Tensor:  # [2B, Nt, D]
        """Embeddings for B cameras: the conditional block first, then the unconditional one."""
        n = len(elevation)
        if view_dependent_prompting:
            index = self.thresholds.view_index(elevation, azimuth).to(self.text_embeddings_vd.device)
            return torch.cat([self.text_embeddings_vd[index], self.uncond_text_embeddings_vd[index]])
        return torch.cat([self.text_embeddings.expand(n, -1, -1), self.uncond_text_embeddings.expand(n, -1, -1)])

    def get_text_embeddings_perp_neg(
        self,
        elevation: Tensor,  # [B] degrees
        azimuth: Tensor,  # [B] degrees
        camera_distances: Tensor,  # [B]
        view_dependent_prompting: bool = True,
    ) -> tuple[Tensor, Tensor]:  # [4B, Nt, D], [B, 2]
        """Perp-Neg: blocks of B positive, B unconditional, 2B negative (two per item); negative weights <= 0.

        Views from overhead have no neighbour to be confused with: their weights are zero.
        """
        if not view_dependent_prompting:
            raise ConfigError("view_dependent_prompting", "Perp-Neg needs it to be true")
        uncond = self.uncond_text_embeddings_vd[self.thresholds.view_index(elevation, azimuth)]
        mixes = [self._mix(e, a, u) for e, a, u in zip(elevation.tolist(), azimuth.tolist(), uncond)]
        positive, negative, weights = zip(*mixes)
        return torch.cat([torch.stack(positive), uncond, torch.cat(negative)]), uncond.new_tensor(weights)

    def _mix(self, elevation: float, azimuth: float, uncond: Tensor) -> tuple[Tensor, Tensor, tuple[float, float]]:
        if elevation > self.thresholds.overhead:
            return self.text_embeddings_vd[OVERHEAD], torch.stack([uncond, uncond]), (0.0, 0.0)
        return self.perp_neg.mix(azimuth, self.text_embeddings_vd)


class PromptProcessor(BaseObject):
    """Call it without arguments for the PromptProcessorOutput. A subclass encodes texts."""

    @dataclass
    class Config(BaseObject.Config):
        prompt: str = "a hamburger"
        prompt_front: Optional[str] = None  # verbatim, instead of the automatic words for that view
        prompt_side: Optional[str] = None
        prompt_back: Optional[str] = None
        prompt_overhead: Optional[str] = None
        negative_prompt: str = ""
        pretrained_model_name_or_path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        overhead_threshold: float = 60.0  # degrees
        front_threshold: float = 45.0
        back_threshold: float = 45.0
        view_dependent_prompt_front: bool = False  # "side view of p" instead of "p, side view"
        use_cache: bool = True
        spawn: bool = True  # accepted for threestudio's files; encoding needs no process of its own here
        use_perp_neg: bool = False
        perp_neg_f_sb: Tuple[float, float, float] = (1, 0.5, -0.606)
        perp_neg_f_fsb: Tuple[float, float, float] = (1, 0.5, 0.967)
        perp_neg_f_fs: Tuple[float, float, float] = (4, 0.5, -2.426)
        perp_neg_f_sf: Tuple[float, float, float] = (4, 0.5, -2.426)
        use_prompt_debiasing: bool = False
        pretrained_model_name_or_path_prompt_debiasing: str = "bert-base-uncased"
        prompt_debiasing_mask_ids: Any = None

    cfg: Config

    def configure(self) -> None:
        self._check()
        self.prompt = self.cfg.prompt.strip()
        automatic = view_prompts(self.prompt, self.cfg.view_dependent_prompt_front)
        by_hand = [self.cfg[f"prompt_{view}"] for view in VIEWS]
        self.prompts_vd = [hand if hand is not None else auto for hand, auto in zip(by_hand, automatic)]
        self.negative_prompt = self.cfg.negative_prompt
        ministudio.info('prompt "%s", negative prompt "%s"', self.prompt, self.negative_prompt)
        self.embeddings = self._load([self.prompt, *self.prompts_vd, self.negative_prompt])

    def _check(self) -> None:
        prompt = self.cfg.prompt.strip()
        if not prompt:
            raise ConfigError("prompt", 'is empty: describe an object, for example prompt="a red cube"')
        if prompt.startswith("lib:"):
            raise ConfigError("prompt", "threestudio's prompt library is not part of this project: write the prompt out")
        if self.cfg.use_prompt_debiasing:
            raise ConfigError("use_prompt_debiasing", "is not supported here: set it to false")

    def _load(self, prompts: list[str]) -> dict[str, Tensor]:
        """Embeddings (Nt, D) float32 of each prompt, from the cache as far as it holds them."""
        cache = EmbeddingCache(f"{type(self).__name__} {model_identity(self.cfg.pretrained_model_name_or_path)}")
        prompts = list(dict.fromkeys(prompts))
        known = {p: cache.load(p) for p in prompts} if self.cfg.use_cache else {}
        missing = [p for p in prompts if known.get(p) is None]
        if missing:
            for prompt, embedding in zip(missing, self.encode(missing)):
                known[prompt] = embedding.float()
                if self.cfg.use_cache:
                    cache.save(prompt, known[prompt])
        return {prompt: known[prompt].to(self.device) for prompt in prompts}

    def encode(self, prompts: list[str]) -> Tensor:
        """Texts to embeddings (N, Nt, D)."""
        raise NotImplementedError

    def __call__(self) -> PromptProcessorOutput:
        cfg, negative = self.cfg, self.embeddings[self.negative_prompt][None]
        return PromptProcessorOutput(
            text_embeddings=self.embeddings[self.prompt][None],
            uncond_text_embeddings=negative,
            text_embeddings_vd=torch.stack([self.embeddings[p] for p in self.prompts_vd]),
            uncond_text_embeddings_vd=negative.expand(len(VIEWS), -1, -1),
            thresholds=Thresholds(cfg.overhead_threshold, cfg.front_threshold, cfg.back_threshold),
            use_perp_neg=cfg.use_perp_neg,
            perp_neg=PerpNeg(*(tuple(cfg[f"perp_neg_f_{pair}"]) for pair in ("sb", "fsb", "fs", "sf"))),
            prompt=self.prompt,
            prompts_vd=self.prompts_vd,
        )
