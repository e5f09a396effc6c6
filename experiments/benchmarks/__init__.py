"""Benchmarks against other libraries. `python -m experiments.benchmarks.peers` compares training loops."""
