import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { findLlamaServer } from '../../../src/config/binary.js';
import { loadOptionTable } from '../../../src/config/help.js';
import { recordedTable } from './recorded-help.js';

const RECORDED_COMMIT = 'de3ff81';

const cacheDir = mkdtempSync(join(tmpdir(), 'real-binary-'));
afterAll(() => {
  rmSync(cacheDir, { recursive: true });
});

const found = findLlamaServer({ explicit: undefined, env: process.env });
const facts = found === undefined ? undefined : await loadOptionTable(found.path, cacheDir);
const obstacle =
  facts === undefined
    ? 'no llama-server found'
    : facts.buildInfo.endsWith(`-${RECORDED_COMMIT}`)
      ? undefined
      : `llama-server found is ${facts.version}, recorded was commit ${RECORDED_COMMIT}`;

it.skipIf(obstacle !== undefined)(
  `the help of the installed llama-server reads as the recorded one${obstacle === undefined ? '' : ` (skipped: ${obstacle})`}`,
  () => {
    expect(facts?.table.options).toEqual(recordedTable.options);
    expect(facts?.backends.at(-1)).toBe('CPU');
  },
);
