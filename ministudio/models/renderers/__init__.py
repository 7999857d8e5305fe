"""Pictures of a scene: where rays are sampled, and how samples become pixels."""
