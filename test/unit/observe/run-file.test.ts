import { chmodSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { writeRunFile } from '../../../src/observe/run-file.js';
import { tempDir } from '../../helpers/temp-dir.js';

const content = { pid: 1, url: 'http://127.0.0.1:8080', apiKey: 'secret' };

function modeOf(path: string): number {
  return statSync(path).mode & 0o777;
}

it('makes a directory of this user alone, and a file that nobody else can read', async () => {
  const directory = join(tempDir(), 'made');
  const remove = await writeRunFile(directory, '8080.json', content);
  expect(modeOf(directory)).toBe(0o700);
  expect(modeOf(join(directory, '8080.json'))).toBe(0o600);
  remove();
  expect(readdirSync(directory)).toEqual([]);
});

it.each([
  { was: 0o755, is: 0o755, what: 'that others may enter, where sockets may be, stays as it is' },
  { was: 0o710, is: 0o710, what: 'that a group may enter stays as it is' },
  { was: 0o777, is: 0o755, what: 'that others can write to is closed to their writing' },
])('a directory $what', async ({ was, is }) => {
  const directory = join(tempDir(), 'given');
  mkdirSync(directory);
  chmodSync(directory, was);
  await writeRunFile(directory, '8080.json', content);
  expect(modeOf(directory)).toBe(is);
  expect(modeOf(join(directory, '8080.json'))).toBe(0o600);
});
