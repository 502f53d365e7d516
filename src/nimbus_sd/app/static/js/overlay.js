// What lies over the tissue: the ring round the cell under review, scale bar, legend, tip.

import { NEGATIVE, POSITIVE, rampCss } from "./colors.js";
import { $, element, state, swatch } from "./state.js";

export function overlay(view) {
  ring(view);
  scaleBar(view);
}

function ring({ context, camera, ratio }) {
  const cell = state.focus;
  if (!cell || cell.field !== state.field) return;
  const radius = Math.max(14 * ratio, 0.62 * state.session.crop * camera.zoom * 0.5) / camera.zoom;
  context.lineWidth = (1.5 * ratio) / camera.zoom;
  context.strokeStyle = "#ffc840";
  context.setLineDash([(5 * ratio) / camera.zoom, (4 * ratio) / camera.zoom]);
  context.beginPath();
  context.arc(cell.x, cell.y, radius, 0, 2 * Math.PI);
  context.stroke();
  context.setLineDash([]);
}

function scaleBar({ camera, ratio, field }) {
  const unit = field.mpp ?? 1;
  const limit = (130 * ratio * unit) / camera.zoom;
  const power = 10 ** Math.floor(Math.log10(limit));
  const length = [5, 2, 1].find((m) => m * power <= limit) * power;
  $("scalebar").firstElementChild.style.width = `${(length * camera.zoom) / unit / ratio}px`;
  $("scalebar").lastElementChild.textContent = `${+length.toPrecision(3)} ${field.mpp ? "µm" : "px"}`;
}

export function legend() {
  const parts = [];
  if (state.paint === "gold") {
    parts.push(element("span", {}, swatch(POSITIVE), `${state.marker} positive`), element("span", {}, swatch(NEGATIVE), "negative"));
  } else if (state.paint === "score") {
    const bar = element("i", { className: "ramp" });
    bar.style.background = rampCss();
    bar.style.width = "110px";
    parts.push(`${state.marker} score 0 `, bar, "1");
  } else if (state.paint === "cluster" && state.selected.size) {
    for (const name of [...state.selected].slice(0, 6)) {
      parts.push(element("span", {}, swatch(state.clusters.colors[state.clusters.names.indexOf(name)]), name));
    }
    if (state.selected.size > 6) parts.push(`and ${state.selected.size - 6} more`);
  }
  $("legend").replaceChildren(...parts);
}

export function tip(view, { x, y, place }) {
  const box = $("tip");
  box.hidden = place < 0;
  if (place < 0) return;
  const { cells } = view;
  const lines = [];
  const code = cells.codes[place];
  if (state.clusters?.key && code >= 0) {
    lines.push(element("div", {}, swatch(state.clusters.colors[code]), state.clusters.names[code]));
  }
  const score = cells.scores.get(state.marker)?.[place];
  if (score !== undefined) {
    const gold = cells.gold.get(state.marker)?.[place];
    const answer = gold === 1 ? " · positive" : gold === 0 ? " · negative" : "";
    lines.push(element("div", {}, `${state.marker} ${score.toFixed(2)}${answer}`));
  }
  lines.push(element("em", {}, `row ${cells.rows[place]}`));
  box.replaceChildren(...lines);
  const stage = $("stage").getBoundingClientRect();
  box.style.left = `${Math.min(x + 14, stage.width - box.offsetWidth - 6)}px`;
  box.style.top = `${Math.min(y + 14, stage.height - box.offsetHeight - 6)}px`;
}
