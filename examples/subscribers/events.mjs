// What happens to runs, from after a position on: PHASEBUS_WEBSOCKET=ws://127.0.0.1:4280 node events.mjs 0
import { wsconnect } from "@nats-io/nats-core";

const { PHASEBUS_WEBSOCKET: servers, PHASEBUS_AUDITOR_PASSWORD: pass } = process.env;
const bus = await wsconnect({ servers, user: "auditor", pass, maxReconnectAttempts: -1 });
let [position, wake] = [Number(process.argv[2]), () => {}];
bus.subscribe("live.bus.run.*", { callback: () => wake() }); // something was stored: a reason to look

for (;;) {
  const [before, woken] = [position, new Promise((go) => setTimeout((wake = go), 5000))];
  const ask = JSON.stringify({ seq: position + 1, next_by_subj: "bus.run.*", batch: 256 });
  for await (const record of await bus.requestMany("$JS.API.DIRECT.GET.BUS", ask)) {
    if (!record.headers?.has("Nats-Sequence")) break; // the end of the page
    position = Number(record.headers.get("Nats-Sequence"));
    for (const event of record.json().data.events) console.log(position, event.type, event.phase ?? "");
  }
  if (position === before) await woken; // otherwise there may be another page
}
