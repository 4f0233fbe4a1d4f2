import { expect, it } from 'vitest';
import { helpEntries } from '../../../src/config/help-entries.js';
import { recordedHelp } from './recorded-help.js';

const entryOf = (help: string, name: string) => helpEntries(help).find(({ names }) => names.includes(name));

it('names the section of each option', () => {
  const headings = helpEntries(recordedHelp).map(({ heading }) => heading);
  expect([...new Set(headings)]).toEqual([
    'common params',
    'sampling params',
    'speculative params',
    'example-specific params',
  ]);
});

it('joins what the width of the help parted, and parts what its author ended', () => {
  expect(entryOf(recordedHelp, '--main-gpu')).toEqual({
    heading: 'common params',
    names: ['-mg', '--main-gpu'],
    placeholder: 'INDEX',
    paragraphs: [
      'the GPU to use for the model (with split-mode = none), or for intermediate results and KV (with split-mode = row) ' +
        '(default: 0)',
    ],
    env: 'LLAMA_ARG_MAIN_GPU',
  });
  expect(entryOf(recordedHelp, '--device')?.paragraphs).toEqual([
    "comma-separated list of devices to use for offloading (none = don't offload)",
    'use --list-devices to see a list of available devices',
  ]);
});

it('reads an environment name that shares its line', () => {
  expect(entryOf('-x N   a thing (env: LLAMA_ARG_X)', '-x')).toMatchObject({
    paragraphs: ['a thing'],
    env: 'LLAMA_ARG_X',
  });
});

it('has no heading for what stands before the first one', () => {
  expect(entryOf('-x N   a thing\n----- y params -----\n-z   a switch', '-x')?.heading).toBe('');
});
