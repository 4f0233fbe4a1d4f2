import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The executable that stands in for llama-server; its own header says what it answers. */
export const fakeLlamaServer = fileURLToPath(new URL('../fixtures/fake-llama-server.js', import.meta.url));

/** A crash: by `signal` when one is given, else by exit code (default 1). */
export interface Death {
  code?: number;
  signal?: NodeJS.Signals;
}

/** How a fake llama-server behaves; everything is optional, and `{}` is a good child that loads at once. */
export interface FakeBehaviour {
  // Starting
  /** Milliseconds of loading, with progress lines; a wake from sleep takes as long. */
  loadMs?: number;
  /** Keeps loading for ever: 503, no further state line. */
  neverReady?: boolean;
  /** Prints these lines on stderr at the end of loading and dies. */
  exitWhileLoading?: Death & { lines?: string[] };
  /** "couldn't bind HTTP server socket" and exit 1, as when the port is taken (which it also reports truly). */
  bindFails?: boolean;
  /** No state lines and no attention to stdin, as a binary of before the router mode. */
  noProtocol?: boolean;
  /** Overrides for the first, second … start of this model; needs a journal. `[{ bindFails: true }]` fails once. */
  byStart?: FakeBehaviour[];

  // Answering
  /** The word count of a completion that names none. Default 5; -1 for ever. */
  chunks?: number;
  /** Milliseconds before each streamed word. Default 0. */
  tokenIntervalMs?: number;
  /** Streams end in order, however many words were asked for, once there is a file of this path. */
  endStreamAtFile?: string;
  /** Milliseconds before the headers of a stream, as while a long prompt is read. Default 0. */
  beforeStreamMs?: number;
  /** Milliseconds before an answer in one piece. Default 0. */
  nonStreamMs?: number;
  /** Every POST is answered with this status while /health stays well. */
  errorStatus?: number;
  /** The connection of every POST, or of those to these paths, is cut before an answer, while /health stays well. */
  breaksOff?: true | string[];
  /** Paths (without the API prefix) that are never answered: `['/health']`, `['/slots', '/completion']`. */
  hangs?: string[];
  /** After its first answer to a POST every connection to it is refused; the process lives. */
  stopsListening?: true;
  /** Status and extra headers of the echo routes. */
  echo?: { status?: number; headers?: Record<string, string | string[]> };
  /** Dies when so many words of a stream have been handed to the kernel. */
  dieMidStream?: Death & { afterChunks: number };
  /** Dies on a POST before a byte of the answer. */
  dieOnRequest?: true | Death;
  /** Idle milliseconds until a kept-alive connection is closed. Default 5000, as in llama-server. */
  keepAliveMs?: number;
  /** Requests until a kept-alive connection is closed. Default 100, as in llama-server. */
  requestsPerConnection?: number;
  /** Idle milliseconds until it reports that it sleeps; the next POST wakes it. */
  sleepAfterMs?: number;

  // Stopping
  /** Milliseconds that a graceful stop takes. */
  stopMs?: number;
  ignoreSigterm?: boolean;
  ignoreExitCommand?: boolean;
  /** Starts a `sleep` in the same process group that holds the output pipes and is not stopped with the fake. */
  forkGrandchild?: true | { ignoreSigterm: boolean };

  // Printing, all on stdout but the chatter
  /** Log lines a second, on stderr, from the start on. */
  chatty?: number;
  /** So many bytes without a newline, once it listens. The write blocks when nobody reads. */
  printWithoutNewline?: number;
  /** Lines as they are, once it listens: forged state lines, rubbish. */
  printWhileLoading?: string[];
  /** Lines as they are, after the ready line. */
  printWhenReady?: string[];
  /** Bytes as they are, in base64, before it loads: in writes of so many each, with a pause between any two. */
  printBytes?: { base64: string; each: number };
}

/** The environment that gives `forAll` to every fake and `models[alias]` to one; a model's own file wins. */
export function fakeBehaviourEnv(
  forAll: FakeBehaviour,
  models: Record<string, FakeBehaviour> = {},
): { FAKE_LLAMA: string } {
  return { FAKE_LLAMA: JSON.stringify({ ...forAll, models }) };
}

/**
 * Writes `<dir>/<name>.gguf`, the smallest file with a valid GGUF header, and its behaviour beside it.
 *
 * @returns the path of the model file.
 */
export function writeFakeModel(dir: string, name: string, behaviour: FakeBehaviour = {}): string {
  const path = join(dir, `${name}.gguf`);
  setFakeBehaviour(path, behaviour);
  writeFileSync(path, minimalGguf());
  return path;
}

/** Changes the behaviour of a model, running or not: POST and GET handling at once, the rest at its next start. */
export function setFakeBehaviour(modelPath: string, behaviour: FakeBehaviour): void {
  const path = `${modelPath}.fake.json`;
  // Moved into place, so that a running fake never reads half of it.
  writeFileSync(`${path}.new`, JSON.stringify(behaviour));
  renameSync(`${path}.new`, path);
}

/**
 * A GGUF of version 3 without tensors whose only metadata is `general.architecture = "llama"`.
 * Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
function minimalGguf(): Buffer {
  const valueTypeString = 8;
  return Buffer.concat([
    Buffer.from('GGUF'),
    uint32(3),
    uint64(0),
    uint64(1),
    ggufString('general.architecture'),
    uint32(valueTypeString),
    ggufString('llama'),
  ]);
}

function ggufString(text: string): Buffer {
  return Buffer.concat([uint64(Buffer.byteLength(text)), Buffer.from(text)]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function uint64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}
