"""A world for the machines: virtual time, an unreliable network, faults, and checkers apart from both."""
