"""How long work takes under each limit: fluid arithmetic, one limit at a time.

A limit of R a minute of which a share s is used lets s · R / 60 through each second, and burst_seconds of that at
once. A day's limit can be used at once as a whole, but for the 40 % of it that LOW leaves to others. Slots begin as
many calls as there are, and then one whenever one ends. An unknown limit of a public provider is found out from two
calls a second on, doubling every ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llm_gateway.clients.base import Deployment
from llm_gateway.config import Charge, GatewayConfig, LimitSettings
from llm_gateway.limits import charge_of
from llm_gateway.limits.learning import CAUTIOUS

MINUTE, DAY = 60.0, 86_400.0
PERIODS = {"rpm": MINUTE, "tpm": MINUTE, "itpm": MINUTE, "otpm": MINUTE, "rpd": DAY}
TOLD = {"rpm": "requests", "tpm": "tokens", "itpm": "input_tokens", "otpm": "output_tokens", "rpd": "requests_per_day"}
LEFT_BY_LOW = 0.4  # of a bucket that holds more than ten seconds' worth
DOUBLING = 10.0  # seconds in which a rate that is being learned doubles
SLOT_KEPT = 10  # of so many slots one stays free for HIGH
ROW_CPU = 0.002  # seconds of one core for a row where nobody measured it: read, recorded, asked, recorded, written

Told = Mapping[str, Mapping[str, float]]
"""What the sample's answers told of limits: by deployment, and by the name of what is limited."""


@dataclass(slots=True)
class Work:
    """What the rows of a model ask for."""

    calls: float = 0.0
    input: float = 0.0
    output: float = 0.0
    asked_output: float = 0.0  # longest answers allowed, or what is expected where nothing limits them
    admitted: float = 0.0  # the larger of prompt and longest answer, added up
    seconds: float = 0.0  # in the provider
    last: float = 0.0  # seconds of the answer that is waited for at the end

    def demand(self, key: str, charge: Charge) -> float:
        """Return what is charged against a limit."""
        at_admission = charge == "admission_max"
        match key:
            case "rpm" | "rpd":
                return self.calls
            case "itpm":
                return self.input
            case "otpm":
                return self.asked_output if at_admission else self.output
            case _:
                return self.admitted if at_admission else self.input + self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One thing that may bind."""

    owner: str
    key: str
    limit: float | None
    source: str
    parts: Mapping[str, float]  # of the work of each model that falls under it
    per_second: float = 0.0
    free: float = 0.0  # let through at once
    charge: Charge = "actual"
    own: bool = False  # another machine has it again
    used: float = 1.0  # share of `per_second` that a rehearsal could use, and by which it is lowered

    def seconds(self, works: Mapping[str, Work], machines: int = 1) -> float:
        """Return when the last call would end if there were no other limit."""
        mine = [(works[model], part) for model, part in self.parts.items() if model in works]
        calls = sum(work.calls * part for work, part in mine)
        if not calls:
            return 0.0
        last = max(work.last for work, _ in mine)
        if self.key == "concurrency":
            slots = self.per_second * (machines if self.own else 1)
            busy = sum(work.seconds * part for work, part in mine)
            return max(0.0, busy - slots * busy / calls) / slots + last
        if self.key == "learning":
            return DOUBLING * math.log2(1.0 + calls * math.log(2.0) / (DOUBLING * CAUTIOUS)) + last
        demand = sum(work.demand(self.key, self.charge) * part for work, part in mine) if self.key != "cpu" else calls
        # What the last call needs has come when it begins, so all of the demand but the burst has to flow in.
        return max(0.0, demand - self.free) / (self.per_second * (machines if self.own else 1)) + last


def constraints(
    config: GatewayConfig,
    deployments: Mapping[str, list[Deployment]],
    told: Told,
    *,
    urgent: set[str],
    row_cpu: float | None = None,
) -> list[Constraint]:
    """Return everything that may bind the calls of some models; `urgent` are those with rows that are not LOW.

    `row_cpu` is what a row costs of one core of this machine, in seconds; None: nobody knows.
    """
    found: list[Constraint] = []
    for model, mine in deployments.items():
        weights = sum(each.settings.weight for each in mine)
        for deployment in mine:
            part = {model: deployment.settings.weight / weights}
            found += _of_deployment(config, deployment, told, part, is_low=model not in urgent)
    for name, provider in config.providers.items():
        parts = {
            model: sum(each.settings.weight for each in mine if each.endpoint.name == name)
            / sum(each.settings.weight for each in mine)
            for model, mine in deployments.items()
        }
        parts = {model: part for model, part in parts.items() if part}
        if provider.limits is not None and parts:
            charge = provider.limits.charge or charge_of(provider.kind or name)
            is_low = not urgent & parts.keys()
            found += _of_settings(provider.limits, {}, charge, f"provider '{name}'", parts, is_low=is_low)
    everything = dict.fromkeys(deployments, 1.0)
    found.append(
        Constraint(
            owner="this machine",
            key="cpu",
            limit=None,
            source="assumed" if row_cpu is None else "measured",
            parts=everything,
            per_second=1.0 / (row_cpu or ROW_CPU),
            own=True,
        )
    )
    return found


def _of_deployment(
    config: GatewayConfig, deployment: Deployment, told: Told, parts: Mapping[str, float], *, is_low: bool
) -> Iterator[Constraint]:
    owner, settings = f"model '{deployment.name}'", deployment.settings
    if min(parts.values()) < 1.0:
        owner += f" at {deployment.label}"
    limits = settings.limits or LimitSettings()
    charge = limits.charge or charge_of(deployment.endpoint.kind)
    heard = told.get(deployment.label, {})
    given = list(_of_settings(limits, heard, charge, owner, parts, is_low=is_low))
    yield from given
    account = config.providers.get(deployment.endpoint.name)
    known = settings.limits is False or (account is not None and account.limits is not None)
    asked = settings.limits is not None or deployment.endpoint.is_public
    if asked and not known and all(each.key == "rpd" for each in given):
        yield Constraint(owner=owner, key="learning", limit=None, source="unknown", parts=parts)
    slots = settings.max_concurrency
    yield Constraint(
        owner=owner,
        key="concurrency",
        limit=slots,
        source="configured",
        parts=parts,
        per_second=slots - (slots // SLOT_KEPT if is_low else 0),
        own=config.limits.redis_url is None,
    )


def _of_settings(
    limits: LimitSettings,
    heard: Mapping[str, float],
    charge: Charge,
    owner: str,
    parts: Mapping[str, float],
    *,
    is_low: bool,
) -> Iterator[Constraint]:
    for key, period in PERIODS.items():
        given, told = getattr(limits, key), heard.get(TOLD[key])
        limit = min((each for each in (given, told) if each is not None), default=None)
        if limit is None:
            continue
        usable = limit * limits.share(tokens=key.endswith("tpm"))
        at_once = usable if key == "rpd" else usable / period * limits.burst
        yield Constraint(
            owner=owner,
            key=key,
            limit=limit,
            source="configured" if limit == given else "told",
            parts=parts,
            per_second=usable / period,
            free=at_once * (1.0 - LEFT_BY_LOW if key == "rpd" and is_low else 1.0),
            charge=charge,
        )
