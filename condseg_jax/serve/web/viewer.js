// Three orthogonal views of a volume, or one of a picture, with the label map overlaid; cut from two
// tiled PNG images.

const PLANES = [
  // Axes of the canonical volume: 0 inferior to superior, 1 to posterior, 2 to left.
  { name: "Axial", axis: 0, down: 1, right: 2, flip: false, letters: ["R", "L", "A", "P"] },
  { name: "Coronal", axis: 1, down: 0, right: 2, flip: true, letters: ["R", "L", "S", "I"] },
  { name: "Sagittal", axis: 2, down: 0, right: 1, flip: true, letters: ["A", "P", "S", "I"] },
];
const PICTURE = { ...PLANES[0], name: "Picture", letters: [] };
const SIDES = ["left", "right", "top", "bottom"];
const CONTOUR = 2;  // width in pixels of the canvas
const CROSSHAIR = "rgb(255 255 255 / .35)";

async function pixels(blob) {
  const picture = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, picture.width, picture.height);
}

// Copies the tiles of an image to a volume; `value` reads a voxel from the data at a pixel's index.
function untile(tiled, layout, volume, value) {
  const [depth, height, width] = layout.shape;
  let to = 0;
  for (let d = 0; d < depth; d++) {
    const top = Math.floor(d / layout.columns) * height, left = (d % layout.columns) * width;
    for (let y = 0; y < height; y++) {
      let from = 4 * ((top + y) * tiled.width + left);
      for (let x = 0; x < width; x++, from += 4) volume[to++] = value(tiled.data, from);
    }
  }
  return volume;
}

export async function readVolume(image, labels, layout) {
  const size = layout.shape.reduce((a, b) => a * b);
  // Red, green and blue in three bytes.
  const color = untile(await pixels(image), layout, new Uint32Array(size),
    (data, i) => data[i] + (data[i + 1] << 8) + (data[i + 2] << 16));
  const label = untile(await pixels(labels), layout, new Uint16Array(size),
    (data, i) => data[i] + 256 * data[i + 1]);
  const [, height, width] = layout.shape;
  return { ...layout, color, label, strides: [height * width, width, 1] };
}

// Initial position: on each axis the slice with most labelled voxels.
function initialPosition({ shape, strides, label }) {
  const counts = shape.map(size => new Uint32Array(size));
  for (let i = 0; i < label.length; i++) {
    if (label[i]) shape.forEach((n, axis) => counts[axis][Math.floor(i / strides[axis]) % n]++);
  }
  return counts.map((count, axis) => {
    const most = count.reduce((best, n, i) => n > count[best] ? i : best, 0);
    return count[most] ? most : shape[axis] >> 1;
  });
}

