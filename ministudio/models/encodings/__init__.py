"""Positions and directions as features: hash grid, frequencies, spherical harmonics."""
