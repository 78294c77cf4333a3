"""What decorators put around a call: conditions, breakers, retry and fallbacks."""
