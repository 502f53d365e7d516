// How long an interaction takes, from the event until the next frame is painted; read by the browser test.

export const timings = [];
window.reviewTimings = timings;

const painted = () => new Promise((resolve) => {
  requestAnimationFrame(() => { const c = new MessageChannel(); c.port1.onmessage = resolve; c.port2.postMessage(0); });
});

export function timed(name, work) {
  const start = performance.now();
  const result = work();
  painted().then(() => {
    timings.push({ name, ms: performance.now() - start });
    if (timings.length > 2000) timings.splice(0, 1000);
  });
  return result;
}

export async function timedAsync(name, work) {
  const start = performance.now();
  try { return await work(); } finally {
    await painted();
    timings.push({ name, ms: performance.now() - start });
  }
}
