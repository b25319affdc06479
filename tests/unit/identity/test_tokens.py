"""Join tokens: admitted once, by the issuer that minted it, under the name it was made for."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cluster_of_keys import NOW, Cluster, Member
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from agent.foundation.errors import Malformed, Refused, UsageError
from agent.identity.certificates import site_id
from agent.identity.claims import Claims
from agent.identity.tokens import (
    TOKEN_CHARS_MAX,
    WRONG_TRIES_MAX,
    IssuerProof,
    JoinReply,
    JoinRequest,
    Token,
    TokenRow,
    accept_reply,
    certify,
    check_issuer,
    decode_token,
    encode_token,
    make_request,
    mint,
    redeem,
)
from agent.identity.trust_signing import sign_revocation
from agent.wire.schema import pack, unpack

CLUSTER = Cluster()
HUB = CLUSTER.site("hub")
SEEDS = (("127.0.0.2", 7411),)
SITE_KEY = CLUSTER.key()
GOSSIP_KEY = X25519PrivateKey.from_private_bytes(CLUSTER.entropy(32))


def minted(
    ttl_s: float = 3600.0,
    vocabulary: tuple[str, ...] = (),
    seeds: tuple[tuple[str, int], ...] = SEEDS,
) -> tuple[str, TokenRow]:
    return mint(
        cluster=CLUSTER.id,
        issuer=HUB.site,
        name="edge-7",
        region="north",
        tier="edge",
        jurisdiction="DE",
        roles=("member",),
        seeds=seeds,
        entropy=CLUSTER.entropy,
        now=NOW,
        ttl_s=ttl_s,
        vocabulary=vocabulary,
    )


def request_with(text: str) -> JoinRequest:
    return make_request(decode_token(text), SITE_KEY, GOSSIP_KEY)


def refusal(row: TokenRow | None, request: JoinRequest, later_s: float = 0.0) -> str:
    _, answer = redeem(row, request, NOW + timedelta(seconds=later_s))
    assert isinstance(answer, Refused)
    return str(answer)


def joined() -> tuple[Token, JoinRequest, JoinReply]:
    text, row = minted()
    request = request_with(text)
    _, claims = redeem(row, request, NOW)
    assert isinstance(claims, Claims)
    chain = certify(CLUSTER.issuer, request, claims, NOW)
    log = CLUSTER.log()
    reply = JoinReply(chain, CLUSTER.root.certificate, SEEDS, log.entries())
    return decode_token(text), request, reply


def test_a_token_becomes_a_membership_with_exactly_the_claims_it_was_minted_for() -> None:
    token, request, reply = joined()
    reply = unpack(JoinReply, pack(reply))
    identity, log = accept_reply(token, unpack(JoinRequest, pack(request)), reply, NOW)
    assert identity.site == site_id(SITE_KEY.public_key())
    assert identity.claims == CLUSTER.claims(
        "edge-7", gossip_key=GOSSIP_KEY.public_key().public_bytes_raw()
    )
    assert list(log.admins().values()) == [CLUSTER.admin.public_key()]


def test_the_row_survives_its_packed_form_and_does_not_hold_the_secret() -> None:
    text, row = minted()
    secret = decode_token(text).secret
    assert unpack(TokenRow, pack(row)) == row
    assert secret not in pack(row)
    assert repr(secret) not in repr(decode_token(text))
    assert repr(row.proof_key) not in repr(row)


def test_a_spent_token_is_refused_to_another_key_and_repeated_for_the_same() -> None:
    text, row = minted()
    spent, first = redeem(row, request_with(text), NOW)
    assert spent is not None
    assert spent.state == "spent"
    again, second = redeem(spent, request_with(text), NOW)
    assert (again, second) == (spent, first)
    other = make_request(decode_token(text), CLUSTER.key(), GOSSIP_KEY)
    assert "used already" in refusal(spent, other)


def test_an_expired_token_is_refused_and_says_when_it_ended() -> None:
    text, row = minted(ttl_s=60)
    assert "good until 2026-05-01T12:01:00+00:00" in refusal(row, request_with(text), later_s=61)


def test_five_wrong_proofs_burn_the_token_even_for_the_right_one() -> None:
    text, row = minted()
    right = request_with(text)
    wrong = replace(right, proof=bytes(32))
    state: TokenRow | None = row
    for tries in range(1, WRONG_TRIES_MAX + 1):
        assert f"wrong try {tries} of 5" in refusal(state, wrong)
        state, _ = redeem(state, wrong, NOW)
    assert state is not None
    assert state.state == "burned"
    assert "burned" in refusal(state, right)
    assert unpack(TokenRow, pack(state)) == state


def test_wrong_proofs_after_use_do_not_take_the_member_away() -> None:
    text, row = minted()
    request = request_with(text)
    state, _ = redeem(row, request, NOW)
    for _ in range(WRONG_TRIES_MAX + 3):
        state, _ = redeem(state, replace(request, proof=bytes(32)), NOW)
    assert state is not None
    assert (state.state, state.wrong_tries) == ("spent", WRONG_TRIES_MAX)


@pytest.mark.parametrize(
    "change",
    [
        {"site_public_key": CLUSTER.key().public_key().public_bytes_raw()},
        {"gossip_public_key": bytes(32)},
        {"name": "edge-8"},
        {"signature": bytes(64)},
    ],
)
def test_the_proof_covers_the_whole_request(change: dict[str, object]) -> None:
    text, row = minted()
    changed = replace(request_with(text), **change)  # type: ignore[arg-type]
    assert "proof does not match" in refusal(row, changed)


def test_a_request_made_for_another_issuer_proves_nothing_here() -> None:
    text, row = minted()
    elsewhere = replace(decode_token(text), issuer=CLUSTER.site("hub-2").site)
    assert "proof does not match" in refusal(row, make_request(elsewhere, SITE_KEY, GOSSIP_KEY))


def test_the_holder_of_the_token_can_ask_for_no_other_name() -> None:
    text, row = minted()
    renamed = replace(decode_token(text), name="edge-8")
    message = refusal(row, make_request(renamed, SITE_KEY, GOSSIP_KEY))
    assert "not for a site named edge-8; it was made for edge-7" in message


def test_a_request_for_a_key_that_the_sender_does_not_hold_is_refused() -> None:
    token = decode_token(minted()[0])
    mine = make_request(token, SITE_KEY, GOSSIP_KEY)
    theirs = replace(mine, site_public_key=HUB.private.public_key().public_bytes_raw())
    from agent.identity import tokens  # noqa: PLC0415 - the attacker knows the secret and the code

    key = tokens._proof_key(token.secret)
    proven = replace(theirs, proof=tokens._proof(key, token.issuer, theirs))
    row = replace(minted()[1], proof_key=key)
    assert "not signed by the key" in refusal(row, proven)


def test_a_revoked_key_cannot_join_again_and_an_unknown_token_is_told() -> None:
    text, row = minted()
    request = request_with(text)
    _, answer = redeem(row, request, NOW, revoked={site_id(SITE_KEY.public_key())})
    assert "revoked" in str(answer)
    assert "knows no such token" in refusal(None, request)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ttl_s": 0.0}, "lifetime"),
        ({"ttl_s": 8 * 86_400.0}, "lifetime"),
        ({"vocabulary": ("FR", "NL")}, "DE is not in this cluster's vocabulary.*FR, NL"),
        ({"seeds": SEEDS * 5}, "5 seed addresses"),
    ],
)
def test_a_token_that_cannot_be_used_is_not_minted(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        minted(**arguments)  # type: ignore[arg-type]


def test_a_token_without_addresses_is_for_a_network_with_multicast() -> None:
    text, _ = minted(seeds=())
    assert decode_token(text).seeds == ()


def test_the_longest_token_is_within_its_bound_and_comes_back() -> None:
    token = replace(decode_token(minted()[0]), name="n" * 64, seeds=(("h" * 64, 65_535),) * 4)
    text = encode_token(token)
    assert len(text) <= TOKEN_CHARS_MAX
    assert decode_token(text) == token


def test_blanks_and_line_breaks_of_a_copy_do_not_matter() -> None:
    text, _ = minted()
    assert decode_token(f"  {text[:40]}\n   {text[40:]}\r\n") == decode_token(text)


@given(st.data())
def test_a_token_with_any_character_changed_or_cut_off_is_told_from_a_wrong_one(
    data: st.DataObject,
) -> None:
    text, _ = minted()
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(codec="utf-8"))
    changed = text[:position] + character + text[position + 1 :]
    for mangled in (changed, text[:position]):
        if "".join(mangled.split()) == text or is_same_base64(mangled, text):
            continue
        with pytest.raises(UsageError, match=r"not a join token|cut off or mistyped"):
            decode_token(mangled)


def is_same_base64(mangled: str, text: str) -> bool:
    """The last character's unused bits may differ: the bytes are the same."""
    return len(mangled) == len(text) and mangled[:-1] == text[:-1]


