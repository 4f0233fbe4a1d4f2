import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { canListProcesses } from '../helpers/processes.js';
import { childrenOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, untilStatus } from '../helpers/supervisor-client.js';

it('30 requests for a model that is not loaded start one llama-server and are all answered', async () => {
  const dir = await writeModels({ cold: sayingItsName('cold') });
  const supervisor = await startRealSupervisor({ args: ['--models-dir', dir] });
  expect(childrenOf(supervisor)).toEqual([]);

  const answers = await Promise.all(Array.from({ length: 30 }, () => chat(supervisor.url, 'cold')));

  expect(answers).toEqual(new Array<string>(30).fill(nameAnswer('cold')));
  expect(supervisor.log().filter(({ msg }) => msg === 'model.loading')).toHaveLength(1);
  if (canListProcesses) expect(childrenOf(supervisor)).toHaveLength(1);
});

it('models load side by side while slots are free', async () => {
  // Large enough that no load is over before the next one has begun, also on a busy machine.
  const models = ['a', 'b', 'c'].map(
    (name) => [name, { ...sayingItsName(name), extraBytes: 200e6 }] as const,
  );
  const dir = await writeModels(Object.fromEntries(models));
  const supervisor = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '3'] });

  const answers = await Promise.all(models.map(([name]) => chat(supervisor.url, name)));

  expect(answers).toEqual(models.map(([name]) => nameAnswer(name)));
  const steps = supervisor.log().map(({ msg }) => msg);
  expect(steps.filter((step) => step === 'model.loading')).toHaveLength(3);
  // One after another, the second would begin when the first is loaded.
  const secondBegun = steps.indexOf('model.loading', steps.indexOf('model.loading') + 1);
  expect(steps.indexOf('model.loaded')).toBeGreaterThan(secondBegun);
});

it('of more load-on-startup models than slots the first are loaded, and the others are named in the log', async () => {
  const dir = await writeModels({ first: sayingItsName('first'), second: sayingItsName('second') });
  const presets = join(dir, 'presets.ini');
  await writeFile(presets, '[*]\nload-on-startup = true\n');
  const args = ['--models-dir', dir, '--models-preset', presets, '--models-max', '1'];
  const supervisor = await startRealSupervisor({ args });
  await untilStatus(supervisor.url, 'first', 'loaded');
  const begun = supervisor.log().filter(({ msg }) => msg === 'model.loading');
  expect(begun.map(({ model }) => model)).toEqual(['first']);
  const warning = supervisor.log().find(({ msg }) => String(msg).includes('--models-max is too small'));
  expect(warning).toMatchObject({ models: ['second'] });
});

it('a preset with load-on-startup is loaded without a request, and only that one', async () => {
  const dir = await writeModels({ eager: sayingItsName('eager'), lazy: sayingItsName('lazy') });
  const presets = join(dir, 'presets.ini');
  await writeFile(
    presets,
    `[eager]\nmodel = ${dir}/eager.gguf\nload-on-startup = true\n[lazy]\nmodel = ${dir}/lazy.gguf\n`,
  );
  const supervisor = await startRealSupervisor({ args: ['--models-preset', presets] });

  await untilStatus(supervisor.url, 'eager', 'loaded');
  await untilStatus(supervisor.url, 'lazy', 'unloaded');
  expect(await chat(supervisor.url, 'eager')).toBe(nameAnswer('eager'));
  const begun = supervisor.log().filter(({ msg }) => msg === 'model.loading');
  expect(begun.map(({ model }) => model)).toEqual(['eager']);
});
