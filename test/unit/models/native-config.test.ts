import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { parseCommandLine } from '../../../src/config/command-line.js';
import { configFileEnvironment } from '../../../src/models/native-config.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { table } from './help-table.js';

function configHome(text: string): string {
  const home = tempDir();
  mkdirSync(join(home, 'llama.cpp'));
  writeFileSync(join(home, 'llama.cpp', 'config.ini'), text);
  return home;
}

it('gives what [*] and default say, in any spelling, default winning, and passes over the rest', async () => {
  const home = configHome(
    'port = 2\n[other]\nhost = x\n[*]\nLLAMA_API_KEY = secret\nport = 1\nno-models-autoload = on\nnonsense = 1\n',
  );
  expect(await configFileEnvironment({ XDG_CONFIG_HOME: home }, table)).toEqual({
    LLAMA_API_KEY: 'secret',
    LLAMA_ARG_PORT: '2',
    LLAMA_ARG_MODELS_AUTOLOAD: 'false',
  });
});

it('is the lowest source: the environment and the command line go before it', async () => {
  const home = configHome('[*]\napi-key = secret\nport = 1\nmodels-max = 7\n');
  const config = await configFileEnvironment({ XDG_CONFIG_HOME: home }, table);
  const env = { ...config, LLAMA_ARG_MODELS_MAX: '5' };
  const { settings } = parseCommandLine(['--port', '3'], table, env);
  expect(settings).toMatchObject({ apiKeys: ['secret'], port: 3, modelsMax: 5 });
});

it('has nothing to say where there is no file', async () => {
  expect(await configFileEnvironment({ XDG_CONFIG_HOME: tempDir() }, table)).toEqual({});
});
