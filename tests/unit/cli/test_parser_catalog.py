"""What can be typed about the catalog."""

import argparse

import pytest

from agent.cli.parser import parse
from agent.cli.parser_catalog import KINDS, stamp
from agent.wire import documents
from agent.wire.documents import Stamp


def test_the_kinds_are_those_of_the_documents() -> None:
    assert documents.KINDS == KINDS


def test_a_stamp_is_typed_as_history_shows_it() -> None:
    asked = parse(["rollback", "deployment", "m", "--to", "1795714531935.2"])
    assert asked.to == Stamp(1795714531935, 2)
    for wrong in ("", "1", "1.", "a.b", "1.2.3", "-1.2"):
        with pytest.raises(argparse.ArgumentTypeError, match="atoll history shows them"):
            stamp(wrong)
