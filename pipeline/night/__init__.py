"""Every night, by itself: the Prefect flow `auto-label`, its deployment `nightly`, and what keeps them alive."""
