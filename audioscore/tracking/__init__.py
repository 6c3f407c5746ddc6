"""MLflow: runs, the registry, and the registered scorer."""
