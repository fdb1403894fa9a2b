"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("scripted");

  // Tables: a click on a heading sorts by its column, ascending, then descending; empty cells last.
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((heading, column) => {
      const button = document.createElement("button");
      button.append(...heading.childNodes);
      heading.append(button);
      heading.classList.add("sorts");
      button.addEventListener("click", () => {
        const ascending = heading.getAttribute("aria-sort") !== "ascending";
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const value = (row) => row.cells[column].dataset.value;
        const compare = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return ascending ? order : -order;
        };
        table.tBodies[0].append(...[...table.rows].slice(1).sort(compare));
      });
    });
  }

  // Slices: layer, structures and size.
  for (const input of all("input[name=show]")) {
    const show = () => { if (input.checked) document.body.dataset.show = input.value; };
    input.addEventListener("change", show);
    show();  // browsers may restore the choice after a reload
  }
  const boxes = all("input[name=structure]");
  const apply = (box) => document.body.classList.toggle(`off-${box.value}`, !box.checked);
  for (const box of boxes) {
    box.addEventListener("change", () => { apply(box); colour(); });
    apply(box);
  }
  for (const button of all(".enlarge")) {
    button.addEventListener("click", () => button.parentElement.classList.toggle("large"));
  }

  // The viewer: one for all cases, created on first use and moved to the case it shows.
  const template = document.getElementById("viewer");
  if (!template) return;
  const data = (name) => document.getElementById(name).textContent;
  const views = { multi: 3, axial: 0, coronal: 1, sagittal: 2, render: 4 };
  let box, nv, making, current;
  const control = (name) => box.querySelector(`[name=${name}]`);

  async function load() {
    const packed = Uint8Array.from(atob(data("viewer-code")), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);  // runs immediately: the page's policy lists its checksum
  }

  async function make() {
    await load();
    nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.7], crosshairWidth: 0.15,
      crosshairWidthUnit: "percent", crosshairGap: 3, isRadiologicalConvention: true,
      sagittalNoseLeft: true, multiplanarShowRender: 1, showLegend: false, fontMinPx: 15,
      dragAndDropEnabled: false, loadingText: "", logLevel: "error",
    });
    nv.onLocationChange = describe;
    await nv.attachToCanvas(box.querySelector("canvas"));
    control("layout").addEventListener("change", arrange);
    control("image").addEventListener("change", arrange);
    control("opacity").addEventListener("input", fade);
    control("labels").addEventListener("change", () => overlay());
    control("close").addEventListener("click", close);
  }

  const read = (name, settings) => niivue.NVImage.loadFromBase64(
    { base64: data(name), name: `${name}.nii.gz`, ...settings });

  async function open(article) {
    const button = article.querySelector(".open");
    const text = button.textContent;
    button.disabled = true;
    button.textContent = "Opening …";
    await new Promise((done) => setTimeout(done));  // shows the text before the work starts
    try {
      if (!box) box = template.content.firstElementChild.cloneNode(true);
      close();
      article.querySelector(".place").append(box);
      await (making ??= make());
      const meta = JSON.parse(data(article.id.replace("case", "scan")));
      const labels = control("labels");
      labels.replaceChildren(...meta.labels.map((name) => new Option(name, name)));
      labels.parentElement.hidden = meta.labels.length < 2;
      current = { article, meta, id: article.id.replace("case", "scan") };
      while (nv.volumes.length) nv.removeVolume(nv.volumes[nv.volumes.length - 1]);
      const opacity = control("image").checked ? 1 : 0;
      nv.addVolume(await read(`${current.id}-image`, { colormap: "gray", opacity }));
      nv.scene.crosshairPos = nv.mm2frac(meta.focus);
      await overlay();
      nv.createOnLocationChange();
      button.textContent = text;
      button.hidden = true;
      article.dataset.viewer = "drawn";
    } catch (error) {
      button.textContent = `The viewer failed to start: ${error.message}`;
      box.remove();
      box = making = current = undefined;
    }
    button.disabled = false;
  }

  function close() {
    if (!current) return;
    current.article.querySelector(".open").hidden = false;
    delete current.article.dataset.viewer;
    current = null;
    box.remove();
  }

  async function overlay() {
    const name = control("labels").value;
    const image = await read(`${current.id}-${name}`, { opacity: control("opacity").value / 100 });
    while (nv.volumes.length > 1) nv.removeVolume(nv.volumes[nv.volumes.length - 1]);
    image.setColormapLabel(palette());
    nv.addVolume(image);
  }

  function colour() {
    if (!current || nv.volumes.length < 2) return;
    nv.volumes[1].setColormapLabel(palette());
    nv.updateGLVolume();
  }

  // Colours of the labels; hidden structures are transparent.
  function palette() {
    const errors = control("labels").value === "errors";
    const { meta } = current;
    const colours = errors ? [[230, 159, 0], [86, 180, 233], [224, 123, 184]]
      : [...meta.colours, [139, 144, 153]];
    const names = errors ? ["false positive", "false negative", "wrong structure"]
      : [...meta.classes, "unlabelled"];
    const on = (i) => errors || i >= meta.ids.length
      || !document.body.classList.contains(`off-${meta.ids[i]}`);
    const channel = (k) => [0, ...colours.map((c) => c[k])];
    current.names = names;
    return {
      R: channel(0), G: channel(1), B: channel(2), A: [0, ...colours.map((_, i) => 255 * on(i))],
      labels: ["", ...names],
    };
  }

  function arrange() {
    nv.setSliceType(views[control("layout").value]);
    nv.setOpacity(0, control("image").checked ? 1 : 0);
  }

  function fade() {
    nv.setOpacity(1, control("opacity").value / 100);
  }

  function describe(location) {
    if (!current) return;
    const [x, y, z] = location.mm;
    const side = (value, plus, minus) => `${Math.abs(value).toFixed(1)} ${value < 0 ? minus : plus}`;
    const [image, label] = location.values;
    const name = label && label.value > 0 ? current.names[Math.round(label.value) - 1] : "";
    box.querySelector(".where").textContent =
      `${side(x, "right", "left")} · ${side(y, "anterior", "posterior")} · `
      + `${side(z, "superior", "inferior")} (mm) · intensity ${Math.round(image.value)}`
      + (name ? ` · ${name}` : "");
  }

  async function go(button) {
    const article = button.closest(".case");
    if (current?.article !== article) await open(article);
    if (!current) return;
    nv.scene.crosshairPos = nv.mm2frac(button.dataset.mm.split(" ").map(Number));
    nv.createOnLocationChange();
    nv.drawScene();
    box.scrollIntoView({ block: "nearest" });
  }

  for (const button of all(".open")) {
    button.addEventListener("click", () => open(button.closest(".case")));
  }
  for (const button of all(".go")) button.addEventListener("click", () => go(button));
})();
