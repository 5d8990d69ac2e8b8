"""Benchmarks with their presets, and what runs, compares and sweeps them."""
