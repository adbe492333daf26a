"""Thresholds: curves, calibration, policies, what a threshold keeps."""
