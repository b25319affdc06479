"""Bytes on the wire: schema codec, messages, gossip envelope, and every bound with its reason."""
