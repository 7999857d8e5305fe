"""A frozen text-to-image model behind one small interface, whatever its kind.

Pixel or latent, ε / v / x0 prediction, learned variance: all of it is found in the model folder itself.
Arithmetic outside the networks is float32, and stays so under autocast.
"""
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError
from .folder import first_line, load_part, local_path, model_folder, read_json
from .schedule import NoiseSchedule, Prediction


class DiffusionModel:
    """x-space and noise prediction of a frozen model.

    Attributes: name, folder, schedule, space ("pixel" | "latent"), channels, resolution (of x), device, dtype.
    """

    def __init__(
        self,
        unet: nn.Module,
        schedule: NoiseSchedule,
        vae: Optional[nn.Module] = None,
        name: str = "model",
        folder: Optional[Path] = None,
    ) -> None:
        self.unet, self.schedule, self.vae, self.name, self.folder = unet, schedule, vae, name, folder
        self.space = "latent" if vae is not None else "pixel"
        self.channels: int = unet.config.in_channels
        self.resolution: int = unet.config.sample_size
        self._text = None
        self._check()

    @classmethod
    def load(
        cls,
        name: Union[str, Path],
        device: Union[str, torch.device] = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        weights_on: Union[str, torch.device, None] = None,
    ) -> "DiffusionModel":
        """Load a diffusers-format folder or hub id; a folder that is no such model is a `UserError`.

        weights_on: where the networks' weights rest, such as the CPU before `save_memory(cpu_offload=True)`, which runs
        them on `device`; None: on `device`.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel

        folder = model_folder(name, half=dtype != torch.float32)
        schedule = load_schedule(folder, device)
        unet = load_part(UNet2DConditionModel, folder, "unet", dtype)
        vae = load_part(AutoencoderKL, folder, "vae", dtype) if (folder / "vae").is_dir() else None
        layout = torch.channels_last if channels_last else torch.contiguous_format
        rest = device if weights_on is None else weights_on
        unet = unet.to(rest, memory_format=layout)
        shown = folder.resolve().name if local_path(name).is_dir() else str(name)
        return cls(unet, schedule, vae.to(rest) if vae is not None else None, shown, folder)

    @property
    def device(self) -> torch.device:
        return self.schedule.alphas_cumprod.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def num_timesteps(self) -> int:
        """T; timesteps are 0 … T - 1."""
        return len(self.schedule)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that x stands for."""
        return self.resolution * self._vae_factor

    def encode(self, rgb: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] → x at the model's resolution, float32, differentiable.

        Pixel models: 2 rgb - 1. Latent models: the mean of the VAE's posterior, scaled.
        """
        x = 2 * resize(rgb.float(), self.image_size) - 1
        if self.vae is None:
            return x
        with full_precision(x):
            posterior = self.vae.encode(x.to(self.vae.dtype)).latent_dist
        latents = posterior.mean.float() - (getattr(self.vae.config, "shift_factor", None) or 0.0)
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """x → images (B, 3, H, W) in [0, 1], clamped, float32."""
        if self.vae is not None:
            latents = x.float() / self.vae.config.scaling_factor + (getattr(self.vae.config, "shift_factor", None) or 0.0)
            with full_precision(x):
                x = self.vae.decode(latents.to(self.vae.dtype)).sample
        return (0.5 * x.float() + 0.5).clamp(0, 1)

    @torch.no_grad()
    def predict(self, z: Tensor, t: Tensor, embeddings: Tensor) -> Prediction:
        """(ε, x̂) at noisy inputs z (B, C, H, W), timesteps t (B,) int64, text embeddings (B, Nt, D)."""
        self._check_embeddings(embeddings)
        z = z.float()
        with full_precision(z):
            output = self.unet(z.to(self.dtype), t, encoder_hidden_states=embeddings.to(self.dtype)).sample
        mean = output[:, : self.channels].float()  # a learned variance follows the mean
        return self.schedule.convert(mean, z, t)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts → text embeddings (B, Nt, D) float32, by the model folder's own text encoder."""
        if self._text is None:
            from .text import TextEncoder

            # a snapshot from the hub may hold what another program wanted of it
            complete = self.folder is not None and any((self.folder / "text_encoder").glob("*.safetensors"))
            self._text = TextEncoder.load(self.folder if complete else self.name, self.device)
        return self._text(list(prompts))

    def save_memory(self, attention_slicing: bool = False, cpu_offload: bool = False) -> None:
        """Trade speed for memory: attention in slices; weights on the CPU until their layer runs (needs accelerate)."""
        for network in (self.unet, self.vae):
            if network is not None and attention_slicing and hasattr(network, "set_attention_slice"):
                network.set_attention_slice("auto")
            if network is not None and cpu_offload:
                _offloader()(network, self.device)

    def forget_text_encoder(self) -> None:
        """Free the memory that `embed` holds; the next `embed` loads the encoder again."""
        self._text = None

    @property
    def _vae_factor(self) -> int:
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _check(self) -> None:
        config = self.unet.config
        expected = 3 if self.vae is None else self.vae.config.latent_channels
        if config.in_channels != expected:
            raise UserError(
                f"model '{self.name}': its U-Net takes {config.in_channels} channels, a {self.space} model's takes {expected}"
                + ("; is the folder's vae/ missing, or is this an inpainting model?" if self.vae is None else "")
            )
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            raise UserError(f"model '{self.name}': its U-Net returns {config.out_channels} channels for {config.in_channels}")
        if not isinstance(config.sample_size, int):
            raise UserError(f"model '{self.name}': its U-Net's sample_size is {config.sample_size}; a whole number is supported")
        if getattr(config, "class_embed_type", None) or getattr(config, "num_class_embeds", None):
            raise UserError(f"model '{self.name}' needs class labels or image embeddings (unCLIP), which is not supported")
        if getattr(config, "addition_embed_type", None) == "text_time":
            raise UserError(f"model '{self.name}' needs pooled text and sizes (SDXL), which is not supported")

    def _check_embeddings(self, embeddings: Tensor) -> None:
        width = getattr(self.unet.config, "encoder_hid_dim", None) or self.unet.config.cross_attention_dim
        if isinstance(width, int) and embeddings.shape[-1] != width:
            raise UserError(
                f"text embeddings are {embeddings.shape[-1]} wide, model '{self.name}' takes {width}; "
                "give the prompt processor the same pretrained_model_name_or_path as the guidance"
            )


