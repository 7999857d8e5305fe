"""What the README tells a newcomer is so."""

import re
from pathlib import Path

from toybox import patterns, shapes

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_it_lists_every_word_that_makes_a_prompt():
    lists = [re.findall(r"\w+", line) for line in README.splitlines() if line.startswith("- ")]
    for names in (patterns.COLOR_NAMES, patterns.NAMES, shapes.NAMES):
        assert list(names) in lists
