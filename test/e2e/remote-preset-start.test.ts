import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { knownAnswerModel } from '../../src/demo/known-answer-model.js';
import { eventually } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { argvOf, childrenOf, realLlamaServer, startRealSupervisor } from '../helpers/real-llama-server.js';
import { rawRequest } from '../helpers/raw-http.js';
import { startStandInHub, type StandInHub } from '../helpers/stand-in-hub.js';
import { chat, get, listModels, untilStatus } from '../helpers/supervisor-client.js';
import {
  launchSupervisor,
  type LaunchedSupervisor,
  type SupervisorProcess,
} from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';

const token = `hf_${'s'.repeat(34)}`;

let hub: StandInHub;
let cache: string;
let dir: string;

beforeEach(async () => {
  hub = await startStandInHub();
  cache = tempDir();
  dir = await writeModels({ alpha: sayingItsName('alpha'), beta: sayingItsName('beta') });
});

/** The bytes of a model that says this name, as the hub keeps it. */
function weights(name: string): Buffer {
  return knownAnswerModel({ name, ...sayingItsName(name) });
}

/** Two sections with files of this machine. */
function presets({ alpha = '', beta = '' } = {}): string {
  return `[alpha]\nmodel = ${dir}/alpha.gguf\n${alpha}[beta]\nmodel = ${dir}/beta.gguf\n${beta}`;
}

function hubEnv(more: Record<string, string> = {}): Record<string, string> {
  return { HF_ENDPOINT: hub.endpoint, LLAMA_CACHE: cache, ...more };
}

function start(args: string[], env: Record<string, string> = {}): Promise<SupervisorProcess> {
  return startRealSupervisor({ args, env: hubEnv(env) });
}

async function ids(url: string): Promise<string[]> {
  return (await listModels(url)).map(({ id }) => id);
}

/** Stops the supervisor, after which its log is whole, and gives every model that it has loaded, in order. */
async function loadedBy(supervisor: LaunchedSupervisor): Promise<unknown[]> {
  await supervisor.stop();
  return supervisor
    .log()
    .filter(({ msg }) => msg === 'model.loading')
    .map((line) => line['model']);
}

