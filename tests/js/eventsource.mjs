// The npm EventSource: every event once, in order, until the completion; it reconnects by itself.
//
// node eventsource.mjs URL… prints a list of {"ids", "types", "opens"}, one for each.
import { EventSource } from "eventsource";

const TYPES = ["turn_start", "message_start", "text_delta", "assistant_message", "completion"];

function follow(url) {
  return new Promise((resolve) => {
    const seen = { ids: [], types: [], opens: 0 };
    const source = new EventSource(url);
    source.addEventListener("open", () => (seen.opens += 1));
    for (const type of TYPES) {
      source.addEventListener(type, (event) => {
        seen.ids.push(event.lastEventId);
        seen.types.push(type);
        if (type === "completion") {
          source.close();
          resolve(seen);
        }
      });
    }
  });
}

// The wait before a reconnection does not keep the process alive.
const alive = setInterval(() => {}, 1000);
console.log(JSON.stringify(await Promise.all(process.argv.slice(2).map(follow))));
clearInterval(alive);
