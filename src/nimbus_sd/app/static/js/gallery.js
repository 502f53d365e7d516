// One marker, cell after cell: positive, negative or skip.

import { getJson, post, query, say } from "./api.js";
import { follow, nuclear } from "./channels.js";
import { $, element, on, reviewer, state, tell } from "./state.js";
import { timed } from "./timing.js";

const PAGE = 60;
const VALUE = { positive: 1, negative: 0, skip: -1 };
let cells = [];
let at = 0;
let asked = 0; // the last request for a queue counts
let history = []; // positions answered, for taking back
let goTo = () => {};

export async function start(show) {
  goTo = show;
  $("marker").replaceChildren(...state.session.markers.map((m) => element("option", { value: m }, m)));
  $("marker").onchange = (event) => setMarker(event.target.value);
  $("order").onchange = load;
  $("here").onchange = load;
  state.marker = state.session.markers[0];
}

export async function setMarker(marker) {
  state.marker = marker;
  $("marker").value = marker;
  await follow(marker);
  tell("values");
  await load();
}

export async function load() {
  const mine = ++asked;
  const given = { marker: state.marker, order: $("order").value, who: reviewer(), n: PAGE };
  if ($("here").checked) given.field = state.field;
  try {
    const found = await getJson(`api/queue?${query(given)}`);
    if (mine !== asked) return;
    cells = found.cells;
  } catch (error) { say(error.message, true); cells = []; }
  at = 0;
  history = [];
  thumbs();
  focus();
  tally();
}

const crop = (cell, context = null) => {
  const given = { marker: state.marker };
  if (context) given.context = context;
  return `crops/${cell.row}.png?${query(given)}`;
};

function thumbs() {
  $("thumbs").replaceChildren(...cells.map((cell, i) => element("button", { className: "thumb", "data-row": cell.row, onclick: () => timed("move", () => move(i)) },
    element("img", { src: crop(cell), loading: "lazy", alt: `cell ${cell.cell}` }), element("span", {}, cell.score.toFixed(2)))));
  cells.forEach((_, i) => mark(i));
}

function mark(i) {
  const thumb = $("thumbs").children[i];
  if (!thumb) return;
  const answer = cells[i].mine;
  thumb.className = `thumb ${i === at ? "current" : ""} ${answer ? `done ${answer}` : ""}`;
  thumb.setAttribute("aria-current", i === at);
  if (answer) thumb.dataset.answer = answer;
  else delete thumb.dataset.answer;
}

function move(i) {
  const before = at;
  at = Math.min(Math.max(i, 0), cells.length - 1);
  mark(before);
  mark(at);
  $("thumbs").children[at]?.scrollIntoView({ block: "nearest" });
  focus();
}

function focus() {
  const cell = cells[at];
  state.focus = cell ?? null;
  if (!cell) {
    $("focus").replaceChildren(element("p", { className: "empty" }, empty()));
    tell("paint");
    return;
  }
  const context = nuclear(cell.field);
  const picture = (src, caption) => element("figure", {}, element("img", { src, alt: caption }), element("figcaption", {}, caption));
  const button = (answer, key) => element("button", { className: answer, "data-answer": answer, "aria-pressed": cell.mine === answer, onclick: () => give(answer) }, answer[0].toUpperCase() + answer.slice(1), element("kbd", {}, key));
  const pin = element("i");
  pin.style.left = `${100 * cell.score}%`;
  const tick = element("u");
  tick.style.left = `${100 * state.session.threshold}%`;
  // what others said would sway: it shows after the answer
  const others = cell.mine ? Object.entries(cell.others).map(([who, a]) => `${who}: ${a}`).join(", ") : "";
  $("focus").replaceChildren(
    picture(crop(cell), state.marker),
    ...(context && context !== state.marker ? [picture(crop(cell, context), `${state.marker} + ${context}`)] : []),
    element("div", { className: "side" },
      element("div", {}, element("h2", {}, `Is this cell ${state.marker} positive?`), element("div", { className: "hint" }, `cell ${cell.cell} · ${state.session.fields[cell.field].name} · score ${cell.score.toFixed(2)}`)),
      element("div", { className: "meter", title: "score" }, tick, pin),
      element("div", { className: "answers" }, button("positive", "P"), button("negative", "N"), button("skip", "S")),
      element("div", { className: "hint" }, others)));
  for (const next of cells.slice(at + 1, at + 3)) {
    new Image().src = crop(next);
    if (context) new Image().src = crop(next, context);
  }
  goTo(cell);
}

function empty() {
  if ($("order").value === "disputed") return `Reviewers agree on all cells of ${state.marker}.`;
  if ($("order").value === "reviewed") return `You have not answered for ${state.marker} yet.`;
  return `No cell of ${state.marker} is left in this order. Choose another marker or order.`;
}

// the page goes on at once; the server writes meanwhile, and a failure is said and undone
function give(answer) {
  const cell = cells[at];
  if (!cell) return;
  if (!reviewer()) { say("Who are you? Write your name at the top.", true); $("who").focus(); return; }
  timed("answer", () => {
    const before = cell.mine;
    const i = at;
    cell.mine = answer === "clear" ? null : answer;
    if (answer !== "clear") {
      history.push(i);
      const next = cells.findIndex((c, k) => k > i && !c.mine);
      if (next >= 0) move(next);
      else { mark(i); focus(); }
    } else { mark(i); focus(); }
    send(cell, state.marker, answer, before);
  });
}

// one after another: an answer must not overtake the one before it, nor its counts
let delivered = Promise.resolve();
function send(...answer) {
  delivered = delivered.then(() => deliver(...answer));
}

async function deliver(cell, marker, answer, before) {
  try {
    const found = await post("api/answers", { who: reviewer(), answers: [{ row: cell.row, marker, answer }] });
    tell("statistics", found.markers);
    tell("unsaved", found.unsaved);
    if (cell.field === state.field) tell("answered", { row: cell.row, marker, value: VALUE[answer] ?? -1 });
    if (marker === state.marker && cells.length && cells.every((c) => c.mine) && $("order").value !== "reviewed") load();
  } catch (error) {
    cell.mine = before;
    mark(cells.indexOf(cell));
    say(`Not saved: ${error.message}`, true);
  }
}

function takeBack() {
  const i = history.pop();
  if (i === undefined) { if (cells[at]?.mine) give("clear"); return; }
  move(i);
  give("clear");
}

let statistics = {};
function tally() {
  const found = statistics[state.marker];
  const share = (v) => (v === null ? "–" : `${Math.round(100 * v)} %`);
  $("tally").textContent = found?.reviewed ? `${found.reviewed} reviewed · agreement with score ${share(found.agreement)}` : "none reviewed yet";
}
on("statistics", (markers) => { statistics = { ...statistics, ...markers }; tally(); });

const step = (by) => () => {
  const { markers } = state.session;
  setMarker(markers[(markers.indexOf(state.marker) + by + markers.length) % markers.length]);
};

export const keys = {
  p: () => give("positive"), n: () => give("negative"), s: () => give("skip"), u: takeBack,
  ArrowRight: () => timed("move", () => move(at + 1)), ArrowLeft: () => timed("move", () => move(at - 1)),
  "]": step(1), "[": step(-1),
};
