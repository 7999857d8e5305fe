"""What is optimised and how it is seen: geometry, materials, backgrounds, renderers, prompts, exporters."""
