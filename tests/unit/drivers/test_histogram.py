"""Counts add up from bucket to bucket, as Prometheus wants them."""

from agent.drivers.histogram import Histogram


def test_values_count_in_each_bucket_that_they_fit() -> None:
    made = Histogram((0.1, 1.0))
    for value_s in (0.05, 0.1, 0.5, 7.0):
        made.note(value_s)
    assert list(made.lines("x")) == [
        'x_bucket{le="0.1"} 2', 'x_bucket{le="1.0"} 3', 'x_bucket{le="+Inf"} 4',
        "x_sum 7.650000", "x_count 4",
    ]  # fmt: skip
    assert list(made.lines("x", 'a="b",'))[2:] == [
        'x_bucket{a="b",le="+Inf"} 4', 'x_sum{a="b"} 7.650000', 'x_count{a="b"} 4',
    ]  # fmt: skip
