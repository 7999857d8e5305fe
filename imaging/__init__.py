"""What the 2D tools share: pixels optimised by score distillation, the translation network, and what measures them."""
