"""What labels images: our checkpoints, networks of other tools, finished probabilities, or several of them."""
