import { mkdirSync, rmSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import {
  findRemotePreset,
  type RemotePreset,
  type RemotePresetOptions,
} from '../../../../src/models/presets/remote-preset.js';
import { startStandInHub, type HubFault, type StandInHub } from '../../../helpers/stand-in-hub.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { writeFile, writeLink } from '../tree.js';

const presets = '[*]\nmmap = 1\n\n[small]\nhf = me/small\n\n[large]\nhf = me/large\n';
const token = `hf_${'a'.repeat(34)}`;
const commitOf = (digit: string): string => digit.repeat(40);

let hub: StandInHub;
let cache: string;
/** The repositories that were to be downloaded. */
let downloads: string[];

beforeEach(async () => {
  hub = await startStandInHub();
  cache = tempDir();
  downloads = [];
});

/** What a download leaves in the cache; by itself it changes no ref. */
function writeSnapshot(commit: string, text = presets, repo = 'me--presets'): string {
  return writeFile(join(cache, `models--${repo}`, 'snapshots', commit, 'preset.ini'), text);
}

function writeRef(name: string, commit: string): void {
  writeFile(join(cache, 'models--me--presets/refs', name), commit);
}

/** A download that does what it is to do. */
function bring(commit: string, text = presets): RemotePresetOptions['download'] {
  return (repo) => {
    downloads.push(repo);
    writeSnapshot(commit, text);
    writeRef('main', commit);
    return Promise.resolve({ message: 'brought it', lastLines: [] });
  };
}

/** A download that brings nothing, and says so or not. */
function failTo(message: string, lastLines: readonly string[] = []): RemotePresetOptions['download'] {
  return (repo) => {
    downloads.push(repo);
    return Promise.resolve({ message, lastLines });
  };
}

function find(options: Partial<RemotePresetOptions> = {}): Promise<RemotePreset> {
  return findRemotePreset({
    hfRepo: 'me/presets',
    offline: false,
    token: undefined,
    env: { LLAMA_CACHE: cache, HF_ENDPOINT: hub.endpoint },
    userAgent: 'llama-cpp/b1-abc',
    signal: new AbortController().signal,
    download: failTo('there was to be no download'),
    ...options,
  });
}

const warningsOf = ({ warnings }: RemotePreset): string => warnings.join('\n');

describe('with a hub that answers', () => {
  test('a repository with preset.ini in its root is downloaded and is a file of presets', async () => {
    const commit = hub.publish('me/presets', { 'README.md': 'mine', 'preset.ini': presets });
    const found = await find({ download: bring(commit) });
    expect(found).toMatchObject({
      kind: 'preset',
      repo: 'me/presets',
      file: join(cache, 'models--me--presets/snapshots', commit, 'preset.ini'),
      section: undefined,
    });
    expect(downloads).toEqual(['me/presets']);
  });

  test('who wrote the options is told, and that they are to be trusted', async () => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets });
    const { warnings } = await find({ download: bring(commit) });
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toMatch(/^using preset\.ini from HF repo 'me\/presets'.*only use presets .* trust$/);
  });

  test.each([
    ['without one', { 'model-Q4_0.gguf': 'weights' }],
    ['with one in a folder only', { 'model-Q4_0.gguf': 'weights', 'examples/preset.ini': presets }],
  ])('a repository %s is a model, and nothing is downloaded', async (_, files) => {
    hub.publish('me/presets', files);
    expect(await find()).toEqual({ kind: 'model', warnings: [] });
    expect(downloads).toEqual([]);
  });

  test('a repository that has lost its preset.ini is a model, whatever the cache holds', async () => {
    writeSnapshot(commitOf('a'));
    writeRef('main', commitOf('a'));
    hub.publish('me/presets', { 'model-Q4_0.gguf': 'weights' });
    expect((await find()).kind).toBe('model');
  });

  test('a file that is in the cache already is not downloaded again', async () => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets });
    const file = writeSnapshot(commit);
    writeRef('main', commit);
    expect(await find()).toMatchObject({ kind: 'preset', file });
    expect(downloads).toEqual([]);
  });

  test('a newer commit is downloaded and takes the place of the one in the cache', async () => {
    writeSnapshot(commitOf('a'));
    writeRef('main', commitOf('a'));
    const commit = hub.publish('me/presets', { 'preset.ini': presets });
    expect(await find({ download: bring(commit) })).toMatchObject({
      file: join(cache, 'models--me--presets/snapshots', commit, 'preset.ini'),
    });
    expect(downloads).toEqual(['me/presets']);
  });

  test('the head of main is asked for, or that of the first branch', async () => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets }, { branch: 'trunk' });
    expect((await find({ download: bring(commit) })).kind).toBe('preset');
    const branches = ['other', 'main'].map((name, at) => ({ name, targetCommit: commitOf(String(at)) }));
    hub.fault('refs', { kind: 'text', text: JSON.stringify({ branches }) });
    await find();
    expect(hub.requests.at(-1)?.url).toBe(`/api/models/me/presets/tree/${commitOf('1')}?recursive=true`);
  });

  test('the requests are those of llama-server, in its name', async () => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets });
    await find({ download: bring(commit) });
    expect(hub.requests.map(({ method, url }) => `${method} ${url}`)).toEqual([
      'GET /api/models/me/presets/refs',
      `GET /api/models/me/presets/tree/${commit}?recursive=true`,
    ]);
    for (const { headers } of hub.requests) {
      expect(headers).toMatchObject({ 'user-agent': 'llama-cpp/b1-abc', accept: 'application/json' });
      expect(headers.authorization).toBeUndefined();
    }
  });

  test('MODEL_ENDPOINT goes before HF_ENDPOINT, an empty one is none, and the last slash may be missing', async () => {
    hub.publish('me/presets', { 'README.md': 'mine' });
    const endpoint = hub.endpoint.replace(/\/$/, '');
    const nobody = 'http://127.0.0.1:9/';
    for (const env of [
      { MODEL_ENDPOINT: endpoint, HF_ENDPOINT: nobody },
      { MODEL_ENDPOINT: '', HF_ENDPOINT: endpoint },
    ]) {
      expect(await find({ env: { LLAMA_CACHE: cache, ...env } })).toEqual({ kind: 'model', warnings: [] });
    }
    expect(hub.requests).toHaveLength(4);
  });

  test('the token opens a private repository', async () => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets }, { token });
    expect((await find({ token, download: bring(commit) })).kind).toBe('preset');
  });

  test('a password in the endpoint is sent as such, and a token goes before it', async () => {
    hub.publish('me/presets', { 'README.md': 'mine' });
    const env = { LLAMA_CACHE: cache, HF_ENDPOINT: hub.endpoint.replace('//', '//me:pass@') };
    await find({ env });
    expect(hub.requests.at(-1)?.headers.authorization).toBe(
      `Basic ${Buffer.from('me:pass').toString('base64')}`,
    );
    await find({ env, token });
    expect(hub.requests.at(-1)?.headers.authorization).toBe(`Bearer ${token}`);
  });

  test('the token does not follow a redirect to another server', async () => {
    const other = await startStandInHub();
    other.publish('me/presets', { 'README.md': 'mine' });
    hub.fault('refs', { kind: 'redirect', to: other.endpoint });
    await find({ token });
    expect(hub.requests[0]?.headers.authorization).toBe(`Bearer ${token}`);
    expect(other.requests).toHaveLength(1);
    expect(other.requests[0]?.headers.authorization).toBeUndefined();
  });
});

