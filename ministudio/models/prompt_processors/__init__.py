"""From a prompt to text embeddings that follow the camera."""
