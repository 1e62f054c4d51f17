// The AI SDK as a browser uses it: one request of its chat transport, or its resumption, to the message that comes of it.
//
// node ai_sdk.mjs MAJOR '{"base", "chat", "text" | "messages" | "resume": true, "cut"?: parts}' prints one JSON object.

const [major, argument] = process.argv.slice(2);
const { DefaultChatTransport, readUIMessageStream } = await import(`ai${major}`);
const { base, chat, text, resume, cut, messages, messageId, trigger = "submit-message" } = JSON.parse(argument);

const transport = new DefaultChatTransport({ api: `${base}/ai-sdk` });
const abort = new AbortController();
const stream = resume
  ? await transport.reconnectToStream({ chatId: chat })
  : await transport.sendMessages({
      chatId: chat,
      trigger,
      messageId,
      messages: messages ?? [{ id: "user-1", role: "user", parts: [{ type: "text", text }] }],
      abortSignal: abort.signal,
    });

const chunks = [];
let message = null;
let error = null;
if (stream !== null) {
  const watched = stream.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        chunks.push(chunk);
        controller.enqueue(chunk);
        if (chunks.length === cut) abort.abort();
      },
    }),
  );
  try {
    const options = { stream: watched, onError: (seen) => (error = String(seen)), terminateOnError: false };
    for await (const next of readUIMessageStream(options)) message = next;
  } catch (seen) {
    if (cut === undefined) throw seen;
  }
}
console.log(JSON.stringify({ active: stream !== null, chunks, message, error }));