describe('start -hf with a repository of presets', () => {
  it('serves its sections: files of this machine, and models of the hub', async () => {
    hub.publish('me/presets', { 'preset.ini': `${presets()}[gamma]\nhf-repo = me/gamma\n` });
    hub.publish('me/gamma', { 'gamma-Q4_0.gguf': weights('gamma') });
    const { url } = await start(['-hf', 'me/presets']);
    expect(await ids(url)).toEqual(['alpha', 'beta', 'gamma']);
    expect((await get(url, '/props')).json).toMatchObject({ role: 'router' });
    for (const name of ['alpha', 'beta', 'gamma']) expect(await chat(url, name)).toBe(nameAnswer(name));
  });

  it('warns that such a file can set any option, and names the file', async () => {
    const commit = hub.publish('me/presets', { 'preset.ini': presets() });
    const supervisor = await start(['-hf', 'me/presets']);
    const warnings = supervisor.log().filter(({ level }) => level === 40);
    expect(warnings.map(({ msg }) => msg)).toEqual([
      expect.stringMatching(/preset\.ini from HF repo 'me\/presets'/),
    ]);
    expect(warnings[0]?.msg).toContain(join(cache, 'models--me--presets', 'snapshots', commit, 'preset.ini'));
  });

  it('loads at the start what load-on-startup says, and nothing else', async () => {
    hub.publish('me/presets', { 'preset.ini': presets({ beta: 'load-on-startup = 1\n' }) });
    const supervisor = await start(['-hf', 'me/presets']);
    await untilStatus(supervisor.url, 'beta', 'loaded');
    expect(await loadedBy(supervisor)).toEqual(['beta']);
  });

  it('loads the section that is named after a colon, before what load-on-startup says', async () => {
    hub.publish('me/presets', { 'preset.ini': presets({ alpha: 'load-on-startup = 1\n' }) });
    const supervisor = await start(['-hf', 'me/presets:beta']);
    await untilStatus(supervisor.url, 'beta', 'loaded');
    await untilStatus(supervisor.url, 'alpha', 'loaded');
    expect(await ids(supervisor.url)).toEqual(['alpha', 'beta']);
    expect(await loadedBy(supervisor)).toEqual(['beta', 'alpha']);
  });

  it('takes no section for the name of a quantisation, and says so when there is none of that name', async () => {
    hub.publish('me/presets', { 'preset.ini': presets() });
    const supervisor = await start(['-hf', 'me/presets:Q4_K_M']);
    expect(await ids(supervisor.url)).toEqual(['alpha', 'beta']);
    const warnings = supervisor.log().filter(({ msg }) => String(msg).includes("no section 'Q4_K_M'"));
    expect(warnings[0]?.msg).toMatch(/only 'alpha', 'beta'$/);
    expect(await loadedBy(supervisor)).toEqual([]);
  });

  it('takes the place of --models-preset', async () => {
    hub.publish('me/presets', { 'preset.ini': presets() });
    const local = join(tempDir(), 'local.ini');
    writeFileSync(local, `[local]\nmodel = ${dir}/alpha.gguf\n`);
    const { url } = await start(['--models-preset', local, '-hf', 'me/presets']);
    expect(await ids(url)).toEqual(['alpha', 'beta']);
  });

  it('passes the other options of the command line on to every section', async () => {
    hub.publish('me/presets', { 'preset.ini': presets({ alpha: 'ctx-size = 512\n' }) });
    const supervisor = await start(['-hf', 'me/presets', '--ctx-size', '256']);
    await chat(supervisor.url, 'alpha');
    const [child] = childrenOf(supervisor);
    const argv = argvOf(child?.pid ?? 0);
    expect(argv[argv.indexOf('--ctx-size') + 1]).toBe('256');
    expect(argv).not.toContain('--hf-repo');
  });

  it('starts from the cache that an earlier start has filled: offline, and with the hub gone', async () => {
    hub.publish('me/presets', { 'preset.ini': `${presets()}[gamma]\nhf-repo = me/gamma\n` });
    hub.publish('me/gamma', { 'gamma-Q4_0.gguf': weights('gamma') });
    const first = await start(['-hf', 'me/presets']);
    expect(await chat(first.url, 'gamma')).toBe(nameAnswer('gamma'));
    await first.stop();

    const asked = hub.requests.length;
    const offline = await start(['-hf', 'me/presets', '--offline']);
    expect(await ids(offline.url)).toEqual(['alpha', 'beta', 'gamma', 'me/gamma:Q4_0']);
    expect(await chat(offline.url, 'gamma')).toBe(nameAnswer('gamma'));
    expect(hub.requests.length).toBe(asked);
    await offline.stop();

    await hub.close();
    const alone = await start(['-hf', 'me/presets']);
    expect(await chat(alone.url, 'gamma')).toBe(nameAnswer('gamma'));
    expect(await chat(alone.url, 'alpha')).toBe(nameAnswer('alpha'));
    const warnings = alone.log().filter(({ msg }) => String(msg).includes('its cached preset.ini is used'));
    expect(warnings).toHaveLength(1);
  });

  it('is named by LLAMA_ARG_HF_REPO as well, which its children do not inherit', async () => {
    hub.publish('me/presets', { 'preset.ini': presets() });
    const { url } = await start([], { LLAMA_ARG_HF_REPO: 'me/presets' });
    expect(await ids(url)).toEqual(['alpha', 'beta']);
    const asked = hub.requests.length;
    for (const name of ['alpha', 'beta']) expect(await chat(url, name)).toBe(nameAnswer(name));
    expect(hub.requests.length).toBe(asked);
  });

  it('is named by a config file of llama.cpp as well, which its children do not obey', async () => {
    hub.publish('me/presets', { 'preset.ini': presets() });
    const config = tempDir();
    mkdirSync(join(config, 'llama.cpp'));
    writeFileSync(join(config, 'llama.cpp', 'config.ini'), 'hf-repo = me/presets\n');
    const { url } = await start([], { XDG_CONFIG_HOME: config });
    expect(await ids(url)).toEqual(['alpha', 'beta']);
    for (const name of ['alpha', 'beta']) expect(await chat(url, name)).toBe(nameAnswer(name));
  });

  it.each([
    ['--hf-token', ['--hf-token', token], {}],
    ['HF_TOKEN', [], { HF_TOKEN: token }],
  ])('is opened with the token of %s, which stands in no output and no list', async (_name, args, env) => {
    hub.publish('me/presets', { 'preset.ini': `${presets()}[gamma]\nhf-repo = me/gamma\n` }, { token });
    hub.publish('me/gamma', { 'gamma-Q4_0.gguf': weights('gamma') }, { token });
    const supervisor = await start(['-hf', 'me/presets', '--log-level', 'trace', ...args], env);
    expect(await ids(supervisor.url)).toEqual(['alpha', 'beta', 'gamma']);
    expect(await chat(supervisor.url, 'gamma')).toBe(nameAnswer('gamma'));
    const { text } = await get(supervisor.url, '/models');
    await supervisor.stop();
    expect(supervisor.output()).not.toContain(token);
    expect(text).not.toContain(token);
  });
});

