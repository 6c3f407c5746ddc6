"""HTTP service: recordings over a network, scored together."""
