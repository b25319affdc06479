"""What clients ask about the server and its models, whichever protocol carries the question."""

from dataclasses import replace
from typing import Any

import orjson

import agent
from agent.drivers.clock import monotonic_s
from agent.foundation.errors import AtollError, NotFound
from agent.gateway.inference import Inference
from agent.gateway.site import SiteState
from agent.routing.policy import HOPS_MAX, Question, judge_local, judge_remote
from agent.serving.failures import error_of
from agent.serving.signature import Signature, signature_of_metadata

EXTENSIONS = (
    "binary_tensor_data", "model_repository", "statistics", "model_configuration", "schedule_policy",
)  # fmt: skip
METADATA_TIMEOUT_S = 5.0


class About:
    """Answers from the site's view; what only another site knows is fetched there."""

    def __init__(self, state: SiteState, inference: Inference) -> None:
        self._state = state
        self._inference = inference

    def server(self) -> dict[str, Any]:
        """The protocol's server metadata."""
        return {"name": "atoll", "version": agent.__version__, "extensions": list(EXTENSIONS)}

    def is_ready(self, question: Question) -> bool:
        """Whether a request would find a site now."""
        state = self._state
        local = judge_local(state.view, question, is_worker_up=state.is_worker_up)
        if not local.removed:
            return True
        remotes = state.serving(question.model.key)
        return question.hops < HOPS_MAX and any(
            not judge_remote(state.view, question, remote).removed for remote in remotes
        )

    def repository(self, *, is_ready_only: bool) -> list[dict[str, str]]:
        """The models of the catalog and their state here (model repository extension)."""
        listed = []
        for known in self._state.view.known:
            local = self._state.local(known.key)
            where = [remote.name for remote in self._state.serving(known.key)]
            is_ready = self.is_ready(Question(known))
            if is_ready or not is_ready_only:
                reason = local.reason if local is not None and not local.is_ready else ""
                if local is None:
                    elsewhere = f"served by {', '.join(where[:5])}" if where else "served nowhere"
                    reason = "; ".join(part for part in (known.unloaded, elsewhere) if part)
                listed.append(
                    {
                        "name": known.name,
                        "version": known.version,
                        "state": "READY" if is_ready else "UNAVAILABLE",
                        "reason": reason,
                    }
                )
        return listed

    def statistics(self, name: str | None, version: str | None) -> dict[str, Any]:
        """Counters of requests answered through here (statistics extension).

        Args:
            name: of a model; None: all.
            version: of that model; None: all.

        Raises:
            NotFound: no such model or version.
        """
        known = [
            model
            for model in self._state.view.known
            if name in (None, model.name) and version in (None, model.version)
        ]
        if name is not None and not known:
            raise NotFound(f"unknown model {name!r}" + (f" version {version!r}" if version else ""))
        return {
            "model_stats": [
                {
                    "name": model.name,
                    "version": model.version,
                    "inference_count": figures.count,
                    "execution_count": figures.executions,
                    "inference_stats": figures.statistics(),
                    "batch_stats": figures.batches(),
                }
                for model in known
                for figures in (self._state.figures.of(model.name, model.version),)
            ]
        }

    async def signature(self, question: Question, request_id: str) -> Signature:
        """What the model takes and gives, known here or asked of a site that serves it.

        With the other versions that a request would find a site for now.

        Raises:
            AtollError: no site that serves it may or can say.
        """
        model = question.model
        others = tuple(
            known.version
            for known in self._state.view.known
            if known.name == model.name and known.key != model.key
            and self.is_ready(replace(question, model=known))
        )  # fmt: skip
        return replace(await self._signature(question, request_id), others=others)

    async def _signature(self, question: Question, request_id: str) -> Signature:
        local = self._state.local(question.model.key)
        if local is not None and local.metadata:
            return signature_of_metadata(local.metadata)
        path = f"/v2/models/{question.model.name}/versions/{question.model.version}"
        status, body = await self._inference.fetch(
            question, path, request_id, monotonic_s() + METADATA_TIMEOUT_S
        )
        if status != 200:  # noqa: PLR2004 - HTTP OK
            raise _as_error(status, body)
        return signature_of_metadata(body)


def _as_error(status: int, body: bytes) -> AtollError:
    try:
        text = str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        text = f"a site answered with status {status}"
    return error_of(status, text)
