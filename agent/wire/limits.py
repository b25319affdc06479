"""Every bound on what another machine can make us hold, each with its reason."""

PROTOCOL_VERSION = 1
"""First byte of every gossip packet and part of every mesh path; raised on incompatible change."""

PACKET_BYTES_MAX = 1200
"""Fits an IPv6 minimum MTU of 1,280 with headers, so gossip is never fragmented."""

RUMOR_BYTES_MAX = 900
"""One rumor and a probe fit one packet."""

NESTING_MAX = 16
"""msgpack accepts 1,024 levels, which overflows the stack of whoever prints the result."""

MESH_BODY_BYTES_MAX = 4 << 20
"""A full state sync of 5,000 members (about 800 B each) fits; anything bigger is a blob."""

MEMBERS_MAX = 10_000
"""Ten times the design size; keeps a flood of valid identities from exhausting memory."""

SERVING_PER_RECORD_MAX = 24
"""Keeps a record below RUMOR_BYTES_MAX."""

TRIALS_PER_RECORD_MAX = 6
"""Rollouts that a site takes part in at a time; for the same reason."""

DOCUMENT_BYTES_MAX = 32 << 10
"""A catalog document is a decision, not data."""

DOCUMENTS_MAX = 10_000
"""Bounds memory of the replicated catalog (<= 320 MB in the worst case, typically < 10 MB)."""

TRUST_ENTRIES_MAX = 10_000
"""As MEMBERS_MAX: one revocation for each member a cluster can have; about 3 MB in all."""

TRUST_ENTRY_BYTES_MAX = 8192
"""A genesis with two certificates and a full vocabulary (64 labels) fits."""

REGISTER_VALUE_BYTES_MAX = 4096
"""DESIGN 3: the register holds digests, never data."""

ONCE_KEYS_MAX = 10_000
"""Idempotency keys that a site remembers, in memory at both processes and on disk: about 2 MB. The oldest is
forgotten for the next, so a key holds for as many requests with keys."""

CHUNK_BYTES = 256 << 10
"""Small enough that a corrupt chunk costs little, large enough that a manifest of 1 GiB is 128 KiB."""

BLOB_BYTES_MAX = 16 << 30
"""65,536 chunks: a manifest of 2 MiB, half of MESH_BODY_BYTES_MAX."""

NAME_CHARS_MAX = 64
"""Names of sites, models, jobs: ``[a-z0-9]([a-z0-9._-]*)``; never a path."""

FLEET_TOKENS_MAX = 1024
"""Tokens of applications that every site knows; all go to the gateway in one message."""
