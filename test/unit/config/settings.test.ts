import { describe, expect, it } from 'vitest';
import { parseCommandLine } from '../../../src/config/command-line.js';
import { OptionTable } from '../../../src/config/option-table.js';
import { API_KEY_FILE_ROW, OWN_ROWS, ROUTER_ROWS } from '../../../src/config/settings.js';
import { helpText } from '../../../src/config/start-help.js';
import { recordedTable } from './recorded-help.js';

const routerRows = [...Object.values(ROUTER_ROWS), API_KEY_FILE_ROW];
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
    const fields = [...Object.keys(OWN_ROWS), ...Object.keys(ROUTER_ROWS)];
    expect(Object.keys(settings).sort()).toEqual(fields.sort());
    expect(new Set(allRows.map(({ env }) => env)).size).toBe(allRows.length);
  });
});

describe('the help of start', () => {
  it('shows every setting with its variable and default, in lines that fit a terminal', () => {
    const help = helpText();
    for (const { name, env, initial } of allRows) {
      expect(help).toContain(`\n  ${name}`);
      expect(help).toContain(initial === '' ? `(env ${env})` : `(default ${initial}, env ${env})`);
    }
    expect(help.split('\n').filter((line) => line.length > 120)).toEqual([]);
    expect(help).toMatch(/Every other option of the installed llama-server .* is accepted/);
  });
});
