// Packs the files of a DICOM series into one zip archive, without compression.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function checksum(bytes) {
  let sum = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) sum = TABLE[(sum ^ bytes[i]) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

// Little-endian fields: [value, bytes] each.
function pack(...fields) {
  const bytes = new Uint8Array(fields.reduce((size, [, width]) => size + width, 0));
  let at = 0;
  for (const [value, width] of fields) {
    for (let i = 0; i < width; i++) bytes[at++] = Math.floor(value / 2 ** (8 * i)) & 255;
  }
  return bytes;
}

// Names are replaced by numbers, because file names may contain the name of a patient.
export async function zipFiles(files, onProgress) {
  const parts = [], directory = [];
  let offset = 0, count = 0;
  for (const file of files) {
    const content = new Uint8Array(await file.arrayBuffer());
    const name = new TextEncoder().encode(`${String(count).padStart(5, "0")}.dcm`);
    // Flags, method, time and date (1 January 1980), checksum, sizes, lengths of name and extra.
    const common = [[0, 2], [0, 2], [0, 2], [33, 2], [checksum(content), 4], [content.length, 4],
      [content.length, 4], [name.length, 2], [0, 2]];
    const head = pack([0x04034b50, 4], [20, 2], ...common);
    parts.push(head, name, file);
    directory.push(pack([0x02014b50, 4], [20, 2], [20, 2], ...common, [0, 2], [0, 2], [0, 2],
      [0, 4], [offset, 4]), name);
    offset += head.length + name.length + content.length;
    onProgress(++count / files.length);
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = pack([0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [size, 4],
    [offset, 4], [0, 2]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

// Returns all dropped files, including those in dropped folders.
export async function droppedFiles(items) {
  const files = [];
  async function visit(entry) {
    if (entry.isFile) {
      files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const child of some) await visit(child);
    }
  }
  const entries = [...items].map(item => item.webkitGetAsEntry()).filter(Boolean);
  for (const entry of entries) await visit(entry);
  return files;
}
