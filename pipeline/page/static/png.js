// Reads 8-bit grey PNG into exact bytes. The canvas would do it too, but it may colour-manage what it
// decodes and some browsers add noise to what is read back; a label must not change by one.

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

async function inflate(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function chunks(bytes) {
  if (SIGNATURE.some((value, i) => bytes[i] !== value)) throw new Error("not a PNG file");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const data = [];
  let header = null;
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (type === "IHDR") {
      header = { width: view.getUint32(at + 8), height: view.getUint32(at + 12), depth: bytes[at + 16],
        colour: bytes[at + 17], interlaced: bytes[at + 20] };
    } else if (type === "IDAT") data.push(bytes.subarray(at + 8, at + 8 + length));
    else if (type === "IEND") break;
    at += 12 + length;
  }
  if (!header || header.depth !== 8 || header.colour !== 0 || header.interlaced) throw new Error("expected an 8-bit grey PNG");
  return { header, data };
}

function paeth(row, above, width) {
  let left = 0;
  let corner = 0;
  for (let x = 0; x < width; x++) {
    const up = above[x];
    const guess = left + up - corner;
    const a = Math.abs(guess - left);
    const b = Math.abs(guess - up);
    const c = Math.abs(guess - corner);
    left = (row[x] + (a <= b && a <= c ? left : b <= c ? up : corner)) & 255;
    row[x] = left;
    corner = up;
  }
}

function unfilter(kind, row, above, width) {
  if (kind === 1) for (let x = 1; x < width; x++) row[x] += row[x - 1];
  else if (kind === 2) for (let x = 0; x < width; x++) row[x] += above[x];
  else if (kind === 3) for (let x = 0; x < width; x++) row[x] += ((x ? row[x - 1] : 0) + above[x]) >> 1;
  else if (kind === 4) paeth(row, above, width);
  else if (kind !== 0) throw new Error(`unknown PNG filter ${kind}`);
}

/** Decode an ArrayBuffer; returns {width, height, data: Uint8Array of width * height}. */
export async function decodeGrey(buffer) {
  const { header, data } = chunks(new Uint8Array(buffer));
  const { width, height } = header;
  const raw = await inflate(data);
  if (raw.length !== (width + 1) * height) throw new Error("PNG data is cut short");
  const out = new Uint8Array(width * height);
  let above = new Uint8Array(width);
  for (let y = 0; y < height; y++) {
    const from = y * (width + 1);
    const row = out.subarray(y * width, (y + 1) * width);
    row.set(raw.subarray(from + 1, from + 1 + width));
    unfilter(raw[from], row, above, width);
    above = row;
  }
  return { width, height, data: out };
}
