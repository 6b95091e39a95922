"""A web server on loopback that answers as a test says, byte for byte, and the network through which it is reached."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from server.fetch.network import Network, public_tls

CERTIFICATE = Path(__file__).resolve().parents[1] / "data" / "tls" / "pictures.example.pem"
"""Of `pictures.example`."""
HOST = ipaddress.ip_address("127.0.0.1")
"""Where it listens: the one address that the network of these tests admits."""

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = b"", *, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    """A whole response; `length` is what is declared, where that is not the truth."""
    fields = {"Content-Length": str(len(body) if length is None else length)} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(status=status, Location=location)


def endless(head: bytes, piece: bytes) -> Script:
    """`head`, then `piece` again and again, as fast as it is taken."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()

    return play


def drip(start: bytes, byte: bytes) -> Script:
    """`start`, then a byte every few milliseconds."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(byte)
            await writer.drain()
            await asyncio.sleep(0.005)

    return play


async def silence(_: asyncio.StreamWriter) -> None:
    """Nothing, for ever."""
    await asyncio.Event().wait()


@dataclass
class PictureHost:
    port: int
    answers: dict[str, bytes | Script] = field(default_factory=dict)
    """By path, without the query. Bytes are sent, and the connection is closed."""
    heads: list[str] = field(default_factory=list)
    """Of the requests that came."""
    server_names: list[str | None] = field(default_factory=list)
    """What TLS clients asked for."""
    num_connections: int = 0
    num_open: int = 0

    def url(self, path: str, name: str = "pictures.example", scheme: str = "http") -> str:
        return f"{scheme}://{name}:{self.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [head.split()[1] for head in self.heads]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        gone = asyncio.create_task(asyncio.sleep(0))
        playing = asyncio.create_task(asyncio.sleep(0))
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            gone = asyncio.create_task(reader.read())  # ends when the client closes
            playing = asyncio.create_task(self._play(head.split()[1].partition("?")[0], writer))
            await asyncio.wait({gone, playing}, return_when=asyncio.FIRST_COMPLETED)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for task in (gone, playing):
                task.cancel()
            await asyncio.gather(gone, playing, return_exceptions=True)
            writer.close()
            self.num_open -= 1

    async def _play(self, path: str, writer: asyncio.StreamWriter) -> None:
        script = self.answers[path]
        if callable(script):
            await script(writer)
        else:
            writer.write(script)
            await writer.drain()


@contextlib.contextmanager
def picture_host(*, has_tls: bool = False) -> Iterator[PictureHost]:
    """One that runs in a thread of its own."""
    started: Future[tuple[PictureHost, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        host = PictureHost(port=0)
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with contextlib.suppress(asyncio.CancelledError):
                await host.serve(reader, writer)

        tls = _server_tls(host.server_names) if has_tls else None
        async with await asyncio.start_server(serve, str(HOST), 0, ssl=tls) as server:
            host.port = server.sockets[0].getsockname()[1]
            started.set_result((host, asyncio.get_running_loop(), stop))
            await stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    host, loop, stop = started.result(10)
    try:
        yield host
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()


def _server_tls(server_names: list[str | None]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.sni_callback = lambda _, name, __: server_names.append(name)
    return context


def trusting_tls() -> ssl.SSLContext:
    """As in production, but with the certificate of `pictures.example` besides."""
    context = public_tls()
    context.load_verify_locations(CERTIFICATE)
    return context


class Names:
    """A resolver that answers as a test says, and never with what it was not told."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        """
        Args:
            answers: by name, with `_` for the dot: the answers to the first question, the second, and so on; the last
                one stays.
        """
        self._answers = {name.replace("_", "."): list(sequence) for name, sequence in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        sequence = self._answers[host]
        return sequence.pop(0) if len(sequence) > 1 else sequence[0]


def names_of_the_host() -> Names:
    return Names(pictures_example=[[str(HOST)]], other_example=[[str(HOST)]])


def loopback(
    *hosts: PictureHost, names: Names | None = None, tls: Callable[[], ssl.SSLContext] = public_tls
) -> Network:
    """A network in which there is nothing but these hosts: all other addresses and ports are refused."""
    return Network(
        resolve=names or names_of_the_host(),
        admits=lambda address: address == HOST,
        ports=frozenset(host.port for host in hosts),
        tls=tls,
    )
