"""The composition root: builds a site from its configuration, runs it, drains it, stops it."""
