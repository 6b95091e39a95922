"""Pictures are decoded in processes that may be killed, and the others go on."""

import functools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.config import load_config
from model.slicing import cut, plan_slices
from server.engine.picture_workers import PictureWorkers, WorkerLimits
from server.errors import InternalError, InvalidImage
from server.image import decode_image
from server.image_worker import TOO_MUCH_MEMORY
from server.request import ImageInput
from tests.support.engines import IMAGE_LIMITS, make_image
from tests.support.golden import TINY_V2
from tests.support.pictures import draw_page, encode
from tests.support.server_process import child_pids, wait_until

SLICING = load_config(TINY_V2).slicing


def plan_of(image: ImageInput):
    return plan_slices(image.width, image.height, SLICING)


@functools.cache
def large(side=2000):
    """Four megapixels of noise, which take a while to decode."""
    picture = Image.effect_noise((side, side), 80)
    return ImageInput(encode(picture, compress_level=1), side, side)


@pytest.fixture
def workers():
    made = PictureWorkers(1, IMAGE_LIMITS)
    yield made
    made.close()


def pids():
    """The processes of this test's workers."""
    return child_pids(os.getpid(), "server.image_worker")


def test_pixels_are_those_of_this_process(workers):
    page = draw_page(1000, 500)
    image = ImageInput(encode(page, "JPEG"), 1000, 500)
    plan = plan_of(image)
    done = workers.cut(image, plan)
    expected = cut(decode_image(image), plan)
    assert len(done.crops) == plan.num_crops > 1
    assert all(np.array_equal(crop, other) for crop, other in zip(done.crops, expected, strict=True))
    assert done.decode_s > 0
    assert done.slice_s > 0


def test_a_damaged_picture_costs_no_process(workers):
    image = make_image()
    workers.cut(image, plan_of(image))
    before = pids()
    with pytest.raises(InvalidImage, match="truncated or damaged"):
        workers.cut(ImageInput(image.data[:60], image.width, image.height), plan_of(image))
    workers.cut(image, plan_of(image))
    assert pids() == before


def test_a_picture_that_takes_too_long_is_refused_and_its_process_killed():
    workers = PictureWorkers(1, WorkerLimits(timeout_s=0.05, memory_bytes=2**30))
    image, slow = make_image(), large()
    with pytest.raises(InvalidImage, match=r"takes longer than 0\.05 seconds"):
        workers.cut(slow, plan_of(slow))
    assert pids() == []
    workers.close()
    workers = PictureWorkers(1, IMAGE_LIMITS)
    workers.cut(image, plan_of(image))
    workers.close()


def test_a_picture_that_takes_too_much_memory_is_refused():
    workers = PictureWorkers(1, WorkerLimits(timeout_s=60, memory_bytes=20 * 2**20))
    image, big = make_image(), large()
    for _ in range(2):
        with pytest.raises(InvalidImage) as caught:
            workers.cut(big, plan_of(big))
        assert caught.value.message == TOO_MUCH_MEMORY
    assert len(workers.cut(image, plan_of(image)).crops) == 1
    workers.close()


def test_a_process_that_ends_is_replaced(workers, monkeypatch):
    image, slow = make_image(), large()
    workers.cut(image, plan_of(image))
    (pid,) = pids()
    os.kill(pid, signal.SIGKILL)  # between two pictures: nobody notices
    wait_until(lambda: pid not in pids() or not Path(f"/proc/{pid}/cmdline").read_bytes(), 10, "its end")
    workers.cut(image, plan_of(image))
    (other,) = pids()
    worker = workers._workers[0]
    exchange, has_begun = worker._exchange, threading.Event()

    def begin(*arguments):
        has_begun.set()
        return exchange(*arguments)

    monkeypatch.setattr(worker, "_exchange", begin)
    os.kill(other, signal.SIGSTOP)  # it will not finish
    with ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(workers.cut, slow, plan_of(slow))
        assert has_begun.wait(30)
        os.kill(other, signal.SIGKILL)
        with pytest.raises(InvalidImage, match="could not be decoded"):
            at_work.result(30)
    assert len(workers.cut(image, plan_of(image)).crops) == 1


def test_closing_ends_them_all_also_at_work():
    workers = PictureWorkers(2, IMAGE_LIMITS)
    slow, image = large(), make_image()
    workers.cut(image, plan_of(image))
    with ThreadPoolExecutor(2) as pool:
        at_work = [pool.submit(workers.cut, slow, plan_of(slow)) for _ in range(2)]
        wait_until(lambda: len(pids()) == 2, 30, "both to be started")
        closing = threading.Thread(target=workers.close)
        closing.start()
        for job in at_work:
            assert isinstance(job.exception(30), InvalidImage | InternalError | None)
        closing.join(30)
    assert pids() == []
    with pytest.raises(InternalError):
        workers.cut(image, plan_of(image))


def test_one_slow_picture_leaves_the_other_process_free():
    workers = PictureWorkers(2, IMAGE_LIMITS)
    image = make_image()
    workers.cut(image, plan_of(image))
    with ThreadPoolExecutor(1) as pool:
        slow = large()
        (first,) = pids()
        os.kill(first, signal.SIGSTOP)
        at_work = pool.submit(workers.cut, slow, plan_of(slow))
        try:
            wait_until(lambda: workers._idle.qsize() == 1, 30, "the picture to have its process")
            assert len(workers.cut(image, plan_of(image)).crops) == 1
        finally:
            os.kill(first, signal.SIGCONT)
        at_work.result(60)
    workers.close()


def test_it_ends_with_the_server_and_loads_no_torch():
    """The other side of its socket is closed when the server dies, however it dies."""
    look = (
        "import os, socket, subprocess, sys, time\n"
        "ours, theirs = socket.socketpair()\n"
        "command = (sys.executable, '-m', 'server.image_worker', str(theirs.fileno()), str(2**30))\n"
        "worker = subprocess.Popen(command, pass_fds=(theirs.fileno(),))\n"
        "theirs.close()\n"
        "assert b'ready' in ours.recv(100)\n"
        "maps = open(f'/proc/{worker.pid}/maps').read()\n"
        "assert 'numpy' in maps and 'torch' not in maps\n"
        "ours.close()\n"
        "assert worker.wait(30) == 0\n"
    )
    subprocess.run([sys.executable, "-c", look], check=True, timeout=120)
