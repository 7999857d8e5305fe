"""Text to 3D from the command line: train, look, export. `python launch.py --help` shows how."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

EXAMPLES = """examples:
  from a prompt to a turntable video and a GLB (also without a GPU):
    python launch.py --config configs/dreamfusion-lmc.yaml --train system.prompt_processor.prompt="a red cube"
  any value of the configuration can be changed by its dotted name:
    ... --train trainer.max_steps=800 seed=1 data.batch_size=2
  continue a run that was stopped, in the same folder, or one that is done for longer (then add trainer.max_steps=600):
    python launch.py --config TRIAL/configs/config.yaml --train resume=TRIAL/ckpts/last.ckpt
  export again, another way:
    python launch.py --config TRIAL/configs/config.yaml --export resume=TRIAL/ckpts/last.ckpt system.exporter.fmt=obj-mtl

results: TRIAL is outputs/<name>/<tag>@<time>; look into TRIAL/save. Plugins are read from custom/."""


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the remaining words, which are `key=value` overrides of the configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", nargs="+", action="extend", required=True, metavar="YAML",
                        help="later files override earlier ones")
    mode = parser.add_mutually_exclusive_group(required=True)
    for name, text in {
        "train": "optimise, then render the turntable video, then export the mesh",
        "validate": "render the validation views of resume=CHECKPOINT",
        "test": "render the turntable video of resume=CHECKPOINT",
        "export": "write the mesh of resume=CHECKPOINT",
    }.items():
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=text)
    parser.add_argument("--device", default="auto", help="auto (the default: a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--gpu", metavar="IDS", help="which GPUs this run sees, as 0 or 0,1")
    parser.add_argument("--verbose", action="store_true", help="more messages, and tracebacks")
    parser.add_argument("--typecheck", action="store_true", help="accepted for threestudio's command lines; no effect")
    args, words = parser.parse_known_args(argv)
    # --config takes several files, and would swallow the overrides that follow it
    overrides = [word for word in args.config if "=" in word and not os.path.exists(word)]
    args.config = [word for word in args.config if word not in overrides]
    return args, overrides + words


def main(argv: list[str]) -> int:
    began = time.monotonic()
    args, overrides = parse_arguments(argv)
    if args.gpu is not None:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", args.gpu)
    try:
        from ministudio.launcher import launch  # only now: --help does not wait for torch
    except KeyboardInterrupt:
        return 130
    return launch(args, overrides, root=Path(__file__).resolve().parent, began=began)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
