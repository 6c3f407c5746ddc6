"""Cluster manifests, and the programs that check them."""
