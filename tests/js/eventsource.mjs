// The npm EventSource: every event once, in order, until the completion; it reconnects by itself.
//
// node eventsource.mjs URL prints {"ids", "types", "opens"}.
import { EventSource } from "eventsource";

const types = ["turn_start", "message_start", "text_delta", "assistant_message", "completion"];
const seen = { ids: [], types: [], opens: 0 };
const source = new EventSource(process.argv[2]);
source.addEventListener("open", () => (seen.opens += 1));
for (const type of types) {
  source.addEventListener(type, (event) => {
    seen.ids.push(event.lastEventId);
    seen.types.push(type);
    if (type === "completion") {
      source.close();
      console.log(JSON.stringify(seen));
    }
  });
}
