// The page: choose a volume, upload it, wait for the prediction, view the result.

import { readVolume, showVolume } from "/viewer.js";
import { droppedFiles, zipFiles } from "/zip.js";

const $ = id => document.getElementById(id);
const RETRIES = 60;
let classes = [], axes = 3, chosen = null, request = null, stopped = false, urls = [];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const wait = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));
const bytes = size => size < 1e6 ? `${Math.ceil(size / 1e3)} kB`
  : `${(size / 1e6).toFixed(size < 1e7 ? 1 : 0)} MB`;

// --- the service ----------------------------------------------------------------------------
async function health() {
  const state = $("state");
  try {
    const { ready, running, waiting } = await (await fetch("/health")).json();
    state.className = ready ? "state ready" : "state";
    const queued = running + waiting;
    state.textContent = !ready ? "loading the network …"
      : queued ? `ready, ${queued} in the queue` : "ready";
    if (ready && !classes.length) await loadClasses();
  } catch {
    state.className = "state lost";
    state.textContent = "service unreachable";
  }
}

async function pollHealth() {
  await health();
  setTimeout(pollHealth, 3000);
}

async function loadClasses() {
  const answer = await (await fetch("/classes")).json();
  ({ classes, axes } = answer);
  if (axes === 2) {
    $("formats").textContent = "PNG, JPEG or TIFF";
    $("file").accept = "image/png,image/jpeg,image/tiff";
    $("choose-folder").hidden = true;
  }
  for (const { name, color } of classes) {
    const dot = make("span", { className: "dot" });
    dot.style.background = `rgb(${color})`;
    $("classes").append(make("label", {}, make("input", { type: "checkbox", value: name }), dot,
      name));
  }
  for (const [name, members] of Object.entries(answer.presets)) {
    const button = make("button", { type: "button", textContent: name });
    button.addEventListener("click", () => selectClasses(members));
    $("presets").append(button);
  }
}

function selectClasses(members) {
  for (const box of $("classes").querySelectorAll("input")) {
    box.checked = members.includes(box.value);
  }
  updateClassHint();
}

const selectedClasses = () => [...$("classes").querySelectorAll(":checked")].map(box => box.value);
const updateClassHint = () => { $("all").hidden = selectedClasses().length > 0; };

// --- upload and prediction ------------------------------------------------------------------
// Whether files are zipped as a DICOM series; `axes` is known once the service is ready.
const isSeries = files => axes === 3
  && (files.length > 1 || !/\.(nii|nii\.gz|zip)$/i.test(files[0].name));

