"""Processes that hold the heavy libraries: model worker, trainer, aggregation. Confined, spawned, replaceable."""
