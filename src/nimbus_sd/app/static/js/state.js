// What the parts of the page share, and a word to each other when it changes.

const listeners = new Map();

export function on(topic, listener) {
  if (!listeners.has(topic)) listeners.set(topic, []);
  listeners.get(topic).push(listener);
}

export function tell(topic, detail) {
  for (const listener of listeners.get(topic) ?? []) listener(detail);
}

export const state = {
  session: null, // of the server: names, fields, threshold
  clusters: null, // heatmap
  selected: new Set(), // names of clusters
  marker: null, // under review
  field: 0,
  focus: null, // cell under review
  channels: [], // {name, color, low, high, on}
  paint: "cluster",
  fill: 0.5,
  outlines: true,
};

const who = document.getElementById("who");
export const reviewer = () => who.value.trim();

export const $ = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export const swatch = (color) => { const i = element("i"); i.style.background = color; return i; };

// a question with one line of text for an answer; null when it is given up
export function ask(question, suggestion = "") {
  const dialog = $("ask");
  const input = dialog.querySelector("input");
  dialog.querySelector("h2").textContent = question;
  input.value = suggestion;
  dialog.returnValue = "";
  dialog.showModal();
  input.select();
  dialog.querySelector("[value=cancel]").onclick = () => dialog.close("cancel");
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "ok" && input.value.trim() ? input.value.trim() : null);
  });
}
