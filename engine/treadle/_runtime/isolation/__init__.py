"""Calls that are performed elsewhere: their executors, their values, their errors."""
