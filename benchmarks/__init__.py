"""Measurements beside peers, run as `python -m benchmarks.<name>`; what is shipped may not import them."""
