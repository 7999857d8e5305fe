"""From a trained model to files that other programs open."""
