import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import {
  fakeBehaviourEnv,
  setFakeBehaviour,
  writeFakeModel,
  type FakeBehaviour,
} from '../helpers/fake-llama-server.js';
import { newJournal, type Journal } from '../helpers/journal.js';
import { jsonPost, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { startSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';

export interface ServeOptions {
  /** The models, by name, each with what is special about its child. */
  models: Record<string, FakeBehaviour>;
  /** More files for the models directory, by name. */
  files?: Record<string, string>;
  /** The behaviour of all children, below that of each. */
  forAll?: FakeBehaviour;
  /** Options of `start`, besides the models directory. */
  args?: string[];
  /** The text of a preset file. */
  presets?: string;
  env?: Record<string, string>;
  /** The binary that runs the models, when it is not the fake one. */
  llamaServer?: string;
  /** Whether the supervisor is to meet an error that nobody handles. */
  meetsInternalError?: boolean;
}

/** A supervisor over fake llama-servers, as one test file uses it. */
export interface FakeService {
  supervisor: SupervisorProcess;
  url: string;
  journal: Journal;
  modelsDir: string;
  setBehaviour(model: string, behaviour: FakeBehaviour): void;
  /** The entries of `GET /models`. */
  list(): Promise<ListEntry[]>;
  entry(model: string): Promise<ListEntry>;
  /** Polls the list until the model is as `wanted`. */
  until(label: string, model: string, wanted: (entry: ListEntry) => boolean): Promise<ListEntry>;
  /** A request that loads the model, and its answer: an echo of the child that took it. */
  use(model: string): Promise<Echo>;
}

export interface ListEntry extends Record<string, unknown> {
  id: string;
  status: {
    value: string;
    args: string[];
    preset: string;
    exit_code?: number;
    failed?: boolean;
    error?: { reason: string; message: string; last_lines?: string[]; at?: string };
  };
  pid?: number;
  in_flight: number;
  waiting: number;
}

/** What a fake says on its echo routes. */
export interface Echo {
  alias: string;
  pid: number;
  method: string;
  url: string;
  headers: Record<string, string | string[]>;
  rawHeaders: string[];
  body: { length: number; sha256: string };
  connection: { remotePort: number; requests: number };
}

/** Starts a supervisor with the models; it ends with the test, or with the file when called from a hook. */
export async function serveFakes(options: ServeOptions): Promise<FakeService> {
  const {
    models,
    files = {},
    forAll = {},
    args = [],
    presets,
    env = {},
    llamaServer,
    meetsInternalError,
  } = options;
  const modelsDir = tempDir();
  const paths = new Map(
    Object.entries(models).map(([name, behaviour]) => [name, writeFakeModel(modelsDir, name, behaviour)]),
  );
  for (const [name, text] of Object.entries(files)) writeFileSync(join(modelsDir, name), text);
  const journal = newJournal();
  const presetArgs: string[] = [];
  if (presets !== undefined) {
    const file = join(tempDir(), 'presets.ini');
    writeFileSync(file, presets);
    presetArgs.push('--models-preset', file);
  }
  const supervisor = await startSupervisor({
    args: ['--models-dir', modelsDir, ...presetArgs, ...args],
    env: { ...journal.env, ...fakeBehaviourEnv(forAll), ...env },
    ...(llamaServer === undefined ? {} : { llamaServer }),
    ...(meetsInternalError === undefined ? {} : { meetsInternalError }),
  });
  const { url } = supervisor;

  const list = async () => {
    const { data } = jsonIn(await rawRequest(`${url}/models`)) as { data: ListEntry[] };
    return data;
  };
  const entry = async (model: string) => {
    const found = (await list()).find(({ id }) => id === model);
    if (!found) throw new Error(`${model} is not listed`);
    return found;
  };
  return {
    supervisor,
    url,
    journal,
    modelsDir,
    setBehaviour: (model, behaviour) => {
      const path = paths.get(model);
      if (path === undefined) throw new Error(`${model} is not one of the models`);
      setFakeBehaviour(path, behaviour);
    },
    list,
    entry,
    until: (label, model, wanted) =>
      eventually(label, async () => {
        const found = await entry(model);
        return wanted(found) && found;
      }),
    use: async (model) => {
      const response = await rawRequest(`${url}/infill`, jsonPost({ model }));
      expect(response.status, response.body.toString()).toBe(200);
      return echoIn(response);
    },
  };
}

export function jsonIn(response: RawResponse): unknown {
  return JSON.parse(response.body.toString());
}

export function echoIn(response: RawResponse): Echo {
  return jsonIn(response) as Echo;
}

export interface WireError extends Record<string, unknown> {
  code: number;
  message: string;
  type: string;
  reason: string;
}

/** Checks that a response is one of our own errors in llama-server's envelope, and returns it. */
export function wireError(response: RawResponse, status: number, type: string): WireError {
  const text = response.body.toString();
  expect({ status: response.status, body: text }).toMatchObject({ status });
  expect(response.complete).toBe(true);
  expect(response.headers['content-type']).toBe('application/json; charset=utf-8');
  expect(response.headers['content-length']).toBe(String(response.body.length));
  const { error, ...rest } = JSON.parse(text) as { error: WireError };
  expect(rest).toEqual({});
  expect(error).toMatchObject({ code: status, type });
  expect(error.message).not.toBe('');
  expect(error.reason).toMatch(/^[a-z_]+$/);
  return error;
}

/** The words a streamed or whole answer must have: the model's name, then the count. */
export function words(model: string, last: number): string {
  return [model, ...Array.from({ length: last }, (_, at) => at + 1)].join(' ');
}

/** The text of the completion chunks among the data of an event stream. */
export function textOf(data: readonly string[]): string {
  return data
    .filter((item) => item !== '[DONE]')
    .map((item) => {
      const { choices } = JSON.parse(item) as {
        choices?: { text?: string; delta?: { content?: string | null } }[];
      };
      return choices?.[0]?.text ?? choices?.[0]?.delta?.content ?? '';
    })
    .join('');
}
