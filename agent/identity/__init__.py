"""Who a site is, who admitted it, and how that is proven: certificates, trust log, gossip envelope.

Rule: a site is its key. Everything else that is true of it (name, region, tier, jurisdiction,
roles) is said by an issuer in a signed certificate, never by the site. Pure: no clock, no file, no
socket; cryptography is the only outside library.
"""
