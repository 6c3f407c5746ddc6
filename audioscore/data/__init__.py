"""Recordings and their human scores: reading, checking, sorting, versioning."""
