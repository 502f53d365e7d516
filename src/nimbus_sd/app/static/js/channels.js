// Which markers are shown, in which colour and contrast.

import { getJson, say } from "./api.js";
import { CONTEXT_COLOR, MARKER_COLORS } from "./colors.js";
import { $, element, on, state, tell } from "./state.js";
import { timed } from "./timing.js";

const MAX_CHANNELS = 7;
const NUCLEAR = /^(dapi|hoechst|draq|h{1,2}3|histone|dna|nuc|iridium|ir191|ir193|191ir|193ir)/i;

const available = () => state.session.fields[state.field].channels;
export const nuclear = (field = state.field) => state.session.fields[field].channels.find((c) => NUCLEAR.test(c)) ?? null;

async function contrast(channel) {
  const index = available().indexOf(channel.name);
  if (index < 0) return;
  try {
    Object.assign(channel, await getJson(`api/fields/${state.field}/contrast/${index}`));
  } catch (error) { say(error.message, true); }
}

function freeColor() {
  const used = new Set(state.channels.map((c) => c.color));
  const [white, ...others] = MARKER_COLORS; // over grey nuclei, white would be one more grey
  return [...others, white].find((c) => !used.has(c)) ?? white;
}

export async function add(name, color = freeColor()) {
  if (state.channels.length >= MAX_CHANNELS || state.channels.some((c) => c.name === name)) return;
  const channel = { name, color, low: 0, high: 128, on: true };
  state.channels.push(channel);
  await contrast(channel);
  render();
  tell("channels");
}

// the marker under review in white over the nuclei; other markers go
export async function follow(marker) {
  if (!available().includes(marker) || state.channels[0]?.name === marker) return;
  const context = nuclear();
  state.channels = [];
  await add(marker, MARKER_COLORS[0]);
  if (context && context !== marker) await add(context, CONTEXT_COLOR);
}

function row(channel) {
  const change = (key) => (event) => {
    const value = Number(event.target.value);
    channel[key] = key === "low" ? Math.min(value, channel.high - 1) : Math.max(value, channel.low + 1);
    event.target.value = channel[key];
    timed("contrast", () => tell("channels"));
  };
  const slider = (key) => element("input", {
    type: "range", min: 0, max: 255, step: 1, value: channel[key], oninput: change(key),
    "aria-label": `${channel.name} ${key === "low" ? "black" : "white"} point`,
  });
  return element("div", { className: channel.on ? "channel" : "channel off", "data-name": channel.name },
    element("input", { type: "color", value: channel.color, title: "Colour", oninput: (e) => { channel.color = e.target.value; tell("channels"); } }),
    element("span", { title: "Show or hide", onclick: () => { channel.on = !channel.on; render(); timed("toggle", () => tell("channels")); } }, channel.name),
    element("button", { title: "Remove", onclick: () => { state.channels = state.channels.filter((c) => c !== channel); render(); tell("channels"); } }, "×"),
    element("div", { className: "range" }, slider("low"), slider("high")));
}

function render() {
  const shown = new Set(state.channels.map((c) => c.name));
  const choose = element("select", { "aria-label": "Add a marker", onchange: (e) => { if (e.target.value) add(e.target.value); } },
    element("option", { value: "" }, state.channels.length < MAX_CHANNELS ? "add a marker …" : "seven markers at most"),
    ...available().filter((c) => !shown.has(c)).map((c) => element("option", { value: c }, c)));
  choose.disabled = state.channels.length >= MAX_CHANNELS;
  $("channels").replaceChildren(...state.channels.filter((c) => available().includes(c.name)).map(row), choose);
}

on("field", async () => {
  await Promise.all(state.channels.map(contrast));
  render();
  tell("channels");
});
