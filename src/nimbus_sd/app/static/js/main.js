// Puts the parts together.

import { getJson, post, say } from "./api.js";
import { add, nuclear } from "./channels.js";
import { GROUND_COLOR } from "./colors.js";
import * as gallery from "./gallery.js";
import * as heatmap from "./heatmap.js";
import { legend, tip } from "./overlay.js";
import * as progress from "./progress.js";
import { $, element, on, reviewer, state, tell } from "./state.js";
import { timed } from "./timing.js";
import { View } from "./view.js";

let tab = "clusters";

function header() {
  const { store, table, cells, fields, log } = state.session;
  const name = store ? store.split("/").pop() : "in memory";
  $("where").textContent = `${name} · ${table} · ${cells.toLocaleString("en")} cells · ${fields.length} field${fields.length === 1 ? "" : "s"}`;
  $("where").title = log ? `answers are logged in ${log}` : "no log: answers live in memory only";
  document.title = `Review · ${name}`;
  $("who").value = stored("reviewer") ?? state.session.reviewer;
  $("who").onchange = () => { keep("reviewer", reviewer()); gallery.load(); };
  unsaved(state.session.unsaved);
  $("save").disabled = !store;
  $("tiles").disabled = !store;
  if (!log) say("The object is not backed by a store: answers live in memory only. Save it, or pass log=.");
  if (state.session.passed_over) say(`${state.session.passed_over} lines of the log are of other cells or clusters, or can't be read; they were passed over.`, true);
}

// frames in notebooks may be refused storage
function stored(key) { try { return localStorage.getItem(key); } catch { return null; } }
function keep(key, value) { try { localStorage.setItem(key, value); } catch { /* then it is asked for again */ } }

function unsaved(n) {
  $("save").textContent = n ? `Save (${n})` : "Saved";
  $("save").classList.toggle("main", n > 0);
}

async function busy(button, work) {
  button.disabled = true;
  try { await work(); } catch (error) { say(error.message, true); } finally { button.disabled = false; }
}

function openTab(name) {
  tab = name;
  document.activeElement?.blur(); // keys are the page's from here on
  for (const button of document.querySelectorAll("nav button")) {
    button.setAttribute("aria-selected", button.dataset.tab === name);
    $(button.dataset.tab).hidden = button.dataset.tab !== name;
  }
  if (name === "cells") { paintBy("gold"); gallery.setMarker(state.marker); }
  if (name === "clusters") { state.focus = null; paintBy("cluster"); tell("resize"); }
  if (name === "progress") progress.load();
}

function paintBy(what) {
  state.paint = what;
  $("paint").value = what;
  tell("paint");
}

function controls(view) {
  $("field").replaceChildren(...state.session.fields.map((f, i) => element("option", { value: i }, `${f.name} (${f.cells.toLocaleString("en")})`)));
  $("field").onchange = async (event) => { state.focus = null; await view.show(Number(event.target.value)); if (tab === "cells" && $("here").checked) gallery.load(); };
  $("paint").onchange = (event) => timed("paint", () => paintBy(event.target.value));
  $("fill").oninput = (event) => { state.fill = event.target.value / 100; timed("fill", () => tell("paint")); };
  $("outlines").onchange = (event) => { state.outlines = event.target.checked; timed("outlines", () => tell("paint")); };
  $("fit").onclick = () => view.fit();
  for (const button of document.querySelectorAll("nav button")) button.onclick = () => openTab(button.dataset.tab);
  $("save").onclick = () => busy($("save"), async () => {
    const saved = await post("api/save", {});
    unsaved(saved.unsaved);
    say(`Table ${saved.table} is written.`);
  });
  $("tiles").onclick = () => busy($("tiles"), async () => {
    say("Writing the fine-tuning set …");
    const made = await post("api/training-set", {});
    say(`${made.answers} answers in ${made.tiles} tiles. Train with ${made.command}`);
  });
  divider(view);
}

function divider(view) {
  $("divider").onpointerdown = (event) => {
    $("divider").setPointerCapture(event.pointerId);
    $("divider").onpointermove = (move) => { $("left").style.width = `${move.clientX}px`; };
    $("divider").onpointerup = () => { $("divider").onpointermove = null; tell("resize"); view.later(); };
  };
}

function keyboard(view) {
  const anywhere = { f: () => view.fit(), o: () => $("outlines").click() };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea") || $("ask").open;
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const own = { clusters: heatmap.keys, cells: gallery.keys }[tab] ?? {};
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = own[key] ?? anywhere[key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

async function start() {
  state.session = await getJson("api/session");
  header();
  const view = new View();
  window.reviewView = view;
  await gallery.start((cell) => view.goTo(cell, 2.5));
  await heatmap.start(async (table) => {
    if (table === null) await view.reload();
    else view.cells.recode(table);
  });
  controls(view);
  keyboard(view);
  addEventListener("resize", () => tell("resize"));
  on("unsaved", unsaved);
  on("paint", legend);
  on("values", legend);
  on("hover", (where) => tip(view, where));
  on("pick", ({ place, more }) => { if (tab === "clusters" && place >= 0) heatmap.pick(view.cells.codes[place], more); });
  on("answered", ({ row, marker, value }) => { view.cells.setGold(row, marker, value); view.repaint(); });
  on("field", () => { $("field").value = state.field; });
  if (!state.clusters.key) openTab("cells");
  await view.show(0);
  // clusters are easiest to see over grey nuclei; markers are a choice away
  if (tab === "clusters") await add(nuclear() ?? state.session.fields[0].channels[0], GROUND_COLOR);
  progress.load();
  document.body.dataset.ready = "yes";
}

start().catch((error) => { console.error(error); say(`The page could not start: ${error.message}`, true); });
