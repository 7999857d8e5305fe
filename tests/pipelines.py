"""Tiny random-weight text-to-image folders in diffusers' format, so that tests load models the way users do."""
import json
from pathlib import Path
from typing import Any, Optional, Union

import torch

PathLike = Union[str, Path]
TEXT_WIDTH = 32  # width D of the text embeddings, as the U-Net's cross-attention expects it


def write_pixel_pipeline(
    folder: PathLike,
    prediction_type: str = "v_prediction",
    size: int = 64,
    learned_variance: bool = False,
    seed: int = 0,
    tokens: int = 32,
) -> Path:
    """Write a pixel-space model: U-Net on (3, size, size) images in [-1, 1], no VAE; return its folder.

    `prediction_type` is epsilon, v_prediction or sample; `learned_variance` doubles the output channels;
    `tokens` is how many the text encoder reads.
    """
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_text_encoder(folder, max_length=tokens)
        _write_unet(folder, size, channels=3, out_channels=6 if learned_variance else 3)
    _write_scheduler(folder, prediction_type, beta_schedule="squaredcos_cap_v2")
    _write_index(folder, "DiffusionPipeline", latent=False)
    return folder


def write_latent_pipeline(
    folder: PathLike, prediction_type: str = "epsilon", size: int = 16, seed: int = 0, unet: Optional[Any] = None
) -> Path:
    """Write a latent model: VAE of factor 8 and a U-Net on (4, size, size) latents, or the one given; return its folder."""
    from diffusers import AutoencoderKL

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_text_encoder(folder, max_length=77)
        if unet is None:
            _write_unet(folder, size, channels=4, out_channels=4)
        else:
            unet.save_pretrained(folder / "unet")
        AutoencoderKL(
            block_out_channels=(8, 16, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=8 * size,
        ).save_pretrained(folder / "vae")
    _write_scheduler(folder, prediction_type, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    _write_index(folder, "StableDiffusionPipeline", latent=True)
    return folder


def _write_unet(folder: Path, size: int, channels: int, out_channels: int) -> None:
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")


def _write_text_encoder(folder: Path, max_length: int) -> None:
    """A two-layer CLIP text model whose tokens are single characters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    characters = [chr(code) for code in range(33, 127)]
    tokens = characters + [c + "</w>" for c in characters] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = tokenizer / "vocab.json", tokenizer / "merges.txt"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    CLIPTokenizer(str(vocabulary), str(merges), model_max_length=max_length).save_pretrained(tokenizer)
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=max_length,
            bos_token_id=len(tokens) - 2,
            eos_token_id=len(tokens) - 1,
        )
    ).save_pretrained(folder / "text_encoder")


def _write_scheduler(folder: Path, prediction_type: str, **settings) -> None:
    from diffusers import DDPMScheduler

    DDPMScheduler(prediction_type=prediction_type, clip_sample=False, **settings).save_pretrained(folder / "scheduler")


def _write_index(folder: Path, class_name: str, latent: bool) -> None:
    parts = {
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    if latent:
        parts["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": class_name, **parts}, indent=2))
