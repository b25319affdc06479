"""What can be typed: every verb, its options, and the function that carries it out.

Rule: a wrong argument is found here, before anything is read or sent, and ends with exit code 2.
Functions are named as ``module:function`` of ``agent.cli`` and imported only when they run, so that
``atoll status`` pays for nothing but itself.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from agent.api.names import LABEL, NAME

DEFAULT_CONFIG = Path("/etc/atoll/atoll.toml")
DEMO = "demo"
TIERS = ("edge", "regional", "core")
REPLICAS_MAX = 10_000
"""As ``Deployment.replicas``."""

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - typeshed's name

_DURATION = re.compile(r"(\d{1,7})\s*([smhd]?)")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def name(text: str) -> str:
    """A name of a site, model, region or job."""
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name: lower-case letters, digits and . _ - (at most 64)"
        )
    return text


def label(text: str) -> str:
    """A jurisdiction, such as ``DE``."""
    if not LABEL.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a jurisdiction (such as DE)")
    return text


def names(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(dict.fromkeys(name(part.strip()) for part in text.split(",")))


def count(text: str) -> int:
    """How many sites."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= REPLICAS_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {REPLICAS_MAX}")
    return int(text)


def mebibytes(text: str) -> int:
    """An amount of memory given in MiB, in bytes."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(1 << 30))):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of MiB")
    return int(text) << 20


def watts(text: str) -> float:
    """An amount of power in watts."""
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of watts")
    return float(text)


def tiers(text: str) -> tuple[str, ...]:
    """Tiers with commas between."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for one in found:
        if one not in TIERS:
            raise argparse.ArgumentTypeError(f"{one!r} is not a tier: {', '.join(TIERS)}")
    return found


def labels(text: str) -> tuple[str, ...]:
    """Jurisdictions with commas between."""
    return tuple(dict.fromkeys(label(part.strip()) for part in text.split(",")))


def model(text: str) -> str:
    """``NAME`` or ``NAME:VERSION``."""
    for part in text.split(":", 1):
        name(part)
    return text


def model_version(text: str) -> str:
    """``NAME:VERSION``."""
    if ":" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} names no version; write NAME:VERSION")
    return model(text)


def job(text: str) -> str:
    """A job's id: ``name-xxxxxxxx``."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a job's id; `atoll job list` shows them")
    return text


def seconds(text: str) -> float:
    """A duration such as ``90s``, ``30m``, ``1h`` or ``7d``, in seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 30m, 1h or 7d")
    return float(int(match[1]) * _UNIT_S[match[2]])


def absolute(text: str) -> Path:
    """A folder, made absolute: settings do not depend on where they were written."""
    return Path(text).absolute()


def build() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="atoll",
        description="Make many small sites work as one AI cluster with no centre.",
        parents=[_common()],
        allow_abbrev=False,
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    _life(verbs)
    _looking(verbs)
    _models(verbs)
    jobs = _training(verbs)
    from agent.cli import (  # noqa: PLC0415 - they are made of this module's parts
        parser_applications,
        parser_audit,
        parser_blobs,
        parser_catalog,
        parser_committee,
        parser_trust,
    )

    parser_committee.add(jobs)

    parser_catalog.add(verbs)
    parser_blobs.add(verbs)
    parser_applications.add(verbs)
    parser_audit.add(verbs)
    parser_trust.add(verbs)
    _verb(verbs, DEMO, "lifecycle:demo", "Run a small cluster on this machine and show it.")
    return top


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The verb (``run``) and its options; ends the process with code 2 on wrong usage.

    The demo has a command line of its own, so what follows its name is passed on untouched.
    """
    common = argparse.Namespace(config=None, socket=None, json=False, arguments=())
    if arguments and arguments[0] == DEMO:
        common.run, common.arguments = "lifecycle:demo", tuple(arguments[1:])
        return common
    return build().parse_args(arguments, common)


def _common() -> argparse.ArgumentParser:
    """Options of every verb; SUPPRESS, so that one given before the verb is not reset by it."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"the site's settings (default {DEFAULT_CONFIG})",
    )
    common.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the agent's admin socket (default: as configured)",
    )
    common.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return common


