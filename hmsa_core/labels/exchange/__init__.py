"""Label stores for tools in which people look at labels and correct them, and what comes back from there."""
