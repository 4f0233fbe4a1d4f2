import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { execa } from 'execa';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { fakeBehaviourEnv } from '../helpers/fake-llama-server.js';
import { newJournal, type Journal } from '../helpers/journal.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, get, listModels, modelEntry, untilStatus } from '../helpers/supervisor-client.js';
import {
  launchSupervisor,
  startSupervisor,
  type LaunchedSupervisor,
  type SupervisorProcess,
} from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { ggufHeader } from '../unit/models/gguf-header.js';
import { sha256 } from './payload.js';
import { echoIn, jsonIn, wireError, type Echo } from './serve-fakes.js';

/** Names that are valid UTF-8, and the ids of their models, too. */
const names = [
  'a line\nbreak',
  'a carriage\rreturn',
  '\n{"level":60,"msg":"forged"}\n',
  '\u001b[2J\u001b[31mred\u001b[0m',
  '\u001b]0;a title\u0007',
  'C1 \u0085 and \u009b31m, DEL \u007f',
  'a tab\tand a backspace\b',
  'separators \u2028 and \u2029',
  'right to left \u202egpj.exe, marks \u200f\u200e\u061c, isolates \u2067x\u2069',
  `"double", 'single' and \`back\` quotes`,
  'back\\slash\\n\\u0041',
  '<script>alert(1)<\u2215script>',
  '"><img src=x onerror=alert(1)>',
  '</title>'.replace('/', '\u2215'),
  'one,two, three',
  '100%',
  '%0a%2F%252F%zz',
  '%C3%28',
  '-leading-dash',
  '--model',
  '-',
  ' blanks around ',
  ' ',
  'a+b c&model=x#y?z;w',
  '🦙🏽‍🌾',
  'caf\u00e9 composed',
  'cafe\u0301 composed',
  '\ufffd replacement',
  '\ufeffbyte order mark',
  'x'.repeat(250),
  'é'.repeat(125),
  '__proto__',
  'constructor',
  'toString',
  'hasOwnProperty',
  'null',
  '0',
  '*',
  '[section]',
  '{{.Name}} ${HOME} $(id) %s {} %o',
  '.',
  '..',
  'x'.repeat(40) + '\r\nSet-Cookie: a=b\r\n\r\n',
];

/** Names that are not, in Latin-1, and the ids they get. */
const oddNames: readonly (readonly [latin1: string, id: string])[] = [
  ['caf\xe9', 'caf%E9'],
  ['\xff\xfe', '%FF%FE'],
  ['cut \xf0\x9f\xa6', 'cut %F0%9F%A6'],
  ['surrogate \xed\xa0\x80', 'surrogate %ED%A0%80'],
  ['overlong \xc0\xaf\n', 'overlong %C0%AF\n'],
];

const ids = [...names, ...oddNames.map(([, id]) => id)];

/** A directory with a model of each name; the files are GGUF headers, which is all that fakes need. */
function writeAll(): string {
  const dir = tempDir();
  for (const name of names) writeFileSync(join(dir, `${name}.gguf`), ggufHeader());
  for (const [latin1] of oddNames) {
    writeFileSync(Buffer.from(`${dir}/${latin1}.gguf`, 'latin1'), ggufHeader());
  }
  return dir;
}

/** By bytes, as the list is sorted. */
function sorted(list: readonly string[]): string[] {
  return list.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
}

/** Every header as it was received is a line of visible ASCII. */
function expectPlainHeaders({ rawHeaders }: RawResponse): void {
  for (const text of rawHeaders) expect(text).toMatch(/^[\x20-\x7e]*$/);
  expect(rawHeaders.filter((_text, at) => at % 2 === 0).map((name) => name.toLowerCase())).not.toContain(
    'set-cookie',
  );
}

/** Loads, uses and unloads the model in every way there is. */
async function useInEveryWay(url: string, journal: Journal, id: string): Promise<void> {
  const load = await rawRequest(`${url}/models/load`, jsonPost({ model: id }));
  expect({ status: load.status, body: load.body.toString() }).toEqual({
    status: 200,
    body: '{"success":true}',
  });

  const body = JSON.stringify({ model: id, prompt: 'x' });
  const byBody = await rawRequest(`${url}/infill`, { method: 'POST', body });
  expect(byBody.status, byBody.body.toString()).toBe(200);
  expect(echoIn(byBody).body).toEqual(sha256(Buffer.from(body)));

  const query = `model=${encodeURIComponent(id)}`;
  const byQuery = await rawRequest(`${url}/props?${query}`);
  expect(byQuery.status, byQuery.body.toString()).toBe(200);
  const { echo } = jsonIn(byQuery) as { echo: Echo };
  expect(echo.pid).toBe(echoIn(byBody).pid);

  const { pid, status } = await modelEntry(url, id);
  expect(status.value).toBe('loaded');
  expect(pid).toBe(echo.pid);
  const starts = journal.of('start').filter(({ argv }) => argv[argv.indexOf('--alias') + 1] === id);
  expect(starts.map((start) => start.pid)).toEqual([pid]);
  const unload = await rawRequest(`${url}/models/unload`, jsonPost({ model: id }));
  expect(unload.body.toString()).toBe('{"success":true}');
  await untilStatus(url, id, 'unloaded');

  const refused = await rawRequest(`${url}/props?${query}`);
  wireError(refused, 400, 'invalid_request_error');
  for (const response of [load, byBody, byQuery, unload, refused]) expectPlainHeaders(response);
}

