import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';

const root = new URL('../../', import.meta.url);

function linesOf(path: string): string[] {
  return readFileSync(new URL(path, root), 'utf8').split('\n');
}

it('docs/http-api.md tells every reason for which a request can be refused, with its status', () => {
  const told = linesOf('docs/http-api.md').flatMap((line) => {
    const [, reason, status] = /^\| `(\w+)` +\| (\d{3}) /.exec(line) ?? [];
    return reason === undefined ? [] : [[reason, Number(status)]];
  });
  const catalogued = linesOf('src/errors.ts').flatMap((line) => {
    const [, code, status] = /^ {2}(\w+): \{ status: (\d{3}),/.exec(line) ?? [];
    return code === undefined ? [] : [[code, Number(status)]];
  });
  expect(catalogued.length).toBeGreaterThan(0);
  expect(told).toEqual(catalogued);
});
