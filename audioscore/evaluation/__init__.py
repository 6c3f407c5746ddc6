"""How good a model is, the confidence interval of each metric, and the promotion gate."""
