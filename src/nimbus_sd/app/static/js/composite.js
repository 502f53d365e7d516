// Pixels of a tile: markers added up, cells painted over them.

const EDGE = 0x80000000;

// tables from byte to red, green and blue of one marker
export function lookup(color, low, high) {
  const table = [new Uint16Array(256), new Uint16Array(256), new Uint16Array(256)];
  for (let v = 0; v < 256; v++) {
    const share = Math.min(Math.max((v - low) / Math.max(high - low, 1), 0), 1);
    for (let k = 0; k < 3; k++) table[k][v] = Math.round(color[k] * share);
  }
  return table;
}

// planes: bytes per marker; tables: as of lookup; cells: 1 + place of the cell, highest bit at borders;
// fill, edge: packed colour per cell, its alpha says how much of it is seen
export function compose(out, planes, tables, cells, fill, edge) {
  const n = out.length;
  for (let p = 0; p < n; p++) {
    let r = 0, g = 0, b = 0;
    for (let k = 0; k < planes.length; k++) {
      const v = planes[k][p];
      if (v === 0) continue;
      const t = tables[k];
      r += t[0][v]; g += t[1][v]; b += t[2][v];
    }
    if (r > 255) r = 255;
    if (g > 255) g = 255;
    if (b > 255) b = 255;
    const cell = cells === null ? 0 : cells[p];
    if (cell !== 0) {
      const paint = cell >= EDGE ? edge[cell - EDGE] : fill[cell];
      const a = paint >>> 24;
      if (a !== 0) {
        r += (((paint & 255) - r) * a) >> 8;
        g += ((((paint >> 8) & 255) - g) * a) >> 8;
        b += ((((paint >> 16) & 255) - b) * a) >> 8;
      }
    }
    out[p] = (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
  }
}