def shown(member: Member) -> IssuerProof:
    return IssuerProof(member.passport.chain, CLUSTER.root.certificate)


def test_the_joiner_accepts_the_issuer_of_its_token_and_nobody_else() -> None:
    token = decode_token(minted()[0])
    leaf = HUB.passport.chain[0]
    assert check_issuer(token, shown(HUB), leaf, NOW).site == HUB.site
    other = CLUSTER.site("hub-2")
    with pytest.raises(Refused, match="the seed is hub-2, not the issuer of the token"):
        check_issuer(token, shown(other), other.passport.chain[0], NOW)
    with pytest.raises(Refused, match="certificate that is not its own"):
        check_issuer(token, shown(HUB), other.passport.chain[0], NOW)
    foreign = Cluster(2)
    stranger = foreign.site("hub")
    proof = IssuerProof(stranger.passport.chain, foreign.root.certificate)
    with pytest.raises(Refused, match="another cluster than the token"):
        check_issuer(token, proof, stranger.passport.chain[0], NOW)
    with pytest.raises(Malformed):
        check_issuer(token, IssuerProof((), b""), b"", NOW)


def test_the_joiner_refuses_an_answer_for_another_cluster_key_or_name() -> None:
    token, request, reply = joined()
    foreign = Cluster(2)
    with pytest.raises(Refused, match="answered for another cluster"):
        accept_reply(token, request, replace(reply, root=foreign.root.certificate), NOW)
    with pytest.raises(Refused, match="certified another site"):
        accept_reply(token, request, replace(reply, chain=HUB.passport.chain), NOW)
    with pytest.raises(Refused, match="certified another site"):
        accept_reply(replace(token, name="edge-8"), request, reply, NOW)
    with pytest.raises(Refused, match="no trust log"):
        accept_reply(token, request, replace(reply, trust=()), NOW)
    with pytest.raises(Refused, match="another cluster's trust log"):
        accept_reply(token, request, replace(reply, trust=foreign.log().entries()), NOW)


