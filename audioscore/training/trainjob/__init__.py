"""Training on a cluster's machines by a TrainJob of Kubeflow Trainer."""
