"""Receiving bodies: in chunks, in forms, too large, too slow, interrupted."""

import asyncio
import itertools
from pathlib import Path
import tempfile

import pytest

from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.upload import Disconnected
from condseg_jax.serve.upload import Incoming
from condseg_jax.serve.upload import Uploads

CONTENT = bytes(range(256)) * 40
FORM = {"content-type": "multipart/form-data; boundary=frontier"}

LIMITS = Limits(body=20_000, grace_seconds=3600)
LIMITS_OF_TWO = Limits(waiting=1, contended_seconds=0.2, bytes_per_second=1000)


def saved(path, chunks, headers=None, limits=LIMITS, pause=0.0):
  """Saves a body received in chunks; None stands for a disconnect."""
  left = iter(chunks)

  async def receive():
    await asyncio.sleep(pause)
    chunk = next(left, b"")
    if chunk is None:
      return {"type": "http.disconnect"}
    return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

  incoming = Incoming(receive, headers or {}, limits)
  size = asyncio.run(incoming.save(path))
  assert incoming.ended and size == path.stat().st_size
  return path.read_bytes()


def pieces(data, size):
  return [data[i:i + size] for i in range(0, len(data), size)]


def form(*parts, end=b"--frontier--\r\n"):
  made = b""
  for disposition, content in parts:
    made += (b"--frontier\r\nContent-Disposition: form-data; " + disposition
             + b"\r\nContent-Type: application/octet-stream\r\n\r\n" + content + b"\r\n")
  return made + end


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
def test_a_body_alone_and_in_a_form_is_the_same(tmp_path, size):
  assert saved(tmp_path / "a", pieces(CONTENT, size)) == CONTENT
  whole = form((b'name="f"; filename="../../x.nii"', CONTENT))
  assert saved(tmp_path / "b", pieces(whole, size), FORM) == CONTENT
  assert {path.name for path in tmp_path.rglob("*")} == {"a", "b"}


@pytest.mark.parametrize("body, message", [
    (form((b'name="classes"', b"liver")), "'classes'.*query"),
    (form((b'name="f"; filename="a"', b"x"), (b'name="g"; filename="b"', b"y")), "several files"),
    (form(), "without a file"),
    (form((b'name="f"; filename="a"', b"x"), end=b""), "truncated"),
    (CONTENT, "not valid multipart"),
    (b"--frontier\r\n" + b"A" * 19_000, "not valid multipart"),
    (form((b'name="f"; filename="a"', b"")), "is empty")])
def test_forms_without_one_whole_file(tmp_path, body, message):
  with pytest.raises(HttpError, match=message) as caught:
    saved(tmp_path / "a", pieces(body, 100), FORM)
  assert caught.value.status == 400


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=",
                                  "multipart/form-data; boundary=" + 71 * "x"])
def test_a_form_without_a_boundary(tmp_path, kind):
  with pytest.raises(HttpError, match="boundary"):
    saved(tmp_path / "a", [CONTENT], {"content-type": kind})


def test_too_large_by_its_header_or_by_itself(tmp_path):
  with pytest.raises(HttpError) as announced:
    saved(tmp_path / "a", iter(()), {"content-length": "20001"})
  with pytest.raises(HttpError) as counted:
    saved(tmp_path / "b", itertools.repeat(CONTENT))  # without end
  assert (announced.value.status, counted.value.status) == (413, 413)
  assert not (tmp_path / "a").exists() and (tmp_path / "b").stat().st_size <= 20_000


def test_too_slow(tmp_path):
  limits = Limits(body=20_000, grace_seconds=0.2, bytes_per_second=2000)
  assert limits.transfer_seconds(10_000) == 5.2
  with pytest.raises(HttpError, match="slowly") as caught:  # 1000 bytes a second
    saved(tmp_path / "a", pieces(CONTENT, 50), limits=limits, pause=0.05)
  assert caught.value.status == 408
  assert 0 < (tmp_path / "a").stat().st_size < len(CONTENT)


def test_a_slow_body_gives_its_place_to_another():
  async def receive(sent):
    if sent:
      return {"type": "http.request", "body": sent.pop(), "more_body": True}
    await asyncio.Event().wait()

  async def body(folder):
    uploads = Uploads(LIMITS_OF_TWO)
    outcomes = {}

    async def upload(name, content):
      chunks = [content]
      incoming = Incoming(lambda: receive(chunks), {}, LIMITS_OF_TWO)
      try:
        with uploads.place(incoming):
          await incoming.save(folder / name)
      except HttpError as error:
        outcomes[name] = error.status

    tasks = [asyncio.create_task(upload(name, content))
             for name, content in (("fast", CONTENT), ("slow", b"x"))]
    await asyncio.sleep(0)
    await upload("early", CONTENT)  # the other two may still become fast
    assert outcomes == {"early": 429}
    await asyncio.sleep(1.5 * LIMITS_OF_TWO.contended_seconds)
    tasks.append(asyncio.create_task(upload("next", CONTENT)))
    await asyncio.wait(tasks, timeout=0.01)
    assert outcomes == {"early": 429, "slow": 408}
    await upload("last", CONTENT)
    assert outcomes["last"] == 429
    for task in tasks:
      task.cancel()

  with tempfile.TemporaryDirectory() as folder:
    asyncio.run(body(Path(folder)))


def test_a_disconnected_sender(tmp_path):
  with pytest.raises(Disconnected):
    saved(tmp_path / "a", [CONTENT, None])


def test_encoded_bodies(tmp_path):
  with pytest.raises(HttpError, match="as it is") as caught:
    saved(tmp_path / "a", [CONTENT], {"content-encoding": "gzip"})
  assert caught.value.status == 415


def test_the_rest_of_a_body_is_drained_unless_the_sender_waits_for_100_continue(tmp_path):
  for headers, left in (({"content-length": "99999"}, 0),
                        ({"content-length": "99999", "expect": "100-continue"}, 9)):
    chunks = pieces(CONTENT, len(CONTENT) // 9 + 1)

    async def receive(chunks=chunks):
      chunk = chunks.pop()
      return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    incoming = Incoming(receive, headers, LIMITS)
    with pytest.raises(HttpError):
      asyncio.run(incoming.save(tmp_path / "a"))
    asyncio.run(incoming.drain())
    assert len(chunks) == left and incoming.ended is (left == 0)
