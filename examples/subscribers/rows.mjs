// Runs as they stand, and each that changes: PHASEBUS_WEBSOCKET=ws://127.0.0.1:4280 node rows.mjs
import { wsconnect } from "@nats-io/nats-core";

const { PHASEBUS_WEBSOCKET: servers, PHASEBUS_AUDITOR_PASSWORD: pass } = process.env;
const bus = await wsconnect({ servers, user: "auditor", pass, maxReconnectAttempts: -1 });
let [runs, mark, wake] = [new Map(), undefined, () => {}];
bus.subscribe("bus.changed.runs", { callback: () => wake() }); // some have changed: a reason to ask

for (;;) {
  const woken = new Promise((go) => setTimeout((wake = go), 5000));
  const ask = JSON.stringify({ mark, glances: true });
  const page = await bus.request("bus.rows.runs", ask).then((answer) => answer.json(), () => ({}));
  if (page.afresh) runs.clear();
  for (const [run, row] of Object.entries(page.rows ?? {})) row ? runs.set(run, row) : runs.delete(run);
  mark = page.mark ?? mark; // to go on from here another time, keep it together with the rows
  if (page.rows && !page.more) console.log(JSON.stringify([...runs].map(([run, row]) => [run, row.status])));
  if (!page.more) await woken;
}
