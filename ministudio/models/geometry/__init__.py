"""The shape and the features of an object as a field over space."""
