"""Which code a step is: its source, what it names, its fingerprint, and what of a cache key has changed."""