// Shows a volume in an element. Returns redraw({colors: value → [r, g, b], opacity}).
export function showVolume(parent, volume) {
  const position = initialPosition(volume), views = [];
  let overlay = { colors: new Map(), opacity: 0.5 };
  const drawAll = () => views.forEach(draw => draw());

  const picture = volume.axes === 2;
  for (const plane of picture ? [PICTURE] : PLANES) {
    const { axis, down, right, flip } = plane;
    const [count, height, width] = [axis, down, right].map(a => volume.shape[a]);
    const view = document.createElement("section");
    view.className = picture ? "view picture" : "view";
    view.innerHTML = `<header><span></span><span></span></header>
      <div class="frame"><canvas></canvas></div>
      <label><input type="range" min="0" step="1"></label>`;
    const [title, number] = view.querySelectorAll("header span");
    const canvas = view.querySelector("canvas"), slider = view.querySelector("input");
    title.textContent = plane.name;
    plane.letters.forEach((letter, i) => {
      const span = document.createElement("span");
      span.className = SIDES[i];
      span.textContent = letter;
      view.querySelector(".frame").append(span);
    });
    slider.max = count - 1;
    slider.parentElement.hidden = number.hidden = picture;
    slider.setAttribute("aria-label", `${plane.name} slice`);
    const aspect = width * volume.spacing[right] / (height * volume.spacing[down]);
    view.querySelector(".frame").style.setProperty("--aspect", aspect);
    // Magnified, so that contours and crosshair stay thin.
    const scale = Math.max(1, Math.ceil(600 / Math.max(width, height)));
    [canvas.width, canvas.height] = [width * scale, height * scale];
    // Pictures have many pixels, which are magnified less.
    const contour = picture ? Math.max(1, Math.min(CONTOUR, Math.floor(scale / 3))) : CONTOUR;
    const imageCanvas = new OffscreenCanvas(width, height);
    const labelCanvas = new OffscreenCanvas(width, height);
    const [images, labels] = [imageCanvas, labelCanvas].map(c => c.getContext("2d"));
    const imageData = images.createImageData(width, height);
    const labelData = labels.createImageData(width, height);
    const row = y => flip ? height - 1 - y : y;

    const draw = () => {
      const base = position[axis] * volume.strides[axis];
      const at = (x, y) => base + row(y) * volume.strides[down] + x * volume.strides[right];
      const edges = [];  // colour, and a thin rectangle inside the voxel
      let to = 0;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++, to += 4) {
          const i = at(x, y), value = volume.label[i], color = overlay.colors.get(value);
          imageData.data[to] = volume.color[i] & 255;
          imageData.data[to + 1] = volume.color[i] >> 8 & 255;
          imageData.data[to + 2] = volume.color[i] >> 16;
          imageData.data[to + 3] = 255;
          labelData.data[to + 3] = 0;
          if (!color) continue;
          labelData.data.set(color, to);
          labelData.data[to + 3] = 255 * overlay.opacity;
          const differs = (u, v) => u < 0 || v < 0 || u >= width || v >= height
            || volume.label[at(u, v)] !== value;
          const [left, top] = [x * scale, y * scale];
          if (differs(x, y - 1)) edges.push([color, left, top, scale, contour]);
          if (differs(x, y + 1)) edges.push([color, left, top + scale - contour, scale, contour]);
          if (differs(x - 1, y)) edges.push([color, left, top, contour, scale]);
          if (differs(x + 1, y)) edges.push([color, left + scale - contour, top, contour, scale]);
        }
      }
      images.putImageData(imageData, 0, 0);
      labels.putImageData(labelData, 0, 0);
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = true;
      context.drawImage(imageCanvas, 0, 0, canvas.width, canvas.height);
      context.imageSmoothingEnabled = false;
      context.drawImage(labelCanvas, 0, 0, canvas.width, canvas.height);
      if (overlay.opacity > 0) {
        for (const [color, ...box] of edges) {
          context.fillStyle = `rgb(${color})`;
          context.fillRect(...box);
        }
      }
      slider.value = position[axis];
      number.textContent = `${position[axis] + 1} / ${count}`;
      if (picture) return;
      context.fillStyle = CROSSHAIR;
      context.fillRect((position[right] + 0.5) * scale, 0, 1, canvas.height);
      context.fillRect(0, (row(position[down]) + 0.5) * scale, canvas.width, 1);
    };
    const move = (a, to) => {
      position[a] = Math.max(0, Math.min(volume.shape[a] - 1, Math.floor(to)));
      drawAll();
    };
    slider.addEventListener("input", () => move(axis, slider.valueAsNumber));
    const point = event => {
      if (!event.buttons) return;
      const box = canvas.getBoundingClientRect();
      position[right] = 0;
      move(right, (event.clientX - box.left) / box.width * width);
      move(down, row(Math.floor((event.clientY - box.top) / box.height * height)));
    };
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      move(axis, position[axis] + Math.sign(event.deltaY));
    }, { passive: false });
    views.push(draw);
    parent.append(view);
  }
  return newOverlay => {
    overlay = newOverlay;
    drawAll();
  };
}
