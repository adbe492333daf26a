"""Review of labels: statistics, precision, answers of people, certificates."""
