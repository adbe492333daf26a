"""Jobs: training, inference and evaluation as processes, alone or under torchrun."""
