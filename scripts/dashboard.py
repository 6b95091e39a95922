"""Write deploy/monitoring/dashboard.json, the Grafana dashboard, from the panels below.

python scripts/dashboard.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "deploy" / "monitoring" / "dashboard.json"

SELECTION = 'job=~"$job", instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
HEIGHT = 7


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    """Grafana's name of the unit."""
    series: dict[str, str]
    """Legend to PromQL; METRIC{} in it is narrowed to what the user has chosen."""
    text: str = ""
    top: float | None = None
    """Where the axis ends; None leaves that to Grafana."""
    width: int = 8


def rate(metric: str, by: str = "", **labels: str) -> str:
    """The sum of a counter's rates, by these labels."""
    inside = "".join(f', {name}=~"{value}"' for name, value in labels.items())
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate(minicpmv_{metric}{{{SELECTION}{inside}}}[$__rate_interval]))"


def gauge(metric: str, function: str = "sum", by: str = "") -> str:
    grouping = f" by ({by})" if by else ""
    return f"{function}{grouping} (minicpmv_{metric}{{{SELECTION}}})"


def quantiles(metric: str) -> dict[str, str]:
    """p50, p95 and p99 of a histogram."""
    buckets = rate(f"{metric}_bucket", by="le")
    return {f"p{round(100 * share)}": f"histogram_quantile({share}, {buckets})" for share in (0.5, 0.95, 0.99)}


def mean(metric: str) -> str:
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def share(part: str, whole: str, by: str = "") -> str:
    return f"{rate(part, by)} / {rate(whole, by)}"


