import math

import pytest

from agent.membership.settings import Settings


@pytest.mark.parametrize("settings", [Settings.lan(), Settings.wan()])
def test_isolation_is_said_within_five_seconds_on_every_link(settings: Settings) -> None:
    assert settings.isolation_s <= 5.0


def test_a_lan_member_may_stand_still_for_four_seconds() -> None:
    settings = Settings.lan()
    probe_s = settings.probe_timeout_min_s + settings.indirect_timeout_s
    assert probe_s + settings.suspicion_floor_s(2) > 4.1


def test_suspicion_grows_with_the_logarithm_of_the_cluster() -> None:
    settings = Settings.lan(expected_sites=1)
    ten, hundred, thousand = (settings.suspicion_floor_s(n) for n in (10, 100, 1000))
    assert hundred - ten == pytest.approx(settings.suspicion_growth_s)
    assert thousand - hundred == pytest.approx(settings.suspicion_growth_s)


def test_a_starting_site_uses_the_expected_size() -> None:
    settings = Settings.lan(expected_sites=1000)
    assert settings.suspicion_floor_s(1) == settings.suspicion_floor_s(1000)


def test_rumors_are_sent_more_often_in_larger_clusters() -> None:
    settings = Settings.lan()
    sent = [settings.transmissions(n) for n in (1, 2, 10, 20, 40, 100, 1000)]
    assert sent == [6, 7, 9, 10, 10, 12, 14]


@pytest.mark.parametrize("sites", [2, 20, 40, 1000, 10_000])
def test_hardly_any_rumor_misses_anybody_at_ten_percent_loss(sites: int) -> None:
    pushes = Settings.lan().transmissions(sites)
    assert sites * math.exp(-0.9 * pushes) <= 0.01


def test_periodic_syncs_become_rarer_above_64_sites() -> None:
    settings = Settings.lan()
    assert settings.sync_period_s(64) == settings.sync_interval_s
    assert settings.sync_period_s(128) == 2 * settings.sync_interval_s
    assert settings.sync_period_s(1000) == 5 * settings.sync_interval_s
