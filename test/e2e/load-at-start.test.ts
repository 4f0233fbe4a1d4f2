import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { untilStatus } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';

it('without a limit all models that are to be loaded at the start are (the native router does not start)', async () => {
  const ids = ['a', 'b', 'c', 'd', 'e'];
  const modelsDir = await writeModels(Object.fromEntries(ids.map((id) => [id, sayingItsName(id)])));
  const presets = join(tempDir(), 'presets.ini');
  writeFileSync(presets, ids.map((id) => `[${id}]\nload-on-startup = true\n`).join('\n'));

  const supervisor = await startRealSupervisor({
    args: ['--models-dir', modelsDir, '--models-preset', presets, '--models-max', '0'],
  });

  for (const id of ids) await untilStatus(supervisor.url, id, 'loaded', { deadlineMs: 30_000 });
  const said = supervisor.log().map(({ msg }) => msg);
  expect(said).not.toContain('not loaded at start-up: --models-max is too small');
});
