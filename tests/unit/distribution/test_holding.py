"""What a site tells of a blob: chunks as bits, and who else reads."""

import pytest

from agent.distribution.holding import Holding, encode_holding, parse_holding
from agent.foundation.errors import Malformed


def test_a_holding_travels() -> None:
    holding = Holding(b"\x05\x80", readers=20, place=7)
    assert parse_holding(encode_holding(holding)) == holding
    assert holding.mask == 1 << 0 | 1 << 2 | 1 << 15


@pytest.mark.parametrize("data", [b"", b"\xff", bytes(10_000), encode_holding(Holding(b""))[:-1]])
def test_what_is_no_holding_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_holding(data)
