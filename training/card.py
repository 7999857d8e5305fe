"""The model card beside a corrective: what it is, what it was made from, how good it is, how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from imaging.files import write_text
from lmc_guidance.checkpoint import Checkpoint

from .trust import Trust
from .trust_page import table

_CARD = """---
library_name: lmc-guidance
tags: [score-distillation, lmc-sds, corrective]
---
# Corrective for {model}

A learned manifold corrective b(x, t) for LMC-SDS (Alldieck, Kolotouros, Sminchisescu, ECCV 2024): it predicts what
one denoising step of the frozen model makes of a natural image. Of use with this diffusion model only.

| | |
| --- | --- |
{facts}

{trust}
## How to use it

With the paths, or the hub ids, of the model and of this file:

```yaml
system:
  guidance_type: "lmc-guidance"
  guidance:
    pretrained_model_name_or_path: "{model}"
    corrective: "{file}"
```

```python
from lmc_guidance import DiffusionModel, load_corrective
model = DiffusionModel.load("{model}")
b = load_corrective("{file}", model).corrective  # b(x, t) or, for normalisations target and own, b(x, t, x_hat)
```

## Licence

Made from the outputs of {model} on images of `{data}`: the licences of both bear on this file. It was given none of
its own by the tool that wrote this card; whoever shares it should name one here.
"""
_UNJUDGED = "Not judged yet: `tools/train_corrective.py --model MODEL --data DATA --evaluate FILE` writes a report."


def write_card(path: Path, checkpoint: Checkpoint, trust: Optional[Trust]) -> Path:
    """Write the card of the corrective in `path` as a .md beside it; without a trust report it says so."""
    card = path.with_suffix(".md")
    spec, training = checkpoint.corrective.spec, checkpoint.training
    facts = {
        "kind": spec.kind,
        "weights": f"{sum(v.numel() for v in checkpoint.corrective.state_dict().values()):,}",
        "made for": "{name} ({space}, {channels} × {resolution}², {prediction_type})".format(**checkpoint.model),
        "normalisation": spec.normalisation,
        "x̂ conditioned on": spec.conditioning,
        "x̂ clipped to [-1, 1]": "yes" if spec.clip_x_hat else "no",
        **{name.replace("_", " "): value for name, value in _flat(training)},
    }
    text = _CARD.format(model=checkpoint.model["name"], file=path.name, data=training.get("data", "unknown"),
                        facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()), trust=_judged(trust))
    write_text(card, text)
    return card


def is_unjudged(path: Path) -> bool:
    """Whether the card beside the corrective in `path` is the tool's own, still without a report."""
    card = path.with_suffix(".md")
    return card.is_file() and _UNJUDGED in card.read_text(encoding="utf-8", errors="replace")


def _judged(trust: Optional[Trust]) -> str:
    if trust is None:
        return f"## How good\n\n{_UNJUDGED}\n"
    verdicts = "\n".join(f"- {verdict}" for verdict in trust.verdicts())
    return ("## How good\n\nOn images it was not trained on; squared error over the variance of x̂ within images.\n\n"
            f"{verdicts}\n\n{table(trust)}\n")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs
