"""Training of the embedded models (tiny CLIPs and a pixel-space diffusion model) on toybox."""
