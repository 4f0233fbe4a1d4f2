import { atEndOfTest } from './cleanup.js';
import { eventually, withDeadline, type Patience } from './eventually.js';
import { rawExchange, type RawResponse } from './raw-http.js';
import { sseSplitter } from './sse.js';

/** A record of `GET /models/sse`. */
export interface ModelEvent {
  model: string;
  event: string;
  data?: {
    status?: string;
    progress?: Record<string, unknown>;
    info?: Record<string, unknown>;
    exit_code?: number;
    /** Why it was unloaded, when that was asked for; ours alone. */
    reason?: string;
    /** How its process failed; ours alone. */
    error?: { message: string; last_lines: string[] };
  };
}

/** A client that listens to what happens to models. It leaves at the end of the test. */
export interface ModelEvents {
  all(): readonly ModelEvent[];
  /** What has happened so far, an event each, as `inShort` says it; a load's progress is said once. */
  story(): readonly string[];
  /** Waits until the story has these parts, in this order and next to each other, and returns the story. */
  until(...parts: readonly string[]): Promise<readonly string[]>;
  /** The end of the stream. */
  ended(): Promise<RawResponse>;
  leave(): void;
}

/** Settles when the stream has begun: what happens from then on is heard. */
export async function listenToModels(
  url: string,
  headers: Record<string, string> = {},
): Promise<ModelEvents> {
  const splitter = sseSplitter();
  const events: ModelEvent[] = [];
  const exchange = rawExchange(`${url}/models/sse`, {
    headers,
    onChunk: (chunk) => {
      for (const { data } of splitter.push(chunk)) {
        if (data !== undefined) events.push(JSON.parse(data) as ModelEvent);
      }
    },
  });
  atEndOfTest(() => exchange.abort());
  const { status } = await withDeadline('the event stream begins', exchange.head, 5_000);
  if (status !== 200) throw new Error(`no event stream, but ${status}`);
  const story = () => withoutRepetition(events.map(inShort));
  return {
    all: () => events,
    story,
    until: (...parts) => untilTold(story, parts),
    ended: () => withDeadline('the end of the event stream', exchange.ended, 10_000),
    leave: () => exchange.abort(),
  };
}

/** `alpha model_status loading`, `alpha status_change unloaded 1`, `* models_reload`. */
export function inShort({ model, event, data = {} }: ModelEvent): string {
  return [model, event, data.status, data.exit_code].filter((word) => word !== undefined).join(' ');
}

async function untilTold(
  story: () => readonly string[],
  parts: readonly string[],
  patience: Patience = { deadlineMs: 20_000 },
): Promise<readonly string[]> {
  return eventually(
    `the story has ${parts.join(', ')}`,
    () => {
      const told = story();
      const begins = told.findIndex((_, at) => parts.every((part, offset) => told[at + offset] === part));
      if (begins === -1) throw new Error(`it is ${told.join(', ')}`);
      return told;
    },
    patience,
  );
}

function withoutRepetition(list: readonly string[]): string[] {
  return list.filter((item, at) => item !== list[at - 1]);
}
