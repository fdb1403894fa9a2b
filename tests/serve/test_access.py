"""Who may ask, and what is written down of it: tokens, the audit log, metrics, TLS."""

import base64
import json
import ssl
import stat
import subprocess
import threading

import httpx2
from prometheus_client.parser import text_string_to_metric_families
import pytest

from condseg_jax.cli import serve as command
from condseg_jax.errors import InputError
from condseg_jax.serve import audit
from condseg_jax.serve.app import PAGE
from condseg_jax.serve.monai.datastore import Datastore
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.tls import server_context
from condseg_jax.serve.tokens import add_token
from condseg_jax.serve.tokens import Tokens
from support import monai
from support.service import client
from support.service import Held
from support.service import Inside
from support.service import LIMITS
from support.service import listening
from support.service import network
from support.service import nifti
from support.tls import make_certificate
from support.waiting import until

# The client of MONAI Label leaves files and connections open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed", "ignore:Implicitly cleaning up")


@pytest.fixture(scope="module")
def predictor():
  return network()


@pytest.fixture
def file(tmp_path):
  return tmp_path / "tokens"


def bearer(token):
  return {"Authorization": f"Bearer {token}"}


def basic(user, token):
  return {"Authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}


def lines(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the file ----------------------------------------------------------------------------------
def test_a_file_of_tokens_tells_none_of_them(file):
  made = {name: add_token(file, name) for name in ("ward", "lab")}
  text = file.read_text()
  assert not any(token in text for token in made.values()) and made["ward"] != made["lab"]
  assert stat.S_IMODE(file.stat().st_mode) == 0o600
  tokens = Tokens(file)
  for name, token in made.items():
    assert tokens.owner(token) == tokens.check(f"bearer {token}") == name
    assert tokens.check(basic(name, token)["Authorization"]) == name


def test_what_is_no_token(file):
  token = add_token(file, "ward")
  tokens, digest = Tokens(file), file.read_text().split("sha256:")[1].strip()
  for header in ("", "Bearer", "Bearer ", f"Bearer {token}x", f"Bearer {token[:-1]}", token,
                 f"Bearer {digest}", f"Digest {token}", basic("lab", token)["Authorization"],
                 basic("", token)["Authorization"], "Basic %%", "Basic /w==", "Bearer \udcff"):
    with pytest.raises(HttpError, match="401"):
      tokens.check(header)


def test_a_removed_token_ends_and_a_broken_file_changes_nothing(file, said):
  ward, lab = add_token(file, "ward"), add_token(file, "lab")
  tokens = Tokens(file)
  file.write_text("\n".join(line for line in file.read_text().splitlines() if "ward" not in line))
  with pytest.raises(HttpError):
    tokens.owner(ward)
  assert tokens.owner(lab) == "lab"
  file.write_text("ward sha256:short\n")
  assert tokens.owner(lab) == "lab" and "stay valid" in said()[-1]
  file.unlink()
  assert tokens.owner(lab) == "lab"
  assert Tokens.owner.__doc__ and add_token(file, "new")
  with pytest.raises(HttpError):
    tokens.owner(lab)


@pytest.mark.parametrize("text, reason", [
    ("", "contains no token"), ("# ward\n", "contains no token"), ("ward\n", "line 1 is not"),
    ("\nward sha256:12\n", "line 2 is not"), (f"a b sha256:{'0' * 64}\n", "line 1 is not"),
    (2 * f"a sha256:{'0' * 64}\n", "line 2 .* name of another")])
def test_invalid_files(file, text, reason):
  file.write_text(text)
  with pytest.raises(InputError, match=reason) as caught:
    Tokens(file)
  assert caught.value.usage


def test_the_command_makes_tokens(file, capsys):
  run = lambda *flags: command.main(["condseg-serve", *flags])
  assert run("--new_token=ward", f"--tokens={file}") == 0
  token = capsys.readouterr().out.strip()
  assert Tokens(file).owner(token) == "ward"
  for flags, message in (([f"--tokens={file}"], "has a token 'ward'"), ([], "--tokens: is missing"),
                         ([f"--tokens={file.parent / 'no' / 'x'}"], "cannot be written")):
    assert run("--new_token=ward", *flags) in (1, 2)
    assert message in capsys.readouterr().err
  assert run("--new_token=Jane Doe", f"--tokens={file}") == 2
  assert file.read_text().count("\n") == 1


def test_flags_that_cannot_be(file, tmp_path, capsys):
  file.write_text("ward\n")
  for flags, message in (
      ([f"--tokens={file}"], "line 1 is not"), (["--tokens=none"], "cannot be read"),
      ([f"--audit={tmp_path / 'no' / 'x'}"], "cannot be written"),
      (["--tls_cert=cert.pem"], "--tls_key: is missing"),
      (["--tls_cert=none", "--tls_key=none"], "none: cannot be read"),
      (["--allowed_hosts=http://x"], "--allowed_hosts: ")):
    assert command.main(["condseg-serve", "--workdir=run", *flags]) == 2, flags
    assert message in capsys.readouterr().err


# --- requests ----------------------------------------------------------------------------------
def test_every_route_wants_a_token(predictor, file, tmp_path):
  """But those of probes, and where clients of MONAI Label begin."""
  token = add_token(file, "ward")
  with client(Inside(predictor, LIMITS), tokens=Tokens(file),
              datastore=Datastore(tmp_path)) as service:
    app = service.app.routes[0].app
    open_ = {"/health", "/live", "/auth/", "/auth/token"}
    routes = [(method, route.path) for route in app.routes for method in route.methods]
    assert {path for _, path in routes} > {*open_, *PAGE, "/predict", "/metrics", "/infer/{model}"}
    for method, path in routes:
      for headers in ({}, bearer("x" * 43)):
        answer = service.request(method, path.replace("{", "").replace("}", ""), headers=headers)
        assert path in open_ or answer.status_code == 401, path
        if answer.status_code == 401 and method != "HEAD":
          assert set(answer.json()) == {"error", "reason", "cure"}
    for path in ("/nothing", "/health/", "//health", "/auth/token/valid", "/health/../predict"):
      assert service.get(path).status_code == 401
    answer = service.get("/")
    assert answer.headers["www-authenticate"].startswith("Basic realm=")  # a browser asks
    for headers in (bearer(token), basic("ward", token)):
      assert service.get("/", headers=headers).status_code == 200
      assert service.post("/predict", headers=headers, content=nifti()).status_code == 200
    other = {**bearer(token), "Origin": "http://evil.example"}
    assert service.post("/predict", headers=other, content=nifti()).status_code == 403


def test_the_client_of_monai_label_logs_in(predictor, file, tmp_path):
  """As 3D Slicer's module does when it asks for user and password."""
  token = add_token(file, "ward")
  (tmp_path / "images").mkdir()
  (tmp_path / "images" / "a.nii").write_bytes(nifti())
  with listening(Inside(predictor, LIMITS), tmp_path, tokens=Tokens(file),
                 datastore=Datastore(tmp_path / "images")) as address:
    made = monai.client(address, tmp_path)
    assert made.auth_enabled() and not made.auth_valid_token()
    for user, password in (("ward", "guess"), ("lab", token), ("", "")):
      with pytest.raises(Exception) as caught:
        made.auth_token(user, password)
      assert caught.value.status_code == 401
    with pytest.raises(Exception) as caught:
      made.info()
    assert caught.value.status_code == 401
    made.update_auth(made.auth_token("ward", token))
    assert made.auth_valid_token() and made.info()["datastore"]["total"] == 1
    label, _ = made.infer("segmentation", "a", {})
    assert made.next_sample("first", {})["id"] == "a"
    assert made.save_label("a", label) == {"image": "a", "label": "a"}
    made = monai.client(address, tmp_path)  # it would send headers of former requests again
    made.update_auth({"token_type": "bearer", "access_token": token})
    session = made.create_session(str(tmp_path / "images" / "a.nii"))
    made.infer("segmentation", "", {}, session_id=session["session_id"])
    large = httpx2.post(f"{address}/auth/token", content=b"username=ward&password=" + bytes(5000))
    assert large.status_code == 413


def test_one_token_has_half_of_the_queue(predictor, file):
  made = {name: bearer(add_token(file, name)) for name in ("ward", "lab")}
  held = Held(predictor, LIMITS)
  with client(held, Limits(body=1 << 20, waiting=3), tokens=Tokens(file)) as service:
    send = lambda name: service.post("/predict", content=nifti(), headers=made[name]).status_code
    answers = []
    threads = [threading.Thread(target=lambda name=name: answers.append(send(name)))
               for name in ("ward", "ward", "lab")]
    for number, thread in enumerate(threads, 1):
      thread.start()
      until(lambda number=number: sum(service.get("/health").json()[key]
                                      for key in ("waiting", "running")) == number)
    refused = service.post("/predict", content=nifti(), headers=made["ward"])
    assert refused.status_code == 429 and refused.json()["error"] == "token"
    assert int(refused.headers["retry-after"]) >= 1
    held.go.set()
    for thread in threads:
      thread.join()
    assert answers == [200] * 3 and send("ward") == 200


# --- the log and the figures -------------------------------------------------------------------
def test_the_audit_log(predictor, file, tmp_path):
  path, token = tmp_path / "audit.jsonl", add_token(file, "ward")
  with client(Inside(predictor, LIMITS), tokens=Tokens(file), audit=audit.Audit(path),
              datastore=Datastore(tmp_path)) as service:
    ask = lambda method, url, **more: service.request(method, url, headers=bearer(token), **more)
    ask("POST", "/predict?classes=liver,spleen", files={"file": ("Doe^Jane.nii", nifti())})
    ask("POST", "/infer/two?output=json", files={"file": ("Doe^Jane.nii", nifti())})
    ask("POST", "/predict?classes=Doe^Jane", content=nifti())
    ask("GET", "/datastore/image?image=Doe")
    ask("GET", "/session/Doe")
    ask("GET", "/Doe/Jane")
    for _ in range(20):
      service.get("/classes")  # a stranger
    for unnoted in ("/health", "/live", "/metrics"):
      assert ask("GET", unnoted).status_code == 200
  found = lines(path)
  assert [(line["token"], line["route"], line["classes"], line["outcome"]) for line in found] == [
      ("ward", "/predict", "liver,spleen", 200), ("ward", "/infer/{model}", "preset:two", 200),
      ("ward", "/predict", "", 400), ("ward", "/datastore/image", "", 404),
      ("ward", "/session/{id}", "", 404), ("ward", "other", "", 404), ("", "other", "", 401)]
  assert all(0 <= line["seconds"] < 60 and line["time"].endswith("Z") for line in found)
  assert found[0]["seconds"] > 0
  assert "Doe" not in path.read_text() and token not in path.read_text()


def test_the_audit_log_is_rotated_and_a_full_disk_ends_nothing(tmp_path, monkeypatch, said):
  monkeypatch.setattr(audit, "MAX_BYTES", 500)
  log = audit.Audit(tmp_path / "audit.jsonl")
  for number in range(10):
    log.write("ward", "/predict", 200, number)
  files = sorted(tmp_path.iterdir())
  assert len(files) > 2 and all(path.stat().st_size <= 500 for path in files)
  assert sorted(line["seconds"] for path in files for line in lines(path)) == list(range(10))

  def full(*_):
    raise OSError(28, "No space left on device")
  monkeypatch.setattr(audit._Handler, "shouldRollover", full)
  for _ in range(3):
    log.write("ward", "/predict", 200, 1)
  assert len([line for line in said() if "audit log cannot be written" in line]) == 1
  with pytest.raises(InputError, match="cannot be written") as caught:
    audit.Audit(tmp_path / "none" / "audit.jsonl")
  assert caught.value.usage


def test_metrics(predictor):
  with client(Inside(predictor, LIMITS)) as service:
    for content in (nifti(), nifti(), b"text"):
      service.post("/predict", content=content)
    service.get("/session/a-patient")
    answer = service.get("/metrics")
  assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
  found = {(sample.name, *sorted(sample.labels.values())): sample.value
           for family in text_string_to_metric_families(answer.text) for sample in family.samples}
  assert found["condseg_requests_total", "/predict", "200"] == 2
  assert found["condseg_requests_total", "/predict", "415"] == 1
  assert found["condseg_requests_total", "/session/{id}", "404"] == 1
  assert found["condseg_prediction_seconds_count", "200"] == 2
  assert found["condseg_prediction_seconds_count", "415"] == 1
  assert found["condseg_ready",] == 1 and found["condseg_queue_places",] == LIMITS.places
  assert found["condseg_queue_waiting",] == found["condseg_worker_restarts_total",] == 0
  assert found["process_resident_memory_bytes",] > 1e6 and "patient" not in answer.text


def test_live_is_not_ready(predictor):
  device = Inside(predictor, LIMITS)
  with client(device) as service:
    device.ready = False  # as while it restarts
    assert service.get("/live").status_code == 200
    assert service.get("/health").status_code == 503
    assert "condseg_ready 0.0" in service.get("/metrics").text


# --- TLS ---------------------------------------------------------------------------------------
def test_tls(predictor, certificate, tmp_path):
  path, key = certificate
  with listening(Inside(predictor, LIMITS), tmp_path, tls=server_context(path, key)) as address:
    assert address.startswith("https:")
    with httpx2.Client(verify=ssl.create_default_context(cafile=path)) as trusting:
      assert trusting.post(f"{address}/predict", content=nifti(), timeout=60).status_code == 200
    with pytest.raises(httpx2.ConnectError):
      httpx2.get(f"{address}/health")
    with pytest.raises(httpx2.RemoteProtocolError):
      httpx2.get(f"{address.replace('https', 'http')}/health")
  assert server_context(path, key).minimum_version == ssl.TLSVersion.TLSv1_2


def test_files_that_are_no_certificate_and_key(certificate, tmp_path):
  path, key = certificate
  (tmp_path / "text").write_text("hello")
  encrypted = tmp_path / "encrypted.pem"
  subprocess.run(["openssl", "rsa", "-in", key, "-aes256", "-passout", "pass:secret", "-out",
                  encrypted], check=True, capture_output=True)
  for certificate_, key_, message in (
      (tmp_path / "none", key, "No such file"), (path, tmp_path / "none", "No such file"),
      (tmp_path / "text", key, "no certificate and its key"), (path, path, "no certificate and"),
      (path, encrypted, "is encrypted")):
    with pytest.raises(InputError, match=message) as caught:
      server_context(certificate_, key_)
    assert caught.value.usage


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
  return make_certificate(tmp_path_factory.mktemp("tls"))
