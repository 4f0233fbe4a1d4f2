import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { writeFakeModel } from '../helpers/fake-llama-server.js';
import { newJournal } from '../helpers/journal.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { startSupervisor } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { jsonIn, type ListEntry } from '../http/serve-fakes.js';

test('secrets reach a child in its environment, and are shown by no process list, list of models or log', async () => {
  const models = tempDir();
  for (const name of ['common', 'own']) writeFakeModel(models, name);
  const presets = join(tempDir(), 'presets.ini');
  writeFileSync(
    presets,
    '[own]\nhf-token = hf_of_its_own\nmcp-servers-json = {"mcpServers":{"a":"mcp_secret"}}\n',
  );
  const journal = newJournal();
  const supervisor = await startSupervisor({
    args: [
      '--models-dir',
      models,
      '--models-preset',
      presets,
      '--hf-token',
      'hf_common',
      '--log-level',
      'debug',
    ],
    env: { ...journal.env, HF_TOKEN: 'hf_of_the_environment' },
  });
  for (const model of ['common', 'own']) {
    expect((await rawRequest(`${supervisor.url}/infill`, jsonPost({ model }))).status).toBe(200);
  }

  const startOf = (alias: string) => journal.of('start', alias)[0];
  // The command line goes before a section, as in the native router.
  expect(startOf('common')?.env['HF_TOKEN']).toBe('hf_common');
  expect(startOf('own')?.env['HF_TOKEN']).toBe('hf_common');
  expect(startOf('own')?.env['LLAMA_ARG_MCP_SERVERS_JSON']).toContain('mcp_secret');
  expect(startOf('common')?.env['LLAMA_ARG_MCP_SERVERS_JSON']).toBe('');
  for (const { argv } of journal.of('start')) {
    expect(argv.join(' ')).not.toMatch(/hf_|mcp_secret|--hf-token|--mcp-servers-json/);
  }

  const list = await rawRequest(`${supervisor.url}/models`);
  expect(list.body.toString()).not.toMatch(/hf_common|hf_of|mcp_secret/);
  const { data } = jsonIn(list) as { data: ListEntry[] };
  const own = data.find(({ id }) => id === 'own')?.status;
  expect(own?.args.join(' ')).toContain('--hf-token ***');
  expect(own?.args.join(' ')).toContain('--mcp-servers-json ***');
  expect(own?.preset).toContain('hf-token = ***\n');
  expect(supervisor.output()).not.toMatch(/hf_common|hf_of|mcp_secret/);
});

test('a token of a section is that of its model, and of no other', async () => {
  const models = tempDir();
  for (const name of ['common', 'own']) writeFakeModel(models, name);
  const presets = join(tempDir(), 'presets.ini');
  writeFileSync(presets, '[own]\nhf-token = hf_of_its_own\n');
  const journal = newJournal();
  const { url } = await startSupervisor({
    args: ['--models-dir', models, '--models-preset', presets],
    env: { ...journal.env, HF_TOKEN: 'hf_of_the_environment' },
  });
  for (const model of ['common', 'own']) await rawRequest(`${url}/infill`, jsonPost({ model }));
  const tokens = journal.of('start').map(({ alias, env }) => [alias, env['HF_TOKEN']]);
  expect(Object.fromEntries(tokens)).toEqual({ common: 'hf_of_the_environment', own: 'hf_of_its_own' });
});
