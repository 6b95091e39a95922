"""Records of requests with round numbers, for tests of what is made from them."""

from typing import Any

from server.bench.load import ClosedLoop, Load, Measurement
from server.bench.record import Failure, Record, Usage

TWO_CLIENTS = ClosedLoop(2)


def make_record(due_s: float = 0.0, chunks_s: tuple[float, ...] = (1.0, 1.5, 2.0), **changes: Any) -> Record:
    """Due at `due_s`, chunks so long after that, ended with the last; three tokens on ten of prompt."""
    fields: dict[str, Any] = {
        "due_s": due_s,
        "sent_s": due_s,
        "ended_s": due_s + chunks_s[-1] if chunks_s else due_s,
        "chunks_s": [due_s + chunk_s for chunk_s in chunks_s],
        "usage": Usage(10, len(chunks_s), 0),
        "finish_reason": "length",
        "num_pictures": 0,
        "num_reused_pictures": 0,
    }
    return Record(**fields | changes)


def make_failed(kind: str = "http 503", message: str = "503: busy", **changes: Any) -> Record:
    fields = {"usage": None, "finish_reason": None, "failure": Failure(kind, message), "ended_s": 0.5}
    return make_record(0.0, (), **fields | changes)


def make_measurement(*records: Record, **changes: Any) -> Measurement:
    load: Load = TWO_CLIENTS
    fields: dict[str, Any] = {
        "target": "ours",
        "load": load,
        "round": 0,
        "wall_s": 10.0,
        "records": records,
        "num_cut": 0,
        "num_late": 0,
    }
    return Measurement(**fields | changes)
