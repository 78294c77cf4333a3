"""What an engine hands out or watches: threads, time, cores and memory, captured output, places of types."""
