"""Which worker loads which model, and what the end of one means."""

from agent.serving.worker_pool import Load, Pool, worker_count

A, B, C = b"a" * 8, b"b" * 8, b"c" * 8


def with_workers(count: int) -> Pool:
    pool = Pool(count)
    for index in range(count):
        assert pool.came_up(index) == []
    return pool


def sent(pool: Pool, loads: list[Load]) -> list[Load]:
    for load in loads:
        pool.sent(load)
    return loads


def test_the_operator_is_obeyed_and_else_gpus_and_threads_decide() -> None:
    assert worker_count(3, accelerators=1, runs=1) == 3
    assert worker_count(0, accelerators=2, runs=64) == 2
    assert worker_count(0, accelerators=0, runs=1) == 1


def test_a_model_is_tried_by_one_worker_before_the_others_get_it() -> None:
    pool = with_workers(3)
    assert sent(pool, pool.want(A)) == [Load(0, A)]
    assert pool.loaded(0, A) == (True, [Load(1, A), Load(2, A)])
    assert pool.loaded(1, A) == (False, [])
    assert [pool.holds(index) for index in (0, 1, 2)] == [{A}, {A}, frozenset()]


def test_models_that_come_together_are_tried_side_by_side() -> None:
    pool = with_workers(2)
    assert [pool.want(key) for key in (A, B, C)] == [[Load(0, A)], [Load(1, B)], [Load(0, C)]]


def test_without_a_worker_nothing_is_loaded_until_it_is_wanted_again() -> None:
    pool = Pool(1)
    assert pool.want(A) == []
    assert pool.came_up(0) == [], "the site asks for what nobody has tried"
    assert pool.want(A) == [Load(0, A)]


def test_the_load_that_was_sent_first_is_to_blame_and_what_waits_behind_it_is_lost() -> None:
    pool = with_workers(1)
    loads = [*pool.want(A), *pool.want(B), *pool.want(C)]
    sent(pool, [loads[1], loads[0]])
    down = pool.went_down(0)
    assert down.at_work_on == B
    assert down.lost == {A, B, C}


def test_what_was_not_sent_is_nobodys_fault() -> None:
    pool = with_workers(1)
    pool.want(A)
    assert pool.went_down(0).at_work_on is None


def test_a_refusal_by_the_first_is_one_for_all_and_a_later_one_is_not() -> None:
    pool = with_workers(2)
    sent(pool, pool.want(A))
    assert pool.refused(0, A)
    sent(pool, pool.want(B))
    _, loads = pool.loaded(0, B)
    sent(pool, loads)
    assert not pool.refused(1, B)


def test_a_refusal_by_the_last_that_could_have_it_is_one_for_all() -> None:
    pool = with_workers(2)
    sent(pool, pool.want(A))
    _, loads = pool.loaded(0, A)
    sent(pool, loads)
    assert pool.went_down(0).lost == frozenset(), "the other is loading it"
    assert pool.refused(1, A)


def test_an_answer_to_a_former_wish_says_nothing_about_the_new_one() -> None:
    """The bytes behind a name may be others by then."""
    pool = with_workers(2)
    sent(pool, pool.want(A))
    again = sent(pool, pool.want(A))
    assert again == [Load(1, A)]
    assert pool.loaded(0, A) == (False, [])
    assert pool.holds(0) == frozenset()
    assert pool.loaded(1, A) == (True, [Load(0, A)])


def test_a_wish_that_was_not_carried_out_yet_is_forgotten_with_the_next() -> None:
    pool = with_workers(2)
    pool.want(A)
    sent(pool, pool.want(A))
    assert pool.loaded(0, A) == (True, [Load(1, A)])
    assert pool.went_down(0).at_work_on is None


def test_what_is_withdrawn_is_held_by_nobody_and_lost_by_nobody() -> None:
    pool = with_workers(2)
    sent(pool, pool.want(A))
    pool.loaded(0, A)
    pool.withdraw(A)
    assert pool.holds(0) == frozenset()
    assert pool.loaded(1, A) == (False, [])
    assert pool.went_down(0).lost == frozenset()


def test_what_a_stranger_says_changes_nothing() -> None:
    pool = with_workers(1)
    assert pool.loaded(7, A) == (False, [])
    assert not pool.refused(7, A)
    assert pool.went_down(7).lost == frozenset()
    assert pool.holds(7) == frozenset()
    pool.sent(Load(7, A))
    assert pool.up == (0,)


def fails(pool: Pool, key: bytes) -> None:
    """The worker that loads the model ends."""
    (index,) = (one for one in pool.up if pool.loading(one))
    assert pool.went_down(index).at_work_on == key
    pool.suspect(key)


def holding(pool: Pool, key: bytes) -> None:
    """All workers hold it."""
    ((first, _),) = ((load.worker, load.key) for load in sent(pool, pool.want(key)))
    for load in sent(pool, pool.loaded(first, key)[1]):
        pool.loaded(load.worker, key)


def test_a_model_that_ended_its_worker_is_not_given_to_the_last_one_that_is_up() -> None:
    """Else it takes all of them along, and nobody answers for the others."""
    pool = with_workers(2)
    holding(pool, A)
    sent(pool, pool.want(B))
    fails(pool, B)
    assert pool.up == (1,)
    assert pool.want(B) == []
    assert sent(pool, pool.came_up(0)) == [Load(0, A), Load(0, B)]
    pool.loaded(0, A)
    fails(pool, B)
    assert pool.holds(1) == {A}
    assert pool.want(B) == []
    assert pool.came_up(0) == [Load(0, A), Load(0, B)], "by the one that holds nothing yet"


def test_models_that_ended_their_workers_are_tried_again_by_one_and_the_others_stand_by() -> None:
    pool = with_workers(3)
    holding(pool, A)
    for key in (B, C):
        sent(pool, pool.want(key))
        fails(pool, key)
    assert pool.up == (2,)
    assert [pool.want(key) for key in (B, C)] == [[], []]
    assert sent(pool, pool.came_up(0)) == [Load(0, A), Load(0, B), Load(0, C)]
    pool.came_up(1)
    assert [pool.loading(index) for index in (0, 1, 2)] == [3, 1, 0]


def test_a_model_that_loads_after_all_is_no_suspect_any_more() -> None:
    pool = with_workers(2)
    sent(pool, pool.want(A))
    fails(pool, A)
    assert pool.want(A) == []
    sent(pool, pool.came_up(0))
    assert pool.loaded(0, A) == (True, [Load(1, A)])
    pool.went_down(1)
    assert pool.want(A) == [Load(0, A)]


def test_what_is_withdrawn_while_it_is_put_off_is_not_tried_again() -> None:
    pool = with_workers(2)
    sent(pool, pool.want(A))
    fails(pool, A)
    pool.want(A)
    pool.withdraw(A)
    assert pool.came_up(0) == []
    pool.suspect(B)
    assert pool.want(B) == [Load(0, B)], "nobody wanted it when it was suspected"


def test_a_single_worker_tries_it_again_for_there_is_no_other() -> None:
    pool = with_workers(1)
    sent(pool, pool.want(A))
    fails(pool, A)
    assert pool.came_up(0) == []
    assert pool.want(A) == [Load(0, A)]
