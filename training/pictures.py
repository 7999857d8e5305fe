"""Grids that show what a corrective does: x, x̂, b and their difference, over t."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imaging.pictures import write_image
from lmc_guidance import Corrective

from .data.feed import Batch
from .triplets import Teacher

TIMES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)  # shares of the range of t


class Pictures:
    """The same images, noise and timesteps every time, so that two grids differ in the corrective only."""

    def __init__(self, teacher: Teacher, batch: Batch, images: int = 2) -> None:
        self.teacher = teacher
        self.batch = Batch(batch.images[:images], batch.captions[:images], batch.positions[:images], [])

    @torch.no_grad()
    def grid(self, corrective: Corrective) -> Tensor:
        """(3, height, width) in [0, 1]: a row for each image and t; columns x, x̂, b, half the difference on grey."""
        teacher, model = self.teacher, self.teacher.model
        x = model.encode(self.batch.images.to(model.device))
        eps, text = teacher.noise(self.batch.positions, x.shape[1:]), teacher.embed(self.batch.captions)
        rows = []
        for time in TIMES:
            t = torch.full((len(x),), int(time * model.num_timesteps), device=x.device)
            x_hat = teacher.x_hat(x, t, eps, text)
            shown = [model.decode(value) for value in (x, x_hat, corrective(x, t, x_hat))]
            shown.append(0.5 + 0.5 * (shown[2] - shown[1]))
            rows.append(torch.cat(shown, dim=3))  # (B, 3, H, 4 W)
        return torch.cat([row[i] for i in range(len(x)) for row in rows], dim=1).cpu()

    def write(self, corrective: Corrective, folder: Path, curves: Any, images_seen: int) -> None:
        """pictures/IMAGES.png in `folder`, and the same among the curves."""
        grid = self.grid(corrective)
        curves.add_image("x_xhat_b_difference", grid, images_seen)
        write_image(folder / "pictures" / f"{images_seen:09d}.png", grid)
