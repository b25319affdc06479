"""Who runs together, and how many: joined only where forms agree, and only while it pays."""

import pytest

from agent.serving.batching import (
    FORMS_MAX,
    ROWS_MAX,
    TRY_AGAIN_RUNS,
    Company,
    Sizes,
    form_of,
    groups,
    has_batch_dimension,
    rows_of,
    share,
)
from agent.serving.datatypes import DATATYPES
from agent.serving.request import InferRequest, InputTensor
from agent.serving.signature import FREE, Signature, TensorSpec

FP32 = DATATYPES["FP32"]


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, FP32, shape)


def request(*shapes: tuple[int, ...]) -> InferRequest:
    tensors = [
        InputTensor(spec(f"x{i}", FREE, FREE), shape, None) for i, shape in enumerate(shapes)
    ]
    return InferRequest(tuple(tensors), ())


def learned(costs_us: dict[int, int]) -> Sizes:
    """Sizes after a run of each number of rows, at so many microseconds a row."""
    sizes = Sizes()
    for rows, row_us in costs_us.items():
        sizes.ran("f", rows, rows * row_us)
    return sizes


@pytest.mark.parametrize(
    ("inputs", "outputs", "has"),
    [
        ([spec("x", FREE, 3)], [spec("y", FREE)], True),
        ([spec("x", FREE, 3), spec("n", 2)], [spec("y", FREE)], False),
        ([spec("x", FREE, 3)], [spec("y", 1, FREE)], False),
        ([spec("x", FREE, 3), spec("n")], [spec("y", FREE)], False),
        ([], [spec("y", FREE)], False),
    ],
)
def test_every_input_and_output_must_leave_its_first_dimension_free(
    inputs: list[TensorSpec], outputs: list[TensorSpec], *, has: bool
) -> None:
    assert has_batch_dimension(Signature("m", "1", tuple(inputs), tuple(outputs))) is has


def test_rows_are_those_on_which_all_inputs_agree() -> None:
    assert rows_of(request((2, 5), (2, 7))) == 2
    assert rows_of(request((2, 5), (3, 5))) == 0
    assert rows_of(request(())) == 0
    assert form_of(request((2, 5))) == form_of(request((9, 5))) != form_of(request((2, 6)))


def test_groups_keep_the_order_and_never_mix_forms_or_exceed_the_rows() -> None:
    sizes = Sizes()
    for tail in (5, 6):
        form = form_of(request((1, tail)))
        for rows, row_us in ((1, 100), (2, 60), (4, 100)):
            sizes.ran(form, rows, rows * row_us)
    waiting = [request(s) for s in ((1, 5), (1, 6), (1, 5), (1, 5), (2, 6), (0, 5), (1, 6), (1, 7))]
    assert groups(waiting, sizes) == [[0, 2], [1, 6], [3], [4], [5], [7]]
    assert groups(waiting, Sizes(1)) == [[index] for index in range(len(waiting))]


def test_a_new_model_tries_two_and_climbs_while_rows_become_cheaper() -> None:
    assert Sizes().rows_max("f") == 2
    assert learned({1: 100}).rows_max("f") == 2
    assert learned({1: 100, 2: 60}).rows_max("f") == 4
    assert learned({1: 100, 2: 60, 4: 59}).rows_max("f") == 2, "less than 3 % cheaper"
    assert learned({1: 100, 2: 60, 4: 59}).most == 2
    assert learned({1: 100, 2: 110}).rows_max("f") == 1
    cheap = learned({1 << n: 1000 >> n for n in range(7)})
    assert cheap.rows_max("f") == ROWS_MAX


def test_a_batch_does_not_grow_beyond_what_others_may_wait() -> None:
    assert learned({1: 60_000}).rows_max("f") == 1
    assert learned({1: 30_000, 2: 28_000}).rows_max("f") == 2


def test_what_did_not_pay_is_tried_again_later() -> None:
    sizes = learned({1: 100, 2: 150})
    for _ in range(TRY_AGAIN_RUNS - 3):
        sizes.ran("f", 1, 100)
    assert sizes.rows_max("f") == 1
    sizes.ran("f", 1, 100)
    assert sizes.rows_max("f") == 2


def test_forms_are_bounded_and_a_model_whose_rows_do_not_stand_apart_is_never_joined() -> None:
    sizes = Sizes()
    for number in range(FORMS_MAX + 20):
        sizes.ran(number, 1, 100)
    assert len(sizes._forms) == FORMS_MAX
    few = Sizes(4)
    for rows in (1, 2, 4, 8):
        few.ran("f", rows, 100)
    assert (few.most, few.rows_max("f"), few.may_join) == (4, 4, True)
    alone = Sizes(1)
    assert not alone.may_join
    alone.ran("f", 1, 100)
    assert alone.most == alone.rows_max("f") == 1


def test_runners_share_what_waits() -> None:
    assert share(1, runners=2, rows_max=8) == 1
    assert share(5, runners=2, rows_max=8) == 3
    assert share(50, runners=2, rows_max=8) == 8
    assert share(50, runners=1, rows_max=1) == 1


def test_a_preferred_number_is_taken_where_one_is_reached_and_else_all() -> None:
    company = Company(preferred=(4, 8))
    assert [company.taken(there, 16) for there in (1, 3, 4, 7, 8, 20)] == [1, 3, 4, 4, 8, 8]
    assert [company.is_enough(there, 16) for there in (3, 4)] == [False, True]
    assert company.taken(20, 6) == 4, "not more than pay"
    assert [Company().taken(there, 6) for there in (1, 5, 9)] == [1, 5, 6]
    assert [Company().is_enough(there, 6) for there in (5, 6)] == [False, True]
