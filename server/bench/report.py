"""The result as JSON: everything that is needed to read it later, down to each request.

docs/benchmarking.md documents the fields; a change of their meaning is a new `SCHEMA`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from server.bench.compare import Ratio, ratios
from server.bench.load import ClosedLoop, Load, Measurement
from server.bench.objective import Objective
from server.bench.prompts import Calibration
from server.bench.record import Record
from server.bench.summary import Summary, summarise
from server.bench.surroundings import Surroundings

SCHEMA = "minicpmv-bench/1"


@dataclass(frozen=True, slots=True)
class TargetInfo:
    name: str
    url: str
    models: Any
    """What `/v1/models` answered."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured, and all that has to be known of it."""

    command: Sequence[str]
    options: Mapping[str, Any]
    """Every option with its value, defaults included."""
    surroundings: Surroundings
    targets: Sequence[TargetInfo]
    calibration: Calibration | None
    """None where prompts were given in words."""
    objective: Objective | None
    measurements: Sequence[Measurement]
    is_interrupted: bool

    def ratios(self) -> list[Ratio]:
        return ratios(self.measurements, [target.name for target in self.targets])

    def rows(self) -> list[tuple[Load, str, Summary]]:
        """One for each load and server, its rounds taken together."""
        found = []
        for load in dict.fromkeys(one.load for one in self.measurements):
            for target in self.targets:
                group = [one for one in self.measurements if one.load == load and one.target == target.name]
                if group:
                    found.append((load, target.name, summarise(group, self.objective)))
        return found


def report(result: Result) -> dict[str, Any]:
    """The whole of the JSON document, as plain values."""
    builtins = msgspec.to_builtins
    return {
        "schema": SCHEMA,
        "date": result.surroundings.date,
        "interrupted": result.is_interrupted,
        "command": list(result.command),
        "options": dict(result.options),
        "client": builtins(result.surroundings),
        "targets": [builtins(target) for target in result.targets],
        "calibration": builtins(result.calibration),
        "objective": builtins(result.objective),
        "results": [
            {"load": _load(load), "target": target, "summary": builtins(summary)}
            for load, target, summary in result.rows()
        ],
        "rounds": [
            {
                "load": _load(one.load),
                "target": one.target,
                "round": one.round,
                "summary": builtins(summarise([one], result.objective)),
            }
            for one in result.measurements
        ],
        "ratios": [builtins(ratio) | {"load": _load(ratio.load)} for ratio in result.ratios()],
        "requests": [
            {"load": _load(one.load), "target": one.target, "round": one.round} | _request(record)
            for one in result.measurements
            for record in one.records
        ],
    }


def _load(load: Load) -> dict[str, float]:
    return {"clients": load.clients} if isinstance(load, ClosedLoop) else {"rate_per_s": load.rate_per_s}


def _request(record: Record) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(
        {
            "due_s": record.due_s,
            "sent_s": record.sent_s,
            "ended_s": record.ended_s,
            "ttft_s": record.ttft_s,
            "token_gap_s": record.token_gap_s,
            "num_chunks": len(record.chunks_s),
            "usage": record.usage,
            "finish_reason": record.finish_reason,
            "num_pictures": record.num_pictures,
            "num_reused_pictures": record.num_reused_pictures,
            "failure": record.failure,
        }
    )
    return fields
