"""One call per item: the future of a map, what makes its calls, and what it goes over."""
