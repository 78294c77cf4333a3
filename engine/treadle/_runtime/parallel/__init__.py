"""``parallel_map`` and ``amap``: many items beside any run, nothing of it recorded."""
