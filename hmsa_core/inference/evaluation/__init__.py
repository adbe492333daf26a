"""Scoring a network on images with labels."""
