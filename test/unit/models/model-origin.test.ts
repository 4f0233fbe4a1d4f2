import { expect, it } from 'vitest';
import type { Option } from '../../../src/config/option-table.js';
import { HubCache } from '../../../src/models/disk/hub-cache.js';
import { originOf } from '../../../src/models/model-origin.js';
import { optionReader } from '../../../src/models/option-reader.js';
import { table } from './help-table.js';

function aSwitch(key: string, description: string): Option {
  const name = `--${key}`;
  return {
    key,
    firstName: name,
    positive: [name],
    negative: [],
    env: undefined,
    valueCount: 0,
    presetOnly: false,
    description,
  };
}

it.each([
  ['a-new-model', 'use a new model (note: can download weights from the internet)', true],
  ['a-new-default', 'use the default of something', false],
])('the words of a switch tell whether it gives a model, not its name: %s', (key, description, gives) => {
  const options = new Map([[aSwitch(key, description), '1']]);
  const { problem } = originOf(options, new HubCache([], []), optionReader(table));
  expect(problem === undefined).toBe(gives);
});
