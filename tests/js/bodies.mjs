// Many recorded bodies through the clients that they are for, in one process.
//
// node bodies.mjs FILE, a JSON list of {"format": "ai-sdk" | "ag-ui", "body"}, prints a list: of the AI SDK the message that
// each major comes to, of AG-UI the messages and custom events; `warnings` are what a client found foreign.
import { readFileSync } from "node:fs";
import { HttpAgent } from "@ag-ui/client";

const cases = JSON.parse(readFileSync(process.argv[2], "utf8"));
const majors = await Promise.all(["5", "6", "7"].map((major) => import(`ai${major}`)));
const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));
const answer = (body, more) => new Response(body, { headers: { "content-type": "text/event-stream", ...more } });

async function aiSdk({ DefaultChatTransport, readUIMessageStream }, body) {
  const fetch = async () => answer(body, { "x-vercel-ai-ui-message-stream": "v1" });
  const transport = new DefaultChatTransport({ api: "http://127.0.0.1/", fetch });
  const stream = await transport.reconnectToStream({ chatId: "c" });
  const errors = [];
  let message = null;
  // What the chat itself reports of `error` parts is no fault of the stream.
  const options = { stream, onError: (error) => errors.push(String(error)), terminateOnError: false };
  for await (const next of readUIMessageStream(options)) message = next;
  return { message, errors };
}

async function agUi(body) {
  class Told extends HttpAgent {
    constructor(options) {
      super({ ...options, fetch: async () => answer(body) });
    }
  }
  const agent = new Told({ url: "http://127.0.0.1/", threadId: "t" });
  const [events, seen] = [[], warnings.length];
  let failure = null;
  try {
    await agent.runAgent({}, { onEvent: ({ event }) => void events.push(event) });
  } catch (error) {
    failure = String(error);
  }
  return { messages: agent.messages, events, failure, warnings: warnings.slice(seen) };
}

const results = [];
for (const { format, body } of cases) {
  results.push(format === "ag-ui" ? await agUi(body) : await Promise.all(majors.map((major) => aiSdk(major, body))));
}
console.log(JSON.stringify(results));
