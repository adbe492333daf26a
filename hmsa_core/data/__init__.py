"""Data sets: reading, checking, indexing, sampling and augmenting images and label maps.

Nothing is imported here: `spec` and `index` are used by programs that must not load torch or OpenCV.
"""
