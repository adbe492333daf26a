"""Training: the loop, its data, its state, several ranks. `train` runs it in this process."""

from hmsa_core.training.run import train, train_spec

__all__ = ["train", "train_spec"]
