"""Tokens of applications: at the gateway's doors with NVIDIA's clients, and from the command line on."""

import http.client
import json
import os
import signal
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from certificates import certificate
from daemon_cluster import Daemon, running, scratch, wait_for
from daemon_cluster import found as founded
from serving_site import MAGIKA, ServingSite, found, join, open_site
from tritonclient.utils import InferenceServerException

from agent.serving.access import mint
from agent.wire.inside import Applications, ApplicationsTaken, ApplicationToken

pytestmark = pytest.mark.process

TOKENS = {name: mint(os.urandom(32)) for name in ("shop", "watch", "old", "gone", "all")}
ROWS = (
    ApplicationToken("shop", TOKENS["shop"][1], ("infer:magika",), 0.0),
    ApplicationToken("watch", TOKENS["watch"][1], ("read",), 4e9),
    ApplicationToken("old", TOKENS["old"][1], ("infer:*", "read"), 1.0),
    ApplicationToken("gone", TOKENS["gone"][1], ("infer:*", "read"), 0.0),
    ApplicationToken("all", TOKENS["all"][1], ("infer:*", "read", "repository"), 0.0),
)


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name][0]}"}


def tell(site: ServingSite, number: int, rows: tuple[ApplicationToken, ...]) -> None:
    """Send the tokens, and wait until the gateway says that it judges by them."""
    seen: list[int] = []
    former = site.gateway.on_message

    def watch(message: Any) -> None:
        if isinstance(message, ApplicationsTaken):
            seen.append(message.call)
        former(message)

    site.gateway.on_message = watch
    site.send(Applications(number, rows))
    site.wait(lambda: number in seen)
    site.gateway.on_message = former


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def keys(folder: Path) -> Any:
    return found(folder / "identity")


@pytest.fixture(scope="module")
def site(folder: Path, keys: Any) -> Iterator[ServingSite]:
    with open_site(keys, folder / "blobs", tokens="required") as opened:
        tell(opened, 1, ROWS)
        opened.headers = bearer("all")
        opened.start_worker()
        opened.serve("magika", MAGIKA)
        yield opened


def over_http(site: ServingSite, headers: dict[str, str] | None) -> Any:
    with closing(triton_http.InferenceServerClient(f"127.0.0.1:{site.http_port}")) as client:
        given = triton_http.InferInput("bytes", [1, 2048], "INT32")
        given.set_data_from_numpy(np.full((1, 2048), 32, np.int32))
        answer = client.infer("magika", [given], headers=dict(headers or {}))
        return answer.as_numpy("target_label")


def over_grpc(site: ServingSite, headers: dict[str, str] | None) -> Any:
    with closing(triton_grpc.InferenceServerClient(f"127.0.0.1:{site.grpc_port}")) as client:
        given = triton_grpc.InferInput("bytes", [1, 2048], "INT32")
        given.set_data_from_numpy(np.full((1, 2048), 32, np.int32))
        answer = client.infer("magika", [given], headers=dict(headers or {}))
        return answer.as_numpy("target_label")


@pytest.mark.parametrize("ask", [over_http, over_grpc])
def test_tritons_client_is_answered_with_a_token_for_the_model(site: ServingSite, ask: Any) -> None:
    assert ask(site, bearer("shop")).shape == ask(site, bearer("all")).shape


STATUSES = {
    over_http: {"missing": "401", "invalid": "401", "scope": "403"},
    over_grpc: {
        "missing": "StatusCode.UNAUTHENTICATED",
        "invalid": "StatusCode.UNAUTHENTICATED",
        "scope": "StatusCode.PERMISSION_DENIED",
    },
}


@pytest.mark.parametrize("ask", [over_http, over_grpc])
@pytest.mark.parametrize(
    ("headers", "kind", "text"),
    [
        (None, "missing", "atoll app token create"),
        ({"authorization": "Basic dTpw"}, "missing", "another kind of Authorization"),
        ({"authorization": "Bearer sk-1"}, "invalid", "no token of Atoll"),
        ({"authorization": f"Bearer {mint(bytes(32))[0]}"}, "invalid", "not known at this site"),
        (bearer("old"), "invalid", "the token 'old' ended 1970-01-01"),
        (bearer("watch"), "scope", "the token 'watch' lacks the scope infer:magika"),
    ],
)
def test_anybody_else_is_told_what_is_missing(
    site: ServingSite, ask: Any, headers: Any, kind: str, text: str
) -> None:
    with pytest.raises(InferenceServerException, match=text) as refused:
        ask(site, headers)
    assert refused.value.status() == STATUSES[ask][kind]


