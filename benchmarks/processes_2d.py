"""The 2D experiments in several processes, one for every method and half of its work, as a GPU has room for."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing.pool import ThreadPool
from typing import Any


def commands(options: Any) -> list[list[str]]:
    """This command once for every method, its edits apart from its synthesis: each half needs nothing but its own ω."""
    halves = (("synthesis", "diversity"), ("editing", "translation"))
    chosen = [[task for task in half if task in options.tasks] for half in halves]
    return [[sys.executable, *sys.argv, "--workers", "1", "--no-page", "--methods", method, "--tasks", *tasks]
            for tasks in chosen for method in options.methods if any(method in options.methods_of(task) for task in tasks)]


def share_out(options: Any) -> None:
    """Run the cells of single methods in processes of their own; what they leave undone this process does later."""

    def call(numbered: tuple[int, list[str]]) -> str:
        number, command = numbered
        log = options.out / f"worker-{number:02d}.txt"
        with open(log, "w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        end = "done" if code == 0 else f"ended with {code}, see {log}"
        return " ".join([*command[command.index("--no-page") + 1:], end])

    options.out.mkdir(parents=True, exist_ok=True)
    with ThreadPool(options.workers) as pool:
        for line in pool.imap(call, enumerate(commands(options))):
            print(line, flush=True)
