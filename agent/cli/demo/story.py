"""The demo's steps, in order; each prints what it shows and checks that it is so."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.cli.demo import data
from agent.cli.demo.cluster import Cluster, DemoSite, Failed, memory_bytes, until
from agent.cli.demo.evidence import check_history, compare, counted_names
from agent.cli.demo.screen import Screen

__all__ = ["Failed", "Story"]

Json = dict[str, Any]
SEED = 1
ACCURACY_MIN = 0.85
"""What six rounds of FedAvg reach on this split with a wide margin; less means that something broke."""
ACCURACY_MIN_DIGITS = 0.6
"""As above for scikit-learn's 1,797 small digits."""
DIGITS_MAX = 5000
"""A training set below this size is the fallback."""
TEST_IMAGES = 2000


class Story:
    """The whole demo."""

    def __init__(self, folder: Path | None, mnist: Path | None, rounds: int, *, keep: bool) -> None:
        """``mnist``: folder with the data; ``keep``: leave the sites running."""
        self.screen = Screen()
        self.cluster: Cluster | None = None
        self.figures: Json = {}
        self._folder, self._mnist, self._rounds, self._keep = folder, mnist, rounds, keep
        self._is_over = False
        self._began = time.monotonic()
        self._proven: list[str] = []
        self._killed: DemoSite | None = None
        self._job = ""

    def tell(self) -> None:
        """All steps.

        Raises:
            Failed, AtollError: a step did not do what it claims.
        """
        folder = data.find(self._mnist)
        self._train = data.read(folder, "train")
        self._test = data.read(folder, "t10k")
        self.cluster = Cluster(self._folder)
        try:
            self._meet()
            self._serve()
            self._submit()
            self._lose_the_aggregator()
            self._finish()
            self._return()
            self._measure("memory_mib")
        except Failed as failure:
            tails = "\n".join(
                f"--- {s.name}\n{s.tail()}" for s in self.cluster.sites if s.log.exists()
            )
            raise Failed(f"{failure}\n{tails}") from None
        self._summary()
        self._is_over = True

    def end(self) -> None:
        """Stop the sites and tidy up, unless they are to stay."""
        if self.cluster is None or (self._keep and self._is_over):
            return
        self.cluster.stop()
        if self._is_over:
            self.cluster.remove()

    def figures_json(self) -> str:
        """What was measured, as JSON."""
        return json.dumps(self.figures, indent=2)

    # --- 1 ---------------------------------------------------------------------------------------
    def _meet(self) -> None:
        screen, cluster = self.screen, self._cluster
        screen.step("Five sites, no centre: they find each other")
        shares = data.split(self._train, len(cluster.sites), SEED)
        for site, share in zip(cluster.sites, shares, strict=True):
            data.write(site.data, self._train, share)
        screen.say(f"state in {cluster.folder}; {len(self._train)} images dealt out unevenly")
        founder = cluster.founder
        screen.command(
            f"atoll init --name {founder.name} --jurisdiction {founder.place.jurisdiction} ..."
        )
        cluster.found()
        founder.start()
        _ready(founder)
        for site in cluster.sites[1:]:
            cluster.join(site)
        screen.command(
            "atoll token create ... | atoll join TOKEN       (four times, one token each)"
        )
        began = time.monotonic()
        for site in cluster.sites[1:]:
            site.start()
        with screen.live_members() as view:
            everyone = {site.name for site in cluster.sites}

            def all_see_all() -> bool | None:
                seen = [_alive(site) for site in cluster.sites]
                view.show(founder.admin.get("/1/members")["members"])
                return True if all(names == everyone for names in seen) else None

            _, took_s = until("five sites see each other", 60, all_see_all)
            for site in cluster.sites[1:]:
                _ready(site)
            view.show(founder.admin.get("/1/members")["members"])
        self.figures["discovery_s"] = took_s
        self.figures["all_ready_s"] = time.monotonic() - began
        mechanisms = {
            peer["source"]
            for site in cluster.sites
            for peer in site.admin.get("/1/peers")["peers"]
            if peer["outcome"] == "connected"
        }
        if "mdns" not in mechanisms:
            raise Failed(f"no site was found by mDNS, only by {', '.join(sorted(mechanisms))}")
        self._prove(
            f"each of five sites sees five, {took_s:.1f} s after four processes were started at once "
            "(mDNS, gossip and the join token's address; no seeds configured)"
        )
        for site, share in zip(cluster.sites, shares, strict=True):
            most = data.most_common(self._train, share)
            screen.say(f"{site.name:<8} holds {len(share):>6} images, mostly of {most}")

    # --- 2 ---------------------------------------------------------------------------------------
    def _serve(self) -> None:
        from agent.cli.demo import applications  # noqa: PLC0415 - numpy and the Triton client

        screen, cluster = self.screen, self._cluster
        screen.step("A real model spreads to the sites that its deployment names")
        model = applications.FileTypes.find()
        at, holders, asker = cluster.named("munich"), ("lyon", "milan"), cluster.named("hamburg")
        began = time.monotonic()
        screen.command(
            f"atoll model push {model.path.name} --name magika --sites {','.join(holders)}   (at {at.name})"
        )
        at.atoll(
            "model", "push", str(model.path), "--name", "magika", "--version", "standard-v3.3",
            "--sites", ",".join(holders), "--admin-key", str(cluster.founder.admin_key),
        )  # fmt: skip
        self.figures["model_spread_s"] = time.monotonic() - began

        def known() -> list[str] | None:
            rows = asker.admin.get("/1/models")["models"]
            sites = [
                s["name"]
                for r in rows
                if r["name"] == "magika"
                for s in r["sites"]
                if s["state"] == "ready"
            ]
            return sites if set(sites) == set(holders) else None

        sites, _ = until(f"{asker.name} knows where magika is served", 20, known)
        screen.say(
            f"pushed at {at.name}, served at {' and '.join(sites)} after {self.figures['model_spread_s']:.1f} s"
        )
        content = Path(__file__).read_bytes()

        def nearest() -> str:
            return str(asker.admin.get("/1/route/explain", model="magika")["chosen"])

        def agreed() -> tuple[str, applications.Answer] | None:
            """Round trips move: what was nearest just before the answer, or is just after it."""
            before = nearest()
            answer = applications.file_type(asker.http, model, content)
            chosen = before if answer.served_by == before else nearest()
            return (chosen, answer) if answer.served_by == chosen else None

        (_, answer), _ = until("the nearest site answers", 10, agreed, every_s=0.5)
        if answer.served_by not in holders:
            raise Failed(
                f"the answer came from {answer.served_by!r}, which should not serve magika"
            )
        screen.say(
            f"tritonclient asks {asker.name}: what is {Path(__file__).name}? '{answer.label}', "
            f"served by {answer.served_by} in {answer.took_ms:.1f} ms"
        )
        if answer.label != "python":
            raise Failed(f"magika takes this Python file for {answer.label}")
        self._prove(
            f"a site without the model had it answered by the nearest that has it ({answer.served_by})"
        )

    # --- 3 ---------------------------------------------------------------------------------------
    def _submit(self) -> None:
        screen, cluster = self.screen, self._cluster
        screen.step("A federated job: the data stays where it is")
        at = cluster.named("utrecht")
        specification = cluster.folder / "digits.toml"
        specification.write_text(
            'name = "digits"\nrecipe = "mnist-2nn"\ndataset = "digits"\npublish = "digits"\n'
            f"rounds = {self._rounds}\nepochs = 1\nbatch = 32\nlearning_rate = 0.1\n"
            f"sites_min = 3\nseed = {SEED}\n"
        )
        screen.command(f"atoll job submit digits.toml       (at {at.name})")
        self._submitted = time.monotonic()
        at.atoll("job", "submit", str(specification), "--admin-key", str(cluster.founder.admin_key))
        jobs, _ = until(
            "the job is in the catalog", 10, lambda: at.admin.get("/1/jobs")["jobs"] or None
        )
        self._job = jobs[-1]["id"]

        def elected() -> Json | None:
            found = at.admin.get(f"/1/jobs/{self._job}")
            return found if found["aggregator"] else None

        job, _ = until("an aggregator is elected", 30, elected)
        took_s = time.monotonic() - self._submitted
        self.figures["election_s"] = took_s
        self._prove(
            f"job {self._job}: committee {', '.join(job['committee'])}; elected {job['aggregator']} "
            f"{took_s:.1f} s after the submission"
        )

    # --- 4 ---------------------------------------------------------------------------------------
    def _lose_the_aggregator(self) -> None:
        screen = self.screen
        target = max(2, self._rounds // 2)
        of_five: list[float] = []
        of_four: list[float] = []
        with screen.progress(self._rounds) as view:
            self._follow(view.show, lambda job: job["round"] >= target - 1, of_five)
            self._measure("memory_training_mib")
            victim, delivered = self._catch_in_the_middle(target)
            victim.kill()
            killed_at = time.monotonic()
            self._killed = victim
            screen.say(
                f"[bold]SIGKILL {victim.name}[/bold], aggregating round {target}; it held updates of "
                f"{', '.join(sorted(delivered))}"
            )
            witness = next(s for s in self._cluster.running if s is not victim)

            def next_commit() -> Json | None:
                job = witness.admin.get(f"/1/jobs/{self._job}")
                view.show(job)
                return job if len(job["rounds_done"]) >= target else None

            job, _ = until(f"round {target} is committed by a successor", 60, next_commit)
            self.figures["kill_to_commit_s"] = time.monotonic() - killed_at
            self._follow(view.show, lambda job: job["round"] >= self._rounds, of_four)
        committed = job["rounds_done"][target - 1]
        lost = delivered - {victim.name} - counted_names(committed)
        if lost:
            raise Failed(f"round {target} was committed without the updates of {', '.join(lost)}")
        self._target = target
        self._prove(
            f"{committed['aggregator']} took over in epoch {committed['epoch']} and committed round "
            f"{target}, {self.figures['kill_to_commit_s']:.1f} s after the kill"
        )
        self._prove(
            "the updates that the dead site had collected from living ones were all counted: "
            f"{', '.join(sorted(counted_names(committed)))}"
        )
        self.figures["round_s"] = statistics.median(of_five or of_four or [0.0])

    def _follow(
        self, show: Callable[[Json], None], is_far: Callable[[Json], bool], times: list[float]
    ) -> None:
        """Show the job until ``is_far``; the durations of whole rounds go to ``times``."""
        last, since = -1, time.monotonic()

        def look() -> bool | None:
            nonlocal last, since
            site = next(s for s in self._cluster.running if s is not self._killed)
            job = site.admin.get(f"/1/jobs/{self._job}")
            show(job)
            if job["state"] == "failed":
                raise Failed(f"the job failed: {job['reason']}")
            if job["round"] != last:
                now = time.monotonic()
                if last >= 1:
                    times.append((now - since) / (job["round"] - last))
                last, since = job["round"], now
            return True if is_far(job) else None

        until("the job moves on", 120, look)

    def _catch_in_the_middle(self, target: int) -> tuple[DemoSite, set[str]]:
        """The aggregator at the moment when it has some of the round's updates and not all."""

        def look() -> tuple[DemoSite, set[str]] | None:
            site = self._cluster.running[0]
            name = site.admin.get(f"/1/jobs/{self._job}")["aggregator"]
            if name is None:
                return None
            aggregator = self._cluster.named(name)
            job = aggregator.admin.get(f"/1/jobs/{self._job}")
            if job["round"] >= target:
                raise Failed(f"round {target} was over before it could be disturbed; try again")
            states = {p["name"]: p["state"] for p in job["participants"]}
            has = {n for n, state in states.items() if state == "fetched"}
            is_waiting = any(
                state in ("training", "offered", "invited") for state in states.values()
            )
            if job["round"] == target - 1 and has - {name} and is_waiting:
                return aggregator, has
            return None

        found, _ = until(f"round {target} is half collected", 60, look, every_s=0.01)
        return found

    # --- 5 ---------------------------------------------------------------------------------------
    def _finish(self) -> None:
        from agent.cli.demo import applications  # noqa: PLC0415 - numpy and the Triton client

        screen, cluster = self.screen, self._cluster
        screen.step("What was learned is published and served everywhere")
        survivors = [site for site in cluster.running if site is not self._killed]

        def served() -> dict[str, str] | None:
            digests = {site.name: _digest(site) for site in survivors}
            return {n: d for n, d in digests.items() if d} if all(digests.values()) else None

        digests, _ = until("every living site serves the new model", 90, served)
        self.figures["submit_to_served_s"] = time.monotonic() - self._submitted
        if len(set(digests.values())) != 1:
            raise Failed(f"the sites serve different bytes: {digests}")
        self._digest = next(iter(digests.values()))
        job = survivors[0].admin.get(f"/1/jobs/{self._job}")
        screen.say(
            f"exported to ONNX by {job['aggregator']} and compared with PyTorch before the commit"
        )
        self._evidence(survivors)
        self._images = data.Images(
            self._test.side, self._test.pixels[: TEST_IMAGES * self._test.side**2],
            self._test.labels[:TEST_IMAGES],
        )  # fmt: skip
        rows = [self._score(applications, site) for site in survivors]
        screen.table(("asked", "served by", "held-out images", "accuracy", "ms an image"), rows)
        self._prove(
            f"{len(survivors)} sites serve digits {self._digest[:12]} from their own worker"
        )

    def _score(self, applications: Any, site: DemoSite) -> tuple[object, ...]:
        one = data.Images(self._test.side, self._test.image(0), self._test.labels[:1])

        def answers_itself() -> bool | None:
            """Control tells the gateway of a new model within a moment, not at once."""
            return applications.classify(site.http, "digits", one).served_by == {site.name} or None

        until(f"{site.name} answers from its own worker", 5, answers_itself)
        score = applications.classify(site.http, "digits", self._images)
        least = ACCURACY_MIN if len(self._train) > DIGITS_MAX else ACCURACY_MIN_DIGITS
        if score.accuracy < least:
            raise Failed(f"{site.name} is right in {score.accuracy:.1%} of cases only")
        if score.served_by != {site.name}:
            raise Failed(f"{site.name} let {', '.join(score.served_by)} answer")
        self.figures["accuracy"] = score.accuracy
        return (
            site.name, ", ".join(score.served_by), score.total, f"{score.accuracy:.4f}",
            f"{score.image_ms:.3f}",
        )  # fmt: skip

    def _evidence(self, survivors: list[DemoSite]) -> None:
        """Rounds as two sites' own databases have them."""
        first, second = survivors[0], survivors[-1]

        def complete() -> tuple[list[Json], list[Json]] | None:
            one = first.admin.get(f"/1/jobs/{self._job}")["rounds_done"]
            two = second.admin.get(f"/1/jobs/{self._job}")["rounds_done"]
            return (one, two) if len(one) == len(two) == self._rounds else None

        (one, two), _ = until("both databases hold every round", 30, complete)
        check_history(one)
        compare(one, two)
        rows = [
            (
                r["round"], r["epoch"], r["aggregator"], ", ".join(sorted(counted_names(r))),
                sum(c["samples"] for c in r["counted"]), r["contributions"][:12],
            )
            for r in one
        ]  # fmt: skip
        self.screen.table(
            ("round", "epoch", "aggregator", "updates counted", "samples", "contributions"), rows,
            title=f"committed rounds, read from the databases of {first.name} and {second.name} (equal)",
        )  # fmt: skip
        self._prove("no update was counted twice, no round is missing, both databases agree")

    # --- 6 ---------------------------------------------------------------------------------------
    def _return(self) -> None:
        from agent.cli.demo import applications  # noqa: PLC0415 - numpy and the Triton client

        screen, victim = self.screen, self._killed
        assert victim is not None
        screen.step(f"{victim.name} comes back")
        began = time.monotonic()
        victim.start()
        _ready(victim)
        until(f"{victim.name} serves the new model", 60, lambda: _digest(victim) or None)
        self.figures["return_s"] = time.monotonic() - began
        if _digest(victim) != self._digest:
            raise Failed(
                f"{victim.name} serves {_digest(victim)[:12]}, the others {self._digest[:12]}"
            )
        row = self._score(applications, victim)

        def caught_up() -> bool | None:
            done = victim.admin.get(f"/1/jobs/{self._job}")["rounds_done"]
            return True if len(done) == self._rounds else None

        until(f"{victim.name} knows every round", 20, caught_up)
        self._prove(
            f"{self.figures['return_s']:.1f} s after its start it serves the same digest "
            f"{self._digest[:12]} (accuracy {row[3]}) and knows all {self._rounds} rounds"
        )

    # --- 7 ---------------------------------------------------------------------------------------
    def _measure(self, figure: str) -> None:
        """Memory of each process of one site, now."""
        site = self._cluster.running[0]
        processes = site.admin.get("/1/status")["processes"]
        self.figures[figure] = {
            p["name"].split()[0]: round(memory_bytes(p["pid"]) / 2**20, 1)
            for p in processes
            if p["pid"]
        }

    def _summary(self) -> None:
        figures, screen = self.figures, self.screen
        figures["total_s"] = time.monotonic() - self._began
        screen.step("Summary")
        memory = ", ".join(f"{name} {mib:.0f}" for name, mib in figures["memory_mib"].items())
        rows = [
            ("five sites see each other", f"{figures['discovery_s']:.1f} s"),
            ("model pushed and served at two sites", f"{figures['model_spread_s']:.1f} s"),
            ("aggregator elected after submission", f"{figures['election_s']:.1f} s"),
            ("a round (median)", f"{figures.get('round_s', 0.0):.2f} s"),
            ("aggregator killed to next commit", f"{figures['kill_to_commit_s']:.1f} s"),
            ("job submitted to model served everywhere", f"{figures['submit_to_served_s']:.1f} s"),
            ("killed site restarted to serving", f"{figures['return_s']:.1f} s"),
            ("accuracy on held-out images", f"{figures['accuracy']:.4f}"),
            ("digest served at all five sites", self._digest[:24]),
            ("memory of a site, MiB (PSS)", memory),
            ("the whole demo", f"{figures['total_s']:.0f} s"),
        ]
        screen.table(("measured", ""), rows)
        for text in self._proven:
            screen.proven(text)
        if self._keep:
            self._invite()

    def _invite(self) -> None:
        screen, cluster = self.screen, self._cluster
        site = cluster.founder
        screen.say("\nThe sites go on running. Try:")
        for verb in ("status", "members", "peers --why", "model list", f"job show {self._job}",
                     "route explain magika", "doctor"):  # fmt: skip
            screen.command(f"atoll {verb} --config {site.config}")
        screen.command(f"curl http://{site.http}/v2/models/digits")
        pids = " ".join(str(s.process.pid) for s in cluster.running if s.process is not None)
        screen.say("and stop them with:")
        screen.command(f"kill {pids}; rm -r {cluster.folder}")

    def _prove(self, text: str) -> None:
        self._proven.append(text)
        self.screen.proven(text)

    @property
    def _cluster(self) -> Cluster:
        assert self.cluster is not None, "made before the first step"
        return self.cluster


def _ready(site: DemoSite) -> None:
    def look() -> bool | None:
        if site.process is not None and site.process.poll() is not None:
            raise Failed(f"the daemon of {site.name} ended:\n{site.tail()}")
        status = site.admin.get("/1/status")
        return None if status["state"] == "starting" else True

    until(f"{site.name} is ready", 60, look)


def _alive(site: DemoSite) -> set[str]:
    members = site.admin.get("/1/members")["members"]
    return {row["name"] for row in members if row["status"] == "alive"}


def _digest(site: DemoSite) -> str:
    """The digest of the ``digits`` model that is ready at the site; empty if none is."""
    models = site.admin.get("/1/status")["models"]
    ready = [m["digest"] for m in models if m["name"] == "digits" and m["state"] == "ready"]
    return str(ready[0]) if ready else ""
