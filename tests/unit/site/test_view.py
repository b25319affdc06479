"""What the gateway is told."""

from sites_of_one_cluster import World, deployment, model

from agent.foundation.ids import SiteId
from agent.site.events import BlobStored
from agent.site.view import view_of
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
