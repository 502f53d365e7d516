// The tissue: pan, zoom, tiles, the cell under the pointer.

import { say } from "./api.js";
import { rgb } from "./colors.js";
import { compose, lookup } from "./composite.js";
import { FieldCells } from "./field.js";
import { overlay } from "./overlay.js";
import { $, on, state, tell } from "./state.js";
import { TileStore } from "./tiles.js";
import { timed } from "./timing.js";

const EDGE = 0x80000000;
const OUTLINES_TO_LEVEL = 2; // beyond, a cell is a few px and outlines would hide it

export class View {
  constructor() {
    this.canvas = $("view");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.size = state.session.tile;
    this.tiles = new TileStore(this.size, () => this.later());
    this.cells = new FieldCells();
    this.scratch = new ImageData(this.size, this.size);
    this.pixels = new Uint32Array(this.scratch.data.buffer);
    this.version = 0; // of what decides colours
    this.camera = { x: 0, y: 0, zoom: 1 }; // centre in px of the field, screen px per px
    this.pending = false;
    new ResizeObserver(() => this.resize()).observe($("stage"));
    this.pointer();
    on("paint", () => this.repaint());
    on("channels", () => this.repaint());
    on("values", () => this.loadValues());
  }

  get field() { return state.session.fields[state.field]; }

  async show(field) {
    state.field = field;
    try { await this.cells.load(field); } catch (error) { say(error.message, true); return; }
    if (state.field !== field) return;
    tell("field");
    await this.loadValues();
    this.fit();
  }

  async reload() {
    await this.cells.load(state.field);
    this.repaint();
  }

  async loadValues() {
    try {
      await Promise.all(["score", "gold"].map((what) => this.cells.loadValues(what, state.marker)));
    } catch (error) { say(error.message, true); }
    this.repaint();
  }

  repaint() {
    if (this.cells.field !== state.field) return;
    this.cells.paint();
    this.version++;
    this.later();
  }

