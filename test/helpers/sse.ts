/** One event of a `text/event-stream`; a block of nothing but comments (a ping) has no `data`. */
export interface SseEvent {
  event?: string;
  data?: string;
  id?: string;
  comment?: string;
}

/** Splits a byte stream into events as they become whole; events and even characters may be cut anywhere. */
export interface SseSplitter {
  push(bytes: Buffer): SseEvent[];
  /** What came after the last whole event: not empty when the stream was cut. */
  rest(): string;
}

/** Follows https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream, LF and CRLF. */
export function sseSplitter(): SseSplitter {
  const decoder = new TextDecoder();
  let pending = '';
  return {
    push(bytes) {
      pending += decoder.decode(bytes, { stream: true });
      const blocks = pending.split(/\r?\n\r?\n/);
      pending = blocks.pop() ?? '';
      return blocks.map(parseBlock);
    },
    rest: () => pending,
  };
}

/** The events of a whole body; what is left after the last blank line is dropped, as the standard says. */
export function sseEvents(body: Buffer): SseEvent[] {
  return sseSplitter().push(body);
}

/** The data of each event of a body, without pings. */
export function sseData(body: Buffer): string[] {
  return sseEvents(body).flatMap(({ data }) => (data === undefined ? [] : [data]));
}

function parseBlock(block: string): SseEvent {
  const event: SseEvent = {};
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*)(?:: ?(.*))?$/.exec(line) ?? [];
    const field = name === '' ? 'comment' : name;
    if (field === 'data' || field === 'comment') {
      const before = event[field];
      event[field] = before === undefined ? (value ?? '') : `${before}\n${value ?? ''}`;
    } else if (field === 'event' || field === 'id') {
      event[field] = value ?? '';
    }
  }
  return event;
}
