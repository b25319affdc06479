"""What the gateway is told."""

import pytest
from sites_of_one_cluster import World, deployment, model

from agent.foundation.ids import SiteId
from agent.membership.coordinates import Coordinate
from agent.membership.round_trip import RoundTrip
from agent.site.events import BlobStored
from agent.site.view import RTT_MS_UNKNOWN, _steady, view_of
from agent.wire.inside import TO_GATEWAY


def test_the_view_names_models_sites_and_labels_and_can_be_sent() -> None:
    world = World()
    one, other = world.add(), world.add("FR")
    world.meet(one, other)
    world.feed(one, BlobStored(model(residency=("DE", "FR")).manifest))
    world.submit(one, model(residency=("DE", "FR")), deployment(sites=("site-2",)))
    world.run(5)
    revoked = (SiteId(b"\7" * 32),)
    view = view_of(one.site, revoked)
    assert [(known.name, known.version, known.is_default) for known in view.known] == [
        ("m", "1", True)
    ]
    (remote,) = view.sites
    assert (remote.site, remote.jurisdiction) == (other.site.me, "FR")
    assert [served.key for served in remote.serving] == [view.known[0].key]
    assert [(blob.manifest, blob.residency) for blob in view.blobs] == [
        (model().manifest, ("DE", "FR"))
    ]
    assert view.revoked == revoked
    assert TO_GATEWAY.unpack(TO_GATEWAY.pack(view)) == view


def test_a_site_that_refused_a_model_is_no_candidate_for_it() -> None:
    world = World()
    one, other = world.add(), world.add()
    world.meet(one, other)
    other.refuses.add("1")
    world.feed(other, BlobStored(model().manifest))
    world.submit(one, model(), deployment(sites=("site-2",)))
    world.run(5)
    assert view_of(one.site).sites[0].serving == ()
    local = view_of(other.site).local[0]
    assert (local.is_ready, local.reason) == (False, "it is broken")


def test_a_member_that_was_never_measured_is_as_far_as_its_coordinate_says() -> None:
    world = World()
    one, other = world.add(), world.add()
    world.meet(one, other)
    world.run(1)
    peer = one.site.swim._roster.get(other.site.me)
    assert peer is not None
    peer.round_trip = RoundTrip()
    assert view_of(one.site).sites[0].rtt_ms == RTT_MS_UNKNOWN
    one.site.swim._where._position.coordinate = Coordinate((0.0,) * 4, 0.001, 0.0, 0.1)
    peer.coordinate = Coordinate((0.03, 0.0, 0.0, 0.0), 0.002, 0.0, 0.1).pack()
    assert view_of(one.site).sites[0].rtt_ms == pytest.approx(33.0, rel=0.1)


def test_the_jitter_of_a_round_trip_changes_no_view() -> None:
    steady = {_steady(rtt_ms) for rtt_ms in (10.0, 10.3, 9.8)}
    assert len(steady) == 1
    for rtt_ms in (0.15, 0.4, 3.0, 250.0):
        assert _steady(rtt_ms) == pytest.approx(rtt_ms, rel=0.1)
    assert _steady(0.0) == _steady(0.1)
