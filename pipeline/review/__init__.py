"""Looking at labels: statistics, precision, answers of people, certificates."""
