"""How fast treadle is, as ratios that a noisy machine can hold: ``python -m benchmarks`` prints one table."""
