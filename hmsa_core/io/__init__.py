"""What every part stands on: atomic files, folder trees, locks, processes, errors."""
