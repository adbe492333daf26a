"""Nightly runs: the Prefect flow `auto-label`, its deployment `nightly`, and the services that run both."""
