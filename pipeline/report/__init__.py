"""The report page of a workspace."""