/** Other systems do not let a file have such names. */
const onLinux = process.platform === 'linux';

describe.runIf(onLinux)('models whose files have odd names, with a log in JSON', () => {
  const journal = newJournal();
  let supervisor: SupervisorProcess;
  let url: string;
  beforeAll(async () => {
    supervisor = await startSupervisor({
      args: ['--models-dir', writeAll(), '--log-level', 'debug'],
      env: journal.env,
    });
    ({ url } = supervisor);
  });

  it('are listed, each once', async () => {
    const response = await rawRequest(`${url}/models`);
    expectPlainHeaders(response);
    const { data } = jsonIn(response) as { data: { id: string; status: object }[] };
    expect(data.map(({ id }) => id)).toEqual(sorted(ids));
    for (const { status } of data) expect(status).not.toHaveProperty('failed');
  });

  it.each(ids.map((id) => [id]))('%j is loaded, answers and is unloaded', async (id) => {
    await useInEveryWay(url, journal, id);
  });

  it.each(names.map((name) => [name]))('%j with another letter is told to be unknown', async (name) => {
    const wrong = `${name}!`;
    for (const response of [
      await rawRequest(`${url}/infill`, jsonPost({ model: wrong })),
      await rawRequest(`${url}/props?model=${encodeURIComponent(wrong)}`),
    ]) {
      expect(wireError(response, 400, 'invalid_request_error')).toMatchObject({
        reason: 'model_unknown',
        model: wrong,
        message: `model '${wrong}' not found`,
      });
      expectPlainHeaders(response);
    }
  });

  it('leave the log one JSON object a line', async () => {
    await eventually('the log has told of all loads', () =>
      ids.every((id) =>
        supervisor.log().some((line) => line.msg === 'model.unloaded' && line['model'] === id),
      ),
    );
    await supervisor.stop();
    const lines = supervisor.output().trimEnd().split('\n');
    for (const line of lines) {
      expect(JSON.parse(line), line).toMatchObject({ level: expect.any(Number) as number });
    }
    expect(lines.length).toBeGreaterThan(ids.length * 5);
    expect(supervisor.log().filter(({ msg }) => msg === 'forged')).toEqual([]);
  });
});

