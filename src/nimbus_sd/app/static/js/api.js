// Requests to the server: addresses are relative, so that they hold in a notebook's frame too.

const toast = document.getElementById("toast");
let hiding = 0;

export function say(text, bad = false) {
  toast.textContent = text;
  toast.className = bad ? "bad" : "";
  toast.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { toast.hidden = true; }, bad ? 9000 : 5000);
}

async function checked(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error ?? message; } catch { /* no JSON: the status has to do */ }
  throw new Error(message);
}

export const query = (values) => new URLSearchParams(values).toString();

export async function getJson(path) {
  return (await checked(await fetch(path))).json();
}

export async function getBytes(path, signal) {
  return (await checked(await fetch(path, { signal }))).arrayBuffer();
}

export async function post(path, body) {
  const headers = { "content-type": "application/json" };
  return (await checked(await fetch(path, { method: "POST", headers, body: JSON.stringify(body), keepalive: true }))).json();
}
