import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { tempDir } from './temp-dir.js';

/** What every line of a fake llama-server's journal says; `atMs` is milliseconds since the epoch. */
interface Entry<Kind extends string> {
  event: Kind;
  atMs: number;
  pid: number;
  alias: string;
}

/** `env` holds the variables that could change a child's role: LLAMA_, FAKE_, AIP_, HF_, GGML_ and CUDA_ names. */
export interface StartEntry extends Entry<'start'> {
  port: number;
  argv: string[];
  env: Record<string, string>;
  ppid: number;
  pgid: number | null;
  cwd: string;
}

/** A request whose body arrived whole, whether it was answered or not. `id` counts per process. */
export interface RequestEntry extends Entry<'request'> {
  id: number;
  method: string;
  url: string;
  headers: Record<string, string | string[]>;
  body: { length: number; sha256: string };
}

/** The end of a request: `cancelled` when the client left before the answer was whole. `chunks` counts words. */
export interface ResponseEntry<Kind extends 'answered' | 'cancelled'> extends Entry<Kind> {
  id: number;
  url: string;
  status: number;
  chunks: number;
}

/** The process ended by itself; what the kernel ends leaves no entry. */
export interface ExitEntry extends Entry<'exit'> {
  code?: number;
  signal?: string;
}

export interface StoppingEntry extends Entry<'stopping'> {
  why: 'SIGTERM' | 'SIGINT' | 'exit command';
}

/** An order to stop that the fake was told to ignore. */
export interface IgnoredEntry extends Entry<'ignored'> {
  what: 'SIGTERM' | 'exit command';
}

export interface GrandchildEntry extends Entry<'grandchild'> {
  grandchildPid: number;
}

export type JournalEntry =
  | StartEntry
  | RequestEntry
  | ResponseEntry<'answered'>
  | ResponseEntry<'cancelled'>
  | StoppingEntry
  | IgnoredEntry
  | GrandchildEntry
  | ExitEntry;

/** The journal that any number of fakes append to when FAKE_LLAMA_JOURNAL names `path`. */
export interface Journal {
  path: string;
  /** The environment that makes fakes write it. */
  env: { FAKE_LLAMA_JOURNAL: string };
  /** All entries so far, in the order they were written. */
  all(): JournalEntry[];
  /** The entries of one kind, of one model when `alias` is given. */
  of<Kind extends JournalEntry['event']>(
    event: Kind,
    alias?: string,
  ): Extract<JournalEntry, { event: Kind }>[];
}

/** A new, empty journal in a temporary directory. */
export function newJournal(): Journal {
  return openJournal(join(tempDir(), 'journal.jsonl'));
}

export function openJournal(path: string): Journal {
  const all = () => readEntries(path);
  return {
    path,
    env: { FAKE_LLAMA_JOURNAL: path },
    all,
    of: <Kind extends JournalEntry['event']>(event: Kind, alias?: string) =>
      all().filter(
        (entry): entry is Extract<JournalEntry, { event: Kind }> =>
          entry.event === event && (alias === undefined || entry.alias === alias),
      ),
  };
}

function readEntries(path: string): JournalEntry[] {
  if (!existsSync(path)) return [];
  // The last piece is empty, or a line that is still being written.
  const lines = readFileSync(path, 'utf8').split('\n').slice(0, -1);
  return lines.map((line) => JSON.parse(line) as JournalEntry);
}
