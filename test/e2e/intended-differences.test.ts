import { readdirSync, readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { INTENDED_DIFFERENCES, type DifferenceId } from './intended-differences.js';

const ids = Object.keys(INTENDED_DIFFERENCES) as DifferenceId[];

it('a test meets each intended difference', () => {
  const folder = new URL('./', import.meta.url);
  const tests = readdirSync(folder).filter((name) => name.endsWith('.test.ts'));
  const texts = tests.map((name) => readFileSync(new URL(name, folder), 'utf8'));
  const met = new Set(texts.flatMap((text) => text.match(/(?<=\bintended\(')[a-z-]+(?='\))/g) ?? []));
  expect([...met].sort()).toEqual([...ids].sort());
});

it('docs/compatibility.md tells users of each intended difference', () => {
  const docs = readFileSync(new URL('../../docs/compatibility.md', import.meta.url), 'utf8');
  const cases = new Set(docs.split('\n').map((line) => line.split('|')[1]?.trim()));
  expect(ids.filter((id) => !cases.has(INTENDED_DIFFERENCES[id].case))).toEqual([]);
});