function chooseFiles(files) {
  if (!files.length) return;
  chosen = files;
  const size = files.reduce((sum, file) => sum + file.size, 0);
  $("chosen").textContent = isSeries(files) ? `${files.length} files, ${bytes(size)}`
    : `${files[0].name}, ${bytes(size)}`;
  $("go").disabled = false;
  showError("");
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

// Shows a step and its fraction done; an indeterminate bar without fraction.
function showProgress(step, fraction) {
  $("step").textContent = step;
  if (fraction === undefined) $("bar").removeAttribute("value");
  else $("bar").value = fraction;
}

const duration = seconds => seconds < 90 ? `${Math.round(seconds)} s`
  : `${Math.round(seconds / 60)} min`;

// Shows how far the request with a ticket is, every second until it is stopped; returns what stops.
function watch(ticket) {
  let clock, start;
  const look = async () => {
    const { state, ahead, done } = await (await fetch(`/queue/${ticket}`)).json();
    if (!clock) return;
    if (state === "waiting") showProgress(ahead === 1 ? "Waiting for another image"
      : `Waiting for ${ahead} other images`);
    if (state === "running") {
      start ??= Date.now();
      const seconds = (Date.now() - start) / 1000;
      showProgress(done ? `Segmenting, about ${duration(seconds * (1 - done) / done)} left`
        : `Segmenting, ${duration(seconds)}`, done ?? undefined);
    }
  };
  clock = setInterval(() => look().catch(() => {}), 1000);
  return () => {
    clearInterval(clock);
    clock = null;
  };
}

// Posts a body once; resolves to the finished XMLHttpRequest.
function post(address, body, ticket) {
  return new Promise((resolve, reject) => {
    request = new XMLHttpRequest();
    request.open("POST", address);
    request.responseType = "blob";
    let unwatch = () => {};
    request.upload.onprogress = event => showProgress(`Uploading, ${bytes(event.loaded)}`,
      event.loaded / event.total);
    request.upload.onload = () => {
      showProgress("Segmenting");
      unwatch = watch(ticket);
    };
    request.onloadend = () => unwatch();
    request.onload = () => resolve(request);
    request.onerror = () => reject(new Error("Connection lost. Is the service running?"));
    request.onabort = () => reject(new Error(""));
    request.send(body);
  });
}

async function segment() {
  const body = !isSeries(chosen) ? chosen[0]
    : await zipFiles(chosen, fraction => showProgress("Zipping the files", fraction));
  const query = new URLSearchParams({ output: "page", fusion: $("fusion").value,
    threshold: $("threshold").value });
  if (selectedClasses().length) query.set("classes", selectedClasses().join(","));
  for (let attempt = 0; ; attempt++) {
    if (stopped) throw new Error("");
    // getRandomValues and not randomUUID, which there is only with TLS or on the same machine.
    const ticket = [...crypto.getRandomValues(new Uint32Array(4))].map(n => n.toString(36)
      .padStart(7, "0")).join("");
    query.set("ticket", ticket);
    const answer = await post(`/predict?${query}`, body, ticket);
    const retryAfter = Number(answer.getResponseHeader("Retry-After"));
    if ([429, 503].includes(answer.status) && retryAfter && attempt < RETRIES) {
      showProgress("Service busy, waiting");
      await wait(retryAfter);
      continue;
    }
    if (answer.status !== 200) {
      const { error, reason, cure } = JSON.parse(await answer.response.text());
      throw new Error(`${error}: ${reason} (${cure})`);
    }
    const type = answer.getResponseHeader("Content-Type");
    return new Response(answer.response, { headers: { "Content-Type": type } }).formData();
  }
}

// --- result ---------------------------------------------------------------------------------
async function showResult(form) {
  const [statistics, layout] = await Promise.all(["statistics.json", "layout.json"]
    .map(async name => JSON.parse(await form.get(name).text())));
  const volume = await readVolume(form.get("image.png"), form.get("labels.png"), layout);
  $("result").hidden = false;
  document.querySelector("main").classList.add("with-result");
  $("views").replaceChildren();
  const redraw = showVolume($("views"), volume);
  $("rows").replaceChildren();
  const entries = Object.entries(statistics.classes);
  const rated = entries.some(([, entry]) => entry.rating);
  const heads = [...axes === 3 ? ["Volume", "Voxels"] : ["Pixels"],
    ...rated ? ["Predicted Dice"] : []];
  $("columns").replaceChildren(make("th", { textContent: "Class" }),
    ...heads.map(textContent => make("th", { className: "number", textContent })));
  for (const [name, { value, voxels, volume_ml, predicted_dice, rating }] of entries) {
    const dot = make("span", { className: "dot" });
    dot.style.background = `rgb(${classes[value - 1].color})`;
    const box = make("input", { type: "checkbox", checked: true, value });
    box.addEventListener("input", update);
    $("rows").append(make("tr", { className: voxels ? "" : "none" },
      make("td", {}, make("label", {}, box, dot, name)),
      ...axes === 3 ? [make("td", { className: "number",
        textContent: voxels ? `${volume_ml.toPrecision(4)} ml` : "not found" })] : [],
      make("td", { className: "number", textContent: voxels.toLocaleString("en") }),
      ...rated ? [make("td", { className: "number" }, ...rating ? [predicted_dice.toFixed(2),
        make("span", { className: `light ${rating}`, title: rating })] : [])] : []));
  }
  function update() {
    const values = [...$("rows").querySelectorAll(":checked")].map(box => Number(box.value));
    redraw({ colors: new Map(values.map(value => [value, classes[value - 1].color])),
      opacity: $("opacity").valueAsNumber });
  }
  $("opacity").oninput = update;
  update();
  const grid = axes === 2 ? "pixels"
    : `voxels of ${statistics.spacing_mm.map(s => s.toPrecision(3)).join(" × ")} mm`;
  $("about").textContent = `${statistics.shape.join(" × ")} ${grid}, `
    + `${statistics.seconds.toFixed(1)} s`;
  showDownloads(form);
}

function showDownloads(form) {
  urls.forEach(url => URL.revokeObjectURL(url));
  urls = [];
  $("downloads").replaceChildren();
  for (const [name, file] of form) {
    if (!/^(label|mask_.*)\.|^statistics\.json$/.test(name)) continue;
    urls.push(URL.createObjectURL(file));
    $("downloads").append(make("a", { href: urls.at(-1), download: name,
      textContent: `${name} (${bytes(file.size)})` }));
  }
}

// --- events ---------------------------------------------------------------------------------
$("request").addEventListener("submit", async event => {
  event.preventDefault();
  showError("");
  $("go").disabled = true;
  stopped = false;
  $("stop").hidden = $("progress").hidden = false;
  showProgress("Starting");
  try {
    await showResult(await segment());
  } catch (error) {
    showError(error.message);
  }
  $("go").disabled = false;
  $("stop").hidden = $("progress").hidden = true;
  health();
});
$("stop").addEventListener("click", () => {
  stopped = true;
  request?.abort();
});
$("classes").addEventListener("input", updateClassHint);
$("threshold").addEventListener("input", () => {
  $("threshold-value").textContent = $("threshold").value;
});
for (const id of ["file", "folder"]) {
  $(id).addEventListener("change", () => chooseFiles([...$(id).files]));
}
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, event => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
  });
}
$("drop").addEventListener("drop", async event => {
  chooseFiles(await droppedFiles(event.dataTransfer.items));
});
pollHealth();
