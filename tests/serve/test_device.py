"""The worker as seen from the web process; a script that misbehaves on request plays the worker."""

import asyncio
import json
import os
from pathlib import Path
import signal
import sys

import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.serve import device as module
from condseg_jax.serve.device import Device
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import PredictRequest

TABLE = ClassTable.create(["liver", "spleen"])
# The `series` of a request lists what the worker does: emit an event, end, sleep, ignore signals.
WORKER = """
import json, os, signal, sys, time
class Stopped(Exception): pass
def stop(*_): raise Stopped
signal.signal(signal.SIGUSR1, stop)
emit = lambda event, **fields: print(json.dumps({"event": event, **fields}), flush=True)
START
for line in sys.stdin:
  try:
    for act in json.loads(line)["request"]["series"].split():
      if act == "end": os._exit(3)
      elif act == "deaf": signal.signal(signal.SIGUSR1, signal.SIG_IGN)
      elif act == "sleep": time.sleep(3600)
      else: emit(act)
    emit("done", status=200, pid=os.getpid())
  except Stopped:
    emit("done", status=0)
"""
READY = f"emit('ready', table={json.dumps(TABLE.to_json())}, fusions=['argmax'], axes=3)"
GONE = f"{READY}; sys.stdout.close(); os._exit(0)"


def run(test, start=READY, **limits):
  async def body():
    command = (sys.executable, "-c", WORKER.replace("START", start))
    device = Device(command, Limits(**limits))
    try:
      await test(device)
    finally:
      await device.close()
  asyncio.run(body())


async def outcome(device, acts, cancelled=None):
  return await device.run(Path("folder"), PredictRequest(series=acts), cancelled or asyncio.Event())


def test_requests_in_sequence():
  async def test(device):
    assert not device.ready and device.table is None
    await device.start()
    assert device.ready and device.table == TABLE and device.fusions == ("argmax",)
    assert [await outcome(device, "reading predicting") for _ in range(3)] == [
        {"status": 200, "pid": device.pid()}] * 3
  run(test)


@pytest.mark.parametrize("acts, status, word", [
    ("reading end", 422, "crash"), ("reading predicting end", 503, "memory")])
def test_a_worker_that_exits_during_a_request(acts, status, word):
  async def test(device):
    await device.start()
    found = await outcome(device, acts)
    assert found["status"] == status and word in found["reason"] and not device.ready
    await device.start()
    assert device.ready and (await outcome(device, "reading"))["status"] == 200
  run(test)


def test_a_worker_that_exited_before_the_request():
  async def test(device):
    await device.start()
    assert await outcome(device, "reading") is None and not device.ready
  run(test, GONE)


def test_the_exit_of_an_idle_worker_is_seen():
  async def test(device):
    await device.start()
    watch = asyncio.create_task(device.exited())
    await asyncio.sleep(0)
    assert device.ready and not watch.done()
    os.kill(device.pid(), signal.SIGKILL)
    await asyncio.wait_for(watch, 60)
    assert not device.ready
    await device.start()
    assert device.ready and (await outcome(device, "reading"))["status"] == 200
  run(test)


@pytest.mark.parametrize("acts, status, error", [
    ("reading sleep", 422, "body"), ("reading predicting sleep", 504, "service")])
def test_a_request_that_times_out(acts, status, error):
  async def test(device):
    await device.start()
    first = device.pid()
    found = await outcome(device, acts)
    assert (found["status"], found["error"]) == (status, error) and "1 seconds" in found["reason"]
    assert device.ready and device.pid() == first  # it stopped and accepts requests again
  run(test, job_seconds=1)


def test_a_cancelled_request():
  async def test(device):
    await device.start()
    cancelled = asyncio.Event()
    work = asyncio.create_task(outcome(device, "reading predicting sleep", cancelled))
    while device._phase != "predicting":
      await asyncio.sleep(0.01)
    cancelled.set()
    assert await work == {"status": 0} and device.ready
    assert (await outcome(device, "reading"))["status"] == 200
  run(test)


def test_a_worker_that_ignores_the_cancellation_is_killed(monkeypatch):
  async def test(device):
    await device.start()
    assert (await outcome(device, "reading predicting deaf sleep"))["status"] == 504
    assert not device.ready
  monkeypatch.setattr(module, "STOP_SECONDS", 0.1)
  run(test, job_seconds=1)


def test_a_network_that_cannot_be_loaded():
  async def test(device):
    with pytest.raises(InputError, match="gone") as caught:
      await device.start()
    assert caught.value.usage and not device.ready
  run(test, "emit('failed', subject='run', reason='has gone', cure='',"
      " usage=True); sys.exit(1)")


def test_a_worker_that_exits_while_it_starts():
  async def test(device):
    with pytest.raises(InputError, match="code 5"):
      await device.start()
  run(test, "sys.exit(5)")