describe('a name after the colon', () => {
  test('chooses a section, and all sections stay', async () => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets });
    const found = await find({ hfRepo: 'me/presets:large', download: bring(commit) });
    expect(found).toMatchObject({ kind: 'preset', repo: 'me/presets', section: 'large' });
    expect(found.warnings).toHaveLength(1);
    expect(downloads).toEqual(['me/presets']);
  });

  test.each(['huge', 'Q4_K_M', '*', 'default'])('that no section has (%s) is a warning', async (name) => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets });
    const found = await find({ hfRepo: `me/presets:${name}`, download: bring(commit) });
    expect(found).toMatchObject({ kind: 'preset', section: undefined });
    expect(warningsOf(found)).toContain(`has no section '${name}', only 'small', 'large'`);
  });

  test('that is empty is none', async () => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets });
    const found = await find({ hfRepo: 'me/presets:', download: bring(commit) });
    expect(found).toMatchObject({ section: undefined });
    expect(found.warnings).toHaveLength(1);
  });
});

describe('a download that does not bring the file', () => {
  test('is an error with what the worker said and wrote', async () => {
    hub.publish('me/presets', { 'preset.ini': presets });
    const found = find({ download: failTo('it was ended by SIGSEGV', ['one', 'two']) });
    await expect(found).rejects.toThrow(
      "the preset.ini of 'me/presets' was not downloaded: it was ended by SIGSEGV\none\ntwo",
    );
  });

  test('but leaves an older one in the cache gives that, with a warning', async () => {
    const file = writeSnapshot(commitOf('a'));
    writeRef('main', commitOf('a'));
    hub.publish('me/presets', { 'preset.ini': presets });
    const found = await find({ download: failTo('it failed', ['line']) });
    expect(found).toMatchObject({ kind: 'preset', file });
    expect(found.warnings[0]).toBe(
      `the preset.ini of 'me/presets' was not downloaded: it failed\nline\nThe one in the cache is used: ${file}`,
    );
  });

  test('although it notes the new commit, as llama-server does first, does not lose the older one', async () => {
    const file = writeSnapshot(commitOf('a'));
    const commit = hub.publish('me/presets', { 'preset.ini': presets });
    const download = (): ReturnType<RemotePresetOptions['download']> => {
      writeRef('main', commit);
      return Promise.resolve({ message: 'it failed', lastLines: [] });
    };
    expect(await find({ download })).toMatchObject({ file });
    expect(await find({ offline: true })).toMatchObject({ file });
  });
});

