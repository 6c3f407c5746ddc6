"""Training on the machines of a cluster, as a TrainJob of Kubeflow Trainer."""
