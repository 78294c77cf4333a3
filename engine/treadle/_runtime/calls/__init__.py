"""One call from its arguments to its recorded end, where it is performed in this process."""