def test_the_answer_names_the_way_as_rfc_6750_has_it(site: ServingSite) -> None:
    path = "/v2/models/magika/infer"
    status, headers, _ = site.request("POST", path, b"{}", {})
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    status, headers, _ = site.request("POST", path, b"{}", {"Authorization": "Bearer x"})
    assert (status, headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
    status, headers, _ = site.request("POST", path, b"{}", bearer("watch"))
    assert status == 403
    expected = 'Bearer error="insufficient_scope", scope="infer:magika"'
    assert headers["www-authenticate"] == expected


READS = ("/v2", "/v2/openapi.json", "/v2/models/stats", "/v2/models/magika/stats", "/metrics")
MODEL = ("/v2/models/magika", "/v2/models/magika/ready", "/v2/models/magika/config")


def test_each_route_asks_for_its_scope(site: ServingSite) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert site.request("GET", path, headers={})[0] == 200, path
        assert site.request("GET", path, headers={"Authorization": "Bearer x"})[0] == 200, path
    for path in READS:
        codes = [site.request("GET", path, headers=h)[0] for h in (bearer("watch"), bearer("shop"))]
        assert codes == [200, 403], path
    for path in MODEL:
        codes = [site.request("GET", path, headers=h)[0] for h in (bearer("watch"), bearer("shop"))]
        assert codes == [200, 200], path
        elsewhere = path.replace("magika", "other")
        assert site.request("GET", elsewhere, headers=bearer("shop"))[0] == 403
        assert site.request("GET", elsewhere, headers=bearer("all"))[0] == 404
    index = "/v2/repository/index"
    assert site.request("POST", index, b"{}", bearer("watch"))[0] == 200
    for path in (*READS, *MODEL, "/nowhere"):
        assert site.request("GET", path, headers={})[0] == (404 if path == "/nowhere" else 401), (
            path
        )
    load = "/v2/repository/models/magika/load"
    assert site.request("POST", load, b"{}", bearer("watch"))[0] == 403
    assert site.request("POST", load, b"{}", bearer("all"))[0] not in (401, 403)


def test_each_call_over_grpc_asks_for_its_scope(site: ServingSite) -> None:
    with closing(triton_grpc.InferenceServerClient(f"127.0.0.1:{site.grpc_port}")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        reads = (client.get_server_metadata, client.get_model_repository_index)
        for call in (*reads, client.get_inference_statistics):
            call(headers=bearer("watch"))
            with pytest.raises(InferenceServerException, match="lacks the scope read"):
                call(headers=bearer("shop"))
            with pytest.raises(InferenceServerException, match="with a token only"):
                call()
        for call in (client.get_model_metadata, client.get_model_config, client.is_model_ready):
            call("magika", headers=bearer("shop"))
            call("magika", headers=bearer("watch"))
            with pytest.raises(InferenceServerException, match="read or infer:other"):
                call("other", headers=bearer("shop"))
        with pytest.raises(InferenceServerException, match="lacks the scope repository"):
            client.load_model("magika", headers=bearer("watch"))


def test_the_counters_port_asks_for_a_token_too_and_counts_by_application(
    site: ServingSite,
) -> None:
    over_grpc(site, bearer("shop"))
    with pytest.raises(InferenceServerException):
        over_http(site, None)
    with closing(http.client.HTTPConnection("127.0.0.1", site.metrics_port)) as connection:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert (response.status, response.read()[:9]) == (401, b'{"error":')
        connection.request("GET", "/metrics", headers=bearer("watch"))
        text = connection.getresponse().read().decode()
    counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert int(counted['atoll_application_requests_total{application="shop"}']) >= 1
    assert int(counted['atoll_turned_away_total{reason="missing"}']) >= 1
    assert 'application="local"' not in text


def test_a_revoked_token_is_refused_with_the_next_request(site: ServingSite) -> None:
    """Over connections that were open and had been let in before, a stream among them."""
    with (
        closing(http.client.HTTPConnection("127.0.0.1", site.http_port)) as connection,
        closing(triton_grpc.InferenceServerClient(f"127.0.0.1:{site.grpc_port}")) as client,
    ):
        connection.request("GET", "/v2", headers=bearer("gone"))
        assert connection.getresponse().read()
        client.get_server_metadata(headers=bearer("gone"))
        tell(site, 2, tuple(row for row in ROWS if row.name != "gone"))
        connection.request("GET", "/v2", headers=bearer("gone"))
        assert connection.getresponse().status == 401
        with pytest.raises(InferenceServerException, match="not known at this site"):
            client.get_server_metadata(headers=bearer("gone"))
    tell(site, 3, ROWS)


def test_who_has_no_token_is_refused_before_a_large_message_is_taken(site: ServingSite) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{site.grpc_port}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff" * 10_000_000, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as parsed:
            call(b"\xff" * 100, timeout=10, metadata=tuple(bearer("shop").items()))
        assert parsed.value.code() is grpc.StatusCode.UNKNOWN, "its message was read"


def test_on_loopback_a_token_is_optional_and_a_wrong_one_still_refused(
    folder: Path, keys: Any
) -> None:
    with open_site(keys, folder / "blobs") as site:
        assert site.request("GET", "/v2", headers=bearer("watch"))[0] == 503, "none is known yet"
        tell(site, 1, ROWS)
        site.start_worker()
        site.serve("magika", MAGIKA)
        for ask in (over_http, over_grpc):
            ask(site, None)
            ask(site, bearer("shop"))
            with pytest.raises(InferenceServerException, match="not known at this site"):
                ask(site, {"authorization": f"Bearer {mint(bytes(32))[0]}"})
            with pytest.raises(InferenceServerException, match="lacks the scope infer:magika"):
                ask(site, bearer("watch"))
        text = site.get("/metrics")[2].decode()
        assert 'atoll_application_requests_total{application="local"} 2' in text
        assert 'atoll_application_requests_total{application="shop"} 2' in text


def test_without_any_token_everybody_is_told_the_command(folder: Path, keys: Any) -> None:
    with open_site(keys, folder / "blobs", tokens="required") as site:
        assert site.request("GET", "/v2")[0] == 503, "the site is starting"
        tell(site, 1, ())
        status, _, body = site.request("GET", "/v2")
        assert status == 401
        text = json.loads(body)["error"]
        assert "there is no token at this site yet" in text
        assert "atoll app token create NAME" in text
        assert site.request("GET", "/v2/health/live")[0] == 200


def test_a_token_stays_at_the_site_it_was_made_for(folder: Path, keys: Any) -> None:
    """The request is passed on with the site's own certificate; there it is known as the site's."""
    other = join(keys, folder / "paris", "paris", "FR")
    with (
        open_site(keys, folder / "blobs", tokens="required") as first,
        open_site(other, folder / "blobs2", tokens="required") as second,
    ):
        tell(second, 1, (ROWS[4],))
        second.headers = bearer("all")
        second.start_worker()
        second.serve("magika", MAGIKA)
        tell(first, 1, ROWS[:2])
        first.show(known=second.view.known, sites=(second.as_remote(),))
        second.show(sites=(first.as_remote(serving=()),))
        over_http(first, bearer("shop"))
        text = second.get("/metrics")[2].decode()
        assert 'atoll_application_requests_total{application="site berlin"} 1' in text
        assert "shop" not in text


def test_no_secret_is_written_to_the_log(folder: Path, keys: Any, capfd: Any) -> None:
    wrong = "atoll_" + urlsafe_b64encode(b"canary" * 5 + b"42").decode().rstrip("=")
    with open_site(keys, folder / "blobs", tokens="required") as site:
        tell(site, 1, ROWS)
        for _ in range(200):
            assert (
                site.request("GET", "/v2", headers={"Authorization": f"Bearer {wrong}"})[0] == 401
            )
        assert site.request("GET", "/v2", headers=bearer("old"))[0] == 401
    written = "".join(capfd.readouterr())
    assert written.count("turned away") == 1, "a line a minute"
    assert "the token is not known at this site" in written
    assert wrong not in written
    assert TOKENS["old"][0] not in written


def test_with_a_certificate_every_port_of_applications_speaks_tls(folder: Path, keys: Any) -> None:
    chain, key = certificate(folder)
    options = ("--http-certificate", str(chain), "--http-key", str(key))
    with open_site(keys, folder / "blobs", tokens="required", options=options) as site:
        tell(site, 1, ROWS)
        context = ssl.create_default_context(cafile=str(chain))
        for port in (site.http_port, site.metrics_port):
            secure = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
            with closing(secure):
                secure.request("GET", "/metrics", headers=bearer("watch"))
                assert secure.getresponse().status == 200
        address = f"localhost:{site.grpc_port}"
        with closing(
            triton_grpc.InferenceServerClient(address, ssl=True, root_certificates=str(chain))
        ) as client:
            client.get_server_metadata(headers=bearer("watch"))
        with closing(
            triton_http.InferenceServerClient(
                f"localhost:{site.http_port}",
                ssl=True,
                ssl_options={"ca_certs": str(chain)},
            )
        ) as client:
            client.get_server_metadata(headers=bearer("watch"))
        with pytest.raises((OSError, http.client.HTTPException)):
            site.get("/v2/health/live")


def status_of(site: Daemon, path: str, token: str = "") -> tuple[int, str]:
    with closing(http.client.HTTPConnection(site.host, 8000)) as connection:
        connection.request(
            "GET", path, headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.timeout(120)
def test_from_the_command_line_to_the_door_over_restarts_of_site_and_gateway() -> None:
    with scratch() as folder:
        site = founded(folder, "berlin")
        site.configure("[discovery]\nmdns = false", 'http_tokens = "always"')
        with running(site):
            site.start().wait_ready()
            (reason,) = (one for one in site.get("/1/status")["reasons"] if "token" in one)
            assert "there is none: all are refused" in reason
            doctor = site.cli("doctor", "--problems", ok=False)
            assert doctor.returncode == 1
            assert "try: the site's operator makes one: atoll app token create" in doctor.stdout
            assert status_of(site, "/v2")[0] == 401

            token = site.cli("app", "token", "create", "watch", "--scope", "read").stdout.strip()
            assert status_of(site, "/v2", token)[0] == 200
            site.cli("app", "token", "create", "shop", "--scope", "infer:m", "--expires", "90d")
            rows = site.json("app", "token", "list")["tokens"]
            assert [(row["name"], row["state"], row["scopes"]) for row in rows] == [
                ("shop", "valid", ["infer:m"]), ("watch", "valid", ["read"]),
            ]  # fmt: skip
            assert token not in site.cli("app", "token", "list").stdout
            assert not any("token" in one for one in site.get("/1/status")["reasons"])
            taken = site.cli("app", "token", "create", "watch", "--scope", "read", ok=False)
            assert "atoll app token revoke watch" in taken.stderr

            os.kill(site.pid_of("gateway"), signal.SIGKILL)
            wait_for(lambda: answers(site), 20, "the gateway is back", [site])
            assert status_of(site, "/v2", token)[0] == 200
            assert site.stop()[0] == 0
            site.start().wait_ready()
            assert status_of(site, "/v2", token)[0] == 200

            request = folder / "request.json"
            request.write_text('{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}')
            (folder / "token").write_text(token)
            refused = site.cli("infer", "m", "--input", str(request), ok=False)
            assert "try: give --token-file FILE" in refused.stderr
            given = ("--token-file", str(folder / "token"))
            refused = site.cli("infer", "m", "--input", str(request), *given, ok=False)
            assert "the token 'watch' lacks the scope infer:m" in refused.stderr

            serve_over_tls(
                site, lambda: site.cli("infer", "m", "--input", str(request), *given, ok=False)
            )
            said = site.cli("app", "token", "revoke", "watch").stdout
            assert said == "revoked: the next request of watch is refused\n"
            assert status_of(site, "/v2", token)[0] == 401
            site.stop()
            site.start().wait_ready()
            assert status_of(site, "/v2", token)[0] == 401
            assert token not in site.log()


def serve_over_tls(site: Daemon, ask: Callable[[], Any]) -> None:
    """With a certificate the command line still finds its site; with a wrong one it does not start."""
    chain, key = certificate(site.folder)
    plain = ("[discovery]\nmdns = false", 'http_tokens = "always"')
    files = f'\nhttp_certificate = "{chain}"\nhttp_key = "{key}"'
    site.stop()
    site.configure(plain[0], plain[1] + files)
    site.start().wait_ready()
    assert "the token 'watch' lacks the scope infer:m" in ask().stderr
    site.stop()
    key.write_text("")
    refused = site.cli("run", ok=False)
    assert "http_certificate and http_key name two PEM files" in refused.stderr
    site.configure(*plain)
    site.start().wait_ready()


def answers(site: Daemon) -> bool:
    try:
        return status_of(site, "/v2/health/ready")[0] == 200
    except OSError:
        return False
