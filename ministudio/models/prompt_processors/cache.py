"""Text embeddings on disk, so that a second run of a prompt needs no text encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

import ministudio
from ministudio.utils.saving import write_atomically

CACHE_DIR = Path(".ministudio_cache") / "text_embeddings"  # below the current folder


def model_identity(name_or_path: str) -> str:
    """What must be equal for two models to encode text alike.

    For a folder its path and the sizes and times of its text files, for anything else its name.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return name_or_path
    files = [f for part in ("text_encoder", "tokenizer") for f in sorted((folder / part).rglob("*")) if f.is_file()]
    stats = [f"{f.relative_to(folder)} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    return "\n".join([str(folder.resolve()), *stats])


class EmbeddingCache:
    """One safetensors file per (model, prompt) below `folder`; a damaged file counts as absent."""

    def __init__(self, identity: str, folder: Path | None = None) -> None:
        self.identity, self.folder = identity, folder or CACHE_DIR

    def path(self, prompt: str) -> Path:
        key = hashlib.sha256(f"{self.identity}\n{prompt}".encode()).hexdigest()
        return self.folder / f"{key}.safetensors"

    def load(self, prompt: str) -> torch.Tensor | None:
        """The (Nt, D) embedding of a prompt, or None."""
        path = self.path(prompt)
        if not path.is_file():
            return None
        try:
            return load_file(path)["embedding"]
        except (SafetensorError, OSError, KeyError):
            return None

    def save(self, prompt: str, embedding: torch.Tensor) -> None:
        """Store an embedding; a folder that cannot be written costs only the next run's time."""
        path = self.path(prompt)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save({"embedding": embedding.contiguous().cpu()}))
        except OSError as error:
            ministudio.warn("text embeddings are not cached: %s", error)
