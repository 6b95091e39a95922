"""Measure a running server through HTTP: streams of text or picture questions at several concurrencies.

    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --concurrency 1 4 8 --picture 448x448 --tokens 64

Each client sends its next request when its last has ended. Every picture is different, so no cache helps. Answers
have a fixed length (`ignore_eos`). Prints a table and, with `--out`, writes a JSON file with all figures, the
arguments, versions and hardware.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import platform
import random
import statistics
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import openai
from PIL import Image
from rich.console import Console
from rich.table import Table


@dataclass
class Answer:
    """One request as its client saw it, in seconds."""

    ttft_s: float
    end_to_end_s: float
    gaps_s: list[float]
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Result:
    concurrency: int
    requests: int
    wall_s: float
    output_tokens_per_s: float
    decode_tokens_per_s_per_stream: float
    requests_per_s: float
    prompt_tokens: int
    ttft_median_s: float
    ttft_max_s: float
    itl_median_ms: float
    itl_p99_ms: float


def picture_part(size: str, number: int) -> dict[str, Any]:
    """A picture of coarse random colours, different for each number."""
    width, height = (int(side) for side in size.split("x"))
    rng = random.Random(number)
    small = Image.frombytes("RGB", (16, 16), rng.randbytes(16 * 16 * 3))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


async def ask(client: openai.AsyncOpenAI, model: str, arguments: argparse.Namespace, number: int) -> Answer:
    content: list[Any] = []
    if arguments.picture:
        content.append(picture_part(arguments.picture, arguments.seed + number))
    content.append({"type": "text", "text": f"Question {number}: " + "what does it say? " * arguments.repeat})
    started = time.perf_counter()
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=arguments.tokens,
        stream=True,
        stream_options={"include_usage": True},
        seed=number,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    stamps: list[float] = []
    usage = None
    async for chunk in stream:
        now = time.perf_counter()
        if chunk.usage is not None:
            usage = chunk.usage
        for choice in chunk.choices:
            stamps += [now] * len((choice.model_extra or {}).get("token_ids") or [])
    if usage is None or not stamps:
        raise RuntimeError("the stream ended without tokens or usage")
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    return Answer(stamps[0] - started, stamps[-1] - started, gaps, usage.prompt_tokens, usage.completion_tokens)


async def run(client: openai.AsyncOpenAI, model: str, arguments: argparse.Namespace, concurrency: int) -> Result:
    numbers = iter(range(concurrency * 1000, concurrency * 1000 + concurrency * arguments.rounds))
    answers: list[Answer] = []

    async def worker() -> None:
        answers.extend([await ask(client, model, arguments, number) for number in numbers])

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    wall_s = time.perf_counter() - started
    gaps = sorted(gap for answer in answers for gap in answer.gaps_s) or [0.0]
    decode_s = [answer.end_to_end_s - answer.ttft_s for answer in answers]
    rates = [
        (answer.completion_tokens - 1) / seconds for answer, seconds in zip(answers, decode_s, strict=True) if seconds
    ]
    return Result(
        concurrency=concurrency,
        requests=len(answers),
        wall_s=wall_s,
        output_tokens_per_s=sum(answer.completion_tokens for answer in answers) / wall_s,
        decode_tokens_per_s_per_stream=statistics.median(rates),
        requests_per_s=len(answers) / wall_s,
        prompt_tokens=round(statistics.median(answer.prompt_tokens for answer in answers)),
        ttft_median_s=statistics.median(answer.ttft_s for answer in answers),
        ttft_max_s=max(answer.ttft_s for answer in answers),
        itl_median_ms=statistics.median(gaps) * 1e3,
        itl_p99_ms=gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))] * 1e3,
    )


def surroundings() -> dict[str, Any]:
    """Hardware and versions of the machine that asks (the server's own are in its banner)."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    packages = ("minicpmv", "torch", "fastapi", "uvicorn", "openai", "pillow")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }


async def measure(arguments: argparse.Namespace) -> list[Result]:
    async with openai.AsyncOpenAI(
        base_url=f"{arguments.url}/v1", api_key=arguments.api_key, max_retries=0, timeout=3600
    ) as client:
        model = (await client.models.list()).data[0].id
        await ask(client, model, arguments, 0)
        return [await run(client, model, arguments, concurrency) for concurrency in arguments.concurrency]


def show(results: list[Result]) -> None:
    table = Table("clients", "requests", "prompt", "out tok/s", "tok/s a stream", "TTFT s", "ITL ms", "ITL p99 ms")
    for result in results:
        table.add_row(
            str(result.concurrency),
            str(result.requests),
            str(result.prompt_tokens),
            f"{result.output_tokens_per_s:.2f}",
            f"{result.decode_tokens_per_s_per_stream:.2f}",
            f"{result.ttft_median_s:.2f}",
            f"{result.itl_median_ms:.1f}",
            f"{result.itl_p99_ms:.1f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="unused")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=2, help="requests for each client")
    parser.add_argument("--picture", help="WIDTHxHEIGHT; left out: text only")
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--repeat", type=int, default=1, help="length of the question: times a short sentence")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    parser.add_argument("--label", default="", help="free text kept with the result")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = asyncio.run(measure(arguments))
    show(results)
    if arguments.out:
        kept = {name: value for name, value in vars(arguments).items() if name not in ("api_key", "out")}
        report = {"arguments": kept, "where": surroundings(), "results": [asdict(result) for result in results]}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