  resize() {
    const { width, height } = $("stage").getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(width * ratio));
    this.canvas.height = Math.max(1, Math.round(height * ratio));
    this.ratio = ratio;
    if (!this.fitted) this.fit(); else this.draw();
  }

  fit() {
    const [height, width] = this.field.shape;
    this.camera = { x: width / 2, y: height / 2, zoom: 0.96 * Math.min(this.canvas.width / width, this.canvas.height / height) };
    this.fitted = this.canvas.width > 1;
    this.later();
  }

  async goTo(cell, zoom) {
    if (cell.field !== state.field) await this.show(cell.field);
    if (state.focus !== cell) return; // the reviewer was faster
    this.camera.x = cell.x;
    this.camera.y = cell.y;
    this.camera.zoom = Math.max(this.camera.zoom, zoom * this.ratio);
    this.repaint();
  }

  later() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.draw(); });
  }

  toField(px, py) {
    const { x, y, zoom } = this.camera;
    return [x + (px * this.ratio - this.canvas.width / 2) / zoom, y + (py * this.ratio - this.canvas.height / 2) / zoom];
  }

  draw() {
    if (this.cells.field !== state.field) return;
    const { canvas, context, camera } = this;
    const level = Math.min(Math.max(Math.round(Math.log2(1 / camera.zoom)), 0), this.field.levels - 1);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.setTransform(camera.zoom, 0, 0, camera.zoom, canvas.width / 2 - camera.x * camera.zoom, canvas.height / 2 - camera.y * camera.zoom);
    context.imageSmoothingEnabled = camera.zoom * 2 ** level < 2.5;
    const shown = state.channels.filter((c) => c.on && this.field.channels.includes(c.name));
    const indices = shown.map((c) => this.field.channels.indexOf(c.name));
    const tables = shown.map((c) => lookup(rgb(c.color), c.low, c.high));
    const wanted = new Set();
    const side = this.size * 2 ** level;
    for (const [ty, tx] of this.visible(side)) {
      const tile = this.tiles.want(state.field, level, ty, tx, indices);
      wanted.add(tile.key);
      if (tile.canvas === null && !(tile.cells && indices.every((c) => tile.planes.has(c)))) this.drawCoarser(level, ty, tx);
      else this.drawTile(tile, indices, tables, level, ty, tx, side);
    }
    this.tiles.keepOnly(wanted);
    overlay(this);
  }

  * visible(side) {
    const [height, width] = this.field.shape;
    const [x0, y0] = this.toField(0, 0);
    const [x1, y1] = this.toField(this.canvas.width / this.ratio, this.canvas.height / this.ratio);
    for (let ty = Math.max(0, Math.floor(y0 / side)); ty * side < Math.min(y1, height); ty++) {
      for (let tx = Math.max(0, Math.floor(x0 / side)); tx * side < Math.min(x1, width); tx++) yield [ty, tx];
    }
  }

  drawTile(tile, indices, tables, level, ty, tx, side) {
    const ready = tile.cells && indices.every((c) => tile.planes.has(c));
    if (tile.drawn !== this.version && ready) {
      tile.canvas ??= new OffscreenCanvas(this.size, this.size);
      const planes = indices.map((c) => tile.planes.get(c));
      const edge = level <= OUTLINES_TO_LEVEL ? this.cells.edge : this.cells.fill;
      compose(this.pixels, planes, tables, tile.cells, this.cells.fill, edge);
      tile.canvas.getContext("2d").putImageData(this.scratch, 0, 0);
      tile.drawn = this.version;
    }
    const [height, width] = this.field.shape;
    const part = [Math.min(1, (width - tx * side) / side), Math.min(1, (height - ty * side) / side)];
    this.context.drawImage(tile.canvas, 0, 0, this.size * part[0], this.size * part[1], tx * side, ty * side, side * part[0], side * part[1]);
  }

  // until a tile comes, the one above it stands in
  drawCoarser(level, ty, tx) {
    for (let up = 1; level + up < this.field.levels; up++) {
      const tile = this.tiles.have(state.field, level + up, ty >> up, tx >> up);
      if (!tile?.canvas) continue;
      const part = this.size / 2 ** up;
      const side = this.size * 2 ** level;
      const [x, y] = [(tx % 2 ** up) * part, (ty % 2 ** up) * part];
      this.context.drawImage(tile.canvas, x, y, part, part, tx * side, ty * side, side, side);
      return;
    }
  }

  // place of the cell there, -1 for none
  cellAt(px, py) {
    const [x, y] = this.toField(px, py);
    const [height, width] = this.field.shape;
    if (x < 0 || y < 0 || x >= width || y >= height) return -1;
    for (let level = 0; level < this.field.levels; level++) {
      const side = this.size * 2 ** level;
      const tile = this.tiles.have(state.field, level, Math.floor(y / side), Math.floor(x / side));
      if (!tile?.cells) continue;
      const cell = tile.cells[Math.floor((y % side) / 2 ** level) * this.size + Math.floor((x % side) / 2 ** level)];
      return (cell >= EDGE ? cell - EDGE : cell) - 1;
    }
    return -1;
  }

  zoomBy(factor, px, py) {
    const before = this.toField(px, py);
    const [height, width] = this.field.shape;
    const smallest = 0.3 * Math.min(this.canvas.width / width, this.canvas.height / height);
    this.camera.zoom = Math.min(Math.max(this.camera.zoom * factor, smallest), 40 * this.ratio);
    const after = this.toField(px, py);
    this.camera.x += before[0] - after[0];
    this.camera.y += before[1] - after[1];
    timed("zoom", () => this.later());
  }

  pointer() {
    const { canvas } = this;
    let last = null, moved = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(2 ** (-event.deltaY / (event.deltaMode ? 6 : 240)), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = [event.offsetX, event.offsetY];
      moved = 0;
      canvas.classList.add("drag");
    });
    canvas.addEventListener("pointermove", (event) => {
      if (last === null) { tell("hover", { x: event.offsetX, y: event.offsetY, place: this.cellAt(event.offsetX, event.offsetY) }); return; }
      const [dx, dy] = [event.offsetX - last[0], event.offsetY - last[1]];
      moved += Math.abs(dx) + Math.abs(dy);
      this.camera.x -= (dx * this.ratio) / this.camera.zoom;
      this.camera.y -= (dy * this.ratio) / this.camera.zoom;
      last = [event.offsetX, event.offsetY];
      timed("pan", () => this.later());
    });
    canvas.addEventListener("pointerup", (event) => {
      canvas.classList.remove("drag");
      if (last && moved < 4) tell("pick", { place: this.cellAt(event.offsetX, event.offsetY), more: event.shiftKey || event.ctrlKey || event.metaKey });
      last = null;
    });
    canvas.addEventListener("pointerleave", () => tell("hover", { place: -1 }));
    canvas.addEventListener("dblclick", (event) => this.zoomBy(2, event.offsetX, event.offsetY));
  }
}
