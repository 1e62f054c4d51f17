"""Measured ratios: see README.md in this folder."""
