"""Whatever the operator wrote, the answer is settings or one ConfigError."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import parse
from agent.foundation.errors import ConfigError
from agent.foundation.toml_lines import positions

VALUES = st.recursive(
    st.sampled_from(
        ["1", "-1", "1.5", "nan", "true", '"a"', "'*'", '"/x"', "1979-05-27", '"""\n["""']
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "[\n" + ",".join(parts) + "]"),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        "name",
        "state_dir",
        "http_port",
        "seeds",
        "mdns",
        "path",
        "jobs",
        "slots",
        '"a.b"',
        "x.y",
        "level",
    ]
)
HEADERS = st.sampled_from(
    [
        "[site]",
        "[listen]",
        "[discovery]",
        "[serving]",
        "[datasets.a]",
        "[datasets]",
        "[[site]]",
        "[log]",
    ]
)
LINES = st.lists(
    st.one_of(HEADERS, st.tuples(KEYS, VALUES).map(" = ".join), st.text(max_size=20)), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(LINES)
def test_any_text_is_settings_or_a_config_error(lines: list[str]) -> None:
    text = "\n".join(lines)
    with contextlib.suppress(ConfigError):
        parse(text)


@settings(max_examples=200, deadline=None)
@given(LINES)
def test_positions_never_fails(lines: list[str]) -> None:
    for number in positions("\n".join(lines)).values():
        assert number >= 1
