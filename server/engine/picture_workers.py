"""A few processes that decode and cut pictures, each of which can be killed: docs/decisions/picture-workers.md."""

import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import server
from model.slicing import SlicePlan
from server.errors import InternalError, InvalidImage
from server.image_worker import receive, receive_into, send
from server.request import ImageInput

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
"""Of one crop: height x width x 3, RGB, contiguous."""

_START_TIMEOUT_S = 60.0
"""A process that has not loaded its libraries by then never will."""
_FAILED = "the image could not be decoded"


@dataclass(frozen=True, slots=True)
class CutPicture:
    crops: list[Pixels]
    decode_s: float
    slice_s: float


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    timeout_s: float
    """For decoding and cutting one picture."""
    memory_bytes: int
    """Beyond what the idle process has."""


class PictureWorkers:
    """`cut` is called by as many threads as there are processes; a process is started when it is first needed."""

    def __init__(self, num_workers: int, limits: WorkerLimits) -> None:
        self._workers = [_Worker(limits) for _ in range(num_workers)]
        # The one used last comes first: what is not needed is never started.
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def cut(self, image: ImageInput, plan: SlicePlan) -> CutPicture:
        """The pixels of all crops. Blocks until a process is free, and then for `timeout_s` at most.

        Raises:
            InvalidImage: the picture is damaged, or takes too much time or memory; the message is for its sender.
            InternalError: no process could be started.
        """
        worker = self._idle.get()
        try:
            return worker.cut(image, plan)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends all processes, also those at work: who waits for them gets an error."""
        for worker in self._workers:
            worker.stop()
        for _ in self._workers:
            worker = self._idle.get()  # nobody holds one for long now
            worker.dispose()
        for worker in self._workers:
            self._idle.put(worker)


class _Worker:
    """One process at a time, replaced when it had to be killed or has ended."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_closed = False
        self._changing = threading.Lock()
        """Held while the process is started or ended: `stop` comes from another thread."""

    def cut(self, image: ImageInput, plan: SlicePlan) -> CutPicture:
        connection = self._connection()
        deadline_s = time.monotonic() + self._limits.timeout_s
        try:
            return self._exchange(_Deadline(connection, deadline_s), image, plan)
        except InvalidImage:
            raise  # the process said so, and is as good as before
        except TimeoutError as err:
            self._end()
            logger.warning("a picture took longer than %g s; its process was killed", self._limits.timeout_s)
            raise InvalidImage(f"decoding the image takes longer than {self._limits.timeout_s:g} seconds") from err
        except (OSError, EOFError, ValueError) as err:
            self._end()
            logger.warning("a process that decodes pictures has ended")
            raise InvalidImage(_FAILED) from err

    def stop(self) -> None:
        """For another thread than the one at work, which sees its process end."""
        self._is_closed = True
        with self._changing:
            if self._process is not None:
                self._process.kill()

    def dispose(self) -> None:
        """When nobody is at work."""
        self._end()

    def _exchange(self, connection: "_Deadline", image: ImageInput, plan: SlicePlan) -> CutPicture:
        sizes = (plan.source_size, plan.grid, plan.refine_size, plan.slice_size)
        connection.send(
            {"width": image.width, "height": image.height, "plan": sizes, "num_bytes": len(image.data)}, image.data
        )
        answer = connection.receive()
        if "error" in answer:
            raise InvalidImage(answer["error"])
        crops = [np.empty((height, width, 3), np.uint8) for width, height in plan.crop_sizes]
        for crop in crops:
            connection.receive_into(crop.data.cast("B"))
        return CutPicture(crops, answer["decode_s"], answer["slice_s"])

    def _connection(self) -> socket.socket:
        with self._changing:
            if self._is_closed:
                raise InternalError("the server is shutting down")
            if self._process is not None and self._process.poll() is not None:
                self._forget()
            if self._socket is None:
                self._start()
            assert self._socket is not None
            return self._socket

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, and two numbers
                (sys.executable, "-m", "server.image_worker", str(theirs.fileno()), str(self._limits.memory_bytes)),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal reaches this process alone; the worker ends when its socket closes.
                start_new_session=True,
                # -m looks in the working folder first: there must be this very program.
                cwd=Path(server.__path__[0]).parent,
                # numpy's library of linear algebra takes memory for each core, and is never used.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
            self._socket = ours
            ours.settimeout(_START_TIMEOUT_S)
            receive(ours)
        except (OSError, EOFError) as err:
            ours.close()
            self._forget()
            raise InternalError("the image cannot be decoded now") from err
        finally:
            theirs.close()

    def _end(self) -> None:
        with self._changing:
            self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = None


class _Deadline:
    """A socket on which everything together must be done by a certain time. Raises TimeoutError."""

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._connection = connection
        self._deadline_s = deadline_s

    def send(self, message: dict[str, object], data: bytes) -> None:
        self._arm()
        send(self._connection, message)
        self._arm()
        self._connection.sendall(data)

    def receive(self) -> dict[str, Any]:
        self._arm()
        answer: dict[str, Any] = receive(self._connection)
        return answer

    def receive_into(self, view: memoryview) -> None:
        self._arm()
        receive_into(self._connection, view)

    def _arm(self) -> None:
        self._connection.settimeout(max(self._deadline_s - time.monotonic(), 0.001))
