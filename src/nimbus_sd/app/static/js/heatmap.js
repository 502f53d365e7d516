// Clusters x markers: mean scores, choice of rows, merge, rename, undo.

import { getJson, post, say } from "./api.js";
import { ramp, rampCss } from "./colors.js";
import { $, ask, element, on, reviewer, state, swatch, tell } from "./state.js";
import { timed, timedAsync } from "./timing.js";

let ROW = 22; // px; both follow the room there is
let COLUMN = 24;
const UPRIGHT = 18; // px; slanted names of narrower columns would run into each other
let rows = []; // names, from top to bottom
let last = null; // row chosen last, where a range starts
let refresh = async () => {};
let running = Promise.resolve();

export async function start(reload) {
  refresh = reload;
  state.clusters = await getJson("api/clusters");
  if (!state.clusters.key) { nothing(); return; }
  order("similar");
  $("merge").onclick = merge;
  $("rename").onclick = rename;
  $("undo").onclick = undo;
  $("sort").onchange = (event) => timed("sort", () => { order(event.target.value); render(); });
  const bar = element("i", { className: "ramp" });
  bar.style.background = rampCss();
  $("heat-note").replaceChildren("mean score 0", bar, "1  ·  click, ", element("kbd", {}, "Shift"), " a range, ", element("kbd", {}, "Ctrl"), " several");
  render();
}

function nothing() {
  $("clusters").querySelector(".bar").hidden = true;
  $("heat").replaceChildren(element("p", { className: "empty" }, "The table has no clusters yet. Make some with ",
    element("code", {}, "nb.tl.flowsom(adata)"), " or scanpy’s Leiden, or name another column with ", element("code", {}, "key="), "."));
}

function order(by) {
  const { names, sizes } = state.clusters;
  if (by === "similar") rows = state.clusters.order.map((i) => names[i]);
  else if (by === "size") rows = [...names].sort((a, b) => sizes[names.indexOf(b)] - sizes[names.indexOf(a)]);
  else rows = [...names].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
}

function render() {
  const { clusters, selected } = state;
  const columns = clusters.marker_order;
  const names = element("div", { id: "heat-names", role: "listbox", "aria-multiselectable": "true" });
  const canvas = element("canvas", { id: "heat-map" });
  const room = $("heat").getBoundingClientRect();
  const longest = Math.min(Math.max(...rows.map((name) => name.length)) * 7.2, 170) + 86;
  COLUMN = Math.min(Math.max(Math.floor((room.width - longest - 44) / columns.length), 12), 34);
  const text = Math.max(...clusters.markers.map((m) => m.length)) * (COLUMN < UPRIGHT ? 6.6 : 5.9) + 16;
  const top = Math.min(Math.max(text, 44), 124);
  ROW = Math.min(Math.max(Math.floor((room.height - top - 12) / rows.length), 20), 28);
  names.style.setProperty("--h", `${ROW}px`);
  names.style.paddingTop = `${top}px`;
  for (const name of rows) {
    const i = clusters.names.indexOf(name);
    const row = element("div", { className: "row", role: "option", title: name, "data-name": name, "aria-selected": selected.has(name), onclick: (e) => timed("select", () => choose(name, e)) },
      swatch(clusters.colors[i]), element("b", {}, name), element("span", {}, clusters.sizes[i].toLocaleString("en")));
    names.append(row);
  }
  $("heat").replaceChildren(element("div", { id: "heat-grid" }, names, canvas));
  paint(canvas, columns, top);
  canvas.onclick = (event) => {
    const name = rows[Math.floor((event.offsetY - top) / ROW)];
    if (name !== undefined) timed("select", () => choose(name, event));
  };
  canvas.onmousemove = (event) => {
    const name = rows[Math.floor((event.offsetY - top) / ROW)];
    const column = columns[Math.floor(event.offsetX / COLUMN)];
    const known = name !== undefined && column !== undefined && event.offsetY >= top;
    canvas.title = known ? `${name} · ${clusters.markers[column]} ${clusters.means[clusters.names.indexOf(name)][column].toFixed(2)}` : "";
  };
  buttons();
}

