"""Atoll: many small sites, one AI cluster, no centre."""

__version__ = "0.1.0"
