import { describe, expect, it } from 'vitest';
import { parseCommandLine } from '../../../src/config/command-line.js';
import { OptionTable } from '../../../src/config/option-table.js';
import { OWN_ROWS, ROUTER_ROWS } from '../../../src/config/settings.js';
import { recordedTable } from './recorded-help.js';

const routerRows = Object.values(ROUTER_ROWS);
const allRows = [...Object.values(OWN_ROWS), ...routerRows];

describe('the tables of settings', () => {
  it('name the native options and their variables as the recorded binary does', () => {
    for (const { name, env, kind } of routerRows) {
      const option = recordedTable.find(name)?.option;
      expect(option).toMatchObject({ env, valueCount: kind.placeholder === undefined ? 0 : 1 });
    }
  });

  it('shadow no option of the recorded binary with one of ours', () => {
    expect(Object.values(OWN_ROWS).filter(({ name }) => recordedTable.find(name) !== undefined)).toEqual([]);
  });

  it('have a default that can be read, and a variable, of each setting’s own', () => {
    const { settings } = parseCommandLine([], OptionTable.parse(''), {});
    const fields = [...Object.keys(OWN_ROWS), ...Object.keys(ROUTER_ROWS), 'fixedApiKeys'];
    expect(Object.keys(settings).sort()).toEqual(fields.sort());
    expect(new Set(allRows.map(({ env }) => env)).size).toBe(allRows.length);
  });
});
