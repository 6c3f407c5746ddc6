"""Recordings and their labels: decode, check, split, version, transfer."""
