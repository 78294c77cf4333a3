"""What an engine holds and keeps in order on disk: acceptance, resumption, upkeep and pruning."""
