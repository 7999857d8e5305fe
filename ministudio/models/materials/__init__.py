"""From features at a point to a colour."""