def _verb(verbs: Verbs, word: str, run: str, about: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        word, help=about, description=about, parents=[_common()], allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def _group(verbs: Verbs, word: str, about: str) -> Verbs:
    parser = verbs.add_parser(word, help=about, description=about, allow_abbrev=False)
    return parser.add_subparsers(dest=f"{word}_verb", metavar="VERB", required=True)


def _life(verbs: Verbs) -> None:
    init = _verb(verbs, "init", "lifecycle:init", "Found a new cluster; this is its first site.")
    _claims(init)
    init.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="its first line protects the cluster's root key (asked for on a terminal otherwise)",
    )
    init.add_argument(
        "--jurisdictions",
        type=labels,
        default=(),
        metavar="DE,FR",
        help="the only jurisdictions that sites of this cluster may have (default: any)",
    )
    _state_dir(init)
    token = _group(verbs, "token", "Join tokens, which admit one site each.")
    create = _verb(token, "create", "lifecycle:create_token", "Make a token for one new site.")
    _claims(create)
    create.add_argument(
        "--ttl", type=seconds, default=3600.0, metavar="TIME", help="valid for this long (1h)"
    )
    create.add_argument(
        "--life", type=seconds, default=0.0, metavar="TIME",
        help="how long each of the site's certificates lives, 30 s to 14 days (14d)",
    )  # fmt: skip
    join = _verb(
        verbs, "join", "join:join", "Make this machine a site of the cluster a token is from."
    )
    join.add_argument("token", metavar="TOKEN", help="from `atoll token create`; - reads stdin")
    _state_dir(join)
    join.add_argument(
        "--timeout", type=seconds, default=30.0, metavar="TIME", help="for each seed (30s)"
    )
    _verb(
        verbs, "run", "lifecycle:run", "Run this site's agent in the foreground, as systemd does."
    )
    _verb(verbs, "renew", "renew:renew", "Renew this site's certificate now instead of in time.")
    _verb(verbs, "drain", "lifecycle:drain", "Take no more work from other sites.")
    _verb(verbs, "undrain", "lifecycle:undrain", "Take work from other sites again.")
    _verb(verbs, "leave", "lifecycle:leave", "Say goodbye to the other sites and stop the agent.")
    _verb(verbs, "stop", "lifecycle:stop", "Stop the agent.")


def _looking(verbs: Verbs) -> None:
    _verb(verbs, "status", "status:status", "How this site is.")
    _verb(verbs, "members", "reading:members", "The sites of the cluster, as seen from here.")
    peers = _verb(verbs, "peers", "reading:peers", "How other sites were looked for.")
    peers.add_argument(
        "--why", action="store_true", help="with the reason of each last outcome, and its remedy"
    )
    doctor = _verb(
        verbs, "doctor", "doctor:doctor", "Check this machine and this site, running or not."
    )
    doctor.add_argument("--problems", action="store_true", help="print only what is not in order")
    _verb(verbs, "version", "lifecycle:version", "The version of Atoll.")


