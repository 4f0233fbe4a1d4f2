import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { OWN_ROWS, ROUTER_ROWS } from '../../src/config/settings.js';

const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
const table = readme.slice(readme.indexOf('## Options'), readme.indexOf('## Building llama-server'));
const named = new Set(table.match(/(?<=`)--[a-z-]+/g));
const rows = [...Object.values(OWN_ROWS), ...Object.values(ROUTER_ROWS)];

it('the table of options in the README names every option of ours and of the router, and no other', () => {
  const known = new Set<string>(rows.map(({ name }) => name));
  // Of what is on by default the negation is what a user types.
  for (const name of ['models-autoload', 'watch']) {
    known.delete(`--${name}`);
    known.add(`--no-${name}`);
  }
  expect([...named].sort()).toEqual([...known].sort());
});

it('each link of the README to a file of the repository leads to one', () => {
  const files = [...readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)].map(([, file = '']) => file);
  expect(files.length).toBeGreaterThan(3);
  for (const file of files)
    expect(() => readFileSync(new URL(`../../${file}`, import.meta.url))).not.toThrow();
});
