import { describe, expect, it } from 'vitest';
import { OWN_ROWS, ROUTER_ROWS, SETTING_GROUPS } from '../../../src/config/settings.js';
import { helpText } from '../../../src/config/start-help.js';
import { recordedHelp, recordedTable } from './recorded-help.js';

const rows = [...Object.values(ROUTER_ROWS), ...Object.values(OWN_ROWS)];

/** The titles of the help, each with the spellings that its items begin with. */
function sectionsOf(help: string): Map<string, string[]> {
  const sections = new Map<string, string[]>();
  let names: string[] = [];
  for (const line of help.split('\n')) {
    const title = /^(\S.*):$/.exec(line)?.[1];
    if (title !== undefined) sections.set(title, (names = []));
    const name = /^ {2}(-\S*?),? /.exec(`${line} `)?.[1];
    if (name !== undefined) names.push(name);
  }
  return sections;
}

const allNames = (help: string): string[] => [...sectionsOf(help).values()].flat();

describe('the help of start with a binary', () => {
  const help = helpText({ help: recordedHelp }, 100);

  it('lists every option of the binary and every one of ours, each once', () => {
    const ours = Object.values(OWN_ROWS).map(({ name }) => name);
    const expected = [...recordedTable.options.map(({ firstName }) => firstName), ...ours];
    expect(allNames(help).sort()).toEqual(expected.sort());
  });

  it('begins with the sections of the binary and ends with ours', () => {
    const titles = [...sectionsOf(help).keys()];
    expect(titles.slice(0, 4)).toEqual([
      'Common params',
      'Sampling params',
      'Speculative params',
      'Server params',
    ]);
    const ours = Object.values(SETTING_GROUPS);
    expect(titles.slice(-ours.length)).toEqual(ours);
  });

  it('keeps the words of the binary, the lines that its author ended and the variable', () => {
    expect(help.replaceAll(/\n {3,}/g, ' ')).toContain(
      'max. number of layers to store in VRAM, either an exact number, ' +
        "'auto', or 'all' (default: auto) (env: LLAMA_ARG_N_GPU_LAYERS)",
    );
    expect(help).toMatch(/\n +- none: use one GPU only\n +- layer \(default\): split layers and KV/);
  });

  it('lists the options that the router obeys among ours, in any spelling of the binary', () => {
    expect(sectionsOf(help).get(SETTING_GROUPS.scheduling)).toContain('--models-max');
    expect(sectionsOf(help).get('Server params')).not.toContain('--models-max');
    expect(help).toMatch(/^ {2}-to, --timeout SECONDS +How long a connection may be silent/m);
    expect(help).toMatch(/^ {2}--models-autoload, --no-models-autoload$/m);
  });

  it('sets apart what the binary does by itself', () => {
    const titles = [...sectionsOf(help)];
    const namesUnder = (start: string) => titles.find(([title]) => title.startsWith(start))?.[1];
    expect(namesUnder('One model only')).toEqual(
      expect.arrayContaining(['-m', '-hf', '-dr', '--gpt-oss-20b-default']),
    );
    expect(namesUnder('One model only')).not.toContain('-mu');
    expect(namesUnder('Questions')).toEqual([
      '-h',
      '--version',
      '-cl',
      '--completion-bash',
      '--list-devices',
    ]);
  });

  it('says of an option that is not passed on what to do instead', () => {
    expect(help.replaceAll(/\n {3,}/g, ' ')).toMatch(
      /--log-file FNAME +Log to file not passed on to the models: redirect the output/,
    );
  });

  it.each([
    [20, 80],
    [80, 80],
    [97, 97],
    [110, 110],
    [300, 110],
    [undefined, 110],
  ])('at %s columns has lines of at most %i, addresses excepted', (columns, widest) => {
    const lines = helpText({ help: recordedHelp }, columns).split('\n');
    const sticksOut = lines.filter((line) => line.length > widest);
    expect(sticksOut.filter((line) => !/^ *\S*https?:\S*$/.test(line))).toEqual([]);
    expect(Math.max(...lines.filter((line) => !line.includes('://')).map(({ length }) => length))).toBe(
      widest,
    );
  });
});

describe('the help of start without a binary', () => {
  const help = helpText({ obstacle: 'none found\nbuild one' });

  it('says why the options of the binary are missing', () => {
    expect(help).toContain('cannot be shown: none found\nbuild one\n');
  });

  it('shows every setting with its variable and default', () => {
    expect(allNames(help).sort()).toEqual(rows.map(({ name }) => name).sort());
    for (const { env, initial } of rows) {
      expect(help).toContain(initial === '' ? `(env: ${env})` : `(default: ${initial}, env: ${env})`);
    }
  });
});
