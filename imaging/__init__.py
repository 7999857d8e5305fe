"""What the 2D tools and benchmarks share: judging images by a CLIP, and, in time, editing them."""
