"""What the API process costs: CPU time a token for many streams, what holds its event loop, and /health in a storm.

    python -m benchmarks.edge --out FOLDER [--profile | --pipeline]

The engine is `benchmarks.paced_engine`, which computes nothing; all else is the server as it is. CPU time counts what
the process itself used, so it means something on a machine that others use, too; of waiting times there, only those
that a sleeping process beside it does not share.
"""

import argparse
import asyncio
import base64
import cProfile
import http.client
import io
import json
import os
import pstats
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop
from PIL import Image

from model.step import SamplingParams
from model.tokenizer import Tokenizer
from server.api.auth import KeyRing
from server.api.render import Reply, stream_frames
from server.engine.answer import Answer
from server.engine.channel import (
    HEADER_BYTES,
    SampledToken,
    Stamps,
    Tokens,
    Update,
    decode_from_engine,
    encode_frame,
)
from server.life import ServerLife
from server.listener import bind_socket, url_of
from server.log import configure_logging
from server.metrics import Metrics
from server.request import GenerationRequest, TokenEvent, Usage
from server.serve import build_engine
from server.settings import Settings
from server.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "tests" / "data" / "checkpoints" / "tiny-v2"
PERIOD_S = 0.001
NUM_STORM_CLIENTS = 8
NUM_STORM_PICTURES = 3
STORM_SIZE = (4000, 3000)
STOP = ("<END>", "###")
TEXT = (
    "The invoice of 14 March lists 12 chairs, 3 tables and a lamp (230 V); delivery is free above 500 euro. "
    "Übergabe am Dienstag, 合计 1280 元, 签字后生效。 Please keep the receipt: it is needed for returns!\n"
)


