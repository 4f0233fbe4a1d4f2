import { createHash } from 'node:crypto';
import { beforeEach, describe, expect, test } from 'vitest';
import { listHubRepo, vetHubFile, type HubQuestion } from '../../../../src/models/hub/hub-listing.js';
import { startStandInHub, type StandInHub } from '../../../helpers/stand-in-hub.js';

const token = `hf_${'a'.repeat(34)}`;
let hub: StandInHub;

beforeEach(async () => {
  hub = await startStandInHub();
});

function question(given: Partial<HubQuestion> = {}): HubQuestion {
  return {
    repo: 'me/model',
    env: { HF_ENDPOINT: hub.endpoint },
    token: undefined,
    userAgent: 'llama-cpp/b1-abc',
    timeoutMs: 10_000,
    signal: new AbortController().signal,
    ...given,
  };
}

describe('the listing of a repository', () => {
  test('tells of each file its name, its hash and its size', async () => {
    const commit = hub.publish('me/model', { 'a/b-Q4_0.gguf': 'weights', 'README.md': 'me' });
    const sha256 = createHash('sha256').update('weights').digest('hex');
    const gitHash = createHash('sha1').update('blob 2\0me').digest('hex');
    expect(await listHubRepo(question())).toEqual({
      kind: 'listed',
      commit,
      files: [
        { path: 'a/b-Q4_0.gguf', oid: sha256, sizeBytes: 7 },
        { path: 'README.md', oid: gitHash, sizeBytes: 2 },
      ],
    });
  });

  test('may lack hashes and sizes', async () => {
    hub.publish('me/model', { 'a-Q4_0.gguf': 'weights' });
    const odd = [
      { type: 'file', path: 'a', size: '7', oid: 7 },
      { type: 'file', path: 'b', lfs: {} },
      { type: 'directory', path: 'c' },
      { type: 'file' },
      null,
    ];
    hub.fault('tree', { kind: 'text', text: JSON.stringify(odd) });
    expect(await listHubRepo(question())).toMatchObject({
      files: [
        { path: 'a', oid: undefined, sizeBytes: undefined },
        { path: 'b', oid: undefined, sizeBytes: undefined },
      ],
    });
  });

  test.each([
    [404, 'not_found'],
    [401, 'refused'],
    [403, 'refused'],
    [500, 'unreachable'],
    [429, 'unreachable'],
  ])('that is answered by %i is %s', async (status, why) => {
    hub.fault('refs', { kind: 'status', status });
    expect(await listHubRepo(question())).toMatchObject({ kind: 'unknown', why });
  });

  test('of a hub that is gone, or talks of something else, is unreachable', async () => {
    hub.publish('me/model', { 'a-Q4_0.gguf': 'weights' });
    for (const text of ['<html>', '{}', '{"branches":[]}']) {
      hub.fault('refs', { kind: 'text', text });
      expect(await listHubRepo(question())).toMatchObject({ kind: 'unknown', why: 'unreachable' });
    }
    await hub.close();
    expect(await listHubRepo(question())).toMatchObject({ kind: 'unknown', why: 'unreachable' });
  });
});

describe('a file', () => {
  const path = 'with blank/m-Q4_0.gguf';
  let commit: string;

  beforeEach(() => {
    commit = hub.publish('me/model', { [path]: 'weights' });
  });

  test('that the hub gives is asked for by its head alone', async () => {
    expect(await vetHubFile(question(), { commit, path })).toBeUndefined();
    expect(hub.requests.map(({ method, route }) => ({ method, route }))).toEqual([
      { method: 'HEAD', route: 'resolve' },
    ]);
  });

  test('that is kept elsewhere is given; nobody is asked there', async () => {
    hub.fault('resolve', { kind: 'redirect', to: 'http://127.0.0.1:1/' });
    expect(await vetHubFile(question(), { commit, path })).toBeUndefined();
  });

  test.each([
    ['without a token', undefined, /need a token \(--hf-token or HF_TOKEN\)/],
    ['with one', token, /token is not good for the files/],
    ['with one that is none', 'secret', /was not sent/],
  ])('of a gated repository is refused %s', async (_, given, words) => {
    hub.fault('resolve', { kind: 'status', status: 403 });
    const denial = await vetHubFile(question({ token: given }), { commit, path });
    expect(denial).toMatchObject({ kind: 'unknown', why: 'refused' });
    expect(denial?.reason).toMatch(words);
    expect(denial?.reason).not.toContain(given ?? token);
  });

  test('that is listed and not there is not found', async () => {
    const denial = await vetHubFile(question(), { commit, path: 'none.gguf' });
    expect(denial).toMatchObject({ why: 'not_found' });
  });
});
