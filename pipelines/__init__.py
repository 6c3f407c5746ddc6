"""The pipelines: their definition, their compilation, and running them on this machine or on a cluster."""