def _models(verbs: Verbs) -> None:
    models = _group(verbs, "model", "Models and where they are served.")
    push = _verb(models, "push", "model_push:push", "Publish a model and have it served.")
    push.add_argument("file", type=Path, metavar="FILE.onnx")
    push.add_argument("--name", type=name, required=True)
    push.add_argument("--version", type=name, required=True)
    push.add_argument(
        "--residency",
        type=labels,
        default=(),
        metavar="DE,FR",
        help="jurisdictions in which it may be held and run (default: anywhere)",
    )
    where = push.add_mutually_exclusive_group()
    where.add_argument(
        "--sites", type=names, default=(), metavar="A,B", help="serve it there (default: here)"
    )
    where.add_argument("--everywhere", action="store_true", help="serve it at every allowed site")
    where.add_argument(
        "--replicas", type=count, default=0, metavar="N",
        help="serve it at so many sites, which they choose among themselves",
    )  # fmt: skip
    push.add_argument(
        "--tiers", type=tiers, default=(), metavar="edge,core", help="only at sites of these tiers"
    )
    push.add_argument(
        "--regions", type=names, default=(), metavar="A,B", help="only at sites of these regions"
    )
    push.add_argument(
        "--jurisdictions", type=labels, default=(), metavar="DE,FR",
        help="only at sites of these jurisdictions (--residency binds the model itself)",
    )  # fmt: skip
    push.add_argument("--gpu", action="store_true", help="only at sites with a GPU")
    push.add_argument(
        "--memory-min", type=mebibytes, default=0, metavar="MIB",
        help="only at sites with so much memory, MiB",
    )  # fmt: skip
    push.add_argument(
        "--power-min", type=watts, default=0.0, metavar="W",
        help="only at sites with so much of their power supply free, watts",
    )  # fmt: skip
    push.add_argument(
        "--golden", type=Path, metavar="FILE.json",
        help="a request with the outputs it must be answered with, before the version serves anybody",
    )  # fmt: skip
    push.add_argument("--no-wait", action="store_true", help="do not wait until it is ready")
    push.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="TIME", help="wait at most this long (2m)"
    )
    _admin_key(push)
    _verb(models, "list", "reading:models", "Model versions, and where each is ready.")
    release = _verb(
        models, "release", "lifecycle:release_model",
        "Try a model again that this site refused or quarantined.",
    )  # fmt: skip
    release.add_argument("model", type=model_version, metavar="NAME:VERSION")

    retire = _verb(
        models, "retire", "blobs:retire",
        "Say that nobody will want a version again: sites let its bytes go.",
    )  # fmt: skip
    retire.add_argument("model", type=model_version, metavar="NAME:VERSION")
    _admin_key(retire)
    load = _verb(
        models, "load", "lifecycle:load_model",
        "Serve a model at this site, also where the catalog does not plan it.",
    )  # fmt: skip
    load.add_argument("model", type=model, metavar="NAME[:VERSION]")
    unload = _verb(
        models, "unload", "lifecycle:unload_model",
        "Serve a model at this site no more, until it is loaded again.",
    )  # fmt: skip
    unload.add_argument("model", type=model, metavar="NAME[:VERSION]")

    infer = _verb(verbs, "infer", "infer:infer", "Ask a model through this site.")
    infer.add_argument("model", type=model, metavar="MODEL[:VERSION]")
    infer.add_argument(
        "--input",
        required=True,
        metavar="FILE.json",
        help="an Open Inference Protocol v2 request; - reads stdin",
    )
    _residency(infer)
    infer.add_argument(
        "--url",
        metavar="[https://]HOST:PORT",
        help="the site's HTTP endpoint (default: asked of the agent)",
    )
    infer.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="its first line is the token of `atoll app token create`, where the site wants one",
    )
    infer.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="TIME", help="wait at most this long (1m)"
    )
    route = _group(verbs, "route", "Where requests go.")
    explain = _verb(
        route, "explain", "reading:explain", "Name every candidate and what removed it."
    )
    explain.add_argument("model", type=model, metavar="MODEL[:VERSION]")
    _residency(explain)
    explain.add_argument(
        "--application", type=name, default="local", metavar="NAME",
        help="who asks, by the name of its token (default: local, without one)",
    )  # fmt: skip
    policy = _group(verbs, "policy", "What residency labels allow.")
    cases = _verb(
        policy, "test", "policy:test",
        "Try an operator's cases on the residency filter, without a cluster; 1 if any is not as expected.",
    )  # fmt: skip
    cases.add_argument(
        "policies", type=Path, nargs="?", metavar="POLICIES.toml",
        help="a file for atoll apply whose [policy.NAME] hold too",
    )  # fmt: skip
    cases.add_argument(
        "cases", type=Path, metavar="CASES.toml",
        help='[case."NAME"]: request and model (labels), site (its jurisdiction), expect (allow or deny);'
        " for policies also name (of the model), origin (a jurisdiction) and application",
    )  # fmt: skip


def _training(verbs: Verbs) -> Verbs:
    jobs = _group(verbs, "job", "Federated training jobs.")
    submit = _verb(jobs, "submit", "jobs:submit", "Sign a job and give it to the cluster.")
    submit.add_argument("file", type=Path, metavar="JOB.toml")
    submit.add_argument("--watch", action="store_true", help="follow it until it has ended")
    _admin_key(submit)
    watch = _verb(jobs, "watch", "jobs:watch", "Follow a job until it has ended.")
    watch.add_argument("job", type=job, metavar="ID")
    _verb(jobs, "list", "jobs:list_jobs", "Every job and how far it is.")
    show = _verb(jobs, "show", "jobs:show", "One job: its rounds and who was counted in each.")
    show.add_argument("job", type=job, metavar="ID")
    return jobs


def _residency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--residency",
        "--label",
        type=labels,
        default=(),
        metavar="DE,FR",
        help="jurisdictions in which it may be answered (default: anywhere)",
    )


def _claims(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", type=name, required=True, help="the site's name, unique for ever")
    parser.add_argument("--region", type=name, required=True, help="its place in the topology")
    parser.add_argument("--tier", choices=TIERS, required=True)
    parser.add_argument(
        "--jurisdiction", type=label, required=True, help="whose law holds there, such as DE"
    )
    parser.add_argument(
        "--role", type=name, action="append", default=[], dest="roles", help="repeat for several"
    )


def _state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir", type=absolute, metavar="DIR",
        help="where a new settings file says that state is kept (default /var/lib/atoll)",
    )  # fmt: skip


def _admin_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--admin-key", type=Path, metavar="FILE", help="signs the change (default: this site's own)"
    )