class LoopWatch:
    """Wakes up every PERIOD_S on the event loop: how late, and how much CPU time the loop's thread used meanwhile."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._late_s: list[float] = []
        self._used_s: list[float] = []

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._write)
        while True:
            before_s, before_used_s = time.perf_counter(), time.thread_time()
            await asyncio.sleep(PERIOD_S)
            self._late_s.append(time.perf_counter() - before_s - PERIOD_S)
            self._used_s.append(time.thread_time() - before_used_s)

    def _write(self) -> None:
        report = {"loop_late_ms": milliseconds(self._late_s), "loop_cpu_between_wakes_ms": milliseconds(self._used_s)}
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(report), encoding="utf-8")
        temporary.rename(self._file)
        self._late_s.clear()
        self._used_s.clear()


def serve(watch_file: Path, profile_file: Path | None) -> None:
    """The server with the paced engine; in a process of its own."""
    configure_logging("warning", "text")
    settings = Settings(max_requests=1024)
    metrics = Metrics(version=VERSION)
    engine = build_engine(settings, CHECKPOINT, "edge", metrics, worker_module="benchmarks.paced_engine")
    listener = bind_socket("127.0.0.1", 0)
    life = ServerLife(settings, listener, engine, metrics, KeyRing(), announce=lambda: f"ready at {url_of(listener)}")

    async def run() -> None:
        watching = asyncio.create_task(LoopWatch(watch_file).run())
        await life.run()
        watching.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if profile_file is None:
            runner.run(run())
        else:
            profile = cProfile.Profile(time.thread_time)  # the thread may have to wait for a core
            profile.runcall(runner.run, run())
            profile.dump_stats(profile_file)


class EdgeServer:
    """That process, from outside."""

    def __init__(self, folder: Path, *, step_s: float, profile: bool) -> None:
        self._watch_file = folder / "watch.json"
        self.profile_file = folder / "profile"
        command = [sys.executable, "-m", "benchmarks.edge", "--serve", str(self._watch_file)]
        command += ["--profile-file", str(self.profile_file)] if profile else []
        environment = os.environ | {"EDGE_STEP_S": str(step_s), "EDGE_TEXT": TEXT}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ready at "):
                self.url = line.removeprefix("ready at ").strip()
                return
        raise AssertionError("the server did not start")

    def cpu_s(self) -> tuple[float, float]:
        """CPU time of the process so far, and of it that of the event loop's thread."""
        pid = self._process.pid
        return _cpu_s(Path(f"/proc/{pid}/stat")), _cpu_s(Path(f"/proc/{pid}/task/{pid}/stat"))

    def watch(self) -> dict[str, Any]:
        """What the loop's watch has seen since the last call."""
        self._watch_file.unlink(missing_ok=True)
        self._process.send_signal(signal.SIGUSR1)
        while not self._watch_file.exists():
            time.sleep(0.01)
        report: dict[str, Any] = json.loads(self._watch_file.read_text(encoding="utf-8"))
        return report

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def _cpu_s(file: Path) -> float:
    user, system = file.read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def read_streams(url: str, num_streams: int, num_tokens: int) -> int:
    """Reads that many streams to their ends; returns the number of events."""
    body = {"model": "edge", "messages": [{"role": "user", "content": "Read it."}], "stream": True, "stop": STOP}
    data = json.dumps(body | {"max_tokens": num_tokens, "ignore_eos": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json\r\nConnection: close\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data

    async def read_one() -> int:
        reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        writer.write(request)
        num_events = 0
        answer = b""
        while piece := await reader.read(2**16):
            num_events += piece.count(b"data: ")
            answer = answer[-100:] + piece
        writer.close()
        assert b"data: [DONE]" in answer, answer
        return num_events

    return sum(await asyncio.gather(*(read_one() for _ in range(num_streams))))


def measure_streams(server: EdgeServer, *, num_streams: int, num_tokens: int, rate: float) -> dict[str, Any]:
    asyncio.run(read_streams(server.url, num_streams, 8))  # connections and code for the first time
    server.watch()
    before, began_s = server.cpu_s(), time.perf_counter()
    num_events = asyncio.run(read_streams(server.url, num_streams, num_tokens))
    elapsed_s, after = time.perf_counter() - began_s, server.cpu_s()
    total = num_streams * num_tokens
    token_s, loop_token_s = ((now - then) / total for now, then in zip(after, before, strict=True))
    return {
        "streams": num_streams,
        "tokens": total,
        "events_per_token": round(num_events / total, 3),
        "tokens_per_s": round(total / elapsed_s),
        "cpu_us_per_token": round(token_s * 1e6, 1),
        "of_it_event_loop_us": round(loop_token_s * 1e6, 1),
        f"cores_at_{rate:g}_tokens_per_s": round(token_s * rate, 2),
        **server.watch(),
    }


def measure_pipeline(num_streams: int, num_tokens: int) -> dict[str, Any]:
    """CPU time of what each token goes through between the two sockets, one event a token: none waits for others."""
    tokenizer = Tokenizer.from_folder(CHECKPOINT, "2.0")
    ids = tokenizer.encode(TEXT)
    request = GenerationRequest(
        request_id="edge",
        messages=(),
        sampling=SamplingParams(),
        max_tokens=num_tokens,
        stop=STOP,
        ignore_eos=True,
    )
    updates = [
        encode_frame(
            Update(
                [
                    Tokens(stream, 0, [SampledToken(ids[step % len(ids)], None, [])], None, Stamps(0, 0, 0, 0))
                    for stream in range(num_streams)
                ],
                [],
                None,
            )
        )[HEADER_BYTES:]
        for step in range(num_tokens)
    ]
    spent_s = asyncio.run(_run_pipeline(request, tokenizer, num_streams, updates))
    return {f"{name}_us": round(used_s / (num_streams * num_tokens) * 1e6, 2) for name, used_s in spent_s.items()}


async def _run_pipeline(
    request: GenerationRequest, tokenizer: Tokenizer, num_streams: int, updates: Sequence[bytes]
) -> dict[str, float]:
    answers = [Answer(request, tokenizer, lambda _: None) for _ in range(num_streams)]
    usage = Usage(prompt_tokens=8, image_tokens=0, num_images=0, num_crops=0, image_pixels=0)
    reply = Reply("chatcmpl-" + "0" * 32, 1_800_000_000, "edge", f"minicpmv-{VERSION}", 1, usage, (), is_streamed=True)
    spent_s = {"decode_messages": 0.0, "detokenize_and_stop": 0.0, "json_and_sse": 0.0}
    for payload in updates:
        times_s = [time.process_time()]
        update = decode_from_engine(payload)
        assert isinstance(update, Update)
        for tokens in update.tokens:
            answers[tokens.request_id].put(tokens)
        times_s.append(time.process_time())
        events = [event for answer in answers for event in answer.events()]
        times_s.append(time.process_time())
        async for _ in stream_frames(reply, _each(events)):
            pass
        times_s.append(time.process_time())
        for name, (before_s, after_s) in zip(spent_s, pairwise(times_s), strict=True):
            spent_s[name] += after_s - before_s
    return spent_s


async def _each(events: Sequence[TokenEvent]) -> AsyncGenerator[TokenEvent, None]:
    for event in events:
        yield event


def storm(url: str) -> None:
    """Clients that send large pictures, each a new one; in a process of its own."""
    noise = np.random.default_rng(0).integers(0, 255, (STORM_SIZE[1] // 8, STORM_SIZE[0] // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(STORM_SIZE).save(buffer, "JPEG", quality=95)

    def send_all(client: int) -> None:
        for number in range(NUM_STORM_PICTURES):
            # What follows the end of a JPEG is not read, but makes the file another one.
            picture = base64.b64encode(buffer.getvalue() + b"%d/%d" % (client, number)).decode()
            part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
            body = {"model": "edge", "messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
            place = urlsplit(url)
            connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=600)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            connection.close()

    threads = [threading.Thread(target=send_all, args=(client,)) for client in range(NUM_STORM_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_health(server: EdgeServer) -> dict[str, Any]:
    """Round trips of /health, one after the other, while the storm lasts; beside each, how late a sleep ends."""
    server.watch()
    storming = subprocess.Popen([sys.executable, "-m", "benchmarks.edge", "--storm", server.url], cwd=ROOT)
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
    answers_s: list[float] = []
    sleeps_s: list[float] = []
    while storming.poll() is None:
        began_s = time.perf_counter()
        try:
            connection.request("GET", "/health")
            assert connection.getresponse().read()
        except ConnectionError:  # this process slept for longer than connections are kept
            connection.close()
            continue
        answered_s = time.perf_counter()
        time.sleep(0.01)
        answers_s.append(answered_s - began_s)
        sleeps_s.append(time.perf_counter() - answered_s - 0.01)
    assert storming.returncode == 0
    return {
        "pictures": NUM_STORM_CLIENTS * NUM_STORM_PICTURES,
        "picture": f"JPEG {STORM_SIZE[0]}x{STORM_SIZE[1]}",
        "health_ms": milliseconds(answers_s),
        "sleep_late_ms": milliseconds(sleeps_s),
        **server.watch(),
    }


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    figures = {name: ordered[min(int(share * len(ordered)), len(ordered) - 1)] for name, share in shares.items()}
    figures |= {"max": ordered[-1], "mean": statistics.fmean(ordered)}
    return {name: round(value * 1e3, 2) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5000.0, help="tokens a second, of all streams together")
    parser.add_argument("--tokens", type=int, default=1000, help="of each stream")
    parser.add_argument("--out", type=Path, help="folder for edge.json")
    parser.add_argument("--profile", action="store_true", help="print where the event loop's time goes instead")
    parser.add_argument("--pipeline", action="store_true", help="measure what needs no server only")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--profile-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--storm", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        return serve(given.serve, given.profile_file)
    if given.storm is not None:
        return storm(given.storm)
    if given.pipeline:
        print(json.dumps(measure_pipeline(given.streams, given.tokens)))
        return None
    with tempfile.TemporaryDirectory() as folder:
        server = EdgeServer(Path(folder), step_s=given.streams / given.rate, profile=given.profile)
        report = {
            "pipeline": measure_pipeline(given.streams, 200),
            "streams": measure_streams(server, num_streams=given.streams, num_tokens=given.tokens, rate=given.rate),
        }
        if not given.profile:
            report["storm"] = measure_health(server)
        server.stop()
        if given.profile:
            pstats.Stats(str(server.profile_file)).sort_stats("tottime").print_stats(40)
    print(json.dumps(report, indent=2))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "edge.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
