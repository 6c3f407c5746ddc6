"""What differs between places a pipeline is compiled for, as compile-time constants; the DAG itself never does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    """`parallel_trainings`: plans trained at the same time; 0 is no limit."""

    parallel_trainings: int


LOCAL = Platform(parallel_trainings=1)  # one machine: a training already uses every core
