"""Optimized CPU kernels for MuQ. See README.md in this folder."""