describe.runIf(onLinux)('a text log about models with odd names', () => {
  /** Whatever ends a line, commands a terminal or turns text round, but for the ends of the log's own lines. */
  const controls = /(?!\n)[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u;
  /** How pino-pretty begins a record: `[12:00:00.000] INFO: `, or `INFO (PID): ` where it is about a process. */
  const record = /^\[\d\d:\d\d:\d\d\.\d{3}\] (?:DEBUG|INFO|WARN|ERROR)(?: \(\d+\))?: /;

  async function startWithTextLog(
    args: string[],
    env: Record<string, string> = {},
  ): Promise<LaunchedSupervisor & { url: string }> {
    const supervisor = launchSupervisor({
      args: ['--log-format', 'text', '--log-level', 'debug', ...args],
      env,
    });
    const url = await eventually(
      'it listens',
      () => /listening \{"url":"([^"]+)"/.exec(supervisor.output())?.[1],
    );
    return { ...supervisor, url };
  }

  it('is one line for each record, without a control character', async () => {
    const dir = tempDir();
    // No model: so each is told of at the start, the many in one line, and refused with its id and path.
    for (const name of names) writeFileSync(join(dir, `${name}.gguf`), 'junk');
    writeFileSync(join(dir, 'good \n\u001b[31m\u202e.gguf'), ggufHeader());
    const supervisor = await startWithTextLog(['--models-dir', dir]);
    for (const name of names) {
      const refused = await rawRequest(`${supervisor.url}/infill`, jsonPost({ model: name }));
      expect(wireError(refused, 503, 'unavailable_error')).toMatchObject({ model: name });
    }
    const served = await rawRequest(
      `${supervisor.url}/infill`,
      jsonPost({ model: 'good \n\u001b[31m\u202e' }),
    );
    expect(served.status).toBe(200);
    await supervisor.stop();

    const output = supervisor.output();
    expect(controls.exec(output)).toBeNull();
    const lines = output.trimEnd().split('\n');
    for (const line of lines) expect(line).toMatch(record);
    const about = (text: string) => lines.filter((line) => line.includes(text)).length;
    expect(about(`"count":${names.length}`)).toBe(1);
    expect(about('"reason":"model_invalid"')).toBe(names.length);
    expect(about('model.loaded')).toBe(1);
  });

  it('has the last words of a child in the line of its end', async () => {
    const dir = tempDir();
    writeFileSync(join(dir, 'model.gguf'), ggufHeader());
    const lines = ['dying \u001b[31mred', 'in a\rline \u202e of its own'];
    const supervisor = await startWithTextLog(
      ['--models-dir', dir],
      fakeBehaviourEnv({ exitWhileLoading: { code: 3, lines } }),
    );
    const failed = await rawRequest(`${supervisor.url}/infill`, jsonPost({ model: 'model' }));
    expect(wireError(failed, 503, 'unavailable_error')['last_lines']).toEqual(expect.arrayContaining(lines));
    await supervisor.stop();
    const output = supervisor.output();
    expect(controls.exec(output)).toBeNull();
    for (const line of output.trimEnd().split('\n')) expect(line).toMatch(record);
    expect(output).toMatch(/ERROR: model\.unloaded .*dying .*31mred.*of its own/);
  });

  it('shows the stack of what was thrown in lines of its own, and no other line', async () => {
    const log = new URL('../../dist/observe/log.js', import.meta.url).href;
    const script = `
      const { createLog } = await import(${JSON.stringify(log)});
      const log = await createLog({ level: 'info', format: 'text' });
      log.error({ err: new Error('of \\n[00:00:00.000] INFO: forged \\x1b[2J\\u200f') }, 'failed');
    `;
    const { stdout } = await execa(process.execPath, ['--input-type=module', '--eval', script], {
      timeout: 20_000,
    });
    expect(controls.exec(stdout)).toBeNull();
    const [first = '', ...rest] = stdout.split('\n');
    expect(first).toMatch(record);
    expect(rest.filter((line) => line.includes('forged'))).not.toEqual([]);
    expect(rest.filter((line) => /^ +at /.test(line))).not.toEqual([]);
    for (const line of rest) expect(line).toMatch(/^ /);
  });
});

it.runIf(onLinux)(
  'of a name that is not UTF-8 and one that is spelled like its id, one is served and the other is told of',
  async () => {
    const dir = tempDir();
    writeFileSync(Buffer.from(`${dir}/caf\xe9.gguf`, 'latin1'), ggufHeader());
    writeFileSync(join(dir, 'caf%E9.gguf'), ggufHeader());
    const supervisor = await startSupervisor({ args: ['--models-dir', dir] });
    const listed = await listModels(supervisor.url);
    expect(listed.map(({ id }) => id)).toEqual(['caf%E9']);
    const warnings = supervisor.log().filter(({ msg }) => String(msg).includes('is not listed'));
    expect(warnings).toHaveLength(1);
    expect(warnings[0]?.msg).toMatch(/caf%E9.*rename one of them$/);
  },
);

describe.runIf(onLinux)('the real llama-server', () => {
  it('serves models whose files have odd names', async () => {
    const odd = ['-a "line"\nbreak', 'one, two 🦙', '__proto__'];
    const dir = await writeModels(
      Object.fromEntries(odd.map((name, at) => [name, sayingItsName(`number-${at}`)])),
    );
    const plain = await writeModels({ plain: sayingItsName('bytes') });
    renameSync(join(plain, 'plain.gguf'), Buffer.from(`${dir}/caf\xe9.gguf`, 'latin1'));
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
    const listed = (await listModels(url)).map(({ id }) => id);
    expect(listed).toEqual(sorted([...odd, 'caf%E9']));
    for (const [at, name] of odd.entries()) expect(await chat(url, name)).toBe(nameAnswer(`number-${at}`));
    expect(await chat(url, 'caf%E9')).toBe(nameAnswer('bytes'));
    for (const id of listed) {
      const { status, text, json } = await get(url, `/props?model=${encodeURIComponent(id)}`);
      expect(status, text).toBe(200);
      // The child takes a comma as the end of an alias.
      expect(json).toMatchObject({ model_alias: id.split(',')[0] });
    }
  });
});
