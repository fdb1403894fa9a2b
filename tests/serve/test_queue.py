"""One prediction at a time, in order of arrival; clients that disconnect leave the queue."""

import asyncio
import logging
from pathlib import Path

import pytest

from condseg_jax.errors import InputError
from condseg_jax.serve import queue as module
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import PredictRequest


class Device:
  """Finishes predictions when `go` is set, and records what it did."""

  def __init__(self):
    self.table, self.ready = object(), False
    self.diary, self.go, self.killed = [], asyncio.Event(), asyncio.Event()
    self.gone = asyncio.Event()

  async def start(self):
    self.diary.append("start")
    self.ready = True

  async def exited(self):
    await self.gone.wait()
    self.ready = False
    self.gone.clear()

  async def run(self, folder, request, cancelled):
    self.diary.append(folder.name)
    if request.output == "dead" and self.diary.count("start") == 1:
      self.ready = False
      return None
    waits = [asyncio.ensure_future(event.wait()) for event in (self.go, cancelled, self.killed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
      wait.cancel()
    if self.killed.is_set() or request.output == "crash":
      self.ready = False
    return {"status": 0 if cancelled.is_set() else 200, "folder": folder.name}

  def kill(self):
    self.killed.set()


def run(test, waiting=3):
  """Runs a test with a queue at work."""
  async def body():
    device = Device()
    queue = Queue(device, Limits(waiting=waiting))
    work = asyncio.create_task(queue.run())
    await settle()
    await test(queue, device)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
  asyncio.run(body())


async def settle():
  for _ in range(20):
    await asyncio.sleep(0)


def predict(queue, name, output="zip"):
  return asyncio.create_task(queue.predict(Path(name), PredictRequest(output=output)))


def test_in_the_order_in_which_they_came():
  async def test(queue, device):
    tasks = [predict(queue, name) for name in "abc"]
    await settle()
    assert device.diary == ["start", "a"] and queue.running
    device.go.set()
    assert [(await task)["folder"] for task in tasks] == ["a", "b", "c"]
    await settle()
    assert device.diary == ["start", "a", "b", "c"] and not queue.running
  run(test)


def test_places_are_bounded_and_come_back():
  async def test(queue, _device):
    with queue.place(), queue.place():
      with pytest.raises(HttpError) as caught, queue.place():
        pass
      assert caught.value.status == 429 and caught.value.retry_after >= 1
    with pytest.raises(ZeroDivisionError), queue.place():
      assert queue.taken == 1
      raise ZeroDivisionError
    assert queue.taken == 0
  run(test, waiting=1)


def test_a_client_that_disconnects_while_waiting_is_skipped():
  async def test(queue, device):
    first, second, third = (predict(queue, name) for name in "abc")
    await settle()
    second.cancel()
    await settle()
    assert second.cancelled()
    device.go.set()
    await asyncio.gather(first, third)
    assert device.diary == ["start", "a", "c"]
  run(test)


def test_a_client_that_disconnects_while_running_is_stopped():
  async def test(queue, device):
    first, second = (predict(queue, name) for name in "ab")
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled() and device.diary == ["start", "a", "b"]
    device.go.set()
    assert (await second)["status"] == 200
  run(test)


def test_the_dicom_node_takes_turns_with_requests_even_if_the_queue_is_full():
  async def node(queue):
    for name in "xy":
      with queue.place(reserved=True):
        await queue.predict(Path(name), PredictRequest(), first=True)

  async def request(queue, name):
    with queue.place():
      await queue.predict(Path(name), PredictRequest())

  async def test(queue, device):
    tasks = [asyncio.create_task(request(queue, name)) for name in "abcd"]
    await settle()
    with pytest.raises(HttpError):
      queue.check()
    tasks.append(asyncio.create_task(node(queue)))
    await settle()
    device.go.set()
    await asyncio.gather(*tasks)
    assert device.diary == ["start", "a", "x", "b", "y", "c", "d"]
    queue.close()
    with pytest.raises(HttpError), queue.place(reserved=True):
      pass
  run(test)


def test_a_device_that_has_ended_is_started_again():
  async def test(queue, device):
    device.go.set()
    await predict(queue, "a", "crash")
    await predict(queue, "b")
    assert device.diary == ["start", "a", "start", "b"]
  run(test)


def test_a_device_that_ends_while_it_is_idle_is_started_again(caplog):
  async def test(queue, device):
    device.gone.set()
    await settle()
    assert device.diary == ["start", "start"] and device.ready
    device.go.set()
    assert (await predict(queue, "a"))["status"] == 200
  caplog.set_level(logging.WARNING, "condseg_jax")
  run(test)
  assert [record.getMessage() for record in caplog.records] == [
      "the worker has exited; restarting it"]


def test_a_request_that_a_dead_device_did_not_receive_is_run_again():
  async def test(queue, device):
    device.go.set()
    outcomes = [await task for task in (predict(queue, "a", "dead"), predict(queue, "b"))]
    assert [outcome["folder"] for outcome in outcomes] == ["a", "b"]
    assert device.diary == ["start", "a", "start", "a", "b"]
  run(test)


def test_a_device_that_cannot_be_started_again(monkeypatch):
  async def test(queue, device):
    async def fail():
      raise InputError("run", "has gone", "bring it back")

    device.go.set()
    works, device.start = device.start, fail
    await predict(queue, "a", "crash")
    assert (await predict(queue, "b"))["status"] == 503
    device.start = works
    while not device.ready:
      await asyncio.sleep(0.01)
    assert (await predict(queue, "c"))["status"] == 200
  monkeypatch.setattr(module, "RESTART_SECONDS", 0.01)
  run(test)


def test_closing_rejects_waiting_requests_and_finishes_the_running_one():
  async def test(queue, device):
    first, second = (predict(queue, name) for name in "ab")
    await settle()
    queue.close()
    with pytest.raises(HttpError) as waiting:
      await second
    with pytest.raises(HttpError) as later, queue.place():
      pass
    assert (waiting.value.status, later.value.status) == (503, 503)
    device.go.set()
    assert (await first)["status"] == 200
  run(test)


def test_closing_kills_a_long_prediction(monkeypatch):
  async def test(queue, device):
    first = predict(queue, "a")
    await settle()
    queue.close()
    with pytest.raises(HttpError) as caught:
      await first
    assert caught.value.status == 503 and device.killed.is_set()
  monkeypatch.setattr(module, "CLOSING_SECONDS", 0.05)
  run(test)