def resize(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) → (B, C, size, size), bilinear, antialiased when it shrinks."""
    if images.shape[-2:] == (size, size):
        return images
    shrinks = images.shape[-1] > size or images.shape[-2] > size
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)


def load_schedule(folder: Path, device: Union[str, torch.device] = "cpu") -> NoiseSchedule:
    """The noise schedule in folder/scheduler."""
    from diffusers import DDIMScheduler, DDPMScheduler

    config = read_json(folder / "scheduler" / "scheduler_config.json")
    if "Flow" in config.get("_class_name", ""):
        raise UserError(f"{folder} is a flow-matching model ({config['_class_name']}), which is not supported")
    try:
        # Old releases know a zero terminal SNR in DDIM alone, and DDPM there drops the option without a word.
        scheduler = (DDIMScheduler if config.get("rescale_betas_zero_snr") else DDPMScheduler).from_config(config)
    except Exception as error:  # a damaged or foreign config: whatever it is, the file is at fault
        raise UserError(f"cannot use {folder / 'scheduler'}: {first_line(error)}") from error
    return NoiseSchedule(scheduler.alphas_cumprod.float().to(device), scheduler.config.prediction_type)


def _offloader() -> Any:
    try:
        from accelerate import cpu_offload
    except ImportError as error:
        raise UserError("enable_sequential_cpu_offload needs accelerate: pip install accelerate, or leave it false") from error
    return cpu_offload


def half_dtype(device: Union[str, torch.device]) -> torch.dtype:
    """The dtype of half-precision weights on a device: float16 on CUDA; on a CPU bfloat16 if it computes in that
    natively (then the U-Net takes half the time), else float32, because emulated half precision is slower."""
    if torch.device(device).type != "cpu":
        return torch.float16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if native is not None and native() else torch.float32


def fast_settings(device: Union[str, torch.device], half: Union[bool, str] = True) -> Dict[str, Any]:
    """The `dtype` and `channels_last` with which `DiffusionModel.load` makes the fastest model on a device.

    half: half precision where the device has it; "bf16": bfloat16 anywhere; else float32. Channels last pays on CPUs.
    """
    if half not in (True, False, "bf16"):
        raise UserError(f"half_precision_weights is '{half}'; choose true, false or bf16")
    dtype = torch.bfloat16 if half == "bf16" else half_dtype(device) if half else torch.float32
    return {"dtype": dtype, "channels_last": torch.device(device).type == "cpu"}


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which the trainer's autocast does not reach operations on this tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
