"""Ablations: rows that differ in one thing, at the same number of images seen.

plan, catalogue     what a row is, and the tables
recipe              the training of a row: a section of params.yaml with the row's changes, seed and length
labels, jobs, run   making what is missing through the stages' own jobs, and appending it to the table
intervals           intervals and comparisons from the counts of each image
freeze              what is fixed before the confirming seeds are opened
"""
