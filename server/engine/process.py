"""Starting and ending an engine process, with the socket and the shared memory that are given to it."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Self

import server
from server.engine.arena import Arena, create_shared_memory
from server.engine.channel import EngineConfig
from server.engine.transport import ApiEnd

WORKER_MODULE = "server.engine.worker"
EXIT_WAIT_S = 5.0
"""An engine that was asked to leave, or has closed its socket, gets this long before it is killed."""


class EngineStartError(Exception):
    """The engine did not become ready; the message says why."""


class EngineProcess:
    """A process that has been given its configuration. Whoever holds this ends it with `kill` or `wait`."""

    def __init__(self, process: Process, end: ApiEnd, arena: Arena) -> None:
        self.end = end
        self.arena = arena
        self._process = process

    @classmethod
    async def spawn(cls, config: EngineConfig, worker_module: str = WORKER_MODULE) -> Self:
        """Start a process, which loads on its own from here.

        Raises:
            EngineStartError: the system refused a process or its memory.
        """
        api_socket, engine_socket = socket.socketpair()
        end = await ApiEnd.attach(api_socket)
        try:
            memory = create_shared_memory(config.arena_bytes)
            try:
                arena = Arena(memory, config.arena_bytes)
                process = await _start(worker_module, engine_socket.fileno(), memory)
            finally:
                os.close(memory)
        except BaseException as err:
            await end.close()
            if isinstance(err, OSError):
                raise EngineStartError(f"the engine process could not be started: {err.strerror}") from err
            raise
        finally:
            engine_socket.close()
        # Nothing is awaited from here: a process that runs has an owner who can end it.
        end.send(config)
        return cls(process, end, arena)

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    async def wait(self) -> str:
        """Returns when the process is gone, in words; kills it when it takes longer than EXIT_WAIT_S."""
        try:
            status = await asyncio.wait_for(self._process.wait(), EXIT_WAIT_S)
        except TimeoutError:
            self.kill()
            status = await self._process.wait()
        await self.end.close()
        return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"


async def _start(worker_module: str, socket_descriptor: int, memory_descriptor: int) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", worker_module, str(socket_descriptor), str(memory_descriptor)),
        pass_fds=(socket_descriptor, memory_descriptor),
        stdin=DEVNULL,
        # A session of its own: Ctrl-C in a terminal reaches this process alone, which ends the engine in order.
        start_new_session=True,
        # -m looks in the working folder first: there must be this very program, not somebody's folder `server`.
        cwd=Path(server.__path__[0]).parent,
    )
