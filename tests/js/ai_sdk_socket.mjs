// The AI SDK's WebSocket transport: requests one after the other over one socket, each to the message that comes of it.
//
// node ai_sdk_socket.mjs '{"base", "ask": [{"chat", "text" | "resume": true, "cut"?: parts}]}' prints a list of results.

import { WebSocketChatTransport, readUIMessageStream } from "ai7";

const { base, ask } = JSON.parse(process.argv[2]);
const transport = new WebSocketChatTransport({ url: `${base}/ai-sdk/ws`, body: { own: 1 } });

async function answer({ chat, text, resume, cut }) {
  const abort = new AbortController();
  let message = null;
  let error = null;
  let parts = 0;
  let stream;
  try {
    stream = resume
      ? await transport.reconnectToStream({ chatId: chat })
      : await transport.sendMessages({
          chatId: chat,
          trigger: "submit-message",
          messages: [{ id: `q-${text}`, role: "user", parts: [{ type: "text", text }] }],
          abortSignal: abort.signal,
        });
    if (stream !== null) {
      const watched = stream.pipeThrough(
        new TransformStream({
          transform(chunk, controller) {
            controller.enqueue(chunk);
            if (++parts === cut) abort.abort();
          },
        }),
      );
      for await (const next of readUIMessageStream({ stream: watched, onError: (seen) => (error = String(seen)) }))
        message = next;
    }
  } catch (seen) {
    error = String(seen);
  }
  return { active: stream !== null && stream !== undefined, parts, message, error };
}

const results = [];
for (const group of ask) results.push(...(await Promise.all([group].flat().map(answer))));
transport.close();
console.log(JSON.stringify(results));