describe('start -hf with a repository that is a model', () => {
  /** A process that serves one model, when it answers. */
  async function startPlain(args: string[], env: Record<string, string> = {}) {
    const port = await freePort();
    const launched = launchSupervisor({
      llamaServer: realLlamaServer(),
      args: ['--threads', '1', '--port', String(port), ...args],
      env: hubEnv(env),
    });
    const url = `http://127.0.0.1:${port}`;
    await eventually(
      'the binary serves the model',
      async () => {
        if (launched.hasExited()) throw new Error(`it exited: ${launched.output()}`);
        return (await rawRequest(`${url}/health`)).status === 200;
      },
      { deadlineMs: 30_000 },
    );
    return { ...launched, url };
  }

  it('runs the binary, which downloads and serves it as it always did', async () => {
    hub.publish('me/gamma', { 'gamma-Q4_0.gguf': weights('gamma') });
    const plain = await startPlain(['-hf', 'me/gamma', '--queue-max', '5']);
    expect(await chat(plain.url, 'whatever')).toBe(nameAnswer('gamma'));
    expect((await get(plain.url, '/props')).json).not.toHaveProperty('role');
    expect(await ids(plain.url)).toHaveLength(1);
    expect(plain.output()).not.toContain('"msg"');
    expect(await plain.stop()).toEqual({ code: 0, signal: null });
  });

  it('runs it for a repository that only the environment names, and when the hub is gone', async () => {
    hub.publish('me/gamma', { 'gamma-Q4_0.gguf': weights('gamma') });
    const first = await startPlain([], { LLAMA_ARG_HF_REPO: 'me/gamma' });
    expect(await chat(first.url, 'whatever')).toBe(nameAnswer('gamma'));
    await first.stop();
    await hub.close();
    const second = await startPlain(['--offline'], { LLAMA_ARG_HF_REPO: 'me/gamma' });
    expect(await chat(second.url, 'whatever')).toBe(nameAnswer('gamma'));
  });

  it('ends as the binary ends when there is no such repository', async () => {
    const launched = launchSupervisor({
      llamaServer: realLlamaServer(),
      args: ['-hf', 'me/none'],
      env: hubEnv(),
    });
    expect(await launched.exited).toEqual({ code: 1, signal: null });
    expect(launched.output()).toMatch(/404/);
  });

  it('keeps the token out of all output', async () => {
    hub.publish('me/gamma', { 'gamma-Q4_0.gguf': weights('gamma') }, { token });
    const plain = await startPlain(['-hf', 'me/gamma', '--hf-token', token]);
    expect(await chat(plain.url, 'whatever')).toBe(nameAnswer('gamma'));
    await plain.stop();
    expect(plain.output()).not.toContain(token);
  });
});
