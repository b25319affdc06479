"""Counters in the words of Triton's metrics and statistics."""

import pytest

from agent.gateway import figures as figures_module
from agent.gateway.figures import MODELS_MAX, Figures, Tally


def test_counters_are_rendered_with_their_labels() -> None:
    figures = Figures()
    figures.requests = 3
    figures.of("m", "1").succeeded(1000, 10, 900, 1, is_first=True)
    figures.of("m", "1").succeeded(2000, 0, 0, 1, is_first=True)
    figures.of("m", "1").failed(503)
    figures.of('odd"\n', "1").failed(418)
    text = figures.render([("atoll_slots", "Slots", 8)])
    lines = text.splitlines()
    assert 'nv_inference_request_success{model="m",version="1"} 2' in lines
    assert 'nv_inference_count{model="m",version="1"} 1' in lines
    assert 'nv_inference_request_duration_us{model="m",version="1"} 3000' in lines
    assert 'nv_inference_request_failure{model="m",version="1",reason="REJECTED"} 1' in lines
    assert r'nv_inference_request_failure{model="odd\"\n",version="1",reason="OTHER"} 1' in lines
    assert "atoll_requests_total 3" in lines
    assert "atoll_slots 8" in lines
    assert text.endswith("\n")


def test_statistics_are_in_nanoseconds() -> None:
    figures = Figures()
    figures.of("m", "1").succeeded(1000, 10, 900, 1, is_first=True)
    assert figures.of("m", "1").statistics() == {
        "success": {"count": 1, "ns": 1_000_000},
        "fail": {"count": 0, "ns": 0},
        "queue": {"count": 1, "ns": 10_000},
        "compute_infer": {"count": 1, "ns": 900_000},
    }


def test_a_run_that_several_shared_is_one_execution() -> None:
    figures = Figures().of("m", "1")
    for is_first in (True, False, False):
        figures.succeeded(1000, 10, 600, 3, is_first=is_first)
    figures.succeeded(1000, 10, 500, 1, is_first=True)
    assert (figures.count, figures.executions) == (4, 2)
    assert figures.batches() == [
        {"batch_size": 1, "compute_infer": {"count": 1, "ns": 500_000}},
        {"batch_size": 3, "compute_infer": {"count": 1, "ns": 600_000}},
    ]


def test_times_of_each_model_are_histograms_and_runs_are_counted_by_size() -> None:
    figures = Figures()
    model = figures.of("m", "1")
    model.succeeded(4000, 600, 2000, 2, is_first=True)
    model.succeeded(4000, 600, 2000, 2, is_first=False)
    model.succeeded(30_000, 0, 0, 1, is_first=True)  # by another site
    lines = figures.render([]).splitlines()
    labels = 'model="m",version="1"'
    assert f'atoll_model_request_seconds_bucket{{{labels},le="0.005"}} 2' in lines
    assert f"atoll_model_request_seconds_count{{{labels}}} 3" in lines
    assert f"atoll_model_request_seconds_sum{{{labels}}} 0.038000" in lines
    assert f'atoll_model_queue_seconds_bucket{{{labels},le="0.001"}} 2' in lines
    assert f"atoll_model_compute_seconds_count{{{labels}}} 2" in lines
    assert f'atoll_model_runs_total{{{labels},requests="2"}} 1' in lines


def test_label_values_are_bounded() -> None:
    figures = Figures()
    for number in range(MODELS_MAX + 10):
        figures.of(f"m{number}", "1").failed(500)
    assert figures.of("one more", "1").failures["BACKEND"] == 10


def test_applications_are_counted_by_name_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_module, "APPLICATIONS_MAX", 2)
    figures = Figures()
    for name in ("local", 'site "a"', "shop", "late", "local"):
        figures.of_application(name).requests += 1
    figures.of_application("late").errors += 1
    figures.turned_away["unknown"] += 3
    lines = figures.render(()).splitlines()
    assert 'atoll_application_requests_total{application="local"} 2' in lines
    assert r'atoll_application_requests_total{application="site \"a\""} 1' in lines
    assert 'atoll_application_requests_total{application="others"} 2' in lines
    assert 'atoll_application_errors_total{application="others"} 1' in lines
    assert 'atoll_turned_away_total{reason="unknown"} 3' in lines
    assert not any("shop" in line for line in lines)


def test_a_tally_counts_what_speaks_for_or_against_a_version_only() -> None:
    tally = Tally()
    for status in (200, 200, 500, 504, 400, 503, 0):
        tally.note(status, 0.02)
    tally.note(503, 0.02, is_lost=True)
    assert (tally.requests, tally.errors, sum(tally.times.counts)) == (5, 3, 2)
    assert tally.invalid == 1
