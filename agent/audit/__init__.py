"""The hash-chained record of every decision that leaves the site."""
