"""What this machine is: facts with their source, hardware profiles, recognition, drift, heat.

Readers take the root of the file system as an argument, so that recorded trees of real machines test
them. Nothing here raises because of strange hardware: what cannot be read is simply not a fact, and a
machine that no profile describes is ``generic``.
"""