const troubles: readonly [string, HubFault, string][] = [
  [
    'answers 401',
    { kind: 'status', status: 401 },
    "answered 401: 'me/presets' does not exist, or needs a token",
  ],
  ['answers 404', { kind: 'status', status: 404 }, "answered 404: it has no repository 'me/presets'"],
  ['answers 500', { kind: 'status', status: 500 }, 'answered 500'],
  ['answers without JSON', { kind: 'text', text: '<html>Log in</html>' }, 'something else than JSON'],
  ['does not answer', { kind: 'hang' }, 'did not answer within 0.3 s'],
];

describe.each(['refs', 'tree'] as const)('with a hub that at its %s', (route) => {
  test.each(troubles)('%s, the cache counts', async (_, fault, reason) => {
    const file = writeSnapshot(commitOf('a'));
    writeRef('main', commitOf('a'));
    hub.publish('me/presets', { 'preset.ini': presets });
    hub.fault(route, fault);
    const found = await find({ askTimeoutMs: 300 });
    expect(found).toMatchObject({ kind: 'preset', file });
    expect(found.warnings[0]).toContain(reason);
    expect(found.warnings[0]).toContain('its cached preset.ini is used');
    expect(downloads).toEqual([]);
  });

  test.each(troubles)(
    '%s, and with nothing in the cache, the binary is left to say so',
    async (_, fault, reason) => {
      hub.publish('me/presets', { 'preset.ini': presets });
      hub.fault(route, fault);
      const found = await find({ askTimeoutMs: 300 });
      expect(found.kind).toBe('model');
      expect(warningsOf(found)).toContain(reason);
    },
  );
});

describe('with a hub that says', () => {
  test.each(['null', '[]', '{}', '{"branches":null}', '{"branches":[null,1,{"name":"main"}]}'])(
    '%s of branches, it names none',
    async (text) => {
      hub.fault('refs', { kind: 'text', text });
      expect(warningsOf(await find())).toContain("names no branch of 'me/presets'");
    },
  );

  test('a commit that is none, it is not used in a path', async () => {
    const branches = [{ name: 'main', targetCommit: '../../../../etc' }];
    hub.fault('refs', { kind: 'text', text: JSON.stringify({ branches }) });
    expect(warningsOf(await find())).toContain('names no branch');
    expect(hub.requests).toHaveLength(1);
  });

  test.each(['[null,1,{}]', '[{"type":"directory","path":"preset.ini"}]', '[{"type":"file","path":1}]'])(
    '%s of files, there is no preset.ini',
    async (text) => {
      hub.publish('me/presets', {});
      hub.fault('tree', { kind: 'text', text });
      expect(await find()).toEqual({ kind: 'model', warnings: [] });
    },
  );

  test('more than any list of files is long, it is not read to its end', async () => {
    hub.publish('me/presets', {});
    hub.fault('tree', { kind: 'text', text: `[${' '.repeat(17 * 1024 * 1024)}]` });
    expect(warningsOf(await find())).toContain('UND_ERR_RES_EXCEEDED_MAX_SIZE');
  });
});

describe('without a hub', () => {
  test('the cache counts', async () => {
    const file = writeSnapshot(commitOf('a'));
    writeRef('main', commitOf('a'));
    await hub.close();
    const found = await find();
    expect(found).toMatchObject({ kind: 'preset', file });
    expect(found.warnings[0]).toContain('ECONNREFUSED');
  });

  test('and with nothing in the cache it is a model', async () => {
    await hub.close();
    const found = await find();
    expect(found.kind).toBe('model');
    expect(warningsOf(found)).toContain('ECONNREFUSED');
  });

  test('what is wrong with its address is told', async () => {
    const found = await find({ env: { LLAMA_CACHE: cache, HF_ENDPOINT: 'huggingface.co' } });
    expect(warningsOf(found)).toContain('HF_ENDPOINT is no http:// or https:// URL');
  });
});

