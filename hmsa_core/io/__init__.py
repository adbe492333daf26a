"""Functions that all packages use: atomic files, folder trees, locks, processes, errors."""
