import pytest

from agent.foundation.errors import ConfigError
from agent.hardware.facts import Fact, Facts
from agent.hardware.match import recognise
from agent.hardware.profile import MatchPart, Profile

FACTS = Facts.of(
    [
        Fact("dmi.product_name", "PowerEdge XR8000", "dmi"),
        Fact("dmi.sys_vendor", "Dell Inc.", "dmi"),
        Fact("cpu.flags", ("avx2", "avx512f"), "cpuinfo"),
        Fact("memory.bytes", 64 << 30, "meminfo"),
    ]
)


def profile(name: str, match: MatchPart) -> Profile:
    return Profile(schema=1, name=name, title=name, match=match)


VENDOR = profile("vendor", MatchPart(dmi_sys_vendor=("dell*",)))
PRODUCT = profile("product", MatchPart(dmi_product_name=("poweredge xr8*",)))
OTHER = profile("other", MatchPart(dmi_product_name=("ProLiant*",)))


def test_the_most_specific_profile_wins_in_any_order() -> None:
    for order in ((VENDOR, PRODUCT, OTHER), (OTHER, PRODUCT, VENDOR)):
        found = recognise(FACTS, order)
        assert found.profile.name == "product"
        assert found.why == "dmi_product_name 'PowerEdge XR8000'"
        assert found.others == ("other: dmi_product_name 'ProLiant*' does not hold",)


def test_a_further_condition_makes_a_profile_more_specific() -> None:
    narrower = profile(
        "narrower", MatchPart(dmi_product_name=("PowerEdge*",), dmi_sys_vendor=("Dell Inc.",))
    )
    assert recognise(FACTS, (PRODUCT, narrower)).profile.name == "narrower"


def test_a_tie_is_an_error_that_names_both() -> None:
    twin = profile("twin", MatchPart(dmi_product_name=("PowerEdge*",)))
    with pytest.raises(ConfigError, match=r"product .* and twin .*hardware\.profile"):
        recognise(FACTS, (PRODUCT, twin))


def test_all_flags_must_be_there() -> None:
    assert (
        recognise(FACTS, (profile("a", MatchPart(cpu_flags=("avx2", "avx512f"))),)).profile.name
        == "a"
    )
    assert (
        recognise(FACTS, (profile("a", MatchPart(cpu_flags=("avx2", "amx"))),)).profile.name
        == "generic"
    )


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(63, 0, "m"), (65, 0, "generic"), (0, 64, "m"), (0, 63, "generic")],
)
def test_memory_bounds_hold(least: float, most: float, expected: str) -> None:
    match = MatchPart(memory_min_gib=least, memory_max_gib=most)
    assert recognise(FACTS, (profile("m", match),)).profile.name == expected


def test_unknown_memory_holds_no_bound() -> None:
    match = MatchPart(memory_max_gib=64)
    assert recognise(Facts(), (profile("m", match),)).profile.name == "generic"
