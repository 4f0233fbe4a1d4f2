import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, test } from 'vitest';

const source = fileURLToPath(new URL('../../src', import.meta.url));

/** What each part of `src/` may import, besides itself: `docs/architecture.md` says why. */
const common = ['config', 'errors', 'events', 'observe'];
const allowed: Readonly<Record<string, readonly string[]>> = {
  cli: ['commands', 'supervisor', 'instance', 'models', 'demo', ...common],
  commands: ['instance', 'models', ...common],
  supervisor: ['http', 'scheduler', 'instance', 'models', 'demo', ...common],
  http: ['scheduler', 'models', ...common],
  scheduler: ['instance', ...common],
  instance: common,
  models: common,
  demo: [],
  config: [],
  errors: [],
  events: [],
  observe: ['events'],
};

const files = readdirSync(source, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts'))
  .map((file) => join(source, file));

/** The part a file belongs to: its top folder, or its own name at the top. */
function partOf(file: string): string {
  const [first = ''] = relative(source, file).split(sep);
  return first.replace(/\.ts$/, '');
}

/** Files of ours that a file imports, types included. */
function importsOf(file: string): string[] {
  const { importedFiles } = ts.preProcessFile(readFileSync(file, 'utf8'), true, true);
  return importedFiles
    .map(({ fileName }) => fileName)
    .filter((name) => name.startsWith('.'))
    .map((name) => resolve(dirname(file), name.replace(/\.js$/, '.ts')));
}

describe('imports point one way', () => {
  test('every part of src/ is in the table', () => {
    expect([...new Set(files.map(partOf))].sort()).toEqual(Object.keys(allowed).sort());
  });

  test.each(files.map((file) => [relative(source, file), file]))(
    '%s imports only what it may see',
    (_, file) => {
      const part = partOf(file);
      const seen = new Set([part, ...(allowed[part] ?? [])]);
      const forbidden = importsOf(file).filter((imported) => !seen.has(partOf(imported)));
      expect(forbidden.map((imported) => relative(source, imported))).toEqual([]);
    },
  );

  test('the reader of imports sees them all', () => {
    const supervisor = importsOf(join(source, 'supervisor.ts')).map(partOf);
    expect(supervisor).toContain('http');
    expect(supervisor).toContain('scheduler');
  });
});
