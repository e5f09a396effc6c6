"""Experiments: each script makes one claim, and writes one figure and one JSON record.

`python -m experiments` lists them.
"""
