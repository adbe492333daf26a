"""Orchestration: workspaces, DVC stages, command line, report, inspector, nightly flow. No tensor code."""
