// Tiles of the field in view: fetched when they are needed, dropped when there are too many.

import { getBytes } from "./api.js";

const MAX_TILES = 500;
const AT_ONCE = 6;

export class TileStore {
  constructor(size, changed) {
    this.size = size;
    this.changed = changed; // called when pixels have arrived
    this.tiles = new Map();
    this.waiting = [];
    this.running = 0;
  }

  // the tile with what of it is here; the rest is asked for
  want(field, level, ty, tx, channels) {
    const key = `${field}/${level}/${ty}/${tx}`;
    let tile = this.tiles.get(key);
    if (tile === undefined) {
      tile = { key, planes: new Map(), cells: null, asked: new Set(), canvas: null, drawn: -1 };
    } else {
      this.tiles.delete(key); // to the end of the line: used last
    }
    this.tiles.set(key, tile);
    const missing = channels.filter((c) => !tile.asked.has(c));
    if (missing.length) this.ask(tile, "image", missing);
    if (!tile.asked.has("cells")) this.ask(tile, "cells", ["cells"]);
    return tile;
  }

  have(field, level, ty, tx) {
    return this.tiles.get(`${field}/${level}/${ty}/${tx}`);
  }

  ask(tile, what, parts) {
    for (const part of parts) tile.asked.add(part);
    this.waiting.push({ tile, what, parts });
    this.next();
  }

  // what is no longer in view need not come
  keepOnly(keys) {
    const dropped = this.waiting.filter((w) => !keys.has(w.tile.key));
    for (const { tile, parts } of dropped) for (const part of parts) tile.asked.delete(part);
    if (dropped.length) this.waiting = this.waiting.filter((w) => keys.has(w.tile.key));
    for (const [key] of this.tiles) {
      if (this.tiles.size <= MAX_TILES) break;
      if (!keys.has(key)) this.tiles.delete(key);
    }
  }

  next() {
    while (this.running < AT_ONCE && this.waiting.length) {
      this.running++;
      this.fetch(this.waiting.shift()).finally(() => { this.running--; this.next(); });
    }
  }

  async fetch({ tile, what, parts }) {
    const path = `tiles/${tile.key}/${what}${what === "image" ? `?c=${parts.join(",")}` : ""}`;
    try {
      const bytes = await getBytes(path);
      const n = this.size * this.size;
      if (what === "cells") tile.cells = new Uint32Array(bytes);
      else parts.forEach((c, i) => tile.planes.set(c, new Uint8Array(bytes, i * n, n)));
      tile.drawn = -1;
      this.changed();
    } catch (error) {
      setTimeout(() => { for (const part of parts) tile.asked.delete(part); }, 3000);
      console.error(path, error);
    }
  }
}
