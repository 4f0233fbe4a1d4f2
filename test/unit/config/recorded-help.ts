import { readFileSync } from 'node:fs';
import { OptionTable } from '../../../src/config/option-table.js';

/** What `llama-server --help` of version 0.5.0 (commit de3ff81) printed. */
export const recordedHelp = readFileSync(
  new URL('../../fixtures/llama-server-help-v0.5.0.txt', import.meta.url),
  'utf8',
);

export const recordedTable = OptionTable.parse(recordedHelp);
