"""Serving, as pure code: the Open Inference Protocol, admission, doorbell messages."""
