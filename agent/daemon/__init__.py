"""The composition root: builds a site from its configuration, runs it, drains it, stops it."""

import agent.drivers.aiohttp_library  # noqa: F401 - before anybody imports aiohttp itself
