"""What libraries and kernels say of a failed call, as one of ``agent.site.causes``."""

import errno
import socket
import ssl
from collections.abc import Iterator

import aiohttp

from agent.foundation.errors import AtollError, Malformed
from agent.site.causes import Cause

CHAIN_MAX = 8
"""Errors behind an error that are looked at."""

_ERRNO = {
    errno.ECONNREFUSED: Cause.REFUSED,
    errno.ETIMEDOUT: Cause.TIMED_OUT,
    errno.EHOSTUNREACH: Cause.NO_ROUTE,
    errno.ENETUNREACH: Cause.NO_ROUTE,
    errno.ENETDOWN: Cause.NO_ROUTE,
    errno.EADDRNOTAVAIL: Cause.NO_ROUTE,
    errno.EAFNOSUPPORT: Cause.NO_ROUTE,
    errno.EINVAL: Cause.NO_ROUTE,  # such as a link-local address without its interface
    errno.EPERM: Cause.NOT_ALLOWED,
    errno.EACCES: Cause.NOT_ALLOWED,
    errno.ECONNRESET: Cause.BROKEN_OFF,
    errno.EPIPE: Cause.BROKEN_OFF,
}
_VERIFY = {  # X509_V_ERR_* (openssl-verify(1)): what we found wrong with the peer's chain
    2: Cause.WRONG_CLUSTER, 18: Cause.WRONG_CLUSTER, 19: Cause.WRONG_CLUSTER,
    20: Cause.WRONG_CLUSTER, 21: Cause.WRONG_CLUSTER, 7: Cause.WRONG_CLUSTER,
    9: Cause.NOT_YET_VALID, 10: Cause.EXPIRED,
}  # fmt: skip
_ALERTS = {  # what the peer found wrong with ours (RFC 8446, section 6.2), in OpenSSL's words
    "UNKNOWN_CA": Cause.WE_WRONG_CLUSTER,
    "CERTIFICATE_EXPIRED": Cause.WE_EXPIRED,
    "CERTIFICATE_REVOKED": Cause.WE_REVOKED,
    "BAD_CERTIFICATE": Cause.WE_NOT_YET_VALID,  # OpenSSL's alert for X509_V_ERR_CERT_NOT_YET_VALID
}
_REFUSALS = (  # our own words of agent.identity.certificates and agent.drivers.tls
    ("is revoked", Cause.REVOKED, Cause.WE_REVOKED),
    ("is retired", Cause.REVOKED, Cause.WE_REVOKED),
    ("has expired", Cause.EXPIRED, Cause.WE_EXPIRED),
    ("is not valid yet", Cause.NOT_YET_VALID, Cause.WE_NOT_YET_VALID),
    ("another cluster", Cause.WRONG_CLUSTER, Cause.WE_WRONG_CLUSTER),
    ("another site than", Cause.OTHER_SITE, Cause.TURNED_AWAY),
    ("does not speak this protocol", Cause.NOT_ATOLL, Cause.TURNED_AWAY),
    ("shows no certificate", Cause.NOT_ATOLL, Cause.TURNED_AWAY),
)


def cause_of(error: BaseException) -> Cause:
    """Why a call failed; ``Cause.OTHER`` if it cannot be told."""
    seen = list(_chain(error))
    for judge in (_of_ours, _of_tls, _of_kernel):
        for one in seen:
            if (cause := judge(one)) is not None:
                return cause
    return Cause.OTHER


def cause_of_refusal(status: int, text: str) -> Cause:
    """Why a site answered a call with an HTTP status that is not success."""
    if status == 403:  # noqa: PLR2004 - Forbidden
        for words, _, theirs in _REFUSALS:
            if words in text:
                return theirs
        return Cause.TURNED_AWAY
    return Cause.NOT_ATOLL if status in (404, 405) else Cause.TURNED_AWAY


def _of_ours(error: BaseException) -> Cause | None:
    if not isinstance(error, AtollError):
        return None
    for words, ours, _ in _REFUSALS:
        if words in str(error):
            return ours
    return Cause.NOT_ATOLL if isinstance(error, Malformed) else Cause.OTHER


def _of_tls(error: BaseException) -> Cause | None:
    if not isinstance(error, ssl.SSLError) or isinstance(error, aiohttp.ClientError):
        return None  # aiohttp's own are SSL errors by name only; the true one is behind them
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY.get(getattr(error, "verify_code", 0), Cause.WRONG_CLUSTER)
    reason = error.reason or ""
    alert = next((cause for words, cause in _ALERTS.items() if words in reason), None)
    if "ALERT" in reason:
        return alert or Cause.TURNED_AWAY
    return Cause.BROKEN_OFF if isinstance(error, ssl.SSLEOFError) else Cause.NOT_ATOLL


def _of_kernel(error: BaseException) -> Cause | None:
    for kinds, cause in (
        ((aiohttp.ClientConnectorDNSError, socket.gaierror), Cause.UNKNOWN_NAME),
        ((TimeoutError,), Cause.TIMED_OUT),
        ((aiohttp.ServerDisconnectedError, ConnectionResetError), Cause.BROKEN_OFF),
        ((aiohttp.ClientResponseError,), Cause.NOT_ATOLL),  # it does not speak HTTP as we do
    ):
        if isinstance(error, kinds):
            return cause
    return _ERRNO.get(error.errno or 0) if isinstance(error, OSError) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those behind it, the outermost first."""
    waiting: list[BaseException] = [error]
    for _ in range(CHAIN_MAX):
        if not waiting:
            return
        one = waiting.pop(0)
        yield one
        behind = (
            getattr(one, "certificate_error", None),
            getattr(one, "os_error", None),
            one.__cause__,
            one.__context__ if not one.__suppress_context__ else None,
        )
        waiting += [
            other for other in behind if isinstance(other, BaseException) and other is not one
        ]