function paint(canvas, columns, top) {
  const { clusters } = state;
  const width = columns.length * COLUMN + (COLUMN < UPRIGHT ? 6 : 52);
  const height = top + rows.length * ROW;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `${COLUMN < UPRIGHT ? 10.5 : 12}px system-ui, sans-serif`;
  context.fillStyle = "#b4bdc9";
  columns.forEach((column, k) => {
    context.save();
    context.translate(k * COLUMN + COLUMN / 2 + (COLUMN < UPRIGHT ? 3.5 : 2), top - 6);
    context.rotate(COLUMN < UPRIGHT ? -Math.PI / 2 : -Math.PI / 3.4);
    context.fillText(clusters.markers[column], 0, 0, 130);
    context.restore();
  });
  rows.forEach((name, r) => {
    const means = clusters.means[clusters.names.indexOf(name)];
    columns.forEach((column, k) => {
      context.fillStyle = `rgb(${ramp(means[column])})`;
      context.fillRect(k * COLUMN, top + r * ROW, COLUMN - 1, ROW - 1);
    });
  });
}

function choose(name, event) {
  const { selected } = state;
  if (event.shiftKey && last !== null && rows.includes(last)) {
    const [a, b] = [rows.indexOf(last), rows.indexOf(name)].sort((p, q) => p - q);
    for (const each of rows.slice(a, b + 1)) selected.add(each);
  } else if (event.ctrlKey || event.metaKey) {
    if (!selected.delete(name)) selected.add(name);
  } else {
    const alone = selected.size === 1 && selected.has(name);
    selected.clear();
    if (!alone) selected.add(name);
  }
  last = name;
  marks();
}

function marks() {
  for (const row of $("heat").querySelectorAll(".row")) row.setAttribute("aria-selected", state.selected.has(row.dataset.name));
  buttons();
  tell("paint");
}

function buttons() {
  const n = state.selected.size;
  $("merge").disabled = n < 2;
  $("rename").disabled = n !== 1;
  $("undo").disabled = !state.clusters?.edits?.length;
  const cells = [...state.selected].reduce((sum, name) => sum + state.clusters.sizes[state.clusters.names.indexOf(name)], 0);
  $("chosen").textContent = n ? `${n} chosen · ${cells.toLocaleString("en")} cells` : "";
}

// one after the other: an edit says which clusters it was made on
function edit(kind, mapping) {
  running = running.catch(() => {}).then(() => send(kind, mapping));
  return running;
}

async function send(kind, mapping) {
  const before = state.clusters;
  try {
    state.clusters = await post("api/clusters", { edit: kind, mapping, who: reviewer(), seen: before.state });
  } catch (error) { say(error.message, true); return; }
  const { names } = state.clusters;
  if (kind === "undo") {
    order($("sort").value);
    state.selected.clear();
    await refresh(null);
  } else {
    rows = [...new Set(rows.map((name) => mapping[name] ?? name))];
    const kept = [...state.selected].map((name) => mapping[name] ?? name);
    state.selected = new Set(kept.filter((name) => names.includes(name)));
    await refresh(before.names.map((name) => names.indexOf(mapping[name] ?? name)));
  }
  render();
  tell("paint");
  tell("unsaved", state.clusters.unsaved);
}

async function merge() {
  const chosen = rows.filter((name) => state.selected.has(name));
  if (chosen.length < 2) return;
  // the largest one lends its name: renaming is a step of its own
  const into = chosen.reduce((a, b) => (state.clusters.sizes[state.clusters.names.indexOf(b)] > state.clusters.sizes[state.clusters.names.indexOf(a)] ? b : a));
  const mapping = Object.fromEntries(chosen.filter((name) => name !== into).map((name) => [name, into]));
  await timedAsync("merge", () => edit("merge", mapping));
}

async function rename() {
  const [old] = state.selected;
  if (old === undefined || state.selected.size !== 1) return;
  const name = await ask(`New name of cluster ${old}`, old);
  if (name && name !== old) await timedAsync("rename", () => edit("name", { [old]: name }));
}

async function undo() {
  if (state.clusters?.edits?.length) await timedAsync("undo", () => edit("undo", {}));
}

export const keys = { m: merge, r: rename, z: undo };

export function pick(code, more) {
  if (code < 0 || !state.clusters?.key) return;
  const name = state.clusters.names[code];
  timed("select", () => choose(name, { ctrlKey: more }));
  $("heat").querySelector(`.row[data-name="${CSS.escape(name)}"]`)?.scrollIntoView({ block: "nearest" });
}

on("resize", () => { if (state.clusters?.key && !$("clusters").hidden) render(); });
