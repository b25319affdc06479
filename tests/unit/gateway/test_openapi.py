"""The document describes the routes that are served, and holds together."""

import json
from typing import Any

from aiohttp import web

from agent.gateway import openapi
from agent.gateway.endpoints import Endpoints
from agent.gateway.openapi import OPERATIONS, document


def routes() -> list[web.RouteDef]:
    nobody: Any = None
    return Endpoints(nobody, nobody, nobody, nobody, nobody).routes(None)


def references(content: object) -> set[str]:
    if isinstance(content, dict):
        own = {content["$ref"]} if "$ref" in content else set()
        return own.union(*map(references, content.values()))
    return set().union(*map(references, content)) if isinstance(content, list) else set()


def test_routes_and_document_agree() -> None:
    served = {(route.method, route.path) for route in routes()}
    described = {
        (method.upper(), path)
        for path, item in document(is_token_required=True)["paths"].items()
        for method in item
    }
    assert served == described
    assert len(served) == len(OPERATIONS), "no route twice"
    handlers = {(route.method, route.path): route.handler.__name__ for route in routes()}
    assert handlers == {(one.method, one.path): one.answers_by for one in OPERATIONS}


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    made = document(is_token_required=True)
    there = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert references(made) == there
    names = [one["operationId"] for item in made["paths"].values() for one in item.values()]
    assert len(set(names)) == len(names)
    assert json.loads(json.dumps(made)) == made


def test_every_failure_is_the_protocols_error() -> None:
    for item in document(is_token_required=True)["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    schema = response["content"]["application/json"]["schema"]
                    assert openapi._ref("Error") in (schema, *schema.get("anyOf", ()))


def test_all_but_health_needs_a_token_with_a_scope_and_the_document_names_it() -> None:
    made = document(is_token_required=True)
    assert made["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    open_to_all = {
        path
        for path, item in made["paths"].items()
        for one in item.values()
        if "security" not in one
    }
    assert open_to_all == {"/v2/health/live", "/v2/health/ready"}
    item = made["paths"]["/v2/models/{model}/infer"]["post"]
    assert item["security"] == [{"token": ["infer:{model}"]}]
    assert "401" in item["responses"]
    item = made["paths"]["/v2/models/{model}"]["get"]
    assert item["security"] == [{"token": ["read"]}, {"token": ["infer:{model}"]}]


def test_where_no_token_is_needed_the_document_says_so() -> None:
    made = document(is_token_required=False)
    assert made["paths"]["/v2"]["get"]["security"] == [{}, {"token": ["read"]}]
