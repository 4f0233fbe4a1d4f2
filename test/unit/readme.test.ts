import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { OWN_ROWS, ROUTER_ROWS } from '../../src/config/settings.js';

const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
const table = readme.slice(readme.indexOf('## Options'), readme.indexOf('## Building llama-server'));
const named = new Set(table.match(/(?<=`)--[a-z-]+/g));
const rows = [...Object.values(OWN_ROWS), ...Object.values(ROUTER_ROWS)];

it('the table of options in the README names every option of ours and of the router, and no other', () => {
  // Of what is on by default the negation is what a user types.
  const known = rows.map(({ name, initial }) => (initial === 'on' ? name.replace('--', '--no-') : name));
  expect([...named].sort()).toEqual([...new Set(known)].sort());
});

it.each(['README.md', 'docs/architecture.md', 'docs/compatibility.md', 'docs/http-api.md'])(
  'each link of %s to a file of the repository leads to one',
  (page) => {
    const at = new URL(`../../${page}`, import.meta.url);
    const text = readFileSync(at, 'utf8');
    const files = [...text.matchAll(/\]\((?!https?:|#)([^)#]+)/g)].map(([, file = '']) => file);
    expect(files.length).toBeGreaterThan(0);
    for (const file of files) expect(() => readFileSync(new URL(file, at))).not.toThrow();
  },
);
