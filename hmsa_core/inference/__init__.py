"""Inference: labelling, pictures, evaluation with one fusion over scales."""
