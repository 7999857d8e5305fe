"""The colour of a ray that hits nothing."""
