"""Training of scorers with a ranking loss.

The calls from the command to the loss are in five files: `cli/train.py` (`run_request`) → `training/train.py`
(`train_plans`, `train_plan`) → `training/loop.py` (`fit_network`) → `training/step.py` (`Stepper.step`) →
`training/losses.py` (`Objective`).
"""
