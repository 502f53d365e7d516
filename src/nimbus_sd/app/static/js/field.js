// The cells of the field in view, and the colour of each.

import { getBytes } from "./api.js";
import { NEGATIVE, POSITIVE, pack, ramp, rgb } from "./colors.js";
import { state } from "./state.js";

const RAMP = Array.from({ length: 256 }, (_, i) => ramp(i / 255));

export class FieldCells {
  constructor() {
    this.field = -1;
    this.rows = new Uint32Array(0);
    this.scores = new Map();
    this.gold = new Map();
  }

  get n() { return this.rows.length; }

  async load(field) {
    const bytes = await getBytes(`api/fields/${field}/cells`);
    if (field !== state.field) return; // another one was asked for meanwhile
    const n = state.session.fields[field].cells;
    this.rows = new Uint32Array(bytes, 0, n);
    this.x = new Float32Array(bytes, 4 * n, n);
    this.y = new Float32Array(bytes, 8 * n, n);
    this.codes = new Int16Array(bytes, 12 * n, n);
    if (this.field !== field) { this.scores.clear(); this.gold.clear(); }
    this.field = field;
    this.fill = new Uint32Array(n + 1);
    this.edge = new Uint32Array(n + 1);
  }

  async loadValues(what, marker) {
    const kept = what === "score" ? this.scores : this.gold;
    if (!kept.has(marker)) {
      const field = this.field;
      const bytes = await getBytes(`api/fields/${field}/values/${what}/${encodeURIComponent(marker)}`);
      if (field === this.field) kept.set(marker, what === "score" ? new Float32Array(bytes) : new Int8Array(bytes));
    }
  }

  // an edit of clusters: new codes from the old ones, with no word to the server
  recode(table) {
    for (let i = 0; i < this.codes.length; i++) if (this.codes[i] >= 0) this.codes[i] = table[this.codes[i]];
  }

  setGold(row, marker, value) {
    const column = this.gold.get(marker);
    const place = column ? this.rows.indexOf(row) : -1;
    if (place >= 0) column[place] = value;
  }

  // packed colours of insides and outlines; index 0 is the background
  paint() {
    const { fill, edge } = this;
    const inside = Math.round(255 * state.fill);
    const line = state.outlines ? 190 : 0;
    const plain = pack([150, 160, 172], state.outlines ? 120 : 0);
    if (state.paint === "cluster" && state.clusters?.key) this.paintClusters(inside, line, plain);
    else if (state.paint === "score" && this.scores.has(state.marker)) {
      const scores = this.scores.get(state.marker);
      for (let i = 0; i < this.n; i++) {
        const color = RAMP[Math.round(255 * scores[i]) & 255];
        fill[i + 1] = pack(color, inside);
        edge[i + 1] = pack(color, line);
      }
    } else if (state.paint === "gold" && this.gold.has(state.marker)) {
      const gold = this.gold.get(state.marker);
      const colors = [rgb(NEGATIVE), rgb(POSITIVE)];
      for (let i = 0; i < this.n; i++) {
        fill[i + 1] = gold[i] < 0 ? 0 : pack(colors[gold[i]], inside);
        edge[i + 1] = gold[i] < 0 ? plain : pack(colors[gold[i]], 255);
      }
    } else {
      fill.fill(0);
      edge.fill(plain);
    }
    if (state.focus && state.focus.field === this.field) edge[state.focus.place + 1] = pack([255, 200, 64], 255);
  }

  paintClusters(inside, line, plain) {
    const { fill, edge } = this;
    const { names, colors } = state.clusters;
    const some = state.selected.size > 0;
    const fills = names.map((name, i) => (some && !state.selected.has(name) ? 0 : pack(rgb(colors[i]), some ? Math.max(inside, 110) : inside)));
    const edges = names.map((name, i) => (some && !state.selected.has(name) ? pack([150, 160, 172], state.outlines ? 50 : 0) : pack(rgb(colors[i]), line)));
    for (let i = 0; i < this.n; i++) {
      const code = this.codes[i];
      fill[i + 1] = code < 0 ? 0 : fills[code];
      edge[i + 1] = code < 0 ? plain : edges[code];
    }
  }
}
