"""Where training images come from. Item p of a run is a function of (seed, p) alone, whoever reads it."""
