from agent.membership.health import LocalHealth


def test_a_healthy_site_probes_at_full_pace() -> None:
    assert LocalHealth(8).scale == 1


def test_health_stays_within_its_bounds() -> None:
    health = LocalHealth(8)
    health.note(-3)
    assert health.score == 0
    health.note(20)
    assert (health.score, health.scale) == (8, 9)
    health.note(-1)
    assert health.score == 7
