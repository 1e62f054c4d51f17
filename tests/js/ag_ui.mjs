// AG-UI's own client: a run, verified event by event, to the messages that come of it.
//
// node ag_ui.mjs '{"base", "thread", "run", "messages"}' prints one JSON object; `warnings` are what the client found foreign.
// With "get": a URL whose body is a stream of events, read as if it had been the answer.
import { HttpAgent } from "@ag-ui/client";

const { base, thread, run, messages, get } = JSON.parse(process.argv[2]);
const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));

class Getting extends HttpAgent {
  requestInit(input) {
    if (get === undefined) return super.requestInit(input);
    return { method: "GET", headers: { accept: "text/event-stream" }, signal: this.abortController.signal };
  }
}

const agent = new Getting({ url: get ?? `${base}/ag-ui`, threadId: thread, initialMessages: messages });
const events = [];
let failure = null;
try {
  await agent.runAgent({ runId: run }, { onEvent: ({ event }) => void events.push(event) });
} catch (error) {
  failure = String(error);
}
console.log(JSON.stringify({ events, messages: agent.messages, failure, warnings }));