describe('offline', () => {
  test('the hub is not asked', async () => {
    hub.publish('me/presets', { 'preset.ini': presets });
    expect(await find({ offline: true })).toEqual({ kind: 'model', warnings: [] });
    const file = writeSnapshot(commitOf('a'));
    writeRef('main', commitOf('a'));
    const found = await find({ offline: true, hfRepo: 'me/presets:small' });
    expect(found).toMatchObject({ kind: 'preset', file, section: 'small' });
    expect(found.warnings).toHaveLength(1);
    expect(hub.requests).toEqual([]);
  });

  test('main goes before other refs, those before snapshots without one, and of these the newest counts', async () => {
    const files = ['a', 'b', 'c', 'd'].map((digit) => writeSnapshot(commitOf(digit)));
    for (const [at, file] of files.entries()) utimesSync(file, 1_000 + at, 1_000 + at);
    expect(await find({ offline: true })).toMatchObject({ file: files[3] });
    writeRef('trunk', commitOf('b'));
    expect(await find({ offline: true })).toMatchObject({ file: files[1] });
    writeRef('main', `${commitOf('a')}\n`);
    expect(await find({ offline: true })).toMatchObject({ file: files[0] });
  });

  test('a repository that has become a model is one, although older presets of it are there', async () => {
    writeSnapshot(commitOf('a'));
    writeFile(join(cache, 'models--me--presets/snapshots', commitOf('b'), 'model-Q4_0.gguf'));
    writeRef('main', commitOf('b'));
    expect((await find({ offline: true })).kind).toBe('model');
  });

  test('a link whose file is gone, a directory of that name and a file in a folder are no presets', async () => {
    const file = writeSnapshot(commitOf('a'));
    rmSync(file);
    mkdirSync(file);
    writeLink(join(cache, 'models--me--presets/snapshots', commitOf('c'), 'preset.ini'), '../../blobs/gone');
    writeFile(join(cache, 'models--me--presets/snapshots', commitOf('b'), 'examples/preset.ini'), presets);
    expect((await find({ offline: true })).kind).toBe('model');
  });

  test('another repository of a similar name is not taken for it', async () => {
    writeSnapshot(commitOf('a'), presets, 'me--presets-2');
    expect((await find({ offline: true })).kind).toBe('model');
  });
});

describe('nothing is asked', () => {
  test.each(['presets', 'me/presets/more', 'me/../presets', '/presets', 'me/pre--sets', 'me/pre sets', ''])(
    "of '%s', which names no repository",
    async (hfRepo) => {
      expect(await find({ hfRepo })).toEqual({ kind: 'model', warnings: [] });
      expect(hub.requests).toEqual([]);
    },
  );
});

describe('the end of waiting', () => {
  test('comes with the signal, and its reason', async () => {
    hub.fault('refs', { kind: 'hang' });
    const end = new AbortController();
    const found = find({ signal: end.signal });
    const reason = new Error('we are stopping');
    const rejected = expect(found).rejects.toBe(reason);
    end.abort(reason);
    await rejected;
    await expect(find({ signal: end.signal })).rejects.toBe(reason);
  });
});

describe('secrets', () => {
  test('are in no message, whatever goes wrong', async () => {
    const messages: string[] = [];
    const endpoint = hub.endpoint.replace('//', '//me:secret-pass@');
    hub.publish('me/presets', { 'preset.ini': presets }, { token: 'another' });
    for (const env of [
      { HF_ENDPOINT: endpoint },
      { HF_ENDPOINT: endpoint.replace('http://', '') },
      { HF_ENDPOINT: 'http://me:secret-pass@127.0.0.1:9' },
      { HF_ENDPOINT: 'http://me:secret-pass@[' },
    ]) {
      for (const given of [token, `${token}\r\nx: y`, 'secret-but-malformed']) {
        messages.push(warningsOf(await find({ env: { LLAMA_CACHE: cache, ...env }, token: given })));
      }
    }
    expect(messages).toHaveLength(12);
    for (const message of messages) {
      expect(message).toContain('could not be asked');
      expect(message).not.toMatch(/secret|hf_a|aaa/);
    }
  });

  test('a token that has not the form of one is not sent, and that is told', async () => {
    hub.publish('me/presets', { 'preset.ini': presets }, { token });
    expect(warningsOf(await find({ token: 'hf_short' }))).toContain('the token was not sent');
    expect(hub.requests[0]?.headers.authorization).toBeUndefined();
    expect(warningsOf(await find({ token: `hf_${'b'.repeat(34)}` }))).toContain(
      'the token is not good for it',
    );
  });
});