def test_the_joiner_learns_at_once_if_its_key_is_revoked() -> None:
    token, request, reply = joined()
    log = CLUSTER.log()
    log.append(sign_revocation(log, site_id(SITE_KEY.public_key()), "", CLUSTER.admin, NOW))
    with pytest.raises(Refused, match="revoked"):
        accept_reply(token, request, replace(reply, trust=log.entries()), NOW)


def test_the_life_of_certificates_is_the_tokens_and_bounded() -> None:
    granted = mint(
        cluster=CLUSTER.id, issuer=HUB.site, name="edge-7", region="north", tier="edge",
        jurisdiction="DE", roles=(), seeds=SEEDS, entropy=CLUSTER.entropy, now=NOW, life_s=3600,
    )  # fmt: skip
    text, row = granted
    request = make_request(decode_token(text), SITE_KEY, GOSSIP_KEY)
    _, claims = redeem(unpack(TokenRow, pack(row)), request, NOW)
    assert not isinstance(claims, Refused)
    assert claims.life_s == 3600
    for life_s in (1, 15 * 86_400):
        with pytest.raises(UsageError, match="certificates that live"):
            mint(
                cluster=CLUSTER.id, issuer=HUB.site, name="edge-7", region="north", tier="edge",
                jurisdiction="DE", roles=(), seeds=SEEDS, entropy=CLUSTER.entropy, now=NOW,
                life_s=life_s,
            )  # fmt: skip


def test_a_retired_key_cannot_redeem_its_token_again() -> None:
    text, row = minted()
    request = make_request(decode_token(text), SITE_KEY, GOSSIP_KEY)
    spent, _ = redeem(row, request, NOW)
    assert spent is not None
    _, again = redeem(spent, request, NOW, {bytes(spent.spent_by)})
    assert isinstance(again, Refused)
    assert "retired" in again.what
