"""Every side effect, one file per outside world."""
