"""docs/results.md: every number from a metric file, with command, seeds, machine and commit.

collect     a finished workspace's figures as one committed file, research/runs/NAME.json
tables      Markdown of the pieces
page        the page, and the table for the README
"""
