"""Ablations: rows that differ in one thing, at the same number of images seen, kept as small committed files.

plan        what a row is: how it is trained, on which labels, how it is run
catalogue   the ablations themselves
material    the key of a cell: digest of its settings and of the code that decides its result
cells       the committed files: figures as JSON, per-image counts as NPZ
labels, jobs, run     making what is missing, through the jobs of hmsa_core
freeze      hashes that are written before the confirming seeds are opened
statistics  intervals and comparisons from the committed files alone
estimate    how long what is missing will take
"""
