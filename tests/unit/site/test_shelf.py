"""Models at one site: fetched, loaded, refused, quarantined, retried."""

from agent.foundation.ids import Digest
from agent.foundation.writes import Delete
from agent.site.events import LoadModel, Noted, Persist, UnloadModel
from agent.site.shelf import CRASHES_MAX, Shelf
from agent.wire.documents import ModelVersion
from agent.wire.inside import model_key

KEY = model_key("m", "1")


def version(number: str = "1", digest: bytes = b"\1") -> ModelVersion:
    return ModelVersion("m", number, Digest(digest * 32), 10, "onnx", ())


class Place:
    def __init__(self, crashes: dict[bytes, int] | None = None) -> None:
        self.held: set[Digest] = set()
        self.fetched: list[ModelVersion] = []
        self.shelf = Shelf(self.held.__contains__, self.fetched.append, crashes or {})


def loading() -> Place:
    place = Place()
    place.held.add(version().manifest)
    place.shelf.worker_up(0)
    assert place.shelf.want([version()], 0) == [LoadModel(KEY, version())]
    return place


def test_a_model_is_fetched_once_and_loaded_when_it_is_here_and_a_worker_is() -> None:
    place = Place()
    assert place.shelf.want([version()], 0) == []
    place.shelf.advance(1)
    assert place.fetched == [version()]
    place.held.add(version().manifest)
    assert place.shelf.advance(1) == []
    assert place.shelf.worker_up(1) == [LoadModel(KEY, version())]


def test_a_failed_fetch_is_repeated_with_its_reason_kept() -> None:
    place = Place()
    place.shelf.want([version()], 0)
    for failures in range(1, 4):
        place.shelf.fetch_failed(version().manifest, "all are asleep", 0)
        assert "all are asleep" in place.shelf.items[KEY].reason
        place.shelf.advance(place.shelf.wake_at())
        assert len(place.fetched) == failures + 1


def test_a_refused_model_stays_refused_until_its_bytes_change() -> None:
    place = loading()
    place.shelf.failed(KEY, "no such operator", is_crash=False)
    place.shelf.worker_down("killed", {KEY}, 1, is_any_up=False)
    assert place.shelf.worker_up(1) == []
    other = version(digest=b"\2")
    place.held.add(other.manifest)
    assert place.shelf.want([other], 2) == [LoadModel(KEY, other)]


def test_a_model_that_crashes_the_worker_is_counted_durably_and_quarantined() -> None:
    place = loading()
    for count in range(1, CRASHES_MAX + 1):
        effects = place.shelf.failed(KEY, "SIGSEGV", is_crash=True)
        (persist,) = [effect for effect in effects if isinstance(effect, Persist)]
        assert persist.writes[0].row["crashes"] == count  # type: ignore[union-attr]
        place.shelf.worker_down("SIGSEGV", {KEY}, count, is_any_up=False)
        place.shelf.worker_up(count)
    assert place.shelf.items[KEY].stage == "refused"
    after_restart = Place({KEY: CRASHES_MAX})
    after_restart.held.add(version().manifest)
    after_restart.shelf.want([version()], 0)
    assert after_restart.shelf.worker_up(0) == []
    assert "quarantined" in after_restart.shelf.items[KEY].reason


def test_a_worker_that_is_gone_takes_its_sessions_with_it() -> None:
    place = loading()
    (noted,) = place.shelf.ready(KEY, ("CPU",), "{}", 5)
    assert isinstance(noted, Noted)
    assert place.shelf.worker_down("killed", {KEY}, 1, is_any_up=False) == []
    assert (place.shelf.items[KEY].stage, place.shelf.items[KEY].reason) == ("held", "killed")
    assert place.shelf.worker_up(1) == [LoadModel(KEY, version())]


def test_what_another_worker_holds_stays_ready_and_what_is_lost_goes_to_one_that_is_up() -> None:
    place = loading()
    place.shelf.ready(KEY, ("CPU",), "{}", 5)
    assert place.shelf.worker_down("killed", (), 1, is_any_up=True) == []
    assert place.shelf.items[KEY].stage == "ready"
    assert place.shelf.worker_down("killed", {KEY}, 1, is_any_up=True) == [
        LoadModel(KEY, version())
    ]


def test_a_model_that_crashes_one_worker_after_the_other_is_taken_from_those_that_hold_it() -> None:
    place = loading()
    place.shelf.ready(KEY, ("CPU",), "{}", 5)
    for _ in range(CRASHES_MAX - 1):
        effects = place.shelf.failed(KEY, "SIGSEGV", is_crash=True)
        assert UnloadModel(KEY) not in effects
        assert place.shelf.items[KEY].stage == "ready"
    assert UnloadModel(KEY) in place.shelf.failed(KEY, "SIGSEGV", is_crash=True)
    assert place.shelf.advance(1) == []
    assert "quarantined" in place.shelf.items[KEY].reason


def test_what_is_no_longer_wanted_is_unloaded_even_if_it_became_ready_meanwhile() -> None:
    place = loading()
    assert place.shelf.want([], 1) == [UnloadModel(KEY)]
    assert place.shelf.ready(KEY, ("CPU",), "{}", 5) == [UnloadModel(KEY)]
    assert place.shelf.failed(KEY, "x", is_crash=True) == []


def test_a_quarantined_model_that_is_released_is_tried_again_and_its_crashes_are_forgotten() -> (
    None
):
    place = Place({KEY: CRASHES_MAX})
    place.held.add(version().manifest)
    place.shelf.worker_up(0)
    assert place.shelf.want([version()], 0) == []
    assert "atoll model release m:1" in place.shelf.items[KEY].reason
    assert place.shelf.release(KEY, 1) == [
        Persist((Delete("models", (KEY,)),)),
        LoadModel(KEY, version()),
    ]
    for _ in range(CRASHES_MAX - 1):
        place.shelf.failed(KEY, "killed", is_crash=True)
        assert place.shelf.worker_down("killed", {KEY}, 2, is_any_up=True) == [
            LoadModel(KEY, version())
        ]


def test_releasing_a_model_that_is_well_or_unknown_changes_nothing() -> None:
    place = loading()
    place.shelf.ready(KEY, ("CPUExecutionProvider",), "{}", 5)
    assert place.shelf.release(KEY, 1) == []
    assert place.shelf.items[KEY].stage == "ready"
    assert place.shelf.release(b"unknown!", 1) == []
