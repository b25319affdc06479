"""Load and unload (model repository extension): what applications may change at this site.

Models come from the cluster's signed catalog; a load never brings a new one. It decides, durably, that
this site serves one or does not, until the opposite is asked. The control process carries it out.

Source: triton-inference-server/server ``docs/protocol/extension_model_repository.md``.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from agent.foundation.errors import NotFound, Refused, UsageError
from agent.foundation.ids import SiteId
from agent.gateway.site import SiteState

PUSH = "atoll model push"
_DEPENDENTS = "unload_dependents"


class Control(Protocol):
    """Carries a decision out (``agent.gateway.control.Control``)."""

    async def repository(self, model: str, who: str, *, is_load: bool) -> None:
        """It is so, and the view shows it; ``AtollError`` if it cannot be."""
        ...


class Repository:
    """Loads and unloads, whichever protocol carries the wish."""

    def __init__(self, state: SiteState, control: Control) -> None:
        self._state, self._control = state, control

    async def load(
        self, model: str, parameters: Mapping[str, Any], who: str, caller: SiteId | None = None
    ) -> None:
        """Serve a model of the catalog here; returns when it is ready.

        Args:
            model: its name.
            parameters: Triton's; none is taken.
            who: asks, for a person.
            caller: the member that asks; None for an application.

        Raises:
            Refused: ``caller`` may not, or the model's residency label keeps it away from here.
            NotFound: the catalog does not have it.
            UsageError: it brings a model or settings of its own, or the model cannot be loaded.
            Busy, Unreachable: it is not ready yet; says how it is.
        """
        check_may_control(caller)
        for name in parameters:
            if name == "config" or name.startswith("file:"):
                raise UsageError(
                    f"a load takes no {name[:80]!r}",
                    why="models and their settings come from the cluster's signed catalog",
                    mend=f"publish it with {PUSH}, then load it by its name",
                )
            raise UsageError(f"a load has no parameter {name[:80]!r}")
        await self._ask(model, who, is_load=True)

    async def unload(
        self, model: str, parameters: Mapping[str, Any], who: str, caller: SiteId | None = None
    ) -> None:
        """Serve a model here no more, in any version; what is under way is answered.

        Args:
            model: its name.
            parameters: ``unload_dependents``, a boolean; there are none, so it changes nothing.
            who: asks, for a person.
            caller: the member that asks; None for an application.

        Raises:
            AtollError: as ``load``.
        """
        check_may_control(caller)
        for name, value in parameters.items():
            if name != _DEPENDENTS:
                raise UsageError(f"an unload has no parameter {name[:80]!r}")
            if not isinstance(value, bool):
                raise UsageError(f"{_DEPENDENTS} is not true or false")
        await self._ask(model, who, is_load=False)

    async def _ask(self, model: str, who: str, *, is_load: bool) -> None:
        if all(known.name != model for known in self._state.view.known):
            raise NotFound(
                f"unknown model {model[:80]!r}",
                why="only what is in the cluster's catalog can be loaded or unloaded",
                mend=f"publish it with {PUSH}",
            )
        await self._control.repository(model, who, is_load=is_load)


def check_may_control(caller: SiteId | None) -> None:
    """Raise ``Refused`` for members: what a site serves is decided there or by the catalog.

    Which applications may is decided where they are let in.
    """
    if caller is not None:
        raise Refused(
            "a site does not load or unload models at another",
            mend="use atoll model load or unload there, or change the deployment",
        )


def read_parameters(body: bytes) -> dict[str, Any]:
    """The ``parameters`` of a request over HTTP; an empty body has none.

    Raises:
        UsageError: it is not an object that holds an object of that name, or nothing.
    """
    if not body:
        return {}
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UsageError("the request is not JSON", why=str(error)) from None
    parameters = content.get("parameters", {}) if isinstance(content, dict) else None
    if not isinstance(parameters, dict):
        raise UsageError("the request is not an object with parameters, an object")
    return parameters
