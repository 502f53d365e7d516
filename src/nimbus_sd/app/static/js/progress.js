// How far the review is, and how far reviewers and scores agree.

import { getJson, say } from "./api.js";
import { $, element, tell } from "./state.js";

const share = (value) => (value === null ? "" : `${(100 * value).toFixed(0)} %`);
const count = (value) => (value ? value.toLocaleString("en") : "");

export async function load() {
  let found;
  try { found = await getJson("api/progress"); } catch (error) { say(error.message, true); return; }
  tell("statistics", found.markers);
  tell("unsaved", found.unsaved);
  const head = ["marker", "reviewed", "positive", "negative", "skipped", "disputed", "score agrees", "reviewers agree"];
  const body = Object.entries(found.markers).map(([marker, s]) => element("tr", { className: s.reviewed ? "" : "none" },
    ...[marker, count(s.reviewed), count(s.positive), count(s.negative), count(s.skipped), count(s.disputed), share(s.agreement), share(s.between)].map((v) => element("td", {}, v))));
  const people = Object.entries(found.reviewers).map(([who, n]) => element("tr", {}, element("td", {}, who), element("td", {}, count(n))));
  $("progress").replaceChildren(
    element("table", {}, element("thead", {}, element("tr", {}, ...head.map((h) => element("th", {}, h)))), element("tbody", {}, ...body)),
    element("h3", {}, "Reviewers"),
    people.length ? element("table", {}, element("tbody", {}, ...people)) : element("p", { className: "hint" }, "Nobody has answered yet."));
}