ROWS: dict[str, list[Panel]] = {
    "Service": [
        Panel("Requests", "reqps", {"{{route}} {{code}}": rate("http_requests_total", "route, code", route="/v1/.*")}),
        Panel(
            "Refused and failed",
            "reqps",
            {
                "refused: {{reason}}": rate("requests_rejected_total", "reason"),
                "stream broke: {{reason}}": rate("stream_errors_total", "reason"),
                "{{outcome}}": rate("requests_finished_total", "outcome", outcome="failed|aborted"),
            },
            "Aborted: the client went away.",
        ),
        Panel("How answers end", "reqps", {"{{finish_reason}}": rate("choices_finished_total", "finish_reason")}),
    ],
    "Latency": [
        Panel("Time to first token", "s", quantiles("time_to_first_token_seconds"), "From arrival of the request."),
        Panel("Between two tokens", "s", quantiles("inter_token_latency_seconds")),
        Panel("Whole requests", "s", quantiles("e2e_request_latency_seconds"), "Completed requests only."),
        Panel(
            "Where time goes",
            "s",
            {
                "queue": mean("request_queue_time_seconds"),
                "prefill": mean("request_prefill_time_seconds"),
                "decode": mean("request_decode_time_seconds"),
            },
            "Means, of the time in the engine.",
            width=12,
        ),
        Panel(
            "Pictures on their way",
            "s",
            {
                "fetch": mean("image_fetch_seconds"),
                "decode": mean("image_decode_seconds"),
                "cut into crops": mean("image_slice_seconds"),
                "encode, a crop": f"{rate('image_encode_seconds_total')} / {rate('image_crops_encoded_total')}",
            },
            "Means.",
            width=12,
        ),
    ],
    "Load": [
        Panel(
            "Requests in the engine",
            "short",
            {"running": gauge("num_requests_running"), "waiting": gauge("num_requests_waiting")},
        ),
        Panel(
            "Tokens",
            "short",
            {"prompt": rate("prompt_tokens_total"), "generated": rate("generation_tokens_total")},
            "A second. Prompt tokens count whether computed or found in the prefix cache.",
        ),
        Panel("Steps of the engine", "ops", {"{{instance}}": rate("engine_steps_total", "instance")}),
        Panel("Prompt tokens of a request", "short", quantiles("request_prompt_tokens")),
        Panel("Tokens of an answer", "short", quantiles("request_generation_tokens")),
        Panel(
            "Crops",
            "short",
            {"of a request": mean("request_image_crops"), "of a picture": mean("image_crops")},
            "Means; 64 tokens each.",
        ),
    ],
    "Memory": [
        Panel(
            "KV cache in use",
            "percentunit",
            {"{{instance}}": gauge("kv_cache_usage_ratio", "max", "instance")},
            "By running requests.",
            top=1,
        ),
        Panel("Preemptions", "ops", {"{{instance}}": rate("num_preemptions_total", "instance")}),
        Panel(
            "Memory of the engine",
            "bytes",
            {
                "promised": gauge("memory_budget_bytes", "max"),
                "most taken": gauge("memory_peak_bytes", "max"),
                "taken": gauge("engine_memory_bytes", "max"),
                "weights": gauge("engine_weight_bytes", "max"),
                "KV cache": gauge("engine_kv_cache_bytes", "max"),
            },
            "The largest replica. On a GPU without the CUDA runtime, which is part of the promise.",
        ),
    ],
    "Work saved": [
        Panel(
            "Found in caches",
            "percentunit",
            {
                "prompt tokens": share("prefix_cache_hits_tokens_total", "prefix_cache_queries_tokens_total"),
                "picture files": share("image_file_hits_total", "image_file_queries_total"),
                "crops, {{tier}}": share("image_cache_hits_total", "image_cache_queries_total", "tier"),
            },
            top=1,
            width=12,
        ),
        Panel(
            "Guessed tokens that came true",
            "percentunit",
            {"accepted": share("speculation_accepted_tokens_total", "speculation_drafted_tokens_total")},
            top=1,
            width=12,
        ),
        Panel(
            "Encoded crops kept",
            "bytes",
            {"{{tier}}": gauge("image_cache_bytes", "sum", "tier")},
        ),
        Panel("Crops that had to leave", "ops", {"{{tier}}": rate("image_cache_evictions_total", "tier")}),
        Panel(
            "Remote pictures that did not come",
            "ops",
            {"{{reason}}": rate("image_fetch_failures_total", "reason")},
        ),
    ],
    "Process": [
        Panel("Restarts of the engine", "short", {"{{instance}}": gauge("engine_restarts_total", "max", "instance")}),
        Panel(
            "Processor time of the API process",
            "percentunit",
            {"{{instance}}": f"rate(process_cpu_seconds_total{{{SELECTION}}}[$__rate_interval])"},
            "Of one core. Near 1, the edge is the bottleneck.",
        ),
        Panel(
            "Memory of the API process",
            "bytes",
            {"{{instance}}": f"process_resident_memory_bytes{{{SELECTION}}}"},
        ),
    ],
}


def dashboard() -> dict[str, object]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "minicpmv",
        "title": "minicpmv",
        "tags": ["minicpmv", "inference"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables()},
        "panels": panels(),
    }


def variables() -> list[dict[str, object]]:
    """What the reader chooses above the panels."""
    chosen = {"type": "query", "datasource": DATASOURCE, "refresh": 2, "multi": True, "includeAll": True, "sort": 1}
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        chosen | {"name": "job", "label": "Job", "query": "label_values(minicpmv_build_info, job)"},
        chosen
        | {"name": "instance", "label": "Replica", "query": 'label_values(minicpmv_build_info{job=~"$job"}, instance)'},
    ]


def panels() -> list[dict[str, object]]:
    """Rows and panels, numbered and laid out from left to right."""
    made: list[dict[str, object]] = []
    y = 0
    for row, members in ROWS.items():
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }
        )
        x, y = 0, y + 1
        for panel in members:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            made.append(_graph(panel, len(made) + 1, {"x": x, "y": y, "w": panel.width, "h": HEIGHT}))
            x += panel.width
        y += HEIGHT
    return made


def _graph(panel: Panel, panel_id: int, place: dict[str, int]) -> dict[str, object]:
    limits = {"min": 0} if panel.top is None else {"min": 0, "max": panel.top}
    return {
        "id": panel_id,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **limits}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.series.items())
        ],
    }


def page() -> str:
    """The whole text of dashboard.json."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
