import { appendFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { newJournal } from '../../helpers/journal.js';

test('is empty before the first entry, and leaves out a line that is still being written', () => {
  const journal = newJournal();
  expect(journal.all()).toEqual([]);

  const start = { event: 'start', atMs: 1, pid: 2, alias: 'alpha' };
  appendFileSync(journal.path, `${JSON.stringify(start)}\n{"event":"ex`);
  expect(journal.all()).toEqual([start]);
  appendFileSync(journal.path, 'it","atMs":3,"pid":2,"alias":"beta","code":0}\n');
  expect(journal.of('exit')).toEqual([{ event: 'exit', atMs: 3, pid: 2, alias: 'beta', code: 0 }]);
  expect(journal.of('exit', 'alpha')).toEqual([]);
});
