import { describe, expect, it } from 'vitest';
import type { OptionValues } from '../../../src/config/option-table.js';
import { renderArgs, renderPreset, RESERVED_KEYS, withoutKeys } from '../../../src/config/render-options.js';
import { recordedTable as table } from './recorded-help.js';

function values(given: Record<string, string>): OptionValues {
  return new Map(
    Object.entries(given).map(([key, text]) => {
      const spelling = table.findKey(key);
      if (spelling === undefined) throw new Error(`${key} is in no table`);
      return [spelling.option, text];
    }),
  );
}

describe('arguments', () => {
  it('come in the order and spelling that the native router gave a child', () => {
    // Observed: a router started with `-c 512 --temp 0.5 -ngl 0 --no-slots -np 1 --metrics`, model alpha.
    const given = values({
      c: '512',
      temp: '0.5',
      ngl: '0',
      slots: '0',
      np: '1',
      metrics: '1',
      model: 'M/alpha.gguf',
      alias: 'alpha',
      host: '127.0.0.1',
      port: '48985',
    });
    expect(renderArgs(given).join(' ')).toBe(
      '--host 127.0.0.1 --metrics --port 48985 --no-slots --temperature 0.5 --alias alpha --ctx-size 512 ' +
        '--model M/alpha.gguf --n-gpu-layers 0 --parallel 1',
    );
  });

  it.each(['off', 'disabled', 'false', '0'])('use the last negative name when a switch is %s', (text) => {
    expect(renderArgs(values({ 'mmproj-auto': text }))).toEqual(['--no-mmproj-auto']);
  });

  it('leave out a switch that is off and has no negative name', () => {
    expect(renderArgs(values({ metrics: 'false', offline: '1' }))).toEqual(['--offline']);
  });

  it.each(['', 'no', 'False'])('turn a switch on for %j, which is no false word', (text) => {
    expect(renderArgs(values({ slots: text }))).toEqual(['--slots']);
  });

  it('keep a value as it is, dashes, blanks and nothing included', () => {
    expect(renderArgs(values({ 'n-predict': '-1', 'chat-template': '', alias: 'a b' }))).toEqual([
      '--chat-template',
      '',
      '--alias',
      'a b',
      '--n-predict',
      '-1',
    ]);
  });

  it('give an option of two values both', () => {
    expect(renderArgs(values({ 'control-vector-layer-range': '1 20' }))).toEqual([
      '--control-vector-layer-range',
      '1',
      '20',
    ]);
    expect(() => renderArgs(values({ 'control-vector-layer-range': '1' }))).toThrow(/two values.*'1'/);
  });

  it('never hold preset-only keys', () => {
    expect(renderArgs(values({ 'load-on-startup': '1', 'stop-timeout': '3', props: 'on' }))).toEqual([
      '--props',
    ]);
  });
});

describe('a printed preset', () => {
  it('has the canonical keys in native order, preset-only ones last, and ends with a blank line', () => {
    expect(
      renderPreset('u/r:Q8_0', values({ 'stop-timeout': '3', c: '512', 'no-host': '1', temp: '0.5' })),
    ).toBe('[u/r:Q8_0]\nno-host = 1\ntemperature = 0.5\nctx-size = 512\nstop-timeout = 3\n\n');
  });

  it('continues a value of several lines with a backslash', () => {
    expect(renderPreset('a', values({ grammar: 'root ::= "a"\nb' }))).toBe(
      '[a]\ngrammar = root ::= "a"\\\nb\n\n',
    );
  });

  it('of nothing is its header', () => {
    expect(renderPreset('a', new Map())).toBe('[a]\n\n');
  });
});

describe('leaving keys out', () => {
  it('goes by the canonical key', () => {
    const kept = withoutKeys(values({ 'api-key': 'k', c: '1', 'no-models-autoload': '0' }), RESERVED_KEYS);
    expect([...kept.keys()].map(({ key }) => key)).toEqual(['ctx-size']);
  });

  it('finds each reserved key in the table', () => {
    expect([...RESERVED_KEYS].filter((key) => table.find(`--${key}`)?.option.key !== key)).toEqual([]);
  });
});
