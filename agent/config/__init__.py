"""What the operator decides for one site: a TOML file in, frozen ``SiteSettings`` out.

Every key is declared once, in ``settings``: its type, its bounds, its default and its explanation.
Reading, the shipped ``example.toml`` and docs/configuration.md all follow from that declaration.
"""

from agent.config.read import DEFAULT_PATH, load, parse
from agent.config.settings import SiteSettings

__all__ = ["DEFAULT_PATH", "SiteSettings", "load", "parse"]
