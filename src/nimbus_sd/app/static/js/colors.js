// Colours: of markers, of scores, of answers.

export const MARKER_COLORS = ["#ffffff", "#ff5a5a", "#4fd86b", "#ffd84d", "#e77bff", "#4de3e3", "#ff9d3b"];
export const CONTEXT_COLOR = "#3f6bff";
export const GROUND_COLOR = "#9aa4b2";
export const POSITIVE = "#e69f00";
export const NEGATIVE = "#56b4e9";

// dark to light in equal steps of lightness, from the panel's own grey to a warm white
const STOPS = ["#20262e", "#2b3f63", "#3a5f97", "#2f8aa8", "#3fb39d", "#8fd08a", "#e6e6a0", "#fff8dc"].map(rgb);

export function rgb(hex) {
  const n = parseInt(hex.slice(1), 16);
  return [n >> 16, (n >> 8) & 255, n & 255];
}

export function ramp(t) {
  const x = Math.min(Math.max(t, 0), 1) * (STOPS.length - 1);
  const i = Math.min(Math.floor(x), STOPS.length - 2);
  return STOPS[i].map((v, k) => Math.round(v + (STOPS[i + 1][k] - v) * (x - i)));
}

export const rampCss = () => `linear-gradient(90deg, ${STOPS.map((c) => `rgb(${c})`).join(", ")})`;

// as the pixels of an ImageData: little endian, so red comes lowest
export const pack = ([r, g, b], alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
