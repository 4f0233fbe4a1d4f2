import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { canListProcesses } from '../helpers/processes.js';
import { argvOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, get, modelEntry } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';

/** What a child says it runs with; `n_ctx` is one slot's share of the context. */
interface Props {
  total_slots: number;
  default_generation_settings: {
    n_ctx: number;
    params: { temperature: number; top_k: number };
  };
}

describe('one option set in several places, in different spellings', () => {
  let url: string;

  beforeAll(async () => {
    const dir = await writeModels({ own: sayingItsName('own'), plain: sayingItsName('plain') });
    const presets = join(tempDir(), 'presets.ini');
    await writeFile(
      presets,
      [
        '[*]',
        'LLAMA_ARG_TEMPERATURE = 0.2',
        'ctx-size = 1024',
        'np = 2',
        '[own]',
        `model = ${dir}/own.gguf`,
        'temperature = 0.3',
        'c = 2048',
        '[plain]',
        `model = ${dir}/plain.gguf`,
        '',
      ].join('\n'),
    );
    const supervisor = await startRealSupervisor({
      args: ['--models-preset', presets, '--temp', '0.4'],
      env: {
        LLAMA_ARG_TEMPERATURE: '0.1',
        LLAMA_ARG_CTX_SIZE: '512',
        LLAMA_ARG_N_PARALLEL: '1',
        LLAMA_ARG_TOP_K: '7',
      },
    });
    url = supervisor.url;
    await Promise.all([chat(url, 'own'), chat(url, 'plain')]);
  });

  const propsOf = async (model: string): Promise<Props> => {
    const { json } = await get(url, `/props?model=${model}`);
    return json as Props;
  };

  it('the command line goes before the section, the section before [*], [*] before the environment', async () => {
    const { default_generation_settings: own, total_slots: slots } = await propsOf('own');
    expect(own.params.temperature).toBeCloseTo(0.4);
    expect(own.n_ctx * slots).toBe(2048);
    expect(slots).toBe(2);
    expect(own.params.top_k).toBe(7);
  });

  it('a section without the option has that of [*]', async () => {
    const { default_generation_settings: plain, total_slots: slots } = await propsOf('plain');
    expect(plain.params.temperature).toBeCloseTo(0.4);
    expect(plain.n_ctx * slots).toBe(1024);
    expect(slots).toBe(2);
  });

  // Elsewhere a child's command line cannot be read.
  it.skipIf(!canListProcesses)(
    'the child is given each option once, with the value that counts',
    async () => {
      const { pid } = await modelEntry(url, 'own');
      const [, ...argv] = argvOf(pid ?? 0);
      const pairs = Array.from({ length: argv.length / 2 }, (_, at) => argv.slice(at * 2, at * 2 + 2));
      expect(pairs.map(([name]) => name)).toEqual([
        '--host',
        '--port',
        '--temperature',
        '--alias',
        '--ctx-size',
        '--model',
        '--parallel',
        '--threads',
      ]);
      expect(Object.fromEntries(pairs)).toMatchObject({
        '--host': '127.0.0.1',
        '--temperature': '0.4',
        '--alias': 'own',
        '--ctx-size': '2048',
        '--parallel': '2',
      });
    },
  );
});
