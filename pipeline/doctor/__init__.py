"""`autolabel doctor`: checks of machine, workspace, DVC, models and stores."""
