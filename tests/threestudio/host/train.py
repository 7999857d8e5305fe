"""python train.py ROOT PLUGIN CONFIG.yaml [overrides]: threestudio's own training loop on the CPU.

Prints one JSON line at the end: guidance, steps, parameter tensors that changed, whether all are finite.
"""
import json
import sys

import cpu

root, plugin, config, *overrides = sys.argv[1:]
threestudio = cpu.start(root, plugin)
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from threestudio.utils.config import load_config  # noqa: E402

cfg = load_config(config, cli_args=overrides, n_gpus=1)
pl.seed_everything(cfg.seed)
data = threestudio.find(cfg.data_type)(cfg.data)
system = threestudio.find(cfg.system_type)(cfg.system, resumed=cfg.resume is not None)
system.set_save_dir(f"{cfg.trial_dir}/save")
before = [p.detach().clone() for p in system.geometry.parameters()]
options = {**cfg.trainer, "precision": 32, "enable_progress_bar": False}
trainer = pl.Trainer(logger=False, inference_mode=False, accelerator="cpu", enable_checkpointing=False, **options)
system.train()  # as fit did before Lightning 2.2; the NeuS renderer relies on it
trainer.fit(system, datamodule=data)
after = list(system.geometry.parameters())
print(json.dumps({
    "guidance": cfg.system.guidance_type,
    "steps": trainer.global_step,
    "changed": sum(not torch.equal(a, b) for a, b in zip(before, after)),
    "parameters": len(after),
    "finite": all(bool(torch.isfinite(p).all()) for p in after),
    "logged": {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith("train/")},
}))
